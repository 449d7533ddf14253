"""Mask samplers: which tokens of a clip the encoder sees (context) and which the predictor must predict (target).

A sampler is any callable `sampler(batch_size, grid, generator=None) -> (context_mask (B, K), target_mask (B, M))` of
sorted int64 token ids, where grid is (T', H', W') in tubelets and patches and token (t, h, w) has the id
`(t * H' + h) * W' + w`. The same seed gives the same masks; context and target never overlap, lie in the grid and
are never empty.

Letters: B batch, T' H' W' the token grid, N = T'·H'·W' tokens, K context tokens, M target tokens, J blocks of a clip.
"""

import dataclasses
import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch


Grid = tuple[int, int, int]
NumberOrRange = float | tuple[float, float]

# Tries before a sampler gives up on a grid, and how often block positions are drawn again before the block size is.
MAX_TRIES = 1000
TRIES_PER_SIZE = 50


@dataclass(frozen=True)
class MultiBlockMask:
    """Blocks of the clip are the target, and what no block covers is the context.

    The published recipe uses two sets at once, `PUBLISHED_MASKS`: block size and aspect ratio are drawn once a batch,
    block positions for each clip. With a `mask_ratio` (seed 003: `num_blocks=(4, 8), spatial_scale=(0.15, 0.7),
    temporal_scale=(0.4, 1.0), mask_ratio=(0.75, 0.9)`) each clip draws its own number of blocks and each block its own
    size, until the union of the clip's blocks lies within that ratio.

    A batch is made rectangular by dropping tokens at random within each clip, where the published collator drops the
    last ones; so every frame is equally likely to stay (at `temporal_scale=1.0`).

    Args:
        num_blocks: J, blocks a clip, an integer or a range (inclusive).
        spatial_scale: area of a block as a fraction of the frame's, in (0, 1], a number or a range.
        temporal_scale: length of a block as a fraction of the clip's, in (0, 1], a number or a range.
        aspect_ratio: height over width of a block in patches, a number or a range.
        mask_ratio: share of the tokens that the blocks of one clip cover together before the batch is made
            rectangular, a range in (0, 1), or None for no such condition.

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
        """Draws the masks of one batch: (context_mask (B, K), target_mask (B, M)), sorted int64 ids."""
        _check_batch(batch_size, grid)
        covered = torch.zeros(batch_size, math.prod(grid), dtype=torch.bool, device=_device(generator))
        missing = torch.arange(batch_size, device=covered.device)
        for attempt in range(MAX_TRIES):
            if self.mask_ratio is not None:
                sizes = self._draw_sizes(len(missing), grid, generator)
            elif attempt % TRIES_PER_SIZE == 0:
                sizes = self._draw_sizes(1, grid, generator)
            covered[missing] = _draw_union(sizes, len(missing), grid, generator)
            missing = missing[~self._accepts(covered[missing])]
            if len(missing) == 0:
                return _random_ids(~covered, generator), _random_ids(covered, generator)
        raise ValueError(
            f"{self} found no mask for the grid {tuple(grid)} (frames, height, width in tokens) in {MAX_TRIES} tries: "
            f"{self._condition()}; use a larger grid or other block sizes."
        )

    def _accepts(self, covered: torch.Tensor) -> torch.Tensor:
        """Which clips of (B, N) have a context, a target, and a union within the mask ratio: bool (B,)."""
        count, num_tokens = covered.sum(1), covered.shape[1]
        accepted = (count > 0) & (count < num_tokens)
        if self.mask_ratio is not None:
            low, high = self.mask_ratio
            accepted &= (count >= low * num_tokens) & (count <= high * num_tokens)
        return accepted

    def _condition(self) -> str:
        if self.mask_ratio is None:
            return "the blocks cover every token and leave no context"
        return f"the union of the blocks never lies within {self.mask_ratio[0]:g} to {self.mask_ratio[1]:g}"

    def _draw_sizes(
        self, rows: int, grid: Grid, generator: torch.Generator | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Block sizes (t, h, w) in tokens, int64 (rows, J or 1, 3), and which blocks exist, bool (rows, J).

        The arithmetic (rounding down the area, rounding the sides) is the published one.
        """
        low, high = _as_range(self.num_blocks)
        number = torch.randint(int(low), int(high) + 1, (rows, 1), generator=generator, device=_device(generator))
        exists = torch.arange(int(high), device=number.device) < number
        shape = (rows, 1 if self.mask_ratio is None else int(high))
        length = (grid[0] * _uniform(self.temporal_scale, shape, generator)).floor()
        area = (grid[1] * grid[2] * _uniform(self.spatial_scale, shape, generator)).floor()
        aspect = _uniform(self.aspect_ratio, shape, generator)
        sizes = torch.stack([length, (area * aspect).sqrt().round(), (area / aspect).sqrt().round()], dim=-1)
        # a block is at least one token and at most the grid
        return sizes.long().clamp(min=1).minimum(torch.tensor(grid, device=sizes.device)), exists


