"""The whole fault suite, 20 minutes on two cores; writes results/faults.json and the table of docs/reliability.md.

    python tests/faults/run.py [--fraction 0.05] [--fault "power loss"] [--workers 2] [--seed 0]

With `--fraction` or `--fault` it runs a part of the cases, and writes files only with `--write`. Exit code 1: a case
has failed.
"""

import argparse
import collections
import dataclasses
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
sys.path[:0] = [str(ROOT / folder) for folder in ("src", "examples", "tests")]

from faults import suite, table  # noqa: E402

from vjepa2_hf.visualization.tables import publish_tables  # noqa: E402


CHAOS = f"""
The external judge ckpt-chaos kills the training scripts at every file event, too; it needs an environment of its own:
    python3 -m venv /tmp/venv-chaos && /tmp/venv-chaos/bin/pip install ckpt-chaos==0.1.8
    {Path(sys.executable)} tests/faults/chaos.py --judge /tmp/venv-chaos/bin/python
"""


def work_folder() -> Path:
    """A new folder in memory where the system has one: the suite writes thousands of small files and syncs them."""
    memory = Path("/dev/shm")
    usable = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2**30
    return Path(tempfile.mkdtemp(prefix="faults-", dir=memory if usable else None))


def report_failures(verdicts: list[suite.Verdict], seed: int) -> None:
    """Up to three failed cases of each kind, on stderr."""
    shown: collections.Counter = collections.Counter()
    for verdict in verdicts:
        for kind, text in verdict.problems:
            shown[verdict.fault, kind] += 1
            if shown[verdict.fault, kind] <= 3:
                where = f"{verdict.fault}, {verdict.job} with {verdict.ranks} process(es), {verdict.label}"
                sys.stderr.write(f"FAILED ({kind}; seed {seed}) {where}: {text}\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fraction", type=float, default=1.0, help="fraction of the cases of each fault (default: 1)")
    parser.add_argument("--fault", help="only faults whose name holds this text")
    parser.add_argument("--write", action="store_true", help="write the files also after a part of the cases")
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1), help="cases at once")
    parser.add_argument("--seed", type=int, default=0, help="of random moments, bits and disks (default: 0)")
    arguments = parser.parse_args()
    is_whole = arguments.fraction == 1.0 and arguments.fault is None

    folder, begun = work_folder(), time.monotonic()
    counts = suite.scaled(suite.WHOLE, arguments.fraction, arguments.fault)
    try:
        stage = suite.Stage(folder / "stage")
        cases = list(suite.all_cases(stage, counts))
        print(f"{len(cases)} cases after {time.monotonic() - begun:.0f} s of undisturbed runs", flush=True)  # noqa: T201
        verdicts = suite.run_cases(cases, folder / "cases", arguments.workers, arguments.seed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report_failures(verdicts, arguments.seed)
    results = {
        "seed": arguments.seed,
        "minutes": round((time.monotonic() - begun) / 60, 1),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "rows": [dataclasses.asdict(row) for row in table.count(verdicts)],
    }
    text = table.format_table_of(results)
    if is_whole or arguments.write:
        publish_tables(results, text, ROOT / "results" / "faults.json", [ROOT / "docs" / "reliability.md"], "faults")
    else:
        print(text)  # noqa: T201
    print(CHAOS)  # noqa: T201
    return int(any(verdict.problems for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
