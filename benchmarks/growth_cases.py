"""What `growth.py` measures: for each setting, small models at several values, and what each value should cost.

Letters: N tokens of a clip, K of a context, M of a target, D width.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from comparisons import (
    ACTION_DIM,
    SEED,
    TINY,
    EncoderPair,
    ModelSize,
    PlanningPair,
    PretrainingPair,
    block_operations,
    rollout_operations,
)
from shard_memory import link_shards

from vjepa2_hf.data.shards import ShardSource
from vjepa2_hf.data.shuffle import SHUFFLE_BYTES, SHUFFLE_ROWS, Row, RowOrder
from vjepa2_hf.modeling_state import default_chunk_size
from vjepa2_hf.training.flops import encoder_flops, step_flops
from vjepa2_hf.training.memory import HELD_BYTES, activation_bytes, forward_bytes


SMALL = ModelSize(encoder=(192, 4, 3), predictor=(96, 2, 3), dynamics=(192, 4, 3))
# An allocator that returns memory at once, so that resident memory is memory in use
RETURNING = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(2**14)) | {"OMP_NUM_THREADS": "1"}
CLIPS = 4  # of an encoder, whose memory would be small with one
SHARD_ROWS, ROW_BYTES = 8, 4096


@dataclass
class Work:
    """A setting at one value, ready to run.

    Attributes:
        run: what is timed.
        time: what it should cost, in any unit: only its growth counts.
        memory: what `hold` should hold beyond the models, in any unit.
        attention: fraction of the operations that grow with the square of the tokens.
        hold: what the memory is measured of; `None`: `run`.
        repeats: whether `hold` runs once before it is measured, which allocates what stays.
        count: of the things that `run` does; seconds are of one of them.
    """

    run: Callable[[], Any]
    time: float
    memory: float = 1
    attention: float | None = None
    hold: Callable[[], Any] | None = None
    repeats: bool = True
    count: int = 1


@dataclass(frozen=True)
class Axis:
    """A setting, the task whose costs are measured, the other settings in words, and the values; `build` takes a value
    and a folder for files."""

    setting: str
    task: str
    fixed: str
    values: tuple[int, ...]
    build: Callable[[int, Path], Work]
    has_memory: bool = True

    @property
    def name(self) -> str:
        return f"{self.setting}, {self.task}"


def attention_operations(tokens: int, keys: int, width: int) -> int:
    """Scores and weighted values of a block."""
    return block_operations(tokens, keys, width) - block_operations(tokens, 0, width)


# ---------------------------------------------------------------------------------------------- models


def encode(size: ModelSize, clips: int, frames: int, side: int) -> Work:
    """An encoder's forward."""
    pair = EncoderPair(size, clips, frames, side)
    del pair.other
    config, grid, (width, layers, _) = pair.encoder.config, size.grid(frames, side), size.encoder
    operations = sum(encoder_flops(config, pair.num_tokens, grid, masked=False))
    attention = layers * attention_operations(pair.num_tokens, pair.num_tokens, width)
    return Work(pair.ours, clips * operations, clips * forward_bytes(config, grid, "no"), attention / operations)


def pretrain(size: ModelSize, frames: int, side: int) -> Work:
    """A step on one clip. Memory is of forward and backward, with gradients that are there already."""
    pair = PretrainingPair(size, 1, frames, side)
    del pair.other, pair.other_target
    config, grid, masks = pair.model.config, pair.grid, pair.mask_sizes
    parts = step_flops(config, grid, masks)
    operations = parts["target_encoder"] + parts["encoder"] + parts["predictor"]
    (width, layers, _), (inner, inner_layers, _) = size.encoder, size.predictor
    attention = layers * attention_operations(pair.num_tokens, pair.num_tokens, width)
    for context, target in masks:  # a backward pass is twice its forward
        attention += 3 * layers * attention_operations(context, context, width)
        attention += 3 * inner_layers * attention_operations(context + target, context + target, inner)
    memory = activation_bytes(config, grid, masks, "no", checkpointing=False)
    return Work(pair.our_step(), operations, memory, attention / operations, hold=pair.our_backward)