@dataclass(frozen=True)
class FutureMask:
    """The first frames are the context, the later ones the target (seed 000).

    Args:
        context_ratio: share of the frames (tubelets) that are context, in (0, 1); rounded to whole tubelets, at least
            one on either side.

    Raises:
        ValueError: the ratio is out of its range; when sampling, the grid has fewer than two frames.
    """

    context_ratio: float = 0.5

    def __post_init__(self) -> None:
        _check_range(self, "context_ratio", above=0, below=1)
        if isinstance(self.context_ratio, tuple):
            raise ValueError(f"context_ratio is {self.context_ratio!r}, expected one number, for example 0.5.")

    def __call__(
        self, batch_size: int, grid: Grid, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The masks of one batch, the same for every clip: (context_mask (B, K), target_mask (B, M))."""
        _check_batch(batch_size, grid)
        if grid[0] < 2:
            raise ValueError(f"FutureMask needs at least 2 tubelets but the grid is {tuple(grid)}; use longer clips.")
        num_context = min(max(round(grid[0] * self.context_ratio), 1), grid[0] - 1) * grid[1] * grid[2]
        ids = torch.arange(math.prod(grid), device=_device(generator)).repeat(batch_size, 1)
        return ids[:, :num_context].contiguous(), ids[:, num_context:].contiguous()


MASK_SAMPLERS: dict[str, type] = {"multi_block": MultiBlockMask, "future": FutureMask}

# The published recipe: both sets in every step, many small blocks and two large ones.
PUBLISHED_MASKS: list[dict[str, Any]] = [
    {
        "type": "multi_block",
        "num_blocks": 8,
        "spatial_scale": 0.15,
        "temporal_scale": 1.0,
        "aspect_ratio": (0.75, 1.5),
    },
    {"type": "multi_block", "num_blocks": 2, "spatial_scale": 0.7, "temporal_scale": 1.0, "aspect_ratio": (0.75, 1.5)},
]


def build_mask_samplers(specs: Iterable[dict[str, Any]]) -> list:
    """Makes samplers from specs such as `{"type": "multi_block", "num_blocks": 8}`.

    Raises:
        ValueError: a type or a setting is unknown, or a setting is out of its range.
    """
    return [_build_sampler(spec) for spec in specs]


def _build_sampler(spec: dict[str, Any]) -> Any:
    if not isinstance(spec, dict) or "type" not in spec:
        raise ValueError(f"mask spec {spec!r} has no 'type'; expected one of {', '.join(MASK_SAMPLERS)}.")
    settings = dict(spec)
    name = settings.pop("type")
    if name not in MASK_SAMPLERS:
        raise ValueError(
            f"mask type {name!r} is unknown{_nearest(name, MASK_SAMPLERS)}; known: {', '.join(MASK_SAMPLERS)}."
        )
    known = [entry.name for entry in dataclasses.fields(MASK_SAMPLERS[name])]
    for key in settings:
        if key not in known:
            raise ValueError(
                f"mask {name!r} has no setting {key!r}{_nearest(key, known)}; it has: {', '.join(known)}."
            )
    return MASK_SAMPLERS[name](**settings)


def _draw_union(
    sizes: tuple[torch.Tensor, torch.Tensor], rows: int, grid: Grid, generator: torch.Generator | None
) -> torch.Tensor:
    """Places the blocks of each clip uniformly and returns the tokens that any of them covers, bool (rows, N)."""
    size, exists = sizes
    device = size.device
    num_blocks = exists.shape[1]
    size = size.expand(rows, num_blocks, 3)
    room = torch.tensor(grid, device=device) - size + 1
    # float64: the product rounds below `room`, so that a start never leaves the grid
    start = (torch.rand(rows, num_blocks, 3, generator=generator, device=device, dtype=torch.float64) * room).long()
    end = start + size
    inside = [
        (torch.arange(length, device=device) >= start[..., axis, None])
        & (torch.arange(length, device=device) < end[..., axis, None])
        for axis, length in enumerate(grid)
    ]
    in_time = inside[0] & exists.unsqueeze(-1)
    blocks = in_time[:, :, :, None, None] & inside[1][:, :, None, :, None] & inside[2][:, :, None, None, :]
    return blocks.any(1).flatten(1)


def _random_ids(chosen: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """Sorted ids of the chosen tokens (B, N) -> (B, K), K being the smallest count in the batch.

    Clips with more tokens lose some uniformly at random: those with the lowest of random keys.
    """
    count = int(chosen.sum(1).min())
    keys = torch.rand(chosen.shape, generator=generator, device=chosen.device, dtype=torch.float64)
    return keys.masked_fill(~chosen, -1.0).topk(count, dim=1).indices.sort(dim=1).values


def _uniform(limits: NumberOrRange, shape: tuple[int, ...], generator: torch.Generator | None) -> torch.Tensor:
    low, high = _as_range(limits)
    return low + (high - low) * torch.rand(shape, generator=generator, device=_device(generator), dtype=torch.float64)


def _as_range(value: NumberOrRange) -> tuple[float, float]:
    return value if isinstance(value, tuple) else (value, value)


def _device(generator: torch.Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device


def _check_range(
    sampler: Any,
    name: str,
    above: float,
    below: float = math.inf,
    at_most: float = math.inf,
    integers: bool = False,
) -> None:
    """Checks a number or a range of the sampler; a list (as YAML gives) is stored as a tuple."""
    value = getattr(sampler, name)
    if isinstance(value, list):
        value = tuple(value)
        object.__setattr__(sampler, name, value)
    numbers = value if isinstance(value, tuple) else (value, value)
    kinds = int if integers else (int, float)
    if (
        len(numbers) != 2
        or not all(isinstance(number, kinds) and not isinstance(number, bool) for number in numbers)
        or not above < numbers[0] <= numbers[1] < math.inf
        or not (numbers[1] < below and numbers[1] <= at_most)
    ):
        kind = "an integer" if integers else "a number"
        upper = (
            f" and below {below:g}" if below < math.inf else f" and at most {at_most:g}" if at_most < math.inf else ""
        )
        raise ValueError(
            f"{name} is {value!r}, expected {kind} above {above:g}{upper}, or a range (lowest, highest) of such."
        )


def _check_batch(batch_size: int, grid: Grid) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1.")
    if len(grid) != 3 or min(grid) < 1:
        raise ValueError(f"grid is {tuple(grid)}, expected three positive numbers of tokens (frames, height, width).")


def _nearest(name: Any, known: Sequence[str] | dict[str, Any]) -> str:
    matches = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f" (did you mean {matches[0]!r}?)" if matches else ""
