"""Mask samplers: which tokens of a clip the encoder sees (context) and which the predictor must predict (target).

A sampler is any callable `sampler(batch_size, grid, generator=None) -> (context_mask (B, K), target_mask (B, M))` of
sorted int64 token ids, where grid is (T', H', W') in tubelets and patches and token (t, h, w) has the id
`(t * H' + h) * W' + w`. The same seed gives the same masks. Context and target never overlap, lie in the grid and are
never empty. Frames are counted in tubelets.

A random sampler takes one number from the generator, whatever its settings, the batch and the grid, so that none of
these changes later random numbers. Masks are sampled with numpy, which is faster than torch (benchmarks/masks.py), and
lie on the generator's device, or on the CPU without one.

Letters: B batch, T' H' W' the token grid, N = T'·H'·W' tokens, K context tokens, M target tokens, J blocks of a clip.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .specs import LARGEST_COUNT, check_generator, describe, from_spec, is_integer, refuse


Grid = tuple[int, int, int]
NumberOrRange = float | tuple[float, float]

MAX_TOKENS = 2**28  # of a batch
MAX_BLOCKS = 10_000  # of a clip
MAX_TRIES = 1000  # batches sampled before a sampler gives up on a grid
TRIES_PER_SIZE = 50  # batches sampled with the same block size


@dataclass(frozen=True)
class MultiBlockMask:
    """Blocks of the clip are the target, and the uncovered rest is the context.

    The published recipe uses two mask sets at once, `PUBLISHED_MASKS`: block size and aspect ratio are sampled once
    per batch, block positions for each clip. With a `mask_ratio` (the two-phase recipe: `num_blocks=(4, 8),
    spatial_scale=(0.15, 0.7), temporal_scale=(0.4, 1.0), mask_ratio=(0.75, 0.9)`) the number of blocks is sampled per
    clip and the size per block, until the union of the clip's blocks lies within that ratio.

    A batch is made rectangular by dropping tokens at random within each clip. The published collator drops the last
    ones instead, so that late frames are less likely to stay.

    Args:
        num_blocks: J, blocks per clip, an integer or a range (inclusive).
        spatial_scale: area of a block as a fraction of the frame, in (0, 1], a number or a range.
        temporal_scale: length of a block as a fraction of the clip, in (0, 1], a number or a range.
        aspect_ratio: height over width of a block in patches, a number or a range.
        mask_ratio: fraction of the tokens that the blocks of one clip cover together before the batch is made
            rectangular, a range in (0, 1); `None`: any.

    Raises:
        ValueError: a setting is out of its range; when sampling, no clip can meet the settings on this grid.
    """

    num_blocks: int | tuple[int, int] = 8
    spatial_scale: NumberOrRange = 0.15
    temporal_scale: NumberOrRange = 1.0
    aspect_ratio: NumberOrRange = (0.75, 1.5)
    mask_ratio: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        _check_range(self, "num_blocks", above=0, integers=True)
        _check_range(self, "spatial_scale", above=0, at_most=1)
        _check_range(self, "temporal_scale", above=0, at_most=1)
        _check_range(self, "aspect_ratio", above=0)
        if self.mask_ratio is not None:
            _check_range(self, "mask_ratio", above=0, below=1)
            if not isinstance(self.mask_ratio, tuple):
                raise ValueError(f"mask_ratio is {self.mask_ratio!r}, expected a range (lowest, highest) or None.")

    def __call__(
        self, batch_size: int, grid: Grid, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        _check_call(batch_size, grid, generator)
        rng = _numpy_generator(generator)
        return _to_tensors(_trim(self._sample_clips(batch_size, grid, rng), rng), generator)

    def _sample_clips(self, batch_size: int, grid: Grid, rng: np.random.Generator) -> np.ndarray:
        """The tokens that the blocks of each clip cover, bool (B, N), before the batch is made rectangular.

        For each rejected clip four more are sampled (a batch at most), and the first B accepted ones are kept.
        """
        clips, missing = [], batch_size
        for attempt in range(MAX_TRIES):
            rows = min(batch_size, 4 * missing)
            if self.mask_ratio is not None:
                sizes, exists = self._sample_sizes(rows, grid, rng)
            elif attempt % TRIES_PER_SIZE == 0:
                sizes, exists = self._sample_sizes(1, grid, rng)
            covered = _sample_union(sizes, exists, rows, grid, rng)
            count, num_tokens = _count(covered), covered.shape[1]
            accepted = (count > 0) & (count < num_tokens)
            if self.mask_ratio is not None:
                low, high = self.mask_ratio
                accepted &= (count >= low * num_tokens) & (count <= high * num_tokens)
            clips.append(covered[accepted][:missing])
            missing -= len(clips[-1])
            if missing == 0:
                return np.concatenate(clips)
        reason = "the blocks cover every token and leave no context"
        if self.mask_ratio is not None:
            reason = f"the union of the blocks never lies within {self.mask_ratio[0]:g} to {self.mask_ratio[1]:g}"
        raise ValueError(
            f"{self} found no mask for the grid {tuple(grid)} (frames, height, width in tokens) in {MAX_TRIES} tries: "
            f"{reason}; use a larger grid or other block sizes."
        )

    def _sample_sizes(self, rows: int, grid: Grid, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Block sizes (t, h, w) in tokens, int64 (rows, J or 1, 3), and which blocks exist, bool (rows, J).

        The arithmetic (rounding down the area, rounding the sides) is the published one.
        """
        low, high = _as_range(self.num_blocks)
        exists = np.arange(high) < rng.integers(low, high + 1, (rows, 1))
        shape = (rows, 1 if self.mask_ratio is None else high)
        length = np.floor(grid[0] * rng.uniform(*_as_range(self.temporal_scale), shape))
        area = np.floor(grid[1] * grid[2] * rng.uniform(*_as_range(self.spatial_scale), shape))
        aspect = rng.uniform(*_as_range(self.aspect_ratio), shape)
        sizes = np.stack([length, np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))], axis=-1)
        # a block is at least one token and at most the grid
        return sizes.clip(1, grid).astype(np.int64), exists


