"""The order in which readers read the rows of a source, shuffled in a bounded buffer.

    RowOrder.rows: runs of rows, read from several shards in turn -> buffer -> rows, one by one, at random

A run is what is read at once: a row group of a parquet shard. The runs of a shard come in random order, and
`OPEN_SHARDS` shards are read in turn. A tar file is one run, read in pieces. The next row is sampled from the buffer,
which holds a limited number of rows and of bytes. At the end of an epoch it fills with rows of the next one.

Everything is determined by (seed, epoch, reader), and the state holds positions, no rows: a resumed reader reads the
row groups of its buffered rows again, and nothing else.

Without a buffer, rows keep the order of their shards, and shards are read one after the other.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .shard_files import open_url
from .shards import ShardSource


SHUFFLE_ROWS = 512  # of the buffer, by default
SHUFFLE_BYTES = 2**28
OPEN_SHARDS = 16  # that a reader reads in turn
BLOCK_ROWS = 16  # rows read at once, unless row groups are larger
RUNS_PER_READER = 16  # with fewer row groups than this, readers that share a shard share its rows
BYTES_PER_ROW = 2**18  # of a large row group that may be read again for each row that is taken from it


def seed_of(*key: int) -> int:
    """A 63-bit seed for a position in the data."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


class Row(NamedTuple):
    """An undecoded row and its position."""

    epoch: int
    shard: int
    number: int
    values: dict[str, Any]
    size: int
    """Bytes of its videos and images; 0 for paths."""


class RowRange(NamedTuple):
    """Rows of a shard that follow one another."""

    first: int
    count: int | None
    """None: to the end of the shard, read in pieces."""


@dataclass
class Leg:
    """What a reader has not read yet of its part of an epoch. Its fields are those of saved states."""

    epoch: int
    queues: list[list[int]] = field(default_factory=list)
    """Shards that are not open: [reader, readers, position, step], the shards at position, position + step, ... in the
    order of `reader`, one of `readers`. A resumed run may have had another number of readers."""
    open: list[list[int]] = field(default_factory=list)
    """Shards in reading: [reader, readers, position, run, step, row], the runs run, run + step, ... of the shard; row:
    the first row to read of a run that is read in pieces."""
    rows: list[int] = field(default_factory=list)
    """Rows by themselves: shard, row, shard, row, ..."""
    blocks: int = 0
    """Number of blocks read so far."""


