"""Each script names what `uv run` has to install for it (PEP 723), and its docstring stays first for `--help`."""

import ast
import configparser
import re
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from builders import EXAMPLES, ROOT


HEADER = re.compile(r"^# /// script$\s(?P<content>(?:^#(?:| .*)$\s)+)^# ///$", re.MULTILINE)  # of PEP 723
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}  # where the name differs


def read_header(script: Path) -> dict:
    (found,) = HEADER.finditer(script.read_text(encoding="utf-8"))
    return tomllib.loads("".join(line[2:] or "\n" for line in found["content"].splitlines(keepends=True)))


def name_of(requirement: str) -> str:
    return re.match(r"[\w-]+", requirement)[0].lower()


@cache
def package() -> configparser.ConfigParser:
    parsed = configparser.ConfigParser()
    parsed.read(ROOT / "setup.cfg")
    return parsed


def provided(requirement: str) -> set[str]:
    """The distributions that a requirement installs: itself, and what the package lists, with its extras."""
    if name_of(requirement) != "vjepa2-hf":
        return {name_of(requirement)}
    extras = re.search(r"\[(.*)\]", requirement)
    lists = [package()["options"]["install_requires"]]
    lists += [package()["options.extras_require"][extra] for extra in (extras[1].split(",") if extras else [])]
    return {name_of(line) for text in lists for line in text.split("\n") if line}


@cache
def imported(path: Path) -> frozenset[str]:
    """Other packages that running a file imports: its own imports outside of functions, and those of our modules."""
    source, found = ROOT / "src", set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = path.relative_to(source).parent.parts if node.level else ()
            base = ".".join([*base[: len(base) - node.level + 1], *([node.module] if node.module else [])])
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.split(".")[0] == "vjepa2_hf":
                module = source / name.replace(".", "/")
                files = (module.with_suffix(".py"), module / "__init__.py")
                found |= frozenset().union(*(imported(file) for file in files if file.is_file()))
            else:
                found.add(name.split(".")[0])
    return frozenset(found - set(sys.stdlib_module_names) - {"vjepa2_cli"})


def needed_by(script: Path) -> set[str]:
    return {DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in imported(script)}


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_a_script_names_what_it_needs(script):
    header = read_header(script)
    assert header["requires-python"] == package()["options"]["python_requires"]
    assert needed_by(script) <= set().union(*map(provided, header["dependencies"]))
    assert ast.get_docstring(ast.parse(script.read_text(encoding="utf-8")))


def test_imports_are_followed_through_the_package():
    assert needed_by(EXAMPLES / "record_episodes.py") - provided("vjepa2-hf") == {"gymnasium"}
