"""How well the shuffle buffer mixes the clips of a source, and what it costs.

    python benchmarks/mixing.py [--rows 1000] [--shards 8] [--readers 1 2 8]     # a minute; prints two tables

The first table is of rows alone, in shards sorted by label: the fraction of the pairs of rows sharing a batch of 16
that share one again in the next epoch, and the number of different labels in a batch (of 10), beside those of a
perfect shuffle. The second is of clips of videos: rows read and clips decoded per second of CPU time, with and without
a buffer, measured in turn, and the time that the first clip takes.
"""

import argparse
import collections
import itertools
import statistics
import tempfile
import time
import vjepa2_cli  # noqa: F401 (a quick --help)
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from datasets import Features, Value, Video

from vjepa2_hf.data.clips import ClipStream
from vjepa2_hf.data.shards import ShardSource, write_shards
from vjepa2_hf.data.shuffle import SHUFFLE_BYTES, SHUFFLE_ROWS, Row, RowOrder
from vjepa2_hf.data.video_writing import encode_video


BATCH = 16
LABELS = 10
FEATURES = Features({"video": Video(decode=False), "label": Value("int64")})


def cooccurrence(orders: list[list[Row]]) -> float:
    """Fraction of the pairs of rows sharing a batch that share one again in the next epoch, from the rows of all
    readers."""
    epochs = [
        {frozenset(pair) for batch in batches for pair in itertools.combinations(batch, 2)}
        for batches in batches_by_epoch(orders, lambda row: row[1:3])
    ]
    return float(np.mean([len(pairs & later) / len(pairs) for pairs, later in itertools.pairwise(epochs)]))


def labels_per_batch(orders: list[list[Row]]) -> float:
    """Mean number of different labels in a batch."""
    epochs = batches_by_epoch(orders, lambda row: row.values["label"])
    return float(np.mean([len(set(batch)) for batches in epochs for batch in batches]))


def batches_by_epoch(orders: list[list[Row]], value: Callable[[Row], object]) -> list[list[list]]:
    """The whole batches of every epoch, of a value of each row."""
    epochs = collections.defaultdict(list)
    for rows in orders:
        for epoch, group in itertools.groupby(rows, key=lambda row: row.epoch):
            values = [value(row) for row in group]
            epochs[epoch] += [values[i : i + BATCH] for i in range(0, len(values) - BATCH + 1, BATCH)]
    return [batches for _, batches in sorted(epochs.items())]


def rows_of_readers(data: str, readers: int, buffer: int, epochs: int = 3) -> list[list[Row]]:
    """The rows of every reader, in order."""
    orders = [
        RowOrder(ShardSource(data), reader, readers, 0, epochs, buffer, SHUFFLE_BYTES) for reader in range(readers)
    ]
    return [[row for row in order.rows() if row is not None] for order in orders]


def shuffled(orders: list[list[Row]]) -> list[list[Row]]:
    """The same rows, of every reader's epoch in random order."""
    rng, results = np.random.default_rng(0), []
    for rows in orders:
        epochs = [list(group) for _, group in itertools.groupby(rows, key=lambda row: row.epoch)]
        results.append([epoch[i] for epoch in epochs for i in rng.permutation(len(epoch))])
    return results


def write_data(folder: Path, content: bytes, rows: int, shards: int) -> str:
    numbered = ({"video": {"bytes": content, "path": None}, "label": i * LABELS // rows} for i in range(rows))
    write_shards(numbered, folder, FEATURES, shards)
    return str(folder)


def measure_mixing(data: str, readers: list[int]) -> Iterator[tuple]:
    """(readers, buffer, co-occurrence, labels per batch); a perfect shuffle is of one reader's rows."""
    perfect = shuffled(rows_of_readers(data, 1, 0))
    yield 1, "perfect shuffle", cooccurrence(perfect), labels_per_batch(perfect)
    for number, buffer in itertools.product(readers, (0, SHUFFLE_ROWS)):
        orders = rows_of_readers(data, number, buffer)
        yield number, buffer, cooccurrence(orders), labels_per_batch(orders)


def measure_speed(data: str, clips: int, rounds: int) -> Iterator[tuple]:
    """(buffer, rows per second, clips per second, seconds to the first clip), medians of rounds in turn."""
    found = collections.defaultdict(list)
    for _ in range(rounds):
        for buffer in (0, SHUFFLE_ROWS):
            start = time.process_time()
            rows = sum(
                row is not None for row in RowOrder(ShardSource(data), 0, 1, 0, 2, buffer, SHUFFLE_BYTES).rows()
            )
            per_row = (time.process_time() - start) / rows
            stream = iter(ClipStream(data, 8, crop_size=64, shuffle_buffer=buffer))
            start = time.process_time()
            next(stream)
            first = time.process_time() - start
            start = time.process_time()
            for _ in itertools.islice(stream, clips):
                pass
            found[buffer].append((1 / per_row, clips / (time.process_time() - start), first))
    for buffer, values in found.items():
        yield buffer, *map(statistics.median, zip(*values, strict=True))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--readers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--clips", type=int, default=500, help="decoded in each round of the second table")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(arguments)
    noise = np.random.default_rng(0).integers(0, 255, (32, 16, 16, 3), np.uint8)
    video = encode_video(noise.repeat(8, 1).repeat(8, 2), 12)
    with tempfile.TemporaryDirectory() as folder:
        rows = write_data(Path(folder, "rows"), b"row", args.rows, args.shards)
        print("| readers | buffer | pairs that share a batch again | labels per batch |\n|---|---|---|---|")
        for readers, buffer, pairs, labels in measure_mixing(rows, args.readers):
            print(f"| {readers} | {buffer} | {100 * pairs:.1f} % | {labels:.1f} |", flush=True)
        videos = write_data(Path(folder, "videos"), video, args.rows, args.shards)
        print(f"\nvideos of {len(video) / 1000:.0f} kB, 128 x 128, 32 frames, per second of CPU time:\n")
        print("| buffer | rows read | clips decoded | first clip (s) |\n|---|---|---|---|")
        for buffer, read, decoded, first in measure_speed(videos, args.clips, args.rounds):
            print(f"| {buffer} | {read:.0f} | {decoded:.1f} | {first:.2f} |", flush=True)


if __name__ == "__main__":
    main()