class FrameMask:
    """Base of the samplers of the temporal recipe, which mask whole frames (tubelets): context (B, K), target (B, M).

    A setting that is out of its range, or a grid with too few frames, is a ValueError.
    """

    def __call__(
        self, batch_size: int, grid: Grid, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        _check_call(batch_size, grid, generator)
        if grid[0] < 2:
            raise ValueError(
                f"{type(self).__name__} needs at least 2 tubelets but the grid is {tuple(grid)}; use longer clips."
            )
        is_context = self.context_frames(batch_size, grid, generator)
        both = (is_context, self.target_frames(is_context, grid))
        tokens = (np.broadcast_to(each, (batch_size, grid[0])).repeat(grid[1] * grid[2], axis=1) for each in both)
        return _to_tensors(map(_ids, tokens), generator)

    def context_frames(self, batch_size: int, grid: Grid, generator: torch.Generator | None) -> np.ndarray:
        """Which frames are context, bool (T',) for all clips or (B, T')."""
        raise NotImplementedError

    def target_frames(self, is_context: np.ndarray, grid: Grid) -> np.ndarray:
        """Which frames are target, of the same shape."""
        return ~is_context


@dataclass(frozen=True)
class FutureMask(FrameMask):
    """The first frames are the context, the later ones the target. `context_ratio` is the fraction in the context, in
    (0, 1); rounded, at least one frame on either side."""

    context_ratio: float = 0.5

    def __post_init__(self) -> None:
        _check_range(self, "context_ratio", above=0, below=1, single=True)

    def context_frames(self, batch_size: int, grid: Grid, generator: torch.Generator | None) -> np.ndarray:
        return np.arange(grid[0]) < _num_frames(grid[0], self.context_ratio)


@dataclass(frozen=True)
class RandomFrameMask(FrameMask):
    """Frames sampled for each clip are the target, the others the context. `mask_ratio` is the fraction in the target,
    in (0, 1); rounded, at least one frame on either side."""

    mask_ratio: float = 0.5

    def __post_init__(self) -> None:
        _check_range(self, "mask_ratio", above=0, below=1, single=True)

    def context_frames(self, batch_size: int, grid: Grid, generator: torch.Generator | None) -> np.ndarray:
        first = np.arange(grid[0]) < _num_frames(grid[0], self.mask_ratio)
        return ~_numpy_generator(generator).permuted(np.tile(first, (batch_size, 1)), axis=1)


@dataclass(frozen=True)
class PeriodicMask(FrameMask):
    """Every period-th frame, starting with the first, is the context; the frames between are the target."""

    period: int = 2

    def __post_init__(self) -> None:
        if not is_integer(self.period) or not 2 <= self.period <= LARGEST_COUNT:
            raise ValueError(
                f"period is {describe(self.period)}, expected an integer of at least 2: of every `period` tubelets "
                "one is context and the others are target."
            )

    def context_frames(self, batch_size: int, grid: Grid, generator: torch.Generator | None) -> np.ndarray:
        return np.arange(grid[0]) % self.period == 0


@dataclass(frozen=True)
class MultiRateMask(FutureMask):
    """The first frames are the context, frames at several distances after the last of them the target: with 8 tubelets
    the defaults keep 0 to 3 and predict 4, 5 and 7. `horizons` are the distances from the last context frame."""

    horizons: tuple[int, ...] = (1, 2, 4)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.horizons, list):
            object.__setattr__(self, "horizons", tuple(self.horizons))
        valid = isinstance(self.horizons, tuple) and all(
            is_integer(each) and 1 <= each <= LARGEST_COUNT for each in self.horizons
        )
        if not valid or not 0 < len(self.horizons) == len(set(self.horizons)):
            raise ValueError(
                f"horizons is {describe(self.horizons)}, expected different integers of at least 1, for "
                "example (1, 2, 4)."
            )

    def target_frames(self, is_context: np.ndarray, grid: Grid) -> np.ndarray:
        num_context, needed = is_context.sum(), max(self.horizons)
        if num_context + needed > grid[0]:
            raise ValueError(
                f"{self} needs {needed} tubelets after the {num_context} of the context but the grid {tuple(grid)} "
                f"has {grid[0]} in all; use longer clips, a smaller context_ratio or shorter horizons."
            )
        return np.isin(np.arange(grid[0]), np.array(self.horizons) + num_context - 1)


