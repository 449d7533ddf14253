"""SECURITY.md: its limits are the defaults, and each of its promises has a test."""

import ast
import dataclasses
import json
import re

import pytest
from builders import ROOT

from vjepa2_hf.video_io import ReadLimits


TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
TESTS = re.findall(r"`(tests/\S+\.py)::(\w+)`", TEXT)


def test_the_limits_are_the_defaults():
    listed = dict(re.findall(r"^\| `limits\.(\w+)` \| (\S+) \|", TEXT, re.MULTILINE))
    assert {name: json.loads(value) for name, value in listed.items()} == dataclasses.asdict(ReadLimits())


@pytest.mark.parametrize(("path", "name"), TESTS)
def test_each_promise_has_a_test(path, name):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_row_of_the_table_of_promises_names_its_test():
    rows = TEXT.partition("| promise |")[2].partition("\n\n")[0].splitlines()[2:]
    assert len(rows) == len(TESTS) > 20
