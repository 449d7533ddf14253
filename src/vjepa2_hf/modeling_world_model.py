"""Learning to predict: an action-conditioned model of how an encoder's latents change.

Shapes: B episodes, T frames, N tokens of a frame, D width of a latent, d width of the dynamics, A action, S proprio
state, E extrinsics, Z numbers of chance, J candidates, K samples, P steps of a rollout, W frames of the
window (`context_frames`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils import ModelOutput

from .configuration_world_model import VJepa2WorldModelConfig
from .modeling_dynamics import DYNAMICS, Cache, VJepa2Dynamics, VJepa2GaussianHead, VJepa2RewardHead
from .modeling_encoder import VJepa2Encoder, as_encoder
from .modeling_inputs import Inputs, WorldModelInputsMixin, check_chunk_size, environment_numbers, standardized
from .modeling_scores import WorldModelScoresMixin
from .modeling_state import VJepa2StateModel, token_size
from .pose import move_pose


@dataclass
class VJepa2WorldModelOutput(ModelOutput):
    """Output of [`VJepa2WorldModel`].

    loss: teacher_forcing_weight · teacher_forcing_loss + rollout_weight · rollout_loss, and what the optional parts
        add (see `forward`).
    teacher_forcing_loss: one step ahead from true latents.
    rollout_loss: the first `rollout_steps` steps from the first frame, fed with predictions; `None` when its weight
        is 0.
    predicted_latents: (B, T-1, N, D), one step ahead from true latents.
    reward_loss: mean (r̂ − r)² / 2 of standardised rewards, with a reward head.
    nll_loss: -log p(s_{t+1} | s_t, a_t) in nats a number of the latents, with a stochastic latent.
    """

    loss: torch.Tensor | None = None
    teacher_forcing_loss: torch.Tensor | None = None
    rollout_loss: torch.Tensor | None = None
    predicted_latents: torch.Tensor | None = None
    reward_loss: torch.Tensor | None = None
    nll_loss: torch.Tensor | None = None


class VJepa2WorldModel(WorldModelScoresMixin, WorldModelInputsMixin, VJepa2StateModel):
    """An encoder and dynamics that say what a frame's latents become under an action.

    ::

        frames ──► encoder, each frame alone ──► LayerNorm ──► (fitted map) ──► latents s_t ─┐
        actions ─► action token a_t ─────────────────────────────────────────────────────────┼─► dynamics ─► ŝ_{t+1}
        proprio states, extrinsics ─► their tokens ──────────────────────────────────────────┘

    A prediction sees the last `context_frames` frames and nothing earlier: in training, in rollouts, in planning.
    Within the window attention is block-causal: a frame's tokens see each other and all earlier frames
    (arXiv 2506.09985, sec. 3). With `context_frames=1` it is seed 003's Markov model g(s_t, a_t).

    The encoder is frozen, or with `freeze_encoder=False` trained along: s_t is then the online encoder's, with
    gradient, and the targets are those of its EMA copy `target_encoder`, without; call `update_target_encoder(0.9999)`
    after every step (seed 003, Algorithm 2 line 10).

    With `stochastic_dim` a head says how far off the prediction may be, as a Gaussian of low rank:
    s_{t+1} = ŝ_{t+1} + L z + d · e ([`VJepa2GaussianHead`]); a rollout may draw from it in every step and goes on from
    there. With `reward_head` a head reads the reward off (s_t, a_t, s_{t+1}). Neither changes the dynamics.

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
        self.predictor = DYNAMICS[config.dynamics_type](config)
        if config.reward_head:
            self.reward_head = VJepa2RewardHead(config)
        if config.stochastic_dim:
            self.chance_head = VJepa2GaussianHead(config)
        self.post_init()
        if not config.freeze_encoder:
            self.update_target_encoder(momentum=0.0)

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
        if not model.config.freeze_encoder:
            model.update_target_encoder(momentum=0.0)
        return model

    def train(self, mode: bool = True):
        super().train(mode)
        if self.config.stored_extrinsics_dim and not self.config.extrinsics_dim:
            self.predictor.extrinsics_encoder.requires_grad_(False)  # kept for the way back, without a use
        return self

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
        rewards: torch.Tensor | None = None,
    ) -> VJepa2WorldModelOutput:
        """Teacher-forced and rollout loss of episodes, and those of the optional parts.

        A reward head adds reward_weight · reward_loss, a stochastic latent nll_weight · (nll_loss + that of every
        number alone), see [`VJepa2GaussianHead`]; their gradients go to their heads alone.

        Args:
            pixel_values_videos: frames (B, T, C, H, W), or
            latents: (B, T, N, D) as `encode` gives them (cached), with a frozen encoder.
            actions: (B, T-1, A) in environment units; discrete ones as one-hot floats, or as int64 categories
                (B, T-1), with several actions a step (B, T-1, k).
            proprio_states: (B, T, S) in environment units, when the model has them; extrinsics (B, T, E) likewise.
            teacher_forcing_weight, rollout_weight: replace the configured weights, for schedules; a loss whose weight
                is given as 0 is not computed.
            rewards: (B, T-1) in environment units, when the model has a reward head.
        """
        latents, targets = self._training_latents(pixel_values_videos, latents)
        actions = self._action_vectors("actions", actions)
        self._check_inputs(latents, targets.shape[1] + 1, actions, proprio_states, extrinsics)
        inputs = self._normalized(latents, actions, proprio_states, extrinsics)
        inputs = inputs.map(lambda part: part[:, : targets.shape[1]])
        added = self._reward_loss(inputs, targets, rewards)

        hidden_states, predicted, losses = None, None, {}
        if teacher_forcing_weight != 0:
            hidden_states = self._hidden_states(inputs)
            predicted = self._next_latents(hidden_states, inputs.latents)
            losses["teacher_forcing_loss"] = self.latent_loss(predicted, targets)
        if rollout_weight is None and self.config.rollout_weight or rollout_weight:
            losses["rollout_loss"] = self._rollout_loss(inputs, predicted, targets)
        weights = {
            "teacher_forcing_loss": _first_given(teacher_forcing_weight, self.config.teacher_forcing_weight),
            "rollout_loss": _first_given(rollout_weight, self.config.rollout_weight),
        }
        loss = sum(weights[name] * value for name, value in losses.items())
        if self.config.stochastic_dim:
            added["nll_loss"], margins = self._chance_losses(inputs, hidden_states, targets)
            loss = loss + self.config.nll_weight * (added["nll_loss"] + margins)
        if "reward_loss" in added:
            loss = loss + self.config.reward_weight * added["reward_loss"]
        return VJepa2WorldModelOutput(loss=loss, predicted_latents=predicted, **losses, **added)

    def _training_latents(
        self, pixel_values_videos: torch.Tensor | None, latents: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """States that predictions start from and those they are compared with, (B, T-1, N, D) each, of frames or of
        cached latents."""
        if (pixel_values_videos is None) == (latents is None):
            raise ValueError("give either pixel_values_videos or latents (and not both).")
        given = pixel_values_videos if latents is None else latents
        if given.ndim > 1 and given.shape[1] < 2:
            raise ValueError(f"episodes have {given.shape[1]} frames; training needs 2 or more.")
        if self.config.freeze_encoder:
            latents = self.encode(pixel_values_videos) if latents is None else latents
            return latents[:, :-1], latents[:, 1:]
        if latents is not None:
            raise ValueError(
                "latents were given, but with freeze_encoder=False the encoder changes with every step, so that they "
                "would be out of date: give pixel_values_videos."
            )
        seen = self._encode_with(self.encoder, pixel_values_videos[:, :-1])
        return seen, self.encode_targets(pixel_values_videos[:, 1:])

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

    def _reward_loss(
        self, inputs: Inputs, targets: torch.Tensor, rewards: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """The loss of the reward head, by its name; nothing without a head."""
        expected = targets.shape[:2]
        if not self.config.reward_head:
            if rewards is not None:
                raise ValueError("rewards were given, but the model has no reward head: set reward_head=True.")
            return {}
        if rewards is None or rewards.shape != expected:
            found = "missing" if rewards is None else f"of shape {tuple(rewards.shape)}"
            raise ValueError(f"rewards are {found}; the reward head needs {tuple(expected)}.")
        (rewards,) = environment_numbers(targets, rewards)
        wanted = standardized(rewards, self.config.reward_mean, self.config.reward_std)
        found = self.reward_head(inputs.actions, inputs.latents.detach(), targets)
        return {"reward_loss": (found - wanted.float()).square().mean() / 2}

    def _chance_losses(
        self, inputs: Inputs, hidden_states: torch.Tensor | None, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """-log p(s_{t+1} | s_t, a_t) of a frame's numbers together and alone, from the dynamics' hidden states
        (B, F, N, d), which are computed where they are not given; their gradient goes to the head alone."""
        with torch.no_grad():
            hidden_states = self._hidden_states(inputs) if hidden_states is None else hidden_states.detach()
            errors = targets.float() - self._next_latents(hidden_states, inputs.latents).float()
        joint, margins = self.chance_head.negative_log_likelihood(hidden_states, errors)
        return joint.mean(), margins.mean()

    def _hidden_states(self, inputs: Inputs) -> torch.Tensor:
        """What the dynamics makes of every frame (B, F, N, d), each from the window that ends with it."""
        frames, window = inputs.latents.shape[1], self.config.context_frames
        if frames <= window:
            return self.predictor(inputs)[0]
        windows = inputs.map(lambda part: part.unfold(1, window, 1).movedim(-1, 2).flatten(0, 1))
        output = self.predictor(windows)[0].unflatten(0, (-1, frames - window + 1))  # (B, windows, W, N, d)
        return torch.cat([output[:, 0], output[:, 1:, -1]], dim=1)  # the first window serves the first frames too

    def _predict(self, inputs: Inputs) -> torch.Tensor:
        """The next latents of every frame (B, F, N, D)."""
        return self._next_latents(self._hidden_states(inputs), inputs.latents)

    def _next_latents(self, hidden_states: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """The dynamics' hidden states (B, F, N, d) -> the latents that follow (B, F, N, D): a change, or latents to be
        normalised like the encoder's."""
        output = self.predictor.project(hidden_states)
        if self.config.residual:
            return latents + output
        normalized = self.config.normalize_latents == "layer" and not self.config.state_fitted
        if not normalized or self.config.state_type == "pooled":  # a mean of normalised tokens is not normalised
            return output
        size = token_size(self.config)  # of merged tokens each was normalised on its own
        return nn.functional.layer_norm(output.unflatten(-1, (-1, size)), (size,)).flatten(-2)

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
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Imagines what follows.

        With a stochastic latent this is the middle of what may follow, too; with a generator a future is drawn for
        every candidate. So K samples are K equal candidates: `actions.unsqueeze(1).expand(-1, K, -1, -1)`.

        Args:
            latents: (B, T0, N, D) as `encode` gives them; the last is the present.
            actions: (B, P, A), or (B, J, P, A) for J candidates; environment units. Discrete ones also as int64
                categories, see `forward`.
            context_actions: (B, T0-1, A), needed when T0 > 1.
            proprio_states: (B, T0, S), going on by `proprio_transition`; or (B, T0+P, S), taken as given.
            extrinsics: (B, T0, E) or (B, T0+P, E); the last is held.
            candidate_chunk_size: candidates imagined at a time, which bounds memory; `None` chooses by size. The
                result does not depend on it.
            use_cache: keep keys and values of earlier steps instead of computing them again. The result does not
                depend on it.
            generator: where chance comes from, for a model with `stochastic_dim`.

        Returns:
            (B, P, N, D), or (B, J, P, N, D).
        """
        check_chunk_size(candidate_chunk_size)
        actions = self._action_vectors("actions", actions)
        single = actions.ndim == 3
        candidates = actions.unsqueeze(1) if single else actions
        noise = None
        if generator is not None:
            noise = self._noise(candidates.shape[:-1], latents.shape[2], generator)
        chunks = self._rollout_chunks(
            latents, candidates, context_actions, proprio_states, extrinsics, candidate_chunk_size, use_cache, noise
        )
        future = torch.cat([torch.stack(list(steps), dim=2) for steps in chunks], dim=1)
        return future.squeeze(1) if single else future

    def _rollout_chunks(
        self, latents, actions, context_actions, proprio_states, extrinsics, chunk_size, use_cache, noise=None
    ) -> Iterator[Iterator[torch.Tensor]]:
        """For every chunk of candidates, an iterator over the steps' latents (B, j, N, D).

        The cache of the frames before the present is computed once for all candidates; the present frame's tokens
        depend on the candidate's first action, so they differ from the first layer on.
        """
        past = latents.shape[1] - 1
        context_actions = self._action_vectors("context_actions", context_actions)
        actions, context_actions, proprio_states, extrinsics = environment_numbers(
            latents, actions, context_actions, proprio_states, extrinsics
        )
        self._check_rollout(latents, actions, context_actions, proprio_states, extrinsics)
        known = torch.cat([context_actions, actions[:, 0, :1]], dim=1) if past else actions[:, 0, :1]
        context = self._normalized(latents, known, proprio_states, extrinsics)
        context = context.map(lambda part: part[:, : past + 1])  # states of the future stay outside
        context = context.map(lambda part: part[:, -self.config.context_frames :])
        earlier = context.map(lambda part: part[:, :-1])
        use_cache = use_cache and self.config.context_frames > 1
        cache = self.predictor(earlier)[1] if use_cache and earlier.latents.shape[1] else None
        chunk_size = chunk_size or self._default_chunk_size(len(latents), latents)
        for first in range(0, actions.shape[1], chunk_size):
            states, chunk = (proprio_states, extrinsics), actions[:, first : first + chunk_size]
            turns = torch.arange(first, first + chunk.shape[1], device=actions.device)
            chunk_noise = None if noise is None else noise[:, turns % noise.shape[1]].flatten(0, 1)
            yield self._rollout_chunk(context, chunk, states, past + 1, cache, use_cache, chunk_noise)

    def _rollout_chunk(
        self, context: Inputs, actions: torch.Tensor, states, frames: int, cache: Cache | None, use_cache: bool, noise
    ) -> Iterator[torch.Tensor]:
        """Steps of a chunk of candidates: actions (B, j, P, A), noise (B·j, P, Z + N·D) -> P times (B, j, N, D)."""
        batch_size, candidates, horizon, _ = actions.shape

        def expand(part: torch.Tensor) -> torch.Tensor:
            return part.repeat_interleave(candidates, dim=0)

        raw_actions = actions.flatten(0, 1)  # (B·j, P, A)
        proprio, extrinsics = (None if part is None else expand(part) for part in states)
        window = context.map(expand)
        if use_cache:
            frames_kept = min(window.latents.shape[1] - 1 + horizon, self.config.context_frames)
            cache = self.predictor.candidate_cache(cache, candidates, frames_kept, window.latents.shape[2])
        window.actions = torch.cat(
            [window.actions[:, :-1], self._normalized_actions(window.latents, raw_actions[:, :1])], dim=1
        )
        for step in range(horizon):
            if use_cache and (cache or window.latents.shape[1] == 1):
                present = window.map(lambda part: part[:, -1:])
                hidden_states, cache = self.predictor(present, past=cache)
            else:  # the window has moved, so the positions of all its frames have changed
                hidden_states, cache = self.predictor(window)
            latents = self._next_latents(hidden_states[:, -1:], window.latents[:, -1:])
            if noise is not None:
                latents = latents + self.chance_head.sample(hidden_states[:, -1:], noise[:, step : step + 1])
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

    def _noise(self, shape: tuple[int, ...], num_tokens: int, generator: torch.Generator) -> torch.Tensor:
        """Standard normal numbers (*shape, Z + N · D)."""
        if not self.config.stochastic_dim:
            raise ValueError("samples are asked for, but the model leaves nothing to chance (stochastic_dim is 0).")
        size = self.config.stochastic_dim + num_tokens * self.latent_size
        return torch.randn(*shape, size, generator=generator, device=generator.device).to(self.device)

    def _shared_noise(self, actions: torch.Tensor, num_tokens: int, num_samples: int, generator) -> torch.Tensor:
        """Noise (B, K, P, Z + N · D) for K samples of every candidate (B, J, P, A), the same for all of them."""
        if num_samples < 2:
            raise ValueError(f"num_samples is {num_samples}; expected 2 or more to tell an uncertainty.")
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        return self._noise((num_samples, actions.shape[2]), num_tokens, generator).expand(len(actions), -1, -1, -1)

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
        if self.config.stochastic_dim:
            width = max(width, self.latent_size * (self.config.stochastic_dim + 1))
        fitting = max(1, (2**22 if on_cpu else 2**28) // (batch_size * (latents.shape[2] + 3) * width))
        return min(fitting, 32) if on_cpu else fitting

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.predictor_initializer_range
        scale = getattr(module, "init_scale", 1.0)
        if isinstance(module, nn.Linear) and std is not None:
            init.trunc_normal_(module.weight, std=std * (scale or 1.0))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, (nn.Linear, nn.LayerNorm)):
            module.reset_parameters()
        if isinstance(module, nn.Linear) and scale == 0:
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        if isinstance(module, VJepa2Dynamics) and self.config.predictor_position_embedding_type == "learned":
            init.normal_(module.place_embedding, std=self.config.predictor_position_std)
            init.normal_(module.time_embedding, std=self.config.predictor_position_std)


def _first_given(value: float | None, default: float) -> float:
    return default if value is None else value


__all__ = ["VJepa2WorldModel", "VJepa2WorldModelOutput"]
