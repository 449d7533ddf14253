"""The reference is complete: every public name has a docstring, and every tensor or array argument a shape."""

import ast
import re

import pytest
import site_reference
import yaml
from builders import ROOT

import vjepa2_hf


MODULES = [module for modules in site_reference.modules_by_room().values() for module in modules]
CLASSES = {
    node.name: node for module in MODULES for node in site_reference.tree(module).body if type(node) is ast.ClassDef
}
SIZE = r"(?:…|\.{3}|[\w'*]+(?:\s?[+\-−·/×*]\s?[\w']+)*)"  # of a dimension: B, T0, 2, P + 1, ...
SHAPE = re.compile(rf"\({SIZE}(?:,\s{SIZE})+\)|\({SIZE},\)|any shape|same shape|equal shape|^See ")
ARRAY = re.compile(r"(?:(?:list|Sequence|tuple)\[)?(?:torch\.Tensor|np\.ndarray)\b")


def public(nodes: list[ast.stmt]) -> list[ast.ClassDef | ast.FunctionDef]:
    return [one for one in nodes if isinstance(one, ast.ClassDef | ast.FunctionDef) and not one.name.startswith("_")]


def inherited(owner: ast.ClassDef, name: str) -> str:
    """The docstring of a method, or that of a base in the package."""
    own = next((one for one in owner.body if isinstance(one, ast.FunctionDef) and one.name == name), None)
    bases = [ast.unparse(base).split("[")[0].split(".")[-1] for base in owner.bases]
    bases = [CLASSES[base] for base in bases if base in CLASSES and CLASSES[base] is not owner]
    return own and ast.get_docstring(own) or next(filter(None, (inherited(base, name) for base in bases)), "")


def missing_docstrings(body: list[ast.stmt]) -> list[str]:
    found = []
    for node in public(body):
        found += [] if ast.get_docstring(node) else [node.name]
        methods = public(node.body) if isinstance(node, ast.ClassDef) else []
        found += [f"{node.name}.{one.name}" for one in methods if not inherited(node, one.name)]
    return found


def takes_arrays(function: ast.FunctionDef) -> bool:
    given = [argument.annotation for argument in (*function.args.args, *function.args.kwonlyargs)]
    texts = [ast.unparse(one).strip("\"'") for one in (*given, function.returns) if one]
    return any(ARRAY.match(part) for text in texts for part in text.split(" | "))


def missing_shapes(body: list[ast.stmt]) -> list[str]:
    """Functions of arrays whose docstring has no shape; of a method, that of its class counts too."""
    found = []
    for node in public(body):
        if isinstance(node, ast.FunctionDef):
            found += [node.name] if takes_arrays(node) and not SHAPE.search(ast.get_docstring(node) or "") else []
            continue
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and (method.name == "__call__" or not method.name.startswith("_")):
                texts = inherited(node, method.name), ast.get_docstring(node) or ""
                if takes_arrays(method) and not any(map(SHAPE.search, texts)):
                    found.append(f"{node.name}.{method.name}")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_public_names_are_documented(module):
    body = site_reference.tree(module).body
    assert not missing_docstrings(body) and not missing_shapes(body)


def test_what_is_missing_is_found():
    source = """
def f(x: torch.Tensor): "Doubles."
def g(x: torch.Tensor | None): "Doubles (B, N)."
def h(x: int): "Doubles."
def k(x: dict[str, torch.Tensor]): pass
class A:
    def m(self): pass
    def n(self, x: np.ndarray): "Adds."
"""
    body = ast.parse(source).body
    assert missing_docstrings(body) == ["k", "A", "A.m"] and missing_shapes(body) == ["f", "A.n"]


def test_the_reference_has_every_module():
    files = [path for path in site_reference.PACKAGE.rglob("*.py") if path.stat().st_size]
    parts = [path.relative_to(site_reference.PACKAGE).with_suffix("").parts for path in files]
    assert set(MODULES) == {".".join(part for part in each if part != "__init__") for each in parts} - {""}
    text = "\n".join(site_reference.pages().values())
    for module in MODULES:
        assert f"::: vjepa2_hf.{module}\n" in text, module


def test_names_of_the_package_are_in_the_overview():
    page = site_reference.pages()["reference/index.md"]
    for name in vjepa2_hf.__all__:
        assert re.search(rf"^\| \[`{name}`\]\[vjepa2_hf\.[\w.]+\] \| \w", page, flags=re.MULTILINE), name


@pytest.mark.parametrize("name", [name for name in vjepa2_hf.__all__ if name.endswith("Config")])
def test_every_field_of_a_config_is_explained(name):
    """In the docstring of the config; those of transformers' own base are not ours to explain."""
    node = CLASSES[name]
    text = re.sub(r"\s+", " ", ast.get_docstring(node))
    fields = [one.target.id for one in node.body if isinstance(one, ast.AnnAssign)]
    assert fields and not [field for field in fields if not re.search(rf"(?<!\w){field}\b", text)]


# ------------------------------------------------------------------------------------------ navigation and docstrings


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


def test_docstrings_become_markdown():
    text = """Configuration of [`VJepa2Encoder`].

Clip:
    patch_size (`int`): side of a patch
        in pixels.
    a, b_c: both.

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

* `patch_size` (`int`): side of a patch
        in pixels.
* a, `b_c`: both.

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
