"""Executes the notebooks and stores their outputs in them.

    python examples/notebooks/run.py                                     # all; `make notebooks` does the same
    python examples/notebooks/run.py 2_from_pixels_to_plans.ipynb        # one of them
    python examples/notebooks/run.py 1_features_and_probes.ipynb --videos FOLDER   # with your own videos
    python examples/notebooks/run.py 2_from_pixels_to_plans.ipynb --output /tmp/copy.ipynb --set EPISODES=12

Needs nbclient and ipykernel (the extra `dev`). A notebook runs with this Python and the package of this clone, in a
temporary folder that is deleted afterwards. `--set` replaces values of the cell that is tagged `parameters`, and
needs `--output`: outputs of other values do not belong into the notebook. `--videos` is the folder `my_videos` of
notebook 1. A cell that fails stops the run; the notebook then stays as it was.
"""

import argparse
import ast
import base64
import io
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image


NOTEBOOKS = Path(__file__).resolve().parent
SOURCE = NOTEBOOKS.parents[1] / "src"
COLORS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # escape sequences of a terminal
JPEG_QUALITY = 60


def assigned_names(source: str) -> set[str]:
    """The names that a cell of plain Python assigns."""
    targets = [node.targets for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    return {name.id for each in targets for target in each for name in ast.walk(target) if isinstance(name, ast.Name)}


def replace_parameters(notebook: nbformat.NotebookNode, values: dict[str, str]) -> None:
    """Appends assignments to the cell tagged `parameters`."""
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    unknown = sorted(values.keys() - assigned_names(cell.source))
    if unknown:
        known = ", ".join(sorted(assigned_names(cell.source)))
        raise ValueError(f"The notebook has no parameter {unknown[0]!r}; its parameters are {known}.")
    cell.source += "".join(f"\n{name} = {value}" for name, value in values.items())


def write_command(folder: Path) -> None:
    """The command `vjepa2` of this clone, for kernels in whose environment it may not be installed."""
    folder.mkdir()
    command = folder / "vjepa2"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m vjepa2_cli "$@"\n', encoding="utf-8")
    command.chmod(0o755)


def tidy(cell: nbformat.NotebookNode, folder: Path) -> None:
    """Removes what differs between machines from a cell's outputs: the kernel's stderr (progress bars, warnings of
    other packages), colors, and the folder that the notebook ran in. Figures are compressed."""
    cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    for output in cell.outputs:
        if "image/jpeg" in output.get("data", {}):
            compressed, image = io.BytesIO(), Image.open(io.BytesIO(base64.b64decode(output.data["image/jpeg"])))
            image.save(compressed, "JPEG", quality=JPEG_QUALITY, optimize=True)
            output.data["image/jpeg"] = base64.b64encode(compressed.getvalue()).decode()
        if output.output_type == "stream":
            text = COLORS.sub("", output.text).replace("\r\n", "\n")
            output.text = text.replace(f"{folder}{os.sep}", "")


def execute(notebook: nbformat.NotebookNode, videos: Path | None) -> None:
    """Runs all cells in a new folder; their outputs are then in the notebook."""
    with tempfile.TemporaryDirectory(prefix="notebook-") as root:
        folder, commands = Path(root, "work"), Path(root, "bin")
        folder.mkdir()
        write_command(commands)
        if videos is not None:
            shutil.copytree(videos, folder / "my_videos")
        environment = dict(os.environ)
        for name, path in (("PATH", commands), ("PYTHONPATH", SOURCE)):
            environment[name] = f"{path}{os.pathsep}{os.environ.get(name, '')}"
        client = NotebookClient(
            notebook, timeout=None, kernel_name="python3", record_timing=False, coalesce_streams=True,
            resources={"metadata": {"path": str(folder)}},
        )  # fmt: skip
        client.execute(env=environment)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                tidy(cell, folder)
        if root in nbformat.writes(notebook):
            raise ValueError(f"An output names the temporary folder {root}; print names relative to the notebook.")
    notebook.metadata.language_info = {"name": "python"}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="file names (default: all)")
    parser.add_argument("--videos", type=Path, help="folder of videos for notebook 1")
    parser.add_argument("--output", type=Path, help="file to write in place of the notebook; for a single notebook")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="values of parameters, in Python")
    options = parser.parse_args(arguments)
    paths = [NOTEBOOKS / name for name in options.notebooks] or sorted(NOTEBOOKS.glob("*.ipynb"))
    if options.output is not None and len(paths) > 1:
        parser.error(f"--output is one file, but there are {len(paths)} notebooks; name one of them.")
    if options.set and options.output is None:
        parser.error("--set needs --output: outputs of other values do not belong into the notebook.")
    for path in paths:
        notebook, started, before = nbformat.read(path, as_version=4), time.perf_counter(), os.times()
        replace_parameters(notebook, dict(one.split("=", 1) for one in options.set))
        try:
            execute(notebook, options.videos)
        except CellExecutionError as error:
            raise SystemExit(f"{path.name} failed:\n{COLORS.sub('', str(error))}") from None
        nbformat.write(notebook, options.output or path)
        wall, after = time.perf_counter() - started, os.times()
        cpu = sum(after[:4]) - sum(before[:4])  # with that of the kernel and its processes
        print(f"{path.name}: {wall:.0f} s, {cpu:.0f} s of CPU", flush=True)


if __name__ == "__main__":
    main()
