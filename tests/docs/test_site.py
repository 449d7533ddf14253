"""The documentation site: every page is in its navigation and every public name has a docstring; it builds offline."""

import ast
import os
import re
import subprocess
import sys

import pytest
import site_reference
import yaml
from builders import ROOT

import vjepa2_hf


MODULES = [module for modules in site_reference.modules_by_room().values() for module in modules]


def public(nodes: list[ast.stmt]) -> list[ast.ClassDef | ast.FunctionDef]:
    return [one for one in nodes if isinstance(one, ast.ClassDef | ast.FunctionDef) and not one.name.startswith("_")]


def flatten(entry) -> list[str]:
    """The pages of a part of the navigation."""
    if isinstance(entry, str):
        return [entry]
    children = entry.values() if isinstance(entry, dict) else entry
    return [page for child in children for page in flatten(child)]


def test_every_page_is_in_the_navigation_once():
    pages = flatten(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert len(pages) == len(set(pages))
    own = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert own <= set(pages), f"add {sorted(own - set(pages))} to nav in mkdocs.yml"


def test_the_reference_has_every_module():
    files = {path.relative_to(site_reference.PACKAGE) for path in site_reference.PACKAGE.rglob("*.py")}
    expected = {".".join(part for part in path.with_suffix("").parts if part != "__init__") for path in files}
    empty = {
        path.parent.as_posix().replace("/", ".")
        for path in files
        if not (site_reference.PACKAGE / path).stat().st_size
    }
    assert set(MODULES) == expected - empty - {""}
    text = "\n".join(site_reference.pages().values())
    for module in MODULES:
        assert f"::: vjepa2_hf.{module}\n" in text, module


def test_names_of_the_package_are_in_the_overview():
    page = site_reference.pages()["reference/index.md"]
    for name in vjepa2_hf.__all__:
        assert re.search(rf"^\| \[`{name}`\]\[vjepa2_hf\.[\w.]+\] \| \w", page, flags=re.MULTILINE), name


def test_docstrings_become_markdown():
    text = """Configuration of [`VJepa2Encoder`].

Clip:
    patch_size (`int`): side of a patch
        in pixels.
    a, b: both.

Args:
    one, two: numbers,
        positive.
    kwargs: others.

Example:
    >>> 1 + 1

::

    a ──► b
"""
    expected = """Configuration of [`VJepa2Encoder`][vjepa2_hf.modeling_encoder.VJepa2Encoder].


**Clip**

* patch_size (`int`): side of a patch
        in pixels.
* a, b: both.

Args:
    one: numbers,
        positive.
    two: numbers,
        positive.
    kwargs: others.

Examples:
    >>> 1 + 1


    a ──► b
"""
    assert site_reference.to_markdown(text) == expected


@pytest.mark.slow
def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocs")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]

    pages = {path.relative_to(tmp_path).as_posix(): path.read_text("utf-8") for path in tmp_path.rglob("*.html")}
    assert {"index.html", "planning.html", "scripts.html", "changelog.html", "reference/index.html"} <= set(pages)
    assert 'href="planning.html"' in pages["index.html"] and 'src="demo.gif"' in pages["index.html"]
    loaded = re.compile(
        r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//[^"'>]*|<link\b[^>]*\bhref=["']?(?:https?:)?//[^"'>]*"""
    )
    for name, text in pages.items():
        assert not loaded.search(text), f"{name}: {loaded.search(text)[0]}"
    for path in tmp_path.rglob("*.css"):
        assert not re.search(r"(url\(|@import\s*)[\"']?(https?:)?//", path.read_text("utf-8")), path

    references = {name: text for name, text in pages.items() if name.startswith("reference/")}
    anchors = {anchor for text in references.values() for anchor in re.findall(r'id="(vjepa2_hf\.[\w.]+)"', text)}
    for module in MODULES:
        for node in public(site_reference.tree(module).body):
            assert f"vjepa2_hf.{module}.{node.name}" in anchors
    index = (tmp_path / "search" / "search_index.js").read_text("utf-8")
    assert index.startswith("var __index = ") and "planning.solvers" in index
