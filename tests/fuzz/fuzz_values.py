"""Wrong inputs by kind, for the fuzz suite: for each kind of parameter, functions that make a wrong value from a right
one. A value may also be a right one in another form (a numpy integer, a float64 tensor): the call then has to work."""

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


NAN, INF = math.nan, math.inf
Maker = Callable[[Any, random.Random], Any]


def constant(value: Any) -> Maker:
    return lambda right, rng: value


def constants(*values: Any) -> list[Maker]:
    return [constant(value) for value in values]


HUGE = (2**31, 2**40, 2**63, 2**70, 10**30)

# What no parameter of another type is
WRONG_TYPES = [
    *constants("", "two", b"bytes", None, [], {}, (), {"a": 1}, ["x"], object, Ellipsis, 1j, True),
    lambda right, rng: object(),
    lambda right, rng: np.array([]),
    lambda right, rng: torch.zeros(2),
    lambda right, rng: [right, right],
]

INTEGERS = [
    *constants(0, -1, -(2**70), *HUGE, 1.5, 2.0, NAN, INF, -INF, 1e30, np.float32(1.5)),
    lambda right, rng: np.int64(right) if isinstance(right, int) else np.int64(1),
    lambda right, rng: -right if isinstance(right, int) else -3,
    lambda right, rng: rng.randrange(-5, 200),
]
NUMBERS = [
    *constants(0, -1, NAN, INF, -INF, 1e30, -1e30, 1e-30, 2**70, np.float64(0.5), np.float32(NAN), 10**400),
    lambda right, rng: rng.uniform(-2, 2),
]
FRACTIONS = [*NUMBERS, *constants(1.5, -0.001, 1.0001)]
FLAGS = constants(0, 1, 2, -1, "no", "yes", "true", 0.0, NAN, np.bool_(True))
CHOICES = [*constants("", "x", "None", 0, 1, NAN, "L2", " l2", b"l2"), lambda right, rng: f"{right}x"]
SEEDS = [*constants(1.5, "a", 2**70, -(2**70), NAN, INF, -1, 2**63, np.int64(3)), *INTEGERS]
VECTORS = [
    *constants([], [NAN], [INF, -INF], [0], [[0.0]], ["a"], 1e30, NAN, -1, [None], [2**70, 1], np.zeros(0)),
    lambda right, rng: [*np.ravel(right).tolist(), 0.0],
    lambda right, rng: [NAN] * len(np.ravel(right)),
    lambda right, rng: np.asarray(right),
    lambda right, rng: np.asarray(right, np.float32)[None],
]
RANGES = constants(
    (), (1,), (0.5, 0.2), (0.2, 0.5, 0.7), (NAN, 1), (0.1, NAN), (-1, 1), (0, 0), (INF, INF), ("a", "b"), (None, None),
    [0.2, 0.5], 0.5, -1, NAN, "half", (2**70, 2**71), (1e-30, 1e30),
)  # fmt: skip


def _cut(axis: int) -> Maker:
    def cut(right: torch.Tensor, rng: random.Random) -> Any:
        return right.narrow(axis, 0, 0) if right.ndim > axis else right[None]

    return cut


def _longer(right: torch.Tensor, rng: random.Random) -> Any:
    axis = rng.randrange(right.ndim) if right.ndim else 0
    return torch.cat([right, right.narrow(axis, 0, 1)], dim=axis) if right.ndim else right


def _shorter(right: torch.Tensor, rng: random.Random) -> Any:
    axis = rng.randrange(right.ndim) if right.ndim else 0
    return right.narrow(axis, 0, right.shape[axis] - 1) if right.ndim else right


def _filled(value: float) -> Maker:
    def filled(right: torch.Tensor, rng: random.Random) -> Any:
        if not right.is_floating_point():
            return torch.full_like(right, -1 if math.isnan(value) or value < 0 else 2**40)
        return torch.full_like(right, value)

    return filled


def _poisoned(right: torch.Tensor, rng: random.Random) -> Any:
    poisoned = right.clone()
    poisoned.flatten()[0] = NAN if right.is_floating_point() else -(2**40)
    return poisoned


SHAPES = [
    *(_cut(axis) for axis in range(4)),
    _longer, _longer, _shorter, _shorter,
    lambda right, rng: right[0] if right.ndim else right,
    lambda right, rng: right[None],
    lambda right, rng: right.flatten(),
    lambda right, rng: right.flatten()[0],
    lambda right, rng: right.transpose(-1, -2) if right.ndim > 1 else right[None],
    lambda right, rng: torch.zeros(0),
    lambda right, rng: right.movedim(1, -1) if right.ndim > 2 else right[None],
]  # fmt: skip
DTYPES = [
    lambda right, rng: right.double(),
    lambda right, rng: right.half(),
    lambda right, rng: right.to(torch.bfloat16),
    lambda right, rng: right.long(),
    lambda right, rng: right.int(),
    lambda right, rng: right.bool(),
    lambda right, rng: right.to(torch.uint8),
    lambda right, rng: right.to(torch.complex64),
    lambda right, rng: right.numpy(),
    lambda right, rng: right.numpy()[:0],
    lambda right, rng: right.tolist(),
]
TENSORS = [*SHAPES, *DTYPES, _filled(NAN), _filled(INF), _filled(-1e30), _poisoned]
TENSOR_LISTS = [
    *constants([], [None], [[]], "x", 3),
    lambda right, rng: [TENSORS[rng.randrange(len(TENSORS))](right[0], rng), *right[1:]],
    lambda right, rng: right[0],
    lambda right, rng: tuple(right),
    lambda right, rng: [*right, *right],
]


def _image_changes(right: np.ndarray, rng: random.Random) -> Any:
    changes = [
        right[:0], right[..., :0], right[..., :1], right[..., 0], right[None, None, None], right.astype(np.float32),
        right.astype(np.float64) * NAN, right.astype(np.int64) - 300, right.astype(bool),
        right.astype(np.uint16) * 900,
        right.astype(complex), right.tolist(), right.astype(object), right[:1, :1], right.astype(np.float16) / 255,
        torch.from_numpy(right.copy()), right.astype("U3"), right.astype(np.float64) * 1e30, right[::-1],
        right.swapaxes(0, -1), np.zeros((0, 0, 3), np.uint8), np.float32(3),
    ]  # fmt: skip
    return changes[rng.randrange(len(changes))]


IMAGES = [_image_changes] * 6 + constants(
    "no_such_file.png", "/", "", b"", b"no image", {}, {"bytes": None, "path": None}, {"bytes": b"x"}, [], [[]], 3, NAN
)

KINDS: dict[str, list[Maker]] = {
    "integer": INTEGERS,
    "number": NUMBERS,
    "fraction": FRACTIONS,
    "flag": FLAGS,
    "choice": CHOICES,
    "seed": SEEDS,
    "vector": VECTORS,
    "range": RANGES,
    "tensor": TENSORS,
    "tensors": TENSOR_LISTS,
    "image": IMAGES,
}


def wrong_value(kind: str, right: Any, rng: random.Random, types: bool) -> Any:
    """A value of a kind of parameter, from its right value; with `types` one time in four of another type."""
    if kind == "tensor" and not isinstance(right, torch.Tensor):
        right = torch.zeros(2, 2, 2)
    if kind == "vector" and not isinstance(right, (int, float, list, tuple)):
        right = [0.0, 0.0]
    makers = WRONG_TYPES if types and rng.random() < 0.25 else KINDS[kind]
    return makers[rng.randrange(len(makers))](right, rng)
