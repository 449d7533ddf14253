"""Learning to predict: an action-conditioned model of how a frozen encoder's latents change.

Shapes: B episodes, T frames, N tokens of a frame, D width of a latent, d width of the dynamics, A action, S proprio
state, E extrinsics, J candidates, P steps of a rollout, W frames of the window (`context_frames`).
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import nn
from transformers import initialization as init
from transformers.utils import ModelOutput

from .configuration_vjepa2 import VJepa2EncoderConfig, VJepa2WorldModelConfig
from .modeling_dynamics import Inputs, KeyValues, VJepa2Dynamics, latent_size
from .modeling_encoder import VJepa2Encoder, VJepa2PreTrainedModel, as_encoder, clip_grid
from .pose import move_pose


@dataclass
class VJepa2WorldModelOutput(ModelOutput):
    """Output of [`VJepa2WorldModel`].

    loss: teacher_forcing_weight · teacher_forcing_loss + rollout_weight · rollout_loss.
    teacher_forcing_loss: one step ahead from true latents.
    rollout_loss: the first `rollout_steps` steps from the first frame, fed with predictions; `None` when its weight
        is 0.
    predicted_latents: (B, T-1, N, D), one step ahead from true latents.
    """

    loss: torch.Tensor | None = None
    teacher_forcing_loss: torch.Tensor | None = None
    rollout_loss: torch.Tensor | None = None
    predicted_latents: torch.Tensor | None = None


class VJepa2WorldModel(VJepa2PreTrainedModel):
    """A frozen encoder and a transformer that says what a frame's latents become under an action.

    ::

        frames ──► encoder, each frame alone ──► LayerNorm ──► (standardise) ──► latents s_t ─┐
        actions ─► action token a_t ──────────────────────────────────────────────────────────┼─► dynamics ─► ŝ_{t+1}
        proprio states, extrinsics ─► their tokens ───────────────────────────────────────────┘

    A prediction sees the last `context_frames` frames and nothing earlier: in training, in rollouts, in planning.
    Within the window attention is block-causal: a frame's tokens see each other and all earlier frames
    (arXiv 2506.09985, sec. 3). With `context_frames=1` it is seed 003's Markov model g(s_t, a_t).

    Args:
        config ([`VJepa2WorldModelConfig`]): sizes; weights are random.

    Example:
        >>> wm = VJepa2WorldModel.from_encoder("runs/demo/pretrain/final", action_dim=2, context_frames=1)
        >>> latents = wm.encode(frames)  # (B, T, C, H, W) -> (B, T, N, D)
        >>> future = wm.rollout(latents[:, :1], actions)  # actions (B, P, A) -> (B, P, N, D)
    """

    config: VJepa2WorldModelConfig
    _supports_flash_attn = False  # block-causal masks
    _can_record_outputs = {}

    def __init__(self, config: VJepa2WorldModelConfig):
        super().__init__(config)
        encoder_config: VJepa2EncoderConfig = config.encoder_config
        if config.state_type == "tokens":
            self.encoder = VJepa2Encoder(encoder_config).requires_grad_(False)
        self.predictor = VJepa2Dynamics(config)
        if config.state_fitted:
            self._register_state(torch.zeros(self.tokens_per_frame, self.latent_size), torch.ones(()))
        self.post_init()

    @classmethod
    def from_encoder(cls, encoder: "str | VJepa2Encoder", **config) -> "VJepa2WorldModel":
        """A world model with new dynamics on a trained encoder, in float32 whatever the encoder's dtype.

        Args:
            encoder: a [`VJepa2Encoder`], or a folder or Hub id that one loads from (of a masked-latent model the
                target encoder is taken).
            config: fields of [`VJepa2WorldModelConfig`].
        """
        encoder = as_encoder(encoder)
        model = cls(VJepa2WorldModelConfig(encoder_config=encoder.config.to_dict(), **config))
        if config.get("state_type") != "pixels":
            model.encoder.load_state_dict(encoder.state_dict())
        return model

    def train(self, mode: bool = True):
        super().train(mode)
        if self.config.state_type == "tokens":
            self.encoder.eval().requires_grad_(False)  # `from_pretrained` makes new parameters
        if self.config.stored_extrinsics_dim and not self.config.extrinsics_dim:
            self.predictor.extrinsics_encoder.requires_grad_(False)  # kept for the way back, without a use
        return self

    @property
    def tokens_per_frame(self) -> int:
        """N of a square frame of the configured size."""
        return (self.config.encoder_config.crop_size // self.config.encoder_config.patch_size) ** 2

    @property
    def latent_size(self) -> int:
        """D."""
        return latent_size(self.config)

    # ------------------------------------------------------------------------------------------------ state

    @torch.no_grad()
    def encode(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        """Frames (B, T, C, H, W), each on its own -> latents (B, T, N, D), standardised once `fit_state` was
        called."""
        batch_size, config = len(pixel_values_videos), self.config
        _, rows, columns = clip_grid(config.encoder_config, pixel_values_videos[:, :1])  # refuses wrong shapes
        if rows != columns:
            raise ValueError(
                f"frames are {tuple(pixel_values_videos.shape[-2:])} pixels; the world model takes squares: crop or "
                "resize."
            )
        if config.state_type == "pixels":
            patch = config.encoder_config.patch_size
            latents = rearrange(pixel_values_videos, "b t c (h p) (w q) -> (b t) (h w) (c p q)", p=patch, q=patch)
        else:
            latents = self.encoder(pixel_values_videos.flatten(0, 1).unsqueeze(1)).last_hidden_state
        if config.normalize_latents == "layer":
            latents = nn.functional.layer_norm(latents, latents.shape[-1:])
        return self.standardize(latents.unflatten(0, (batch_size, -1)))

    @torch.no_grad()
    def fit_state(self, latents: torch.Tensor) -> None:
        """Fits the fixed map of the state, which is saved with the weights: minus the mean at every place and channel,
        divided by one deviation of all.

        Args:
            latents: (..., N, D) as `encode` gave them before; put them through `standardize` afterwards.

        Raises:
            ValueError: when the state is fitted already, or the latents have another shape.
        """
        if self.config.state_fitted:
            raise ValueError("the state is fitted already: start from a new world model to fit it on other latents.")
        expected = (self.tokens_per_frame, self.latent_size)
        if tuple(latents.shape[-2:]) != expected:
            raise ValueError(
                f"latents have shape {tuple(latents.shape)}; expected (..., {expected[0]}, {expected[1]})."
            )
        flat = latents.flatten(0, -3)
        mean = flat.mean(dim=0)
        squares = sum((part - mean).square().sum(dtype=torch.float64) for part in flat.split(1024))
        self._register_state(mean, (squares / flat.numel()).sqrt().to(mean.dtype))
        self.config.state_fitted = True

    def standardize(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (..., N, D) of an encoder -> the state that the dynamics works on. Unchanged before `fit_state`."""
        if not self.config.state_fitted:
            return latents
        if latents.shape[-2] != len(self.state_mean):
            raise ValueError(
                f"the frame has {latents.shape[-2]} tokens, but the state was fitted on {len(self.state_mean)}: "
                "resize "
                f"frames to {self.config.encoder_config.crop_size} pixels."
            )
        return (latents - self.state_mean) / self.state_scale

    def _register_state(self, mean: torch.Tensor, scale: torch.Tensor) -> None:
        self.register_buffer("state_mean", mean)
        self.register_buffer("state_scale", scale)

    # ------------------------------------------------------------------------------------------------ training

    def forward(
        self,
        pixel_values_videos: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        actions: torch.Tensor | None = None,
        proprio_states: torch.Tensor | None = None,
        extrinsics: torch.Tensor | None = None,
        teacher_forcing_weight: float | None = None,
        rollout_weight: float | None = None,
    ) -> VJepa2WorldModelOutput:
        """Teacher-forced and rollout loss of episodes.

        Args:
            pixel_values_videos: frames (B, T, C, H, W), or
            latents: (B, T, N, D) as `encode` gives them (cached).
            actions: (B, T-1, A) in environment units.
            proprio_states: (B, T, S) in environment units, when the model has them; extrinsics (B, T, E) likewise.
            teacher_forcing_weight, rollout_weight: replace the configured weights, for schedules; a loss whose weight
                is given as 0 is not computed.
        """
        if (pixel_values_videos is None) == (latents is None):
            raise ValueError("give either pixel_values_videos or latents (and not both).")
        latents = self.encode(pixel_values_videos) if latents is None else latents
        self._check_inputs(latents, actions, latents.shape[1] - 1, proprio_states, extrinsics)
        inputs = self._normalized(latents, *_like(latents, actions, proprio_states, extrinsics))
        targets = latents[:, 1:]

        predicted, losses = None, {}
        if teacher_forcing_weight != 0:
            predicted = self._predict(inputs.map(lambda part: part[:, : targets.shape[1]]))
            losses["teacher_forcing_loss"] = self.latent_loss(predicted, targets)
        if rollout_weight is None and self.config.rollout_weight or rollout_weight:
            losses["rollout_loss"] = self._rollout_loss(inputs, predicted, targets)
        weights = {
            "teacher_forcing_loss": _first_given(teacher_forcing_weight, self.config.teacher_forcing_weight),
            "rollout_loss": _first_given(rollout_weight, self.config.rollout_weight),
        }
        loss = sum(weights[name] * value for name, value in losses.items())
        return VJepa2WorldModelOutput(loss=loss, predicted_latents=predicted, **losses)

    def latent_loss(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """mean |ŝ − s|^p / p over episodes, steps, tokens and channels (p = 1 published, p = 2 seed 003)."""
        difference = predicted.float() - target.float()
        return difference.abs().mean() if self.config.loss_exponent == 1 else difference.square().mean() / 2

    def _rollout_loss(self, inputs: Inputs, predicted: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """(1/H) Σ_k λ^(k−1) loss_k from the first frame (seed 003, sec. 4.6); step 1 is the teacher-forced one, and
        the gradient passes through the whole rollout."""
        horizon, discount = self.config.rollout_steps, self.config.rollout_discount
        if targets.shape[1] < horizon:
            raise ValueError(
                f"episodes have {targets.shape[1] + 1} frames; rollout_steps={horizon} needs {horizon + 1} or more."
            )
        window = inputs.map(lambda part: part[:, :1])
        step = self._predict(window) if predicted is None else predicted[:, :1]
        losses = [self.latent_loss(step, targets[:, :1])]
        for k in range(1, horizon):
            frame = inputs.map(lambda part, k=k: part[:, k : k + 1])
            frame.latents = step
            window = window.append(frame).map(lambda part: part[:, -self.config.context_frames :])
            step = self._predict(window)[:, -1:]
            losses.append(self.latent_loss(step, targets[:, k : k + 1]))
        return sum(discount**k * loss for k, loss in enumerate(losses)) / horizon

    def _predict(self, inputs: Inputs) -> torch.Tensor:
        """The next latents of every frame (B, F, N, D), each from the window that ends with it."""
        frames, window = inputs.latents.shape[1], self.config.context_frames
        if frames <= window:
            return self._finish(self.predictor(inputs)[0], inputs.latents)
        windows = inputs.map(lambda part: part.unfold(1, window, 1).movedim(-1, 2).flatten(0, 1))
        output = self._finish(self.predictor(windows)[0], windows.latents)
        output = output.unflatten(0, (-1, frames - window + 1))  # (B, windows, W, N, D)
        return torch.cat([output[:, 0], output[:, 1:, -1]], dim=1)  # the first window serves the first frames too

    def _finish(self, output: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """The dynamics' output (…, N, D) as the next latents: a change, or latents to be normalised like the
        encoder's."""
        if self.config.residual:
            return latents + output
        if self.config.normalize_latents == "layer" and not self.config.state_fitted:
            return nn.functional.layer_norm(output, output.shape[-1:])
        return output

    # ------------------------------------------------------------------------------------------------ rollout

    def rollout(
        self,
        latents: torch.Tensor,
        actions: torch.Tensor,
        context_actions: torch.Tensor | None = None,
        proprio_states: torch.Tensor | None = None,
        extrinsics: torch.Tensor | None = None,
        candidate_chunk_size: int | None = None,
        use_cache: bool = True,
    ) -> torch.Tensor:
        """Imagines what follows.

        Args:
            latents: (B, T0, N, D) as `encode` gives them; the last is the present.
            actions: (B, P, A), or (B, J, P, A) for J candidates; environment units.
            context_actions: (B, T0-1, A), needed when T0 > 1.
            proprio_states: (B, T0, S), going on by `proprio_transition`; or (B, T0+P, S), taken as given.
            extrinsics: (B, T0, E) or (B, T0+P, E); the last is held.
            candidate_chunk_size: candidates imagined at a time, which bounds memory; `None` chooses by size. The
                result does not depend on it.
            use_cache: keep keys and values of earlier steps instead of computing them again. The result does not
                depend on it.

        Returns:
            (B, P, N, D), or (B, J, P, N, D).
        """
        single = actions.ndim == 3
        candidates = actions.unsqueeze(1) if single else actions
        chunks = self._rollout_chunks(
            latents, candidates, context_actions, proprio_states, extrinsics, candidate_chunk_size, use_cache
        )
        future = torch.cat([torch.stack(list(steps), dim=2) for steps in chunks], dim=1)
        return future.squeeze(1) if single else future

    @torch.no_grad()
    def score(
        self,
        observation: torch.Tensor,
        goal: torch.Tensor,
        actions: torch.Tensor,
        context_actions: torch.Tensor | None = None,
        proprio_states: torch.Tensor | None = None,
        extrinsics: torch.Tensor | None = None,
        distance: str = "l2",
        candidate_chunk_size: int | None = None,
    ) -> torch.Tensor:
        """Planning cost of given actions: the distance of the last imagined latents to the goal's.

        Args:
            observation: frames (B, T0, C, H, W) or latents (B, T0, N, D); the last is the present.
            goal: a frame (B, 1, C, H, W) or latents (B, 1, N, D) or (B, N, D).
            actions: (B, J, P, A) in environment units.
            context_actions, proprio_states, extrinsics, candidate_chunk_size: as in `rollout`.
            distance: "l2", mean squared difference (seed 003, Algorithm 3 line 10, up to a constant factor), or "l1",
                mean absolute difference (published).

        Returns:
            (B, J), lower is better.
        """
        if distance not in ("l1", "l2"):
            raise ValueError(f"distance is {distance!r}; expected 'l1' or 'l2'.")
        latents = self.encode(observation) if observation.ndim == 5 else observation
        goal = self.encode(goal) if goal.ndim == 5 else goal
        goal = goal.unsqueeze(1) if goal.ndim == 3 else goal  # (B, 1, N, D): one for all candidates
        if goal.shape[:2] != (len(latents), 1):
            raise ValueError(
                f"the goal's latents have shape {tuple(goal.shape)}; expected one frame for each of the "
                f"{len(latents)} "
                "observations."
            )
        if goal.shape[-2:] != latents.shape[-2:]:
            raise ValueError(
                f"the goal's latents have {goal.shape[-2]} tokens of size {goal.shape[-1]}, the observation's "
                f"{latents.shape[-2]} of {latents.shape[-1]}: bring both pictures to one size."
            )
        costs = []
        chunks = self._rollout_chunks(
            latents, actions, context_actions, proprio_states, extrinsics, candidate_chunk_size, use_cache=True
        )
        for steps in chunks:
            last = deque(steps, maxlen=1).pop()  # earlier steps are dropped as they come
            difference = last.float() - goal.float()
            cost = difference.abs() if distance == "l1" else difference.square()
            costs.append(cost.flatten(2).mean(dim=-1))
        return torch.cat(costs, dim=1)

    def _rollout_chunks(
        self, latents, actions, context_actions, proprio_states, extrinsics, chunk_size, use_cache
    ) -> Iterator[Iterator[torch.Tensor]]:
        """For every chunk of candidates, an iterator over the steps' latents (B, j, N, D).

        Keys and values of the frames before the present are computed once for all candidates; the present frame's
        tokens attend to the candidate's first action, so they differ from the first layer on.
        """
        past = latents.shape[1] - 1
        actions, context_actions, proprio_states, extrinsics = _like(
            latents, actions, context_actions, proprio_states, extrinsics
        )
        self._check_rollout(latents, actions, context_actions, proprio_states, extrinsics)
        known = torch.cat([context_actions, actions[:, 0, :1]], dim=1) if past else actions[:, 0, :1]
        context = self._normalized(latents, known, proprio_states, extrinsics)
        context = context.map(lambda part: part[:, : past + 1])  # states of the future stay outside
        context = context.map(lambda part: part[:, -self.config.context_frames :])
        earlier = context.map(lambda part: part[:, :-1])
        use_cache = use_cache and self.config.context_frames > 1
        cache = self.predictor(earlier, project=False)[1] if use_cache and earlier.latents.shape[1] else None
        chunk_size = chunk_size or self._default_chunk_size(len(latents), latents)
        for chunk in actions.split(chunk_size, dim=1):
            states = (proprio_states, extrinsics)
            yield self._rollout_chunk(context, chunk, states, past + 1, cache, use_cache)

    def _rollout_chunk(
        self, context: Inputs, actions: torch.Tensor, states, frames: int, cache: KeyValues | None, use_cache: bool
    ) -> Iterator[torch.Tensor]:
        """Steps of a chunk of candidates: actions (B, j, P, A) -> P times (B, j, N, D)."""
        batch_size, candidates, horizon, _ = actions.shape

        def expand(part: torch.Tensor) -> torch.Tensor:
            return part.repeat_interleave(candidates, dim=0)

        raw_actions = actions.flatten(0, 1)  # (B·j, P, A)
        proprio, extrinsics = (None if part is None else expand(part) for part in states)
        window = context.map(expand)
        cache = [(expand(key), expand(value)) for key, value in cache] if cache else None
        window.actions = torch.cat([window.actions[:, :-1], self._normalized_actions(raw_actions[:, :1])], dim=1)
        for step in range(horizon):
            if use_cache and (cache or window.latents.shape[1] == 1):
                present = window.map(lambda part: part[:, -1:])
                output, cache = self.predictor(present, past=cache)
            else:  # the window has moved, so the positions of all its frames have changed
                output, cache = self.predictor(window)
            latents = self._finish(output[:, -1:], window.latents[:, -1:])
            yield latents.squeeze(1).unflatten(0, (batch_size, candidates))
            if step + 1 == horizon:
                return
            proprio = self._next_proprio(proprio, raw_actions[:, step], frames + step)
            frame = self._normalized(
                latents,
                raw_actions[:, step + 1 : step + 2],
                None if proprio is None else proprio[:, frames + step : frames + step + 1],
                None
                if extrinsics is None
                else extrinsics[:, min(frames + step, extrinsics.shape[1] - 1)].unsqueeze(1),
            )
            window = window.append(frame)
            if window.latents.shape[1] > self.config.context_frames:
                window, cache = window.map(lambda part: part[:, 1:]), None

    def _next_proprio(self, states: torch.Tensor | None, action: torch.Tensor, index: int) -> torch.Tensor | None:
        """Proprio states (B, ≥ index + 1, S) with the one at `index` added by `proprio_transition` if not given."""
        if states is None or states.shape[1] > index:
            return states
        last = states[:, -1]
        if self.config.proprio_transition == "add":
            last = last + action
        elif self.config.proprio_transition == "pose_delta":
            last = move_pose(last, action)
        return torch.cat([states, last.unsqueeze(1)], dim=1)

    def _default_chunk_size(self, batch_size: int, latents: torch.Tensor) -> int:
        """Candidates whose widest activation fits in 16 MB and no more than 32 on a CPU (larger chunks are hardly
        faster and take memory), in 1 GB on an accelerator."""
        on_cpu = latents.device.type == "cpu"
        width = int(self.config.predictor_hidden_size * self.config.predictor_mlp_ratio)
        fitting = max(1, (2**22 if on_cpu else 2**28) // (batch_size * (latents.shape[2] + 3) * width))
        return min(fitting, 32) if on_cpu else fitting

    # ------------------------------------------------------------------------------------------------ inputs

    def _normalized_actions(self, actions: torch.Tensor) -> torch.Tensor:
        return _standardized(actions, self.config.action_mean, self.config.action_std)

    def _normalized(self, latents, actions, proprio_states, extrinsics) -> Inputs:
        """Inputs of the dynamics from environment units."""
        if proprio_states is not None:
            proprio_states = _standardized(proprio_states, self.config.proprio_mean, self.config.proprio_std)
        return Inputs(latents, self._normalized_actions(actions), proprio_states, extrinsics)

    def _check_rollout(self, latents, actions, context_actions, proprio_states, extrinsics) -> None:
        frames = latents.shape[1]
        if actions.ndim != 4 or actions.shape[-1] != self.config.action_dim or len(actions) != len(latents):
            raise ValueError(
                f"actions have shape {tuple(actions.shape)}; expected ({len(latents)}, steps, "
                f"{self.config.action_dim}) "
                f"or ({len(latents)}, candidates, steps, {self.config.action_dim})."
            )
        if min(actions.shape[1:3]) == 0:
            raise ValueError(
                f"actions have shape {tuple(actions.shape)}; expected at least one candidate and one step."
            )
        if frames > 1 and context_actions is None:
            raise ValueError(f"{frames} frames of context need context_actions ({len(latents)}, {frames - 1}, A).")
        context_actions = actions[:, 0, :0] if context_actions is None else context_actions
        given = frames + actions.shape[2]
        for name, states in (("proprio_states", proprio_states), ("extrinsics", extrinsics)):
            if states is not None and states.shape[1] not in (frames, given):
                raise ValueError(
                    f"{name} cover {states.shape[1]} frames; expected {frames} (context) or {given} (all)."
                )
        cut = [None if part is None else part[:, :frames] for part in (proprio_states, extrinsics)]
        self._check_inputs(latents, context_actions, frames - 1, *cut)

    def _check_inputs(self, latents, actions, num_actions: int, proprio_states, extrinsics) -> None:
        batch_size, frames, _, size = latents.shape
        if size != self.latent_size:
            raise ValueError(f"latents have shape {tuple(latents.shape)}; expected (B, T, N, {self.latent_size}).")
        expected = {
            "actions": (actions, num_actions, self.config.action_dim),
            "proprio_states": (proprio_states, frames, self.config.proprio_dim),
            "extrinsics": (extrinsics, frames, self.config.extrinsics_dim),
        }
        for name, (value, length, width) in expected.items():
            if width == 0:
                if value is not None:
                    raise ValueError(f"{name} were given, but the model has none (its size for them is 0).")
            elif value is None:
                raise ValueError(f"{name} are missing; expected ({batch_size}, {length}, {width}).")
            elif tuple(value.shape) != (batch_size, length, width):
                raise ValueError(
                    f"{name} have shape {tuple(value.shape)}; expected ({batch_size}, {length}, {width})."
                )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.predictor_initializer_range
        scale = getattr(module, "init_scale", 1.0)
        if isinstance(module, nn.Linear) and std is not None:
            init.trunc_normal_(module.weight, std=std * (scale or 1.0))
            init.zeros_(module.bias)
        elif isinstance(module, (nn.Linear, nn.LayerNorm)):
            module.reset_parameters()
        if isinstance(module, nn.Linear) and scale == 0:
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        if isinstance(module, VJepa2Dynamics) and self.config.predictor_position_embedding_type == "learned":
            init.normal_(module.place_embedding, std=self.config.predictor_position_std)
            init.normal_(module.time_embedding, std=self.config.predictor_position_std)


def _like(latents: torch.Tensor, *values: torch.Tensor | None) -> list[torch.Tensor | None]:
    """Numbers in environment units on the latents' device and in their precision (users bring float64 and
    integers)."""
    return [value if value is None else value.to(latents) for value in values]


def _first_given(value: float | None, default: float) -> float:
    return default if value is None else value


def _standardized(values: torch.Tensor, mean: list | None, std: list | None) -> torch.Tensor:
    if mean is not None:
        values = values - values.new_tensor(mean)
    return values if std is None else values / values.new_tensor(std)


__all__ = ["VJepa2WorldModel", "VJepa2WorldModelOutput"]
