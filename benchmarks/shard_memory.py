"""Measures what a reader of shards holds in memory, from 1,000 to 100,000 shards.

    python benchmarks/shard_memory.py                 # docs/scale.md; about two minutes
    python benchmarks/shard_memory.py --shards 1000   # printed alone

Each shard is a parquet file of one row (hard links to a few files). A process of its own opens the source, reads every
shard once, and reports: seconds to find the shards and to take their fingerprint, the bytes that Python holds for the
names, and how much resident memory grows between the first 500 shards and the last. Results go to
`results/shard_memory.json`, and into docs/scale.md between its markers.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import vjepa2_cli  # noqa: F401 (a quick --help)
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vjepa2_hf.visualization.tables import format_table, publish_tables


ROOT = Path(__file__).resolve().parent.parent
SHARDS = (1_000, 10_000, 100_000)


def resident() -> int:
    """Bytes of resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure(folder: str) -> dict[str, float]:
    """One process: opens the source of a folder and reads all its rows."""
    from vjepa2_hf.data.shards import ShardSource

    started = time.perf_counter()
    source = ShardSource(folder)
    opened = time.perf_counter()
    assert source.fingerprint
    found = {"shards": len(source.shards), "find_s": opened - started, "fingerprint_s": time.perf_counter() - opened}
    started, before = time.perf_counter(), 0
    for count, _ in enumerate(source.read_all(), start=1):
        if count == 500:
            gc.collect()
            before = resident()
    gc.collect()
    found["read_us_per_shard"] = 1e6 * (time.perf_counter() - started) / count
    found["names_mb"] = source.shards.nbytes / 1e6
    found["growth_mb"] = (resident() - before) / 1e6
    return found


def link_shards(folder: Path, count: int, rows: pa.Table) -> None:
    """Writes shards of the same rows: one file, and hard links to it."""
    first = folder / f"data-{0:06d}-of-{count:06d}.parquet"
    pq.write_table(rows, first)
    content = first.read_bytes()
    for number in range(1, count):
        path = folder / f"data-{number:06d}-of-{count:06d}.parquet"
        if number % 30000 == 0:  # file systems bound the links of a file
            path.write_bytes(content)
            first = path
        else:
            os.link(first, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, nargs="+", help="other numbers of shards")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder:
        sys.stdout.write(json.dumps(measure(args.folder)) + "\n")
        return
    results = []
    for count in args.shards or SHARDS:
        with tempfile.TemporaryDirectory() as folder:
            link_shards(Path(folder), count, pa.table({"video": [b"video"], "path": ["a.mp4"]}))
            command = [sys.executable, __file__, "--folder", folder]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        results.append(found)
    titles = ["shards", "finding them, s", "fingerprint, s", "a row, µs", "names, MB", "growth of memory, MB"]
    rows = [[f"{found['shards']:,}", *(f"{value:.2f}" for value in list(found.values())[1:])] for found in results]
    pages, path = ([], None) if args.shards else ([ROOT / "docs" / "scale.md"], ROOT / "results" / "shard_memory.json")
    publish_tables({"results": results}, "\n".join(format_table(titles, rows)), path, pages, "shard_memory")


if __name__ == "__main__":
    main()
