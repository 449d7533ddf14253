"""The action-conditioned world model, VJepa2WorldModel: encode, forward (training), rollout, score.

Shapes: B episodes, T frames, V views (cameras), C channels, H W pixels, N tokens of a frame (of V views: V·N, one view
after the other), D width of a latent, d width of the dynamics, A action, S proprio state, E extrinsics, Z size of the
stochastic latent, J candidates, j of a chunk, K samples, P steps of a rollout, W frames of the window
(`context_frames`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .configuration_world_model import VJepa2WorldModelConfig
from .modeling_base import TargetEncoderMixin, VJepa2PreTrainedModel
from .modeling_costs import check_distance_head, cost_of_arguments, fit_whitening, keep_whitening
from .modeling_dynamics import DYNAMICS, VJepa2WorldModelOutput, init_dynamics
from .modeling_embodiments import (
    add_embodiment,
    encode_macro_actions,
    fit_embodiment,
    freeze_trunk,
    macro_action_model,
    pad_inputs,
    training_inputs,
)
from .modeling_encoder import VJepa2Encoder, as_encoder
from .modeling_heads import VJepa2DistanceHead, VJepa2GaussianHead, VJepa2RewardHead
from .modeling_layers import power_loss
from .modeling_learned_state import VJepa2LearnedState, arranged_latents, check_square, warn_if_unnormalized
from .modeling_rollout import rollout_chunks, rollout_context, rollout_loss, sample_noise, score_candidates
from .modeling_state import (
    check_chunk_size,
    check_scored,
    check_view_tokens,
    empty_state_map,
    fit_state_map,
    frame_shape,
    given_frames,
    known_episodes,
    match_dtype,
    one_hot_actions,
    random_views,
    stack_views,
    standardized_state,
    state_shape,
    tokens_of_views,
    view_indices,
)
from .specs import check_flag, check_generator, check_number, check_tensor, refuse


class VJepa2WorldModel(TargetEncoderMixin, VJepa2PreTrainedModel):
    """An encoder, and dynamics that predict how the latents of a frame change under an action.

    ::

        frames ──► encoder, each frame alone ──► LayerNorm ──► (fitted map) ──► latents s_t ─┐
        actions ─► action token a_t ─────────────────────────────────────────────────────────┼─► dynamics ─► ŝ_{t+1}
        proprio states, extrinsics ─► their tokens ──────────────────────────────────────────┘

    A prediction sees only the last `context_frames` frames, in training, in rollouts and in planning. Within them
    attention is block-causal: a token attends to its own and all earlier frames (arXiv 2506.09985, sec. 3). With
    `context_frames=1` it is the Markov model g(s_t, a_t) of the two-phase recipe.

    The encoder is frozen, or trained too with `freeze_encoder=False`. Then s_t is from the online encoder, with
    gradient, and the targets are from its EMA copy `target_encoder`, without; call `update_target_encoder(0.9999)`
    after every step (two-phase recipe, Algorithm 2 line 10).

    Optional heads, which do not change the dynamics: with `stochastic_dim` one predicts the error as a Gaussian, from
    which a rollout may sample ([`VJepa2GaussianHead`]); with `reward_head` one predicts the reward; with
    `distance_head` one estimates the time between two frames ([`VJepa2DistanceHead`]).

    With `num_views` > 1 a frame is what several cameras see, (B, T, V, C, H, W) or a dict of camera names -> (B, T, C,
    H, W), and its latents are (B, T, V·N, D). A dict may lack cameras; a tensor of fewer comes with `views`, their
    names or indices. With `num_embodiments` > 1 `embodiment_ids` (B,), or one index or name for all rows, say whose
    actions and states are given: padded with zeros to A and S or, with one for all rows, of its own sizes.

    Example:
        >>> wm = VJepa2WorldModel.from_encoder("runs/demo/pretrain/final", action_dim=2, context_frames=1)
        >>> latents = wm.encode(frames)  # (B, T, C, H, W) -> (B, T, N, D)
        >>> future = wm.rollout(latents[:, :1], actions)  # actions (B, P, A) -> (B, P, N, D)
    """

    config: VJepa2WorldModelConfig
    _supports_flash_attn = False  # has no block-causal masks; FlexAttention does
    _can_record_outputs = {}
    renamed_weights = {
        r"^chance_head\.": "stochastic_head.",
        r"^predictor\.place_embedding$": "predictor.position_embedding",
    }

    def __init__(self, config: VJepa2WorldModelConfig):
        super().__init__(config)
        self._has_seen_pixels = False
        if not config.reads_pixels:
            self.encoder = VJepa2Encoder(config.encoder_config).requires_grad_(not config.freeze_encoder)
        if not config.freeze_encoder:
            self.target_encoder = VJepa2Encoder(config.encoder_config).requires_grad_(False)
        learned = config.state_type == "learned"
        self.state_network = VJepa2LearnedState(config).requires_grad_(False) if learned else None
        if config.state_fitted:
            self._register_state(*empty_state_map(config))
        self.register_buffer("state_whitening", torch.eye(self.latent_size) if config.state_whitened else None)
        self.register_load_state_dict_pre_hook(keep_whitening)
        self.predictor = DYNAMICS[config.dynamics_type](config)
        if config.reward_head:
            self.reward_head = VJepa2RewardHead(config)
        if config.stochastic_dim:
            self.stochastic_head = VJepa2GaussianHead(config)
        if config.distance_head:
            self.distance_head = VJepa2DistanceHead(config)
        self.post_init()
        if not config.freeze_encoder:
            self.update_target_encoder(momentum=0.0)

    @classmethod
    def from_encoder(cls, encoder: "str | VJepa2Encoder", **config) -> "VJepa2WorldModel":
        """A world model with new dynamics on a trained encoder, in float32.

        Args:
            encoder: a [`VJepa2Encoder`], or a folder or Hub id to load one from.
            config: fields of [`VJepa2WorldModelConfig`].
        """
        encoder = as_encoder(encoder)
        model = cls(VJepa2WorldModelConfig(encoder_config=encoder.config.to_dict(), **config))
        if not model.config.reads_pixels:
            model.encoder.load_state_dict(encoder.state_dict())
        if not model.config.freeze_encoder:
            model.update_target_encoder(momentum=0.0)
        return model

    def train(self, mode: bool = True):
        """As in PyTorch; a frozen encoder, or the target encoder, stays in evaluation mode."""
        super().train(mode)  # what follows is repeated here because `from_pretrained` makes new parameters
        for name in ("encoder" if self.config.freeze_encoder else "target_encoder", "state_network"):
            if getattr(self, name, None) is not None:
                getattr(self, name).eval().requires_grad_(False)
        if self.config.stored_extrinsics_dim and not self.config.extrinsics_dim:
            self.predictor.extrinsics_encoder.requires_grad_(False)  # kept unused, to convert the model back
        return self

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        init_dynamics(self.config, module)

    @property
    def tokens_per_frame(self) -> int:
        """N, or V·N of several views, of square frames of the configured size."""
        return frame_shape(self.config)[0]

    @property
    def tokens_per_view(self) -> int:
        """N of one view."""
        return state_shape(self.config)[0]

    @property
    def latent_size(self) -> int:
        """D."""
        return state_shape(self.config)[1]

    # --- Encode

    @torch.no_grad()
    def encode(self, pixel_values_videos: torch.Tensor | dict, views: Sequence | None = None) -> torch.Tensor:
        """Frames (B, T, C, H, W) from the video processor, each encoded alone -> latents (B, T, N, D); before a map is
        fitted, arranged latents (B, T, n, m), which `fit_state` takes. Several cameras: see above."""
        return self._encode_with(getattr(self, "encoder", None), pixel_values_videos, views)[0]

    @torch.no_grad()
    def encode_targets(self, pixel_values_videos: torch.Tensor | dict, views: Sequence | None = None) -> torch.Tensor:
        """As `encode`, for training targets and goals: with `freeze_encoder=False` from the EMA encoder."""
        return self._encode_with(self._target_encoder(), pixel_values_videos, views)[0]

    def _target_encoder(self) -> VJepa2Encoder | None:
        return getattr(self, "encoder", None) if self.config.freeze_encoder else self.target_encoder

    def _encode_with(
        self, encoder: VJepa2Encoder | None, pixel_values_videos: torch.Tensor | dict, views: Sequence | None, *names
    ) -> tuple[torch.Tensor, tuple[int, ...] | None]:
        """Latents of frames, and the indices of their views (`None`: all); `names` of both, for errors."""
        frames, views = stack_views(self.config, pixel_values_videos, views, *names)
        frames = frames.flatten(1, 2) if self.config.num_views > 1 else frames  # (B, T · V, C, H, W)
        check_square(self.config, frames)
        if not (self._has_seen_pixels or torch.compiler.is_compiling() or frames.is_meta):
            self._has_seen_pixels = True  # only the first call waits for the device
            warn_if_unnormalized(frames)
        latents = arranged_latents(self.config, encoder, self.state_network, frames)  # (B, T · V, n, m)
        if self.config.num_views > 1:
            latents = latents.unflatten(1, (-1, self.config.num_views if views is None else len(views))).flatten(2, 3)
        return match_dtype(self.standardize(latents, views), self.predictor.embed.weight), views

    def split_views(self, latents: torch.Tensor, views: Sequence | None = None) -> torch.Tensor:
        """Latents (..., V·N, D) -> (..., V, N, D), which a decoder takes; `views` as in `encode`."""
        views = view_indices(self.config, views)
        check_view_tokens(self.config, check_tensor("latents", latents, "(..., V·N, D)"), views)
        return latents.unflatten(-2, (self.config.num_views if views is None else len(views), -1))

    @torch.no_grad()
    def fit_state(self, latents: torch.Tensor | Sequence[torch.Tensor]) -> None:
        """Fits the map of the state, which is saved with the weights: subtract the mean at every position and channel,
        map linearly to `state_dim` if configured, divide by one global standard deviation.

        Args:
            latents: (..., n, m) from `encode` before fitting, or a list of episodes (T, n, m); `standardize` maps them
                afterwards. `state_projection="slow"` and `distance="whitened"` need episodes: (E, T, n, m), or a list.
        """
        if self.config.state_fitted:
            raise ValueError("the state is already fitted: start from a new world model to fit it on other latents.")
        self._register_state(*fit_state_map(self.config, latents))
        self.config.state_fitted = True
        self.state_whitening = fit_whitening(map(self.standardize, known_episodes(latents)))
        self.config.state_whitened = self.state_whitening is not None

    def standardize(self, latents: torch.Tensor, views: Sequence | None = None) -> torch.Tensor:
        """Arranged latents (..., n, m) -> the state (..., N, D) of the dynamics; unchanged before `fit_state`."""
        if not self.config.state_fitted:
            return latents
        parts = (self.state_mean, getattr(self, "state_map", None), self.state_scale)
        return standardized_state(self.config, latents, view_indices(self.config, views), *parts)

    def _register_state(self, *mean_map_scale: torch.Tensor | None) -> None:
        for name, value in zip(("state_mean", "state_map", "state_scale"), mean_map_scale, strict=True):
            if value is not None:
                self.register_buffer(name, value)

    # --- Training

    def forward(
        self,
        pixel_values_videos: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        actions: torch.Tensor | None = None,
        proprio_states: torch.Tensor | None = None,
        extrinsics: torch.Tensor | None = None,
        teacher_forcing_weight: float | None = None,
        rollout_weight: float | None = None,
        rewards: torch.Tensor | None = None,
        embodiment_ids: torch.Tensor | int | str | None = None,
        views: Sequence | None = None,
    ) -> VJepa2WorldModelOutput:
        """Teacher-forcing and rollout loss of episodes, plus the losses of the optional heads.

        A reward head adds reward_weight · reward_loss, a stochastic latent nll_weight · (nll_loss + that of every
        number alone); their gradients reach only their heads.

        Args:
            pixel_values_videos: frames (B, T, C, H, W), or
            latents: (B, T, N, D) from `encode` (cached), with a frozen encoder.
            actions: (B, T-1, A) in environment units; discrete ones as one-hot floats, or as int64 categories (B, T-1)
                or, for k actions per step, (B, T-1, k).
            proprio_states, extrinsics: (B, T, S) in environment units and (B, T, E), if the model has them.
            teacher_forcing_weight, rollout_weight: replace the configured ones; a loss with weight 0 is not computed.
            rewards: (B, T-1) in environment units, if the model has a reward head.
            embodiment_ids, views: (B,) of several embodiments; the cameras of frames or latents of fewer than all.
        """
        config, losses, heads = self.config, {}, {}
        if teacher_forcing_weight is not None:
            teacher_forcing_weight = check_number("teacher_forcing_weight", teacher_forcing_weight, at_least=0)
        if rollout_weight is not None:
            rollout_weight = check_number("rollout_weight", rollout_weight, at_least=0)
        latents, targets, views = self._training_latents(pixel_values_videos, latents, views)
        given = (actions, proprio_states, extrinsics, embodiment_ids, views)
        inputs = training_inputs(config, latents, *given)
        if config.reward_head:
            heads["reward_loss"] = self.reward_head.loss(inputs, targets, rewards)
        elif rewards is not None:
            raise ValueError("rewards were given, but the model has no reward head: set reward_head=True.")

        hidden_states = predicted = cache = None
        loss, rollout = 0, config.rollout_weight if rollout_weight is None else rollout_weight
        if teacher_forcing_weight != 0:  # a configured 0 is computed, to be logged
            hidden_states, cache = self.predictor.hidden_states_and_cache(inputs)
            predicted = self.predictor.next_latents(hidden_states, inputs)
            losses["teacher_forcing_loss"] = self.predictor.loss(predicted, targets, inputs)
            forcing = config.teacher_forcing_weight if teacher_forcing_weight is None else teacher_forcing_weight
            loss = loss + forcing * losses["teacher_forcing_loss"]
        if rollout:
            losses["rollout_loss"] = rollout_loss(self.predictor, inputs, targets, predicted, cache)
            loss = loss + rollout * losses["rollout_loss"]
        if config.stochastic_dim:
            heads["nll_loss"], margins = self.stochastic_head.losses(self.predictor, inputs, hidden_states, targets)
            loss = loss + config.nll_weight * (heads["nll_loss"] + margins)
        if config.reward_head:
            loss = loss + config.reward_weight * heads["reward_loss"]
        return VJepa2WorldModelOutput(loss=loss, predicted_latents=predicted, **losses, **heads)

    def _training_latents(
        self, pixel_values_videos: torch.Tensor | dict | None, latents: torch.Tensor | None, views: Sequence | None
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...] | None]:
        """States that predictions start from and their targets, (B, T-1, N, D) each, and the views they hold."""
        given, views = given_frames(self.config, pixel_values_videos, latents, views)
        if self.config.freeze_encoder:
            latents, views = self._as_latents(given, views)
            seen, targets = latents[:, :-1], latents[:, 1:]
        else:
            seen, views = self._encode_with(self.encoder, given[:, :-1], views)
            targets = self.encode_targets(given[:, 1:], views)
        if self.training and (kept := random_views(self.config, views)) != views:
            tokens = tokens_of_views(self.config, views, kept, seen.shape[2], seen.device)
            seen, targets, views = seen[:, :, tokens], targets[:, :, tokens], kept
        return seen, targets, views

    def latent_loss(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """mean |ŝ − s|^p / p over episodes, steps, tokens and channels (p = 1 published, p = 2 two-phase recipe)."""
        return power_loss(predicted, target, self.config.loss_exponent)

    # --- Macro-actions

    def encode_actions(self, actions: torch.Tensor) -> torch.Tensor:
        """Actions (..., A) of model steps in environment units -> macro-actions (..., M), numbers within -1 and 1."""
        return encode_macro_actions(self, actions)

    def macro_model(self) -> "VJepa2WorldModel":
        """This model with macro-actions as its actions (`action_dim` is M, the bounds are those of the training data),
        for rollouts, scores and solvers. It shares the weights, and has no reward head."""
        return macro_action_model(self)

    # --- Rollout

    def rollout(
        self,
        latents: torch.Tensor,
        actions: torch.Tensor,
        context_actions: torch.Tensor | None = None,
        proprio_states: torch.Tensor | None = None,
        extrinsics: torch.Tensor | None = None,
        candidate_chunk_size: int | None = None,
        use_cache: bool = True,
        generator: torch.Generator | None = None,
        embodiment_ids: torch.Tensor | int | str | None = None,
        views: Sequence | None = None,
    ) -> torch.Tensor:
        """Predicts the latents that follow under given actions.

        With a stochastic latent it is the mean prediction, or with a generator one sample per candidate. For K samples
        repeat the actions: `actions.unsqueeze(1).expand(-1, K, -1, -1)`.

        Args:
            latents: (B, T0, N, D) from `encode`; the last is the present.
            actions: (B, P, A), or (B, J, P, A) for J candidates; environment units. Discrete ones also as int64
                categories, see `forward`.
            context_actions: (B, T0-1, A), needed when T0 > 1.
            proprio_states: (B, T0, S), continued by `proprio_transition`; or (B, T0+P, S), used as given.
            extrinsics: (B, T0, E), of which the last is held, or (B, T0+P, E).
            candidate_chunk_size, use_cache: candidates per forward (`None` chooses by size) and whether keys and
                values of earlier steps are reused; memory and time depend on them, the result does not.
            generator: noise of the samples, for a model with `stochastic_dim`.
            embodiment_ids, views: as in `forward`.

        Returns:
            (B, P, N, D), or (B, J, P, N, D).
        """
        check_chunk_size(candidate_chunk_size)
        latents, views = self._as_latents(check_tensor("latents", latents, "(B, T0, N, D)"), views)
        check_flag("use_cache", use_cache)
        check_generator("generator", generator)
        actions = one_hot_actions(self.config, actions)
        if actions is None or actions.ndim not in (3, 4):
            refuse("actions", actions, "a tensor (B, P, A) or (B, J, P, A)")
        candidates = actions.unsqueeze(1) if actions.ndim == 3 else actions
        noise = None if generator is None else sample_noise(self, candidates.shape[:-1], latents.shape[2], generator)
        (candidates,), _ = pad_inputs(self.config, embodiment_ids, *latents.shape[:2], [candidates], None)
        given = (latents, context_actions, proprio_states, extrinsics, embodiment_ids, views)
        context = rollout_context(self.config, *given)
        chunks = rollout_chunks(self, context, candidates, candidate_chunk_size, use_cache, noise)
        future = torch.cat([torch.stack(list(steps), dim=2) for steps in chunks], dim=1)
        return future.squeeze(1) if actions.ndim == 3 else future

    # --- Score

    def score(
        self,
        observation: torch.Tensor,
        goal: torch.Tensor | None,
        actions: torch.Tensor,
        context_actions: torch.Tensor | None = None,
        proprio_states: torch.Tensor | None = None,
        extrinsics: torch.Tensor | None = None,
        distance: str | None = None,
        candidate_chunk_size: int | None = None,
        num_samples: int = 1,
        uncertainty_weight: float = 0.0,
        generator: torch.Generator | None = None,
        cost: Any = None,
        goal_proprio_states: torch.Tensor | None = None,
        embodiment_ids: torch.Tensor | int | str | None = None,
        views: Sequence | None = None,
        goal_views: Sequence | None = None,
    ) -> torch.Tensor:
        """Planning cost of given actions: by default the distance of the last predicted latents to the goal's.

        Gradient flows to actions that require it. Each of several chunks is then recomputed in the backward pass.

        Args:
            observation: frames (B, T0, C, H, W) or latents (B, T0, N, D); the last is the present.
            goal: a frame (B, 1, C, H, W) or latents (B, 1, N, D) or (B, N, D); `None` for a cost that needs none.
            actions: (B, J, P, A) in environment units.
            context_actions, proprio_states, extrinsics, candidate_chunk_size, embodiment_ids, views: as in `rollout`.
            distance: "l2" (mean squared), "l1", "cosine" or "whitened", short for `cost=LatentDistance(distance)`.
            num_samples: K samples of a stochastic latent over which the cost is averaged; 1 uses the mean prediction.
            uncertainty_weight: w, short for adding `w * Uncertainty()` to the cost.
            generator: noise of the samples, shared by all candidates; `None`: the same noise in every call.
            cost: terms of `vjepa2_hf.planning`, such as `LatentDistance("l1") + 0.1 * ActionPenalty()`, or a name.
                `None`: `LatentDistance("l2")`, or `Reward()` without a goal.
            goal_proprio_states: (B, S) or (B, 1, S), for `ProprioDistance`.
            goal_views: cameras of the goal, some of the observation's; `None`: the same. They alone are compared.

        Returns:
            (B, J), lower is better.
        """
        check_chunk_size(candidate_chunk_size)
        terms = cost_of_arguments(cost, distance, uncertainty_weight, goal is not None, self.config.reward_head)
        check_scored(observation, goal, goal_views, num_samples, generator)
        latents, views = self._as_latents(observation, views, None, "observation", "views")
        if goal is not None:
            goal_views = views if goal_views is None and not isinstance(goal, dict) else goal_views
            goal, goal_views = self._as_latents(goal, goal_views, self._target_encoder(), "goal", "goal_views")
        context = {"latents": latents, "actions": context_actions, "proprio_states": proprio_states}
        context |= {"extrinsics": extrinsics, "embodiment": embodiment_ids, "views": views}
        given = (terms, goal, goal_views, goal_proprio_states, actions, context)
        return score_candidates(self, *given, candidate_chunk_size, num_samples, generator)

    def _as_latents(
        self, given: torch.Tensor | dict, views: Sequence | None, encoder: VJepa2Encoder | None = None, *names: str
    ) -> tuple[torch.Tensor, tuple[int, ...] | None]:
        """Latents of frames, from `encoder` or the online one, or given ones in the precision of the dynamics; and the
        indices of their views (`None`: all); `names` of both, for errors."""
        if isinstance(given, dict) or given.ndim > 4:
            with torch.no_grad():
                return self._encode_with(encoder or getattr(self, "encoder", None), given, views, *names)
        views = view_indices(self.config, views, *names[1:])
        check_view_tokens(self.config, given, views, *names)
        return match_dtype(given, self.predictor.embed.weight), views

    def predict_rewards(self, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Rewards (..., T-1) of the steps between latents (..., T, N, D), such as a present and the output of
        `rollout`, under actions (..., T-1, A), all in environment units; float32, with gradient."""
        if not self.config.reward_head:
            raise ValueError("the model has no reward head: train one with reward_head=True and rewards in the data.")
        return self.reward_head.predict(latents, actions)

    # --- Distance

    def temporal_distance(self, latents: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        """How many frames of video (not model steps) it takes from latents (..., N, D) to a goal's, which broadcast:
        (...), float32, with gradient. It may be farther one way than back."""
        return self.embedded_distance(self.distance_embedding(latents), self.distance_embedding(goal))

    def distance_embedding(self, latents: torch.Tensor) -> torch.Tensor:
        """Embeddings (..., E) of latents (..., N, D), for many distances between the same frames."""
        check_distance_head(self.config)
        return self.distance_head(latents)

    def embedded_distance(self, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        """`temporal_distance` from and to embeddings (..., E), which broadcast: (...)."""
        check_distance_head(self.config)
        return self.distance_head.between(start, end)

    def add_distance_head(self) -> None:
        """Gives the model a new distance head, of the config's sizes, in place of one that it may have.
        `vjepa2_hf.training.temporal_distance` trains it."""
        self.config.distance_head = True
        self.distance_head = VJepa2DistanceHead(self.config).to(self.device, self.dtype)

    # --- Embodiments

    def add_embodiment(
        self,
        action_dim: int | None = None,
        proprio_dim: int | None = None,
        name: str | None = None,
        proprio_transition: str | None = None,
        **vectors: Sequence[float],
    ) -> int:
        """Gives a trained model projections for the actions and proprio states of one more embodiment, and returns its
        index. All other weights, and the predictions for the others, stay as they are.

        Args:
            action_dim, proprio_dim, proprio_transition: see the config; `None`: as the largest, no state, "hold".
            vectors: `action_low`, `action_high`, `action_mean`, `action_std`, `proprio_mean`, `proprio_std`.
        """
        sizes = {"action_dim": action_dim, "proprio_dim": proprio_dim, "proprio_transition": proprio_transition}
        return add_embodiment(self, name, sizes, vectors)

    def fit_embodiment(self, embodiment: int | str, latents: torch.Tensor) -> None:
        """Measures the mean and deviation of an embodiment's states, and their change in a step, from its episodes of
        latents (B, T, N, D): the units of the dynamics and the loss. Call it after `fit_state`, before training."""
        fit_embodiment(self, embodiment, latents)

    def freeze_trunk(self, embodiment: int | str = -1) -> None:
        """Freezes all weights but the projections and the embedding of an embodiment (by default the last), to train
        them alone. Call it after loading; `train()` keeps it."""
        freeze_trunk(self, embodiment)
