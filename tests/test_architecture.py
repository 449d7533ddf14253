"""The law of imports and the limits of size; CONTRIBUTING.md says why.

Imports are read with `ast`: nothing of the package is run. The numbers of `LIMITS` go down, and up
only for a new part of the models.
"""

import ast
import itertools
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "vjepa2_hf"
EXAMPLES = ROOT / "examples"

# A wing imports the root and the wings on lower floors
FLOORS = [
    {"data", "planning", "training", "metrics"},
    {"pipelines", "probing", "visualization"},
    {"hub", "environments"},
]
# Within a floor: who may import whom
NEIGHBORS = {("training", "data"), ("environments", "hub"), ("probing", "visualization")}
OUTSIDE_THE_EXPORT = {"__init__", "convert_checkpoints"}  # root modules that do not travel to the Hub

LIMITS = {
    "root modules": 28,
    "lines of a file": 500,
    "lines of a function": 60,
    "lines of an exported encoder": 3345,  # 800 of them read videos
    "lines of configs": 1496,
}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def python_files(*folders: Path) -> list[Path]:
    return sorted(file for folder in folders for file in folder.rglob("*.py") if "__pycache__" not in file.parts)


def module_name(path: Path) -> str:
    """`data.files` of src/vjepa2_hf/data/files.py; the root's modules have no dot."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports_of(path: Path) -> Iterator[tuple[str, ast.stmt]]:
    """Modules of the package that a file of the package imports, anywhere in it, as `data.files`."""
    package = path.relative_to(PACKAGE).parent.parts
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
                base = [part for part in base if part]
            elif (node.module or "").partition(".")[0] == "vjepa2_hf":
                base = node.module.split(".")[1:]
            else:
                continue
            name = ".".join(base)
            for alias in node.names:
                inner = ".".join([*base, alias.name])
                is_module = (PACKAGE / inner.replace(".", "/")).with_suffix(".py").exists()
                yield (inner if is_module or not name else name), node
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "vjepa2_hf":
                    yield ".".join(alias.name.split(".")[1:]), node


def guarded(path: Path) -> set[ast.stmt]:
    """Statements inside `try: ... except ImportError`. The export ignores absolute imports there, but requires those
    under `if TYPE_CHECKING`."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Try) and any("ImportError" in ast.dump(one) for one in node.handlers):
            found.update(inner for statement in node.body for inner in ast.walk(statement))
    return found


def root_modules() -> list[Path]:
    return sorted(PACKAGE.glob("*.py"))


def floor_of(module: str) -> int:
    """0 for the root, then the wings' floors."""
    wing = module.split(".")[0]
    return next((number for number, wings in enumerate(FLOORS, 1) if wing in wings), 0)


def test_every_folder_of_the_package_is_a_wing():
    folders = {path.parent.name for path in PACKAGE.glob("*/*.py")}
    assert folders <= set().union(*FLOORS)


@pytest.mark.parametrize("path", root_modules(), ids=lambda path: path.stem)
def test_the_root_imports_root_siblings_alone(path):
    """What transformers copies into an exported folder is `from .sibling import`, followed in every function."""
    if path.stem in OUTSIDE_THE_EXPORT:
        pytest.skip("stays in the package")
    allowed = guarded(path)
    wrong = []
    for module, node in imports_of(path):
        relative = isinstance(node, ast.ImportFrom) and node.level
        if "." in module or module in set().union(*FLOORS):
            if node not in allowed or relative:
                wrong.append(f"line {node.lineno} imports the wing {module}: guard an absolute import")
        elif not relative and node not in allowed:
            wrong.append(f"line {node.lineno} imports {module} absolutely: write `from .{module} import`")
        elif relative and not node.module:
            wrong.append(f"line {node.lineno}: `from . import` breaks the export")
    assert not wrong, "\n".join(wrong)


def test_wings_import_the_root_and_lower_floors():
    wrong = []
    for path in python_files(*(PACKAGE / wing for wings in FLOORS for wing in sorted(wings))):
        here = path.relative_to(PACKAGE).parts[0]
        for module, node in imports_of(path):
            there = module.split(".")[0]
            if module == "":
                continue  # public names of the package
            if there == here or floor_of(there) < floor_of(here) or (here, there) in NEIGHBORS:
                continue
            wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} imports {module}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", ["video_io", "video_source"])
