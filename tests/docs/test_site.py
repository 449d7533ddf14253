"""The documentation site builds without a warning and loads nothing from elsewhere."""

import os
import re
import subprocess
import sys

import pytest
import site_reference
from builders import ROOT


LOADED = re.compile(
    r"""<(?:script|img|iframe|source|video)\b[^>]*\bsrc=["']?(?:https?:)?//|<link\b[^>]*\bhref=["']?(?:https?:)?//"""
)
STYLED = re.compile(r"""(?:url\(|@import\s*)["']?(?:https?:)?//""")


@pytest.mark.slow
def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocs")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]

    pages = {path.relative_to(tmp_path).as_posix(): path.read_text("utf-8") for path in tmp_path.rglob("*.html")}
    assert {"index.html", "planning.html", "scripts.html", "changelog.html", "reference/index.html"} <= set(pages)
    assert {f"tutorials/{path.stem}.html" for path in (ROOT / "examples/notebooks").glob("*.ipynb")} <= set(pages)
    assert 'href="planning.html"' in pages["index.html"] and 'src="demo.gif"' in pages["index.html"]
    for name, text in pages.items():
        assert not LOADED.search(text), f"{name}: {LOADED.search(text)[0]}"
    for path in tmp_path.rglob("*.css"):
        assert not STYLED.search(path.read_text("utf-8")), path
    index = (tmp_path / "search" / "search_index.js").read_text("utf-8")
    assert index.startswith("var __index = ") and "planning.solvers" in index

    anchors = {
        anchor
        for name, text in pages.items()
        if name.startswith("reference/")
        for anchor in re.findall(r'id="(vjepa2_hf\.[\w.]+)"', text)
    }
    for modules in site_reference.modules_by_room().values():
        for module in modules:
            names = [getattr(node, "name", "_") for node in site_reference.tree(module).body]
            expected = {f"vjepa2_hf.{module}.{name}" for name in names if not name.startswith("_")}
            assert expected <= anchors, expected - anchors
