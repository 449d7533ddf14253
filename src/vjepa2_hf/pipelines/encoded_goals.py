"""Goals that are encoded once and planned for many times.

Letters: B problems, V views (cameras), C channels, H W pixels, N tokens of a frame, D width of a latent, G goals in
sequence.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


class WeightsVersion:
    """The state of a model's weights, to notice later that they are others.

    It notices another model, loaded weights, another device or precision, and every change that PyTorch counts. Fused
    optimizers and changes of `.data` are not counted.
    """

    def __init__(self, model: nn.Module):
        self._seen = self._read(model)

    @staticmethod
    def _read(model: nn.Module) -> list[tuple[torch.Tensor, int, int]]:
        weights = itertools.chain(model.parameters(), model.buffers())
        return [(each, each.data_ptr(), 0 if each.is_inference() else each._version) for each in weights]

    def is_of(self, model: nn.Module) -> bool:
        """Whether these are the model's weights still."""
        now = self._read(model)
        pairs = zip(self._seen, now, strict=False)
        return len(self._seen) == len(now) and all(
            before[0] is after[0] and before[1:] == after[1:] for before, after in pairs
        )


@dataclass(frozen=True, eq=False)
class EncodedGoal:
    """Result of `VJepa2Planner.encode_goal`: the goal of one problem, or of each of a batch.

    `goal[[0, 2]]` are the goals of these problems of a batch.

    images: as they were given.
    pixels: (B, 1, C, H, W), or (B, 1, V, C, H, W).
    views: indices of the cameras; `None`: the only one.
    latents: (B, 1, N, D).
    version: of the weights that encoded it.
    """

    images: Any
    pixels: torch.Tensor
    views: tuple[int, ...] | None
    latents: torch.Tensor
    version: WeightsVersion

    def __getitem__(self, rows: Sequence[int]) -> "EncodedGoal":
        rows = list(rows)
        images = [self.images[row] for row in rows] if isinstance(self.images, list) else self.images
        return EncodedGoal(images, self.pixels[rows], self.views, self.latents[rows], self.version)


def images_of(goal: Any) -> Any:
    """A goal as it was given, encoded or not."""
    return goal.images if isinstance(goal, EncodedGoal) else goal


def join_latents(goals: Sequence[Any], model: nn.Module) -> torch.Tensor | None:
    """Latents (B, G, N, D) of encoded goals in sequence; `None` for goals that are not encoded.

    Raises:
        ValueError: some are encoded and others are not, or other weights encoded them.
    """
    encoded = [goal for goal in goals if isinstance(goal, EncodedGoal)]
    if not encoded:
        return None
    if len(encoded) < len(goals):
        raise ValueError(f"{len(encoded)} of {len(goals)} goals are encoded: give all of them encoded, or none.")
    if not all(goal.version.is_of(model) for goal in encoded):
        raise ValueError(
            "the goal was encoded by other weights than the model has now, or on another device or in another "
            "precision: call encode_goal again."
        )
    if len({len(goal.latents) for goal in encoded}) > 1:
        raise ValueError(
            f"the goals are of {[len(goal.latents) for goal in encoded]} problems; expected equal numbers."
        )
    return torch.cat([goal.latents for goal in encoded], dim=1)