MASK_SAMPLERS: dict[str, type] = {
    "multi_block": MultiBlockMask,
    "future": FutureMask,
    "random_frame": RandomFrameMask,
    "periodic": PeriodicMask,
    "multi_rate": MultiRateMask,
}

# The published recipe: two mask sets in every step, many small blocks and two large ones
_BOTH_SETS = {"temporal_scale": 1.0, "aspect_ratio": (0.75, 1.5)}
PUBLISHED_MASKS: list[dict[str, Any]] = [
    {"type": "multi_block", "num_blocks": 8, "spatial_scale": 0.15, **_BOTH_SETS},
    {"type": "multi_block", "num_blocks": 2, "spatial_scale": 0.7, **_BOTH_SETS},
]
# V-JEPA 2.1: the mask set of single images
PUBLISHED_IMAGE_MASKS: list[dict[str, Any]] = [
    {"type": "multi_block", "num_blocks": 10, "spatial_scale": 0.15, **_BOTH_SETS}
]


def build_mask_samplers(specs: Iterable[dict[str, Any]]) -> list:
    """Samplers from specs such as `{"type": "multi_block", "num_blocks": 8}`; a bad spec is a ValueError."""
    if not isinstance(specs, (list, tuple)):
        refuse("masks", specs, "a list of dicts with 'type'")
    return [from_spec(spec, MASK_SAMPLERS, "type") for spec in specs]


def _sample_union(
    sizes: np.ndarray, exists: np.ndarray, rows: int, grid: Grid, rng: np.random.Generator
) -> np.ndarray:
    """Positions the blocks of each clip uniformly; the tokens that any of them covers, bool (rows, N)."""
    sizes = np.broadcast_to(sizes, (rows, exists.shape[1], 3))
    start = rng.integers(0, np.array(grid) - sizes + 1)
    end = start + sizes
    in_time, in_height, in_width = (
        (np.arange(length) >= start[..., axis, None]) & (np.arange(length) < end[..., axis, None])
        for axis, length in enumerate(grid)
    )
    in_time &= exists[..., None]
    # A matrix product counts the blocks over each token; much faster than `any` over whole blocks
    lines = (in_time[..., None] & in_height[:, :, None, :]).reshape(rows, exists.shape[1], -1).astype(np.float32)
    return (lines.transpose(0, 2, 1) @ in_width.astype(np.float32) > 0).reshape(rows, -1)


