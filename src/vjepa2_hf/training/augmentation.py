"""Augmentation of episodes: frames are flipped or transposed and the actions turned along, colors are exchanged.

frames, actions = augment(frames, actions, {"flip_horizontal": [[-1, 0], [0, 1]]}, np.random.default_rng(seed))

Letters: E episodes, F frames, C channels, H W pixels, k environment actions of a model step, A environment action.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from ..specs import check_known, describe, is_number, refuse


Matrix = Sequence[Sequence[float]]

# What a symmetry does with frames (..., H, W); its matrix (A, A) does the same with an action
TURNS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "flip_horizontal": lambda frames: frames.flip(-1),
    "flip_vertical": lambda frames: frames.flip(-2),
    "transpose": lambda frames: frames.transpose(-1, -2),
}


def check_symmetries(symmetries: Mapping[str, Matrix], action_dim: int | None = None) -> None:
    """Refuses unknown names, and matrices that are not square and invertible, or not of the size A of an environment
    action."""
    if not isinstance(symmetries, Mapping):
        refuse("symmetries", symmetries, f"matrices by name, of {', '.join(TURNS)}")
    for name, matrix in symmetries.items():
        check_known(str(name), TURNS, "symmetry")
        if not _turns_actions(matrix, action_dim):
            size = f"of {action_dim} rows " if action_dim else ""
            expected = f"a square matrix {size}that turns an action, of finite numbers and invertible"
            raise ValueError(f"The symmetry {name!r} has the matrix {describe(matrix)}; expected {expected}.")


def _turns_actions(matrix: object, size: int | None) -> bool:
    rows = matrix.tolist() if isinstance(matrix, np.ndarray) else matrix
    if not isinstance(rows, (list, tuple)) or not 0 < len(rows) == (size or len(rows)):
        return False
    if any(not isinstance(row, (list, tuple)) or len(row) != len(rows) for row in rows):
        return False
    finite = all(is_number(value) and math.isfinite(value) for row in rows for value in row)
    return finite and np.linalg.matrix_rank(np.array(rows, dtype=float)) == len(rows)


def augment(
    frames: torch.Tensor, actions: torch.Tensor | None, symmetries: Mapping[str, Matrix], rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One augmentation of all episodes of a batch: each symmetry is applied or not, and the channels are in a random
    order, inverted or not.

    Args:
        frames: uint8 (E, F, C, H, W).
        actions: (E, F-1, k, A) in environment units; integers become floats. None turns the frames alone.
        symmetries: matrices (A, A) by name, see `TURNS`.

    Raises:
        ValueError: see `check_symmetries`.
    """
    check_symmetries(symmetries, None if actions is None else actions.shape[-1])
    actions = actions if actions is None or actions.is_floating_point() else actions.float()
    for name, turn in TURNS.items():
        if name in symmetries and rng.random() < 0.5:
            frames = turn(frames)
            actions = None if actions is None else actions @ actions.new_tensor(symmetries[name]).T
    frames = frames[..., torch.from_numpy(rng.permutation(frames.shape[-3])), :, :]
    return (255 - frames if rng.random() < 0.5 else frames), actions
