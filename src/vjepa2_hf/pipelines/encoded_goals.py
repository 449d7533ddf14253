"""Goals that are encoded once and planned for many times, and the one of a sequence that is not reached yet.

Letters: B problems, V views (cameras), C channels, H W pixels, N tokens of a frame, D width of a latent, G goals in
sequence.
"""

import itertools
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn

from ..specs import is_integer, refuse


class WeightsVersion:
    """The state of a model's weights, to notice later that they are others.

    It notices another model, loaded weights, another device or precision, and every change that PyTorch counts. Fused
    optimizers and changes of `.data` are not counted. It keeps no weights in memory.
    """

    def __init__(self, model: nn.Module):
        self._seen = [(weakref.ref(each), *state) for each, *state in self._read(model)]

    @staticmethod
    def _read(model: nn.Module) -> list[tuple[torch.Tensor, int, int]]:
        weights = itertools.chain(model.parameters(), model.buffers())
        return [(each, each.data_ptr(), 0 if each.is_inference() else each._version) for each in weights]

    def is_of(self, model: nn.Module) -> bool:
        """Whether these are the model's weights still."""
        now = self._read(model)
        pairs = zip(self._seen, now, strict=False)
        return len(self._seen) == len(now) and all(
            before[0]() is after[0] and before[1:] == after[1:] for before, after in pairs
        )

    def __deepcopy__(self, memo: dict) -> "WeightsVersion":
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an encoded goal belongs to a model of its own process and cannot be pickled: send its `images`, and call "
            "encode_goal where they are needed."
        )


@dataclass(frozen=True, eq=False)
class EncodedGoal:
    """Result of `VJepa2Planner.encode_goal`: the goal of one problem, or of each of a batch.

    `goal[[0, 2]]` are the goals of these problems of a batch. A goal is of use in its own process alone.

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
        given = rows.tolist() if isinstance(rows, torch.Tensor | np.ndarray) else rows
        rows, count = list(given) if isinstance(given, list | tuple | range) else [], len(self.latents)
        if not rows or not all(is_integer(row) and -count <= row < count for row in rows):
            refuse("the index of an encoded goal", given, f"a list of at least one row from 0 to {count - 1}")
        images = [self.images[row] for row in rows] if isinstance(self.images, list) else self.images
        return EncodedGoal(images, self.pixels[rows], self.views, self.latents[rows], self.version)


def images_of(goal: Any) -> Any:
    """A goal as it was given, encoded or not."""
    return goal.images if isinstance(goal, EncodedGoal) else goal


def not_encoded(name: str, images: Any) -> Any:
    """Images, or a list of them, as they were given; an encoded goal among them is a ValueError."""
    if any(isinstance(each, EncodedGoal) for each in (images if isinstance(images, list) else [images])):
        raise ValueError(
            f"the {name} is, or holds, an encoded goal; expected images. Encode the goals of a batch in one call: "
            "planner.encode_goal([image, image])."
        )
    return images


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


@torch.no_grad()
def first_unreached(
    between: Callable[[torch.Tensor, torch.Tensor], torch.Tensor | None],
    present: torch.Tensor,
    goals: torch.Tensor,
    index: torch.Tensor,
    threshold: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first goal of each problem that is not reached, from the goals `index` (B,) on, and its distance from the
    observation: (B,) each.

    `present` are latents (B, N, D) of the observation, `goals` (B, G, N, D), and `between` is the distance of two
    latents. A goal is reached at the fraction `threshold` of its distance from the next goal.
    """
    problems, last = torch.arange(len(present), device=goals.device), goals.shape[1] - 1
    away = between(present.unsqueeze(1), goals)
    if away is None:
        raise ValueError(
            "goals need a cost with a LatentDistance or a TemporalDistance, which decides when one is reached."
        )
    apart = between(goals[:, :-1], goals[:, 1:])
    for _ in range(last):
        following = (index + 1).clamp(max=last)
        near = away[problems, index] <= threshold * apart[problems, index.clamp(max=last - 1)]
        index = torch.where(near, following, index)
    return index, away[problems, index]