def test_readers_of_videos_import_no_torch(name):
    """The app reads uploads in a process with little memory."""
    text = (PACKAGE / f"{name}.py").read_text(encoding="utf-8")
    outside = {line.split()[1].split(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))}
    assert not outside & {"torch", "transformers"}
    inside = {module for module, node in imports_of(PACKAGE / f"{name}.py") if not node.col_offset}
    assert inside <= {"video_source"}


def test_there_are_no_circles():
    graph = {}
    for path in python_files(PACKAGE):
        name, allowed = module_name(path), guarded(path)
        if name.endswith("__init__"):
            continue
        graph[name] = {module for module, node in imports_of(path) if node not in allowed and module != name}
    done, stack = set(), []

    def visit(name: str) -> None:
        assert name not in stack, f"a circle of imports: {' -> '.join([*stack[stack.index(name) :], name])}"
        if name in done:
            return
        stack.append(name)
        for module in sorted(graph.get(name, ())):
            visit(module)
        stack.pop()
        done.add(name)

    for name in graph:
        visit(name)


def names_imported(path: Path) -> set[str]:
    """First parts of all modules that a file imports."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_no_example_imports_an_example():
    """Studies may import `study`, which they share, and files of the app each other; nothing else."""
    scripts = {path.stem for path in python_files(EXAMPLES)}
    parts = {path.stem for path in python_files(EXAMPLES / "app")}
    for path in python_files(EXAMPLES):
        allowed = {"studies": {"study"}, "app": parts}.get(path.parent.name, set())
        assert not names_imported(path) & scripts - allowed, path
        assert "sys.path" not in path.read_text(encoding="utf-8"), path


def test_examples_have_different_names():
    names = [path.stem for path in python_files(EXAMPLES)]
    assert sorted(set(names)) == sorted(names)


def test_the_package_imports_no_example():
    scripts = {path.stem for path in python_files(EXAMPLES)}
    for path in python_files(PACKAGE):
        assert not names_imported(path) & scripts, path


def test_no_test_imports_a_test():
    tests = {path.stem for path in python_files(ROOT / "tests") if path.stem.startswith("test_")}
    for path in python_files(ROOT / "tests"):
        assert not names_imported(path) & tests, path


def test_no_two_tests_have_the_same_name():
    """pytest imports test files by name; it reports a second one of the same name as an error of the whole run."""
    names = [path.stem for path in python_files(ROOT / "tests") if path.stem.startswith("test_")]
    assert len(names) == len(set(names)), sorted({name for name in names if names.count(name) > 1})


def test_modules_of_the_root_are_few():
    assert len(root_modules()) <= LIMITS["root modules"]


@pytest.mark.parametrize("folder", [PACKAGE, EXAMPLES], ids=lambda folder: folder.name)
def test_files_and_functions_fit_a_reader(folder):
    wrong = []
    for path in python_files(folder):
        lines = path.read_text(encoding="utf-8").count("\n")
        if lines > LIMITS["lines of a file"]:
            wrong.append(f"{path.relative_to(ROOT)}: {lines} lines")
        for node in ast.walk(tree(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                size = node.end_lineno - node.lineno + 1
                if size > LIMITS["lines of a function"]:
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {size} lines")
    assert not wrong, "\n".join(wrong)


def closure(*modules: str) -> set[str]:
    """Root modules that are copied with these: `from .sibling import`, wherever it stands."""
    found, todo = set(), list(modules)
    while todo:
        name = todo.pop()
        if name in found:
            continue
        found.add(name)
        path = PACKAGE / f"{name}.py"
        todo += [
            module
            for module, node in imports_of(path)
            if isinstance(node, ast.ImportFrom) and node.level == 1 and "." not in module
        ]
    return found


def test_an_exported_encoder_is_small():
    exported = closure("configuration_vjepa2", "modeling_encoder", "video_processing_vjepa2")
    lines = {name: (PACKAGE / f"{name}.py").read_text(encoding="utf-8").count("\n") for name in exported}
    assert sum(lines.values()) <= LIMITS["lines of an exported encoder"], lines
    text = "\n".join((PACKAGE / f"{name}.py").read_text(encoding="utf-8") for name in exported)
    for forbidden in ("import yaml", "filelock", "fcntl", "ModelCard(", "huggingface_hub.ModelCard"):
        assert forbidden not in text


def test_configs_are_short():
    files = list(itertools.chain(EXAMPLES.rglob("*.yaml"), EXAMPLES.rglob("*.yml")))
    assert sum(path.read_text(encoding="utf-8").count("\n") for path in files) <= LIMITS["lines of configs"]
