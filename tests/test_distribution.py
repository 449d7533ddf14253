"""What the sdist and the wheel hold: the package, its data and the scripts; no tests, studies or results."""

import ast
import configparser
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path, PurePosixPath

import pytest
from setuptools import find_packages


ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
PACKED = ("src", "examples")


@pytest.fixture(scope="module")
def metadata() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """A folder with the sdist and the wheel of a copy of this tree; the wheel is built from the unpacked sdist."""
    pytest.importorskip("build", reason='of the extra "dev"')
    source = tmp_path_factory.mktemp("source")
    for path in sorted(ROOT.glob("*")):
        if path.is_file():
            shutil.copy(path, source)
    for name in (*PACKED, "tests"):
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__", "faults")
        )
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", source / "dist", source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return source / "dist"


def shipped_scripts() -> set[str]:
    """What of examples/ a user runs, relative to it: scripts, the report's template, the app and the configs."""
    files = [*EXAMPLES.glob("*.py"), EXAMPLES / "report_template.html", *(EXAMPLES / "configs").rglob("*.yaml")]
    files += [path for path in (EXAMPLES / "app").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(EXAMPLES).as_posix() for path in files}


def package_files() -> set[str]:
    """Every file of the package, relative to src/."""
    files = [path for path in (ROOT / "src").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(ROOT / "src").as_posix() for path in files if ".egg-info" not in str(path)}


def names(archive: Path) -> set[str]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as file:
            return {name for name in file.namelist() if not name.endswith("/")}
    with tarfile.open(archive) as file:
        return {PurePosixPath(*PurePosixPath(one.name).parts[1:]).as_posix() for one in file if one.isfile()}


def test_every_package_is_listed(metadata):
    listed = metadata["options"]["packages"].split()
    assert set(listed) == {*find_packages(ROOT / "src"), "vjepa2_hf.scripts"}


def test_patterns_of_package_data_match_every_file_beside_the_modules(metadata):
    patterns = metadata["options.package_data"]
    for package, folder in (("vjepa2_hf", "src/vjepa2_hf"), ("vjepa2_hf.hub", "src/vjepa2_hf/hub")):
        wanted = {path.name for path in (ROOT / folder).iterdir() if path.is_file() and path.suffix != ".py"}
        assert {name.strip() for name in patterns[package].split(",")} == wanted
    found = {
        path.relative_to(EXAMPLES).as_posix()
        for pattern in patterns["vjepa2_hf.scripts"].split(",")
        for path in EXAMPLES.glob(pattern.strip())
        if path.is_file()
    }
    assert found == {name for name in shipped_scripts() if "/" in name or not name.endswith(".py")}


def test_the_version_is_that_of_the_package(metadata):
    source = ast.parse((ROOT / "src" / "vjepa2_hf" / "configuration_vjepa2.py").read_text(encoding="utf-8"))
    (version,) = [
        node.value.value for node in source.body if isinstance(node, ast.Assign) and node.targets[0].id == "VERSION"
    ]
    assert metadata["metadata"]["version"] == version


def test_the_wheel_holds_the_package_and_the_scripts_and_nothing_else(dist):
    (wheel,) = dist.glob("*.whl")
    found = names(wheel)
    info = {name for name in found if ".dist-info/" in name}
    assert found - info == package_files() | {f"vjepa2_hf/scripts/{name}" for name in shipped_scripts()}
    for name in (
        "py.typed",
        "hub/model_card_template.md",
        "metrics/roc_auc/roc_auc.py",
        "scripts/report_template.html",
    ):
        assert f"vjepa2_hf/{name}" in found
    assert any(name.endswith("licenses/LICENSE") for name in info)
    with zipfile.ZipFile(wheel) as file:
        entry_points = file.read(next(name for name in info if name.endswith("entry_points.txt"))).decode()
        about = message_from_string(file.read(next(name for name in info if name.endswith("METADATA"))).decode())
    assert "vjepa2 = vjepa2_cli:main" in entry_points
    assert about["License-Expression"] == "Apache-2.0" and "# vjepa2_hf" in about.get_payload()


def test_the_sdist_holds_what_builds_the_wheel_and_no_tests(dist):
    (sdist,) = dist.glob("*.tar.gz")
    found = names(sdist)
    sources = {f"src/{name}" for name in package_files()} | {f"examples/{name}" for name in shipped_scripts()}
    assert {name for name in found if name.startswith(PACKED) and ".egg-info" not in name} == sources
    top = {
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "CITATION.cff",
        "constraints.txt",
        "setup.cfg",
        "pyproject.toml",
        "MANIFEST.in",
    }
    assert {name for name in found if "/" not in name} == top | {"PKG-INFO"}
    assert not any(name.startswith(("tests", "results", "examples/studies", "examples/cluster")) for name in found)