class Layout:
    """Which runs of which shards a reader reads in an epoch, for any number of readers.

    Shards are permuted by (seed, epoch) and dealt out to the readers. With a buffer, readers with fewer than
    `OPEN_SHARDS` shards each share shards in teams, by row groups. With fewer shards than readers and few row groups,
    all readers read every shard and take a part of the rows. In `readers` epochs every reader sees every row once.

    Args:
        shuffled: False for the order without a buffer, that of version 0.1.
    """

    def __init__(self, source: ShardSource, seed: int, shuffled: bool):
        self.source, self.seed, self.shuffled = source, seed, shuffled
        self._metadata: dict[int, pq.FileMetaData | None] = {}  # of the open shards
        self._orders: dict[int, np.ndarray] = {}
        self._shares_rows: dict[int, bool] = {}

    def team_size(self, readers: int) -> int:
        """Number of readers that share shards; a divisor of `readers`."""
        shards = len(self.source.shards)
        if shards < readers:
            return readers
        if not self.shuffled or self.source.kind != "parquet":
            return 1
        wanted = readers * min(OPEN_SHARDS, shards) / shards
        return next(size for size in range(1, readers + 1) if readers % size == 0 and size >= wanted)

    def shares_rows(self, readers: int) -> bool:
        """Whether every reader reads every shard and takes a part of its rows."""
        shards = len(self.source.shards)
        if shards >= readers or not self.shuffled or self.source.kind != "parquet":
            return shards < readers
        if readers not in self._shares_rows:
            runs = sum(len(self.shard_runs(shard)) for shard in range(shards))
            self._shares_rows[readers] = runs < RUNS_PER_READER * readers
        return self._shares_rows[readers]

    def epochs_to_see_all(self, readers: int) -> int:
        """Number of epochs in which every reader has seen a row, if it ever will."""
        if readers == 1:
            return 1
        if self.shares_rows(readers):
            return readers * (1 + self.shuffled)  # `takes` begins anew after `readers` epochs
        # What it reads changes with the epoch, and can be nothing, or nothing readable: of two shards a long run has
        # one 10 times in a row, and about never 40 times
        return 40 * self.team_size(readers)

    def shards(self, epoch: int, reader: int, readers: int) -> np.ndarray:
        """The shards of a reader, in order."""
        if epoch not in self._orders:
            order = np.random.default_rng((self.seed, epoch)).permutation(np.arange(len(self.source.shards)))
            self._orders = {**dict(itertools.islice(self._orders.items(), 1)), epoch: order}
        team = self.team_size(readers)
        return self._orders[epoch][reader // team :: readers // team]

    def runs(self, epoch: int, reader: int, readers: int, position: int) -> list[RowRange]:
        """The runs that a reader reads of the shard at a position in its order."""
        shard, team = int(self.shards(epoch, reader, readers)[position]), self.team_size(readers)
        runs = self.shard_runs(shard)
        if not self.shuffled:
            return runs
        runs = [runs[i] for i in np.random.default_rng((self.seed, epoch, shard)).permutation(len(runs))]
        if self.shares_rows(readers):
            return runs
        # Dealt out as if all shards had as many runs as this one, so that the readers get as many
        return [run for i, run in enumerate(runs, start=position * len(runs)) if i % team == reader % team]

    def takes(self, epoch: int, reader: int, readers: int, shard: int, row: int) -> bool:
        """Whether a reader takes a row of a shard that it reads."""
        if not self.shares_rows(readers):
            return True
        if not self.shuffled:
            return (row + shard + epoch) % readers == reader
        takers = _permutation(readers, self.seed, epoch // readers, shard, row // readers)
        return takers[(row + epoch) % readers] == reader

    def shard_runs(self, shard: int) -> list[RowRange]:
        """All runs of a shard."""
        metadata = self._read_metadata(shard) if self.shuffled and self.source.kind == "parquet" else None
        if metadata is None:
            return [RowRange(0, None)]
        runs, first = [], 0
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            least = max(BLOCK_ROWS, math.ceil(group.total_byte_size / BYTES_PER_ROW))
            parts = max(group.num_rows // least, 1)
            bounds = [group.num_rows * part // parts for part in range(parts + 1)]
            runs += [RowRange(first + low, high - low) for low, high in itertools.pairwise(bounds) if high > low]
            first += group.num_rows
        return runs

    def _read_metadata(self, shard: int) -> pq.FileMetaData | None:
        """The footer of a parquet file; None if it is unreadable, which is reported when its rows are read."""
        if shard not in self._metadata:
            try:
                with open_url(self.source.shards[shard]) as file:
                    self._metadata[shard] = pq.read_metadata(file)
                self.source.count_shard(self._metadata[shard].num_rows)
            except (OSError, ValueError, RuntimeError, pa.ArrowException):
                self._metadata[shard] = None
        return self._metadata[shard]

    def close(self, shard: int) -> None:
        """Frees what is known of a shard."""
        self._metadata.pop(shard, None)

    def read_run(
        self, shard: int, run: RowRange, is_wanted: Callable[[int], bool] = lambda row: True
    ) -> Iterator[tuple[int, dict]]:
        """(row number, row) of the wanted rows of a run that has a count."""
        return self.source.read(shard, run.first, is_wanted, run.first + run.count)


@functools.lru_cache(maxsize=256)
def _permutation(size: int, *key: int) -> list[int]:
    return np.random.default_rng(key).permutation(size).tolist()


class RowOrder:
    """The rows of one source for one reader; see the head of this file.

    Args:
        number, readers: of the reader.
        epochs: None never ends.
        max_rows, max_bytes: of the buffer, which may exceed them by one run. 0 rows: no buffer.
        state: `state_dict` of a stopped reader; without a state the order starts at epoch 0.
    """

    def __init__(
        self, source: ShardSource, number: int, readers: int, seed: int, epochs: int | None, max_rows: int,
        max_bytes: int, state: dict[str, Any] | None = None,
    ):  # fmt: skip
        shuffled = state["shuffled"] if state else is_shuffled(source, max_rows)
        self.source, self.number, self.readers, self.seed, self.epochs = source, number, readers, seed, epochs
        self.max_rows, self.max_bytes = (max_rows, max_bytes) if shuffled else (1, 0)
        self.layout = Layout(source, seed, shuffled)
        self.epoch = self.next_epoch = self.picked = 0
        self.legs: list[Leg] = []
        self.buffer: list[Row] = []  # of `epoch`
        self.ahead: list[Row] = []  # of the next epoch
        self._bytes = 0  # of both
        self.current: tuple[int, int] | None = None  # the row that was sampled last, (shard, row)
        self._runs: dict[tuple, list[RowRange]] = {}  # of the open shards
        self._iterators: dict[tuple, Iterator] = {}  # of the runs that are read in pieces
        self._start = state or {}
        self._first_whole = self._start.get("next_epoch", 0)

    def state_dict(self, unfinished: bool = False) -> dict[str, Any]:
        """The position after the row that was sampled last, or at it if it is `unfinished`."""
        if self._start:
            return self._start
        return {
            "shuffled": self.layout.shuffled, "epoch": self.epoch, "next_epoch": self.next_epoch,
            "picked": self.picked, "current": list(self.current) if unfinished and self.current else [],
            "buffer": positions_of(self.buffer), "ahead": positions_of(self.ahead),
            "legs": [{**vars(leg), "queues": [*map(list, leg.queues)], "open": [*map(list, leg.open)],
                      "rows": list(leg.rows)} for leg in self.legs],
        }  # fmt: skip

    @property
    def buffered(self) -> int:
        """Number of rows that are read, and not sampled yet."""
        return len(self.buffer) + len(self.ahead)

    @property
    def is_whole(self) -> bool:
        """Whether the reader has its usual part of the epoch, and no remainder that a stopped run has left."""
        return self.epoch >= self._first_whole and (self.epochs is None or self.epoch < self.epochs)

    def _restore(self) -> Iterator[Row]:
        """Restores the start state, reads its buffered rows again, and yields the row that was not finished."""
        state, self._start = self._start, {}
        if not state:
            return
        self.epoch, self.next_epoch, self.picked = state["epoch"], state["next_epoch"], state["picked"]
        self.legs = [Leg(**{**leg, "queues": [*map(list, leg["queues"])], "open": [*map(list, leg["open"])],
                            "rows": list(leg["rows"])}) for leg in state["legs"]]  # fmt: skip
        positions = state["current"] + state["buffer"]
        rows = list(self._load(self.epoch, positions))
        begun = bool(state["current"]) and bool(rows) and rows[0][1:3] == tuple(state["current"])
        self._fill(self.buffer, rows[begun:])
        self._fill(self.ahead, self._load(self.epoch + 1, state["ahead"]))
        if begun:
            self.current = rows[0][1:3]
            yield rows[0]

    def rows(self) -> Iterator[Row | None]:
        """The rows in their order, and None at the end of each epoch."""
        yield from self._restore()
        while True:
            while self._is_filling() and self._read_block():
                pass
            if self.buffer:
                index = 0
                if len(self.buffer) > 1:
                    index = seed_of(self.seed, self.epoch, self.number, 2, self.picked) % len(self.buffer)
                    self.buffer[index], self.buffer[-1] = self.buffer[-1], self.buffer[index]
                self.picked += 1
                row = self.buffer.pop()
                self._bytes -= row.size
                self.current = row[1:3]
                yield row
            else:
                yield None
                self.epoch += 1
                self.buffer, self.ahead = self.ahead, []
                if self.epochs is not None and self.epoch >= self.epochs:
                    return

    def _is_filling(self) -> bool:
        rows = self.buffered
        if not rows or rows >= self.max_rows:
            return not rows
        return self._bytes < self.max_bytes

    def _read_block(self) -> bool:
        """Reads a block of rows into the buffer. Returns whether there may be more to read now."""
        if not self.legs:
            ended = self.epochs is not None and self.next_epoch >= self.epochs
            # Without a buffer nothing is read ahead
            if ended or self.next_epoch > self.epoch + self.layout.shuffled:
                return False
            self.legs = [Leg(self.next_epoch, [[self.number, self.readers, 0, 1]])]
            self.next_epoch += 1
        leg = self.legs[0]
        if leg.epoch > self.epoch + self.layout.shuffled:
            return False
        into = self.buffer if leg.epoch == self.epoch else self.ahead
        if leg.rows:
            positions, leg.rows = leg.rows[: 2 * BLOCK_ROWS], leg.rows[2 * BLOCK_ROWS :]
            self._fill(into, self._load(leg.epoch, positions))
            return True
        entry = self._choose_shard(leg)
        if entry is None:
            self.legs.pop(0)
        else:
            self._fill(into, self._read_entry(leg, entry))
        return True

    def _fill(self, into: list[Row], rows: Iterable[Row]) -> None:
        for row in rows:
            into.append(row)
            self._bytes += row.size

    def _choose_shard(self, leg: Leg) -> list[int] | None:
        """The open shard that is read next; None at the end of the leg."""
        most = OPEN_SHARDS if self.layout.shuffled else 1
        while len(leg.open) < most and leg.queues:
            reader, readers, position, step = queue = leg.queues[0]
            if position < len(self.layout.shards(leg.epoch, reader, readers)):
                leg.open.append([reader, readers, position, 0, 1, 0])
                queue[2] += step
            else:
                leg.queues.pop(0)
        if not leg.open:
            return None
        choices = min(most, len(leg.open))
        leg.blocks += 1
        return leg.open[seed_of(self.seed, leg.epoch, self.number, 1, leg.blocks) % choices if choices > 1 else 0]

    def _read_entry(self, leg: Leg, entry: list[int]) -> Iterator[Row]:
        """The rows of the next run of an open shard, or of the next piece of it."""
        reader, readers, position, number, step, first = entry
        layout, identity = self.layout, (leg.epoch, reader, readers)
        shard, key = int(layout.shards(*identity)[position]), (*identity, position)
        runs = self._runs[key] = self._runs.get(key) or layout.runs(*key)
        if number >= len(runs):
            leg.open.remove(entry)
            layout.close(shard)
            del self._runs[key]
            return
        run, takes = runs[number], functools.partial(layout.takes, *identity, shard)
        if run.count is not None:
            entry[3] += step
            for row_number, values in layout.read_run(shard, run, takes):
                yield Row(leg.epoch, shard, row_number, values, size_of(values))
            return
        if key not in self._iterators:
            self._iterators[key] = self.source.read(shard, first, takes)
        rows = BLOCK_ROWS if layout.shuffled else 1
        for row_number, values in self._iterators[key]:
            entry[5] = row_number + 1
            yield Row(leg.epoch, shard, row_number, values, size_of(values))
            rows -= 1
            if not rows:
                return
        del self._iterators[key]
        entry[3:] = [number + step, step, 0]

    def _load(self, epoch: int, positions: Sequence[int]) -> Iterator[Row]:
        """The rows at these positions (shard, row, shard, row, ...), in this order, read by row group."""
        pairs = list(zip(positions[::2], positions[1::2], strict=True))
        found: dict[tuple[int, int], dict] = {}
        for shard, group in itertools.groupby(sorted(pairs), lambda pair: pair[0]):
            wanted = {row for _, row in group}
            runs = self.layout.shard_runs(shard)
            if runs[:1] == [RowRange(0, None)]:
                runs = [RowRange(min(wanted), max(wanted) + 1 - min(wanted))]
            for run in runs:
                inside = wanted.intersection(range(run.first, run.first + run.count))
                if inside:
                    last = RowRange(min(inside), max(inside) + 1 - min(inside))
                    for number, values in self.layout.read_run(shard, last, inside.__contains__):
                        found[shard, number] = values
        for pair in pairs:
            if pair in found:
                yield Row(epoch, *pair, found[pair], size_of(found[pair]))


def is_shuffled(source: ShardSource, max_rows: int) -> bool:
    """Whether a buffer changes the order of a source: a video or image file is a shard, and shards are permuted."""
    return max_rows > 0 and source.kind in ("parquet", "webdataset")


def positions_of(rows: Sequence[Row]) -> list[int]:
    """shard, row, shard, row, ..."""
    return [number for row in rows for number in row[1:3]]


def size_of(values: dict[str, Any]) -> int:
    """Bytes of the videos and images of a row."""
    media = (value.get("bytes") if isinstance(value, dict) else value for value in values.values())
    return sum(len(value) for value in media if isinstance(value, bytes))