def plan(size: ModelSize, side: int, horizon: int, candidates: int, observations: int) -> Work:
    """A CEM plan of one iteration, from latents, for several observations at once."""
    pair = PlanningPair(size, side, horizon, candidates)
    latents, goal = (part.repeat(observations, 1, 1, 1) for part in (pair.latents, pair.goal))
    cost = partial(pair.world_model.score, latents, goal)

    def run() -> Any:
        generator = torch.Generator().manual_seed(SEED)
        return pair.solver(cost, batch_size=observations, action_dim=ACTION_DIM, generator=generator)

    tokens, (width, layers, _) = latents.shape[2], size.dynamics
    rollouts = observations * (candidates * pair.solver.num_iterations + 1)  # and the plan itself
    operations, frame = rollout_operations(size, tokens, horizon), tokens + 1
    attention = sum(layers * attention_operations(frame, step * frame, width) for step in range(1, horizon + 1))
    # Keys and values of all steps, and what a block holds of the newest frame, for the candidates of a chunk
    whole, per_width, per_inner = HELD_BYTES["no"]
    held = max(whole * width, per_width * width + per_inner * 4 * width)
    chunk = min(candidates, default_chunk_size(pair.world_model.config, latents))
    memory = observations * chunk * frame * (4 * 2 * layers * width * horizon + held)
    return Work(run, rollouts * operations, memory, attention / operations)


# ---------------------------------------------------------------------------------------------- shards


def open_rows(folder: Path) -> itertools.filterfalse:
    """The rows of a source for one reader, shuffled with the default buffer; the fingerprint is taken, as by a run."""
    source = ShardSource(str(folder))
    if not source.fingerprint:
        raise ValueError(f"{folder} has no fingerprint.")
    order = RowOrder(source, 0, 1, SEED, None, SHUFFLE_ROWS, SHUFFLE_BYTES)
    return itertools.filterfalse(lambda row: row is None, order.rows())


def make_shards(count: int, scratch: Path) -> Path:
    """A folder of shards, written once."""
    folder = scratch / f"shards_{count}"
    if not folder.exists():
        folder.mkdir()
        columns = {"video": [bytes([row]) * ROW_BYTES for row in range(SHARD_ROWS)], "path": ["a.mp4"] * SHARD_ROWS}
        link_shards(folder, count, pa.table(columns))
    return folder


def open_shards(rows: int, count: int, scratch: Path) -> Work:
    """From a folder's name to the first row. Memory is that of opening it and reading `rows` rows."""
    folder = make_shards(count, scratch)

    def first() -> Row:
        return next(open_rows(folder))

    def read() -> None:
        for _ in itertools.islice(open_rows(folder), rows):
            pass

    return Work(first, time=count, hold=read, repeats=False)


def read_shards(rows: int, count: int, scratch: Path) -> Work:
    """The rows after the first."""
    stream = open_rows(make_shards(count, scratch))
    next(stream)

    def read() -> None:
        for _ in itertools.islice(stream, rows):
            pass

    return Work(read, time=1, count=rows)


# ---------------------------------------------------------------------------------------------- what is run


def build_axes(tiny: bool) -> list[Axis]:
    """All settings but the number of processes, for which see `growth_processes.py`."""
    size, side, frames, horizon, candidates = (TINY, 64, 4, 2, 4) if tiny else (SMALL, 128, 16, 3, 32)
    clips, sides = ((2, 4), (64, 96)) if tiny else ((8, 16, 32, 64), (96, 128, 192, 256))
    many, horizons, observations = (
        ((2, 4), (1, 2), (1, 2)) if tiny else ((16, 32, 64, 128, 256), (1, 2, 4, 8, 16), (1, 2, 4, 8))
    )
    shards, rows = ((2, 4), 20) if tiny else ((128, 512, 2048, 8192), 1000)
    square, time = f"of {side} × {side} pixels", f"of {frames} frames"
    planned, several = partial(plan, size, 64), partial(encode, size, CLIPS)
    buffer = f"{SHARD_ROWS} rows of {ROW_BYTES} bytes per shard, a buffer of {SHUFFLE_ROWS} rows"
    steps, tried = f"{horizon} steps", f"{candidates} candidates"
    return [
        Axis("frames", "encoder", f"{CLIPS} clips {square}", clips, lambda value, _: several(value, side)),
        Axis("pixels per side", "encoder", f"{CLIPS} clips {time}", sides, lambda value, _: several(frames, value)),
        Axis("frames", "pretraining step", f"1 clip {square}", clips, lambda value, _: pretrain(size, value, side)),
        Axis(
            "pixels per side",
            "pretraining step",
            f"1 clip {time}",
            sides,
            lambda value, _: pretrain(size, frames, value),
        ),
        Axis("candidates", "plan", steps, many, lambda value, _: planned(horizon, value, 1)),
        Axis("horizon", "plan", tried, horizons, lambda value, _: planned(value, candidates, 1)),
        Axis(
            "observations",
            "plan",
            f"{steps}, {tried}",
            observations,
            lambda value, _: planned(horizon, candidates, value),
        ),
        Axis("shards", "first row", buffer, shards, partial(open_shards, rows)),
        Axis("shards", "later row", buffer, shards, partial(read_shards, rows), has_memory=False),
    ]
