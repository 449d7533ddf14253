"""The table of examples names every script and every folder of configs."""

import re

from builders import EXAMPLES


def test_the_table_is_complete():
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    main, studies = text.split("## Studies")
    assert set(re.findall(r"^\| `(\w+\.py)`", main, flags=re.MULTILINE)) == {p.name for p in EXAMPLES.glob("*.py")}
    named = set(re.findall(r"^\| `(\w+\.py)`", studies, flags=re.MULTILINE))
    assert named == {path.name for path in (EXAMPLES / "studies").glob("*.py")} - {"study.py"}
    configs = main.split("## Configs")[1]
    for path in (EXAMPLES / "configs").rglob("*.yaml"):
        folder = path.relative_to(EXAMPLES / "configs").parent.as_posix()
        assert f"`{folder}/`" in configs or path.name == "ablations.yaml", path
