import json
import sys

import demo
import pytest
from demo import Road


def writes(path, seconds: float = 0.0) -> list[str]:
    return ["-c", f"import time, pathlib; time.sleep({seconds}); pathlib.Path({str(path)!r}).write_text('x')"]


def test_road_runs_steps_side_by_side_and_skips_what_is_done(tmp_path, capfd):
    road = Road(tmp_path, threads=2)
    steps = [(name, tmp_path / name, writes(tmp_path / name)) for name in ("a", "b")]
    road.run("two steps", *steps)
    assert (tmp_path / "a").exists() and (tmp_path / "b").exists()
    assert list(json.loads((tmp_path / "timings.json").read_text())) == ["two steps"]
    (tmp_path / "b").unlink()
    assert "done already" not in capfd.readouterr().out
    road.run("two steps", steps[0])
    assert "done already" in capfd.readouterr().out
    assert not (tmp_path / "b").exists()


def test_road_stops_at_a_step_that_fails_and_names_its_log(tmp_path):
    road = Road(tmp_path, threads=1, quiet=True)
    with pytest.raises(SystemExit, match="broken.*broken.log"):
        road.run("broken", ("broken", tmp_path / "never", ["-c", "raise SystemExit('no such thing')"]))
    assert "no such thing" in (tmp_path / "logs" / "broken.log").read_text()


def test_demo_runs_every_script_in_order(tmp_path, monkeypatch):
    """The commands themselves are tested with their scripts; here: which run, on what, and in which order."""
    commands = []

    def run(self, title, *steps):
        commands.extend(command for _, _, command in steps)

    monkeypatch.setattr(Road, "run", run)
    demo.demo(tmp_path, demo.EXAMPLES / "configs" / "demo", threads=2)
    names = [command[0].rsplit("/", 1)[-1] for command in commands]
    assert names == [
        "record_episodes.py",
        "pretrain.py",
        "train_world_model.py",
        "train_world_model.py",
        "plan.py",
        "report.py",
    ]
    assert f"encoder={tmp_path / 'pretrain' / 'final'}" in commands[2] and "encoder=random" in commands[3]
    assert sys.executable not in commands[0]  # the road adds the interpreter
