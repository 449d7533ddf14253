"""What the dynamics sees of episodes: from environment units to its inputs, and what is refused on the way.

Shapes: B episodes, T frames, F frames of a window, N tokens of a frame, D width of a latent, A action, S proprio
state, E extrinsics.
"""

from dataclasses import dataclass

import torch
from torch import nn

from .configuration_world_model import VJepa2WorldModelConfig


@dataclass
class Inputs:
    """What the dynamics sees of F frames: latents (B, F, N, D), actions (B, F, A), and the optional states."""

    latents: torch.Tensor
    actions: torch.Tensor
    proprio_states: torch.Tensor | None = None  # (B, F, S)
    extrinsics: torch.Tensor | None = None  # (B, F, E)

    def map(self, function) -> "Inputs":
        return Inputs(*(None if part is None else function(part) for part in vars(self).values()))

    def append(self, frame: "Inputs") -> "Inputs":
        pairs = zip(vars(self).values(), vars(frame).values(), strict=True)
        return Inputs(*(None if a is None else torch.cat([a, b], dim=1) for a, b in pairs))


class WorldModelInputsMixin:
    """The inputs of a model with a `config` and states of `tokens_per_frame` tokens of `latent_size`."""

    config: VJepa2WorldModelConfig

    def _action_vectors(self, name: str, actions: torch.Tensor | None) -> torch.Tensor | None:
        """Discrete actions that are given as integer categories (..., steps), or (..., steps, k) with k actions a
        step, as one-hot floats (..., steps, A); everything else as it is."""
        if self.config.action_type != "discrete" or actions is None or actions.is_floating_point():
            return actions
        each = self.config.actions_per_step
        categories = self.config.action_dim // each
        actions = actions.unsqueeze(-1) if each == 1 else actions
        if actions.ndim < 3 or actions.shape[-1] != each:
            shape = "(B, steps)" if each == 1 else f"(B, steps, {each})"
            raise ValueError(
                f"{name} are integers of shape {tuple(actions.shape)}; expected categories {shape}, or one-hot floats "
                f"(B, steps, {self.config.action_dim})."
            )
        if actions.numel() and not 0 <= actions.min() <= actions.max() < categories:
            raise ValueError(
                f"{name} hold categories {actions.min()} to {actions.max()}; the model knows 0 to {categories - 1}."
            )
        return nn.functional.one_hot(actions.long(), categories).flatten(-2).float()

    def _normalized_actions(self, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Actions from environment units, in the latents' precision."""
        (actions,) = environment_numbers(latents, actions)
        return standardized(actions, self.config.action_mean, self.config.action_std).to(latents.dtype)

    def _normalized(self, latents, actions, proprio_states, extrinsics) -> Inputs:
        """Inputs of the dynamics from environment units, in the latents' precision."""
        states, extrinsics = environment_numbers(latents, proprio_states, extrinsics)
        if states is not None:
            states = standardized(states, self.config.proprio_mean, self.config.proprio_std).to(latents.dtype)
        extrinsics = None if extrinsics is None else extrinsics.to(latents.dtype)
        return Inputs(latents, self._normalized_actions(latents, actions), states, extrinsics)

    def _check_candidates(self, latents, actions) -> None:
        size = self.config.action_dim
        if actions.ndim != 4 or actions.shape[-1] != size or len(actions) != len(latents):
            raise ValueError(
                f"actions have shape {tuple(actions.shape)}; expected ({len(latents)}, steps, {size}) or "
                f"({len(latents)}, candidates, steps, {size})."
            )
        if min(actions.shape[1:3]) == 0:
            raise ValueError(
                f"actions have shape {tuple(actions.shape)}; expected at least one candidate and one step."
            )

    def _check_rollout(self, latents, actions, context_actions, proprio_states, extrinsics) -> None:
        self._check_candidates(latents, actions)
        frames = latents.shape[1]
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
        self._check_inputs(latents, frames, context_actions, *cut)

    def _check_inputs(self, latents, frames: int, actions, proprio_states, extrinsics) -> None:
        """Refuses what does not fit `frames` frames and the actions between them."""
        batch_size, places, size = len(latents), "1" if self.tokens_per_frame == 1 else "N", self.latent_size
        if self.config.state_dim is not None and not self.config.state_fitted:
            raise ValueError(
                f"the map of state_type={self.config.state_type!r} to state_dim={self.config.state_dim} is not fitted "
                "yet: call fit_state(latents) with latents that `encode` gives now, then encode again."
            )
        if latents.ndim != 4 or latents.shape[-1] != size or (places == "1" and latents.shape[2] != 1):
            shape = (batch_size, frames, *latents.shape[2:])
            raise ValueError(f"latents have shape {shape}; expected (B, T, {places}, {size}).")
        expected = {
            "actions": (actions, frames - 1, self.config.action_dim),
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


def check_chunk_size(size: int | None) -> None:
    if size is not None and (not isinstance(size, int) or size < 1):
        raise ValueError(f"candidate_chunk_size is {size!r}; expected an integer of at least 1, or None.")


def environment_numbers(latents: torch.Tensor, *values: torch.Tensor | None) -> list[torch.Tensor | None]:
    """Numbers in environment units on the latents' device (users bring float64 and integers), in float32 at least:
    before the mean is taken away, bfloat16 would lose what tells two states apart."""
    dtype = torch.promote_types(latents.dtype, torch.float32)
    return [value if value is None else value.to(latents.device, dtype) for value in values]


def standardized(values: torch.Tensor, mean: list | float | None, std: list | float | None) -> torch.Tensor:
    if mean is not None:
        values = values - values.new_tensor(mean)
    return values if std is None else values / values.new_tensor(std)