def _trim(covered: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Makes a batch of covered tokens, bool (B, N), rectangular: context ids (B, K) and target ids (B, M), sorted.

    K and M are the smallest counts in the batch; clips with more tokens lose some uniformly at random. Covered tokens
    get low random keys, the others high ones: the M lowest keys of a clip are its target, the K highest its context.
    A clip whose last kept key equals the first dropped one is sampled again, so that ties favor no token.
    """
    rows, num_tokens = covered.shape
    counts = _count(covered)
    num_target, num_context = counts.min(), num_tokens - counts.max()
    # 16 bits take half the time; up to this size one clip in ten has a tie
    dtype, bits = (np.uint16, 16) if num_tokens <= 4096 else (np.uint32, 32)
    high_bit = (~covered).astype(dtype) << (bits - 1)
    target, context = np.empty((2, rows, num_tokens), dtype=bool)
    open_rows = np.arange(rows)
    while len(open_rows) > 0:
        keys = _random_keys(len(open_rows), num_tokens, dtype, rng) >> 1 | high_bit[open_rows]
        ordered = np.partition(keys, num_target - 1, axis=1)
        rest = ordered[:, num_target:]
        rest.partition(rest.shape[1] - num_context, axis=1)
        target[open_rows] = in_target = keys <= ordered[:, num_target - 1, None]
        context[open_rows] = in_context = keys >= rest[:, -num_context, None]
        open_rows = open_rows[(_count(in_target) > num_target) | (_count(in_context) > num_context)]
    return _ids(context), _ids(target)


def _random_keys(rows: int, num_tokens: int, dtype: type, rng: np.random.Generator) -> np.ndarray:
    """Random bits (rows, N) of an unsigned type, several keys from each 64-bit number."""
    size = np.dtype(dtype).itemsize
    numbers = rng.integers(0, 2**64, -(-rows * num_tokens * size // 8), dtype=np.uint64)
    return numbers.view(dtype)[: rows * num_tokens].reshape(rows, num_tokens)


def _count(chosen: np.ndarray) -> np.ndarray:
    """Number of chosen tokens per clip, bool (B, N) -> int64 (B,); four times faster than a sum of bools."""
    return np.bitwise_count(np.packbits(chosen, axis=1)).sum(axis=1, dtype=np.int64)


def _to_tensors(masks: Iterable[np.ndarray], generator: torch.Generator | None) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(ids).to(_device(generator)) for ids in masks)


def _ids(chosen: np.ndarray) -> np.ndarray:
    """Sorted ids of the chosen tokens, the same number in every row: bool (B, N) -> int64 (B, K)."""
    rows, num_tokens = chosen.shape
    ids = np.flatnonzero(chosen).reshape(rows, -1)
    ids -= num_tokens * np.arange(rows)[:, None]
    return ids


def _num_frames(num_frames: int, ratio: float) -> int:
    """That fraction of the frames, rounded, with at least one frame in it and one outside."""
    return min(max(round(num_frames * ratio), 1), num_frames - 1)


def _numpy_generator(generator: torch.Generator | None) -> np.random.Generator:
    """A numpy generator seeded by one number of the torch generator (of the global one without)."""
    seed = torch.randint(2**63 - 1, (), generator=generator, device=_device(generator))
    return np.random.default_rng(seed.item())


def _as_range(value: NumberOrRange) -> tuple[float, float]:
    return value if isinstance(value, tuple) else (value, value)


def _device(generator: torch.Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device


def _check_range(
    sampler, name: str, above: float, below: float = math.inf, at_most: float = math.inf, integers=False, single=False
) -> None:
    """Checks a number or, unless `single`, a range of the sampler; a list (as YAML gives) is stored as a tuple."""
    value = getattr(sampler, name)
    if isinstance(value, list):
        value = tuple(value)
        object.__setattr__(sampler, name, value)
    numbers = _as_range(value)
    if (
        len(numbers) != 2
        or not all(is_integer(number) or not integers and isinstance(number, float) for number in numbers)
        or not above < numbers[0] <= numbers[1] < (MAX_BLOCKS if integers else math.inf)
        or not (numbers[1] < below and numbers[1] <= at_most)
    ):
        kind = "an integer" if integers else "a number"
        limits = [f"above {above:g}"]
        limits += [f"{word} {limit:g}" for word, limit in (("below", below), ("at most", at_most)) if limit < math.inf]
        limits += [f"below {MAX_BLOCKS}"] * integers
        raise ValueError(
            f"{name} is {describe(value)}, expected {kind} {' and '.join(limits)}, or a range (lowest, highest) of "
            "such."
        )
    if single and isinstance(value, tuple):
        raise ValueError(f"{name} is {value!r}, expected one number, for example 0.5.")


def _check_call(batch_size: int, grid: Grid, generator: torch.Generator | None) -> None:
    if not is_integer(batch_size) or batch_size < 1:
        raise ValueError(f"batch_size is {describe(batch_size)}, expected an integer of at least 1.")
    is_grid = isinstance(grid, (tuple, list)) and len(grid) == 3
    if not is_grid or not all(is_integer(size) and size >= 1 for size in grid):
        raise ValueError(
            f"grid is {describe(grid)}, expected three positive numbers of tokens (frames, height, width)."
        )
    if int(batch_size) * math.prod(map(int, grid)) > MAX_TOKENS:
        raise ValueError(
            f"batch_size={batch_size} clips with the grid {tuple(grid)} have more than {MAX_TOKENS} tokens; use fewer "
            "clips or a smaller grid."
        )
    check_generator("generator", generator)
