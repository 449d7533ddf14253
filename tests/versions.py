"""Runs fast tests with the oldest and the newest versions that setup.cfg admits, each in a new environment.

    python tests/versions.py                                     # every combination, with this Python
    python tests/versions.py lowest newest --python 3.11 3.13    # these, with these Pythons

`make test-versions` is the first. An environment takes about 6 GB of disk and some minutes, and is removed before the
next one (uv keeps its downloads: `uv cache clean`). The table of versions and results is printed and written to
runs/versions.md.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
PINS = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
PINNED_TORCH = [pin for pin in PINS if pin.startswith(("torch==", "torchvision=="))]
# What uv takes beside the package, by combination
COMBINATIONS = {
    "lowest": ["--resolution", "lowest-direct"],  # the lower bound of every requirement
    "newest-transformers": PINNED_TORCH,  # and the newest of everything else
    "newest": [],
}
TOOLS = ["pytest>=8.0", "hypothesis>=6.100", "peft>=0.20", "h5py>=3.11"]
TESTS = [
    "tests/test_modeling_encoder.py",
    "tests/test_modeling_masked_latent.py",
    "tests/test_modeling_world_model.py",
    "tests/test_modeling_classification.py",
    "tests/test_video_processing.py",
    "tests/test_video_io.py",
    "tests/test_saved_by_0_1.py",
    "tests/hub/test_transformers_format.py",
    "tests/pipelines/test_latent_planning.py",
    "tests/planning/test_solvers.py",
    "tests/data/test_clips.py",
    "tests/training/test_run.py",
    "tests/training/test_trainer.py",
]
SHOWN = ("torch", "torchvision", "transformers", "accelerate", "datasets", "huggingface-hub", "numpy", "pillow", "av")


def main() -> None:
    """The command line; exit code 1 if a combination does not install or fails a test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("combinations", nargs="*", metavar="COMBINATION", help=f"some of: {', '.join(COMBINATIONS)}")
    here = ".".join(platform.python_version_tuple()[:2])
    parser.add_argument("--python", nargs="+", default=[here], metavar="X.Y", help=f"versions of Python ({here})")
    options = parser.parse_args()
    unknown = set(options.combinations) - set(COMBINATIONS)
    if unknown:
        parser.error(f"unknown combination {', '.join(sorted(unknown))}; known ones are {', '.join(COMBINATIONS)}")
    header = f"| combination | Python | {' | '.join(SHOWN)} | tests |"
    rows = [header, "|" + "---|" * header.count(" | ") + "---|"]
    for name in options.combinations or COMBINATIONS:
        for python in options.python:
            rows.append(f"| {name} | {python} | {' | '.join(try_out(name, python))} |")
            print("\n".join(rows[:2] + rows[-1:]), flush=True)
    (ROOT / "runs").mkdir(exist_ok=True)
    (ROOT / "runs" / "versions.md").write_text("\n".join(rows) + "\n", encoding="utf-8")
    print("\n".join(rows))
    sys.exit(any("passed" not in row or "failed" in row or "error" in row for row in rows[2:]))


def try_out(name: str, python: str) -> list[str]:
    """The versions of `SHOWN` in a new environment of this combination, and what pytest says at its end."""
    with tempfile.TemporaryDirectory(prefix="vjepa2-versions-") as folder:
        environment = Path(folder) / "venv"
        uv = [sys.executable, "-m", "uv", "--no-progress", "--quiet"]  # of the extra `dev`
        package = f"vjepa2-hf[demo] @ {ROOT.as_uri()}"
        run(*uv, "venv", "--python", python, environment)
        run(*uv, "pip", "install", "--python", environment, package, *COMBINATIONS[name])
        run(*uv, "pip", "install", "--python", environment, *TOOLS)  # keeps what is installed
        listed = run(*uv, "pip", "list", "--python", environment, "--format", "json")
        versions = {one["name"]: one["version"] for one in json.loads(listed.stdout)}
        program = next(path for path in environment.glob("*/python*") if path.stem == "python")
        # Warnings of other versions are no failures
        pytest = [program, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", "-W", "default", *TESTS]
        done = subprocess.run(pytest, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=dict(os.environ, PYTHONPATH=""))
        print(done.stdout)
        return [*(versions.get(one, "-") for one in SHOWN), done.stdout.strip().splitlines()[-1].strip("= ")]


def run(*command: str | Path) -> subprocess.CompletedProcess:
    """Runs a command, and ends the program with its errors if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr}")
    return done


if __name__ == "__main__":
    main()
