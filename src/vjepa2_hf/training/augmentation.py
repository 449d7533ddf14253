"""Augmentation of episodes: frames are flipped or transposed and the actions turned along, colors are exchanged.

frames, actions = augment(frames, actions, {"flip_horizontal": [[-1, 0], [0, 1]]}, np.random.default_rng(seed))

Letters: E episodes, F frames, C channels, H W pixels, k environment actions of a model step, A environment action.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from ..specs import check_known


Matrix = Sequence[Sequence[float]]

# What a symmetry does with frames (..., H, W); its matrix (A, A) does the same with an action
TURNS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "flip_horizontal": lambda frames: frames.flip(-1),
    "flip_vertical": lambda frames: frames.flip(-2),
    "transpose": lambda frames: frames.transpose(-1, -2),
}


def check_symmetries(symmetries: Mapping[str, Matrix], action_dim: int | None = None) -> None:
    """Refuses unknown names, and matrices that are not square, or not of the size A of an environment action."""
    for name, matrix in symmetries.items():
        check_known(name, TURNS, "symmetry")
        size = len(matrix) if action_dim is None else action_dim
        if not len(matrix) == size > 0 or any(len(row) != size for row in matrix):
            expected = f"a square matrix {f'of {action_dim} rows ' if action_dim else ''}that turns an action"
            raise ValueError(f"The symmetry {name!r} has the matrix {matrix}; expected {expected}.")


def augment(
    frames: torch.Tensor, actions: torch.Tensor, symmetries: Mapping[str, Matrix], rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """One augmentation of all episodes of a batch: each symmetry is applied or not, and the channels are in a random
    order, inverted or not.

    Args:
        frames: uint8 (E, F, C, H, W).
        actions: (E, F-1, k, A) in environment units.
        symmetries: matrices (A, A) by name, see `TURNS`.
    """
    for name, turn in TURNS.items():
        if name in symmetries and rng.random() < 0.5:
            frames, actions = turn(frames), actions @ actions.new_tensor(symmetries[name]).T
    frames = frames[..., torch.from_numpy(rng.permutation(frames.shape[-3])), :, :]
    return (255 - frames if rng.random() < 0.5 else frames), actions
