"""The demo: its commands run in order, in parallel where they should, and only if their result is missing."""

import json
import multiprocessing
import os
import signal
import time

import demo
import pytest
from plan import PlanConfig

from vjepa2_hf.training.settings import load_config


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(demo, "PRELOADED", [])
    for name in (*demo.ALLOCATOR, "OMP_NUM_THREADS"):  # `run` sets them
        monkeypatch.setenv(name, "1")


def script(path, code: str, *arguments: str) -> list[str]:
    path.write_text(code)
    return [str(path), *arguments]


def writes(path) -> list[str]:
    code = "import multiprocessing, pathlib, sys, torch\n"
    code += "found = f'{torch.get_num_threads()} {multiprocessing.get_start_method()}'\n"
    code += "pathlib.Path(sys.argv[1]).write_text(found)"
    return script(path.parent / f"write_{path.name}.py", code, str(path))


def test_commands_run_in_parallel_and_finished_ones_are_skipped(tmp_path, capfd):
    commands = [(name, tmp_path / name, writes(tmp_path / name)) for name in ("a", "b")]
    demo.run(tmp_path, 2, "two commands", *commands)
    found = {(tmp_path / name).read_text() for name in ("a", "b")}
    assert found == {f"1 {multiprocessing.get_start_method()}"}  # thread of two; their processes start as everywhere
    assert list(json.loads((tmp_path / "timings.json").read_text())) == ["two commands"]
    (tmp_path / "b").unlink()
    assert "done already" not in capfd.readouterr().out
    demo.run(tmp_path, 2, "two commands", commands[0])
    assert "done already" in capfd.readouterr().out
    assert not (tmp_path / "b").exists()


def test_a_failing_command_stops_the_demo_and_its_log_is_named(tmp_path):
    commands = [
        ("fine", tmp_path / "fine", writes(tmp_path / "fine")),
        ("broken", tmp_path / "never", script(tmp_path / "broken.py", "raise SystemExit('no such thing')")),
    ]
    with pytest.raises(SystemExit, match=r"broken failed \(exit code 1\); see .*broken.log"):
        demo.run(tmp_path, 1, "two commands", *commands)
    assert "no such thing" in (tmp_path / "logs" / "broken.log").read_text()


def test_a_signal_to_the_demo_alone_ends_its_scripts(tmp_path):
    """The first script signals the demo, and the second would run for a minute."""
    first = script(tmp_path / "first.py", f"import os, signal; os.kill({os.getpid()}, signal.SIGINT)")
    second = script(tmp_path / "second.py", "import time; time.sleep(60)")
    commands = [("first", tmp_path / "never", first), ("second", tmp_path / "no", second)]
    started, handler = time.monotonic(), signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            demo.run(tmp_path, 2, "two commands", *commands)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert time.monotonic() - started < 50
    assert not [process for process in multiprocessing.active_children() if process.join(10) or process.is_alive()]


def test_demo_runs_every_script_in_order(tmp_path, monkeypatch):
    """The commands themselves are tested with their scripts; here: which run, on what, and in which order."""
    commands = []

    def run(output, threads, title, *steps):
        commands.extend(command for _, _, command in steps)

    monkeypatch.setattr(demo, "run", run)
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
    assert demo.DISTANCE_HEAD in commands[2] and demo.DISTANCE_HEAD in commands[3]
    plan = load_config(PlanConfig, commands[4][2], commands[4][3:])
    assert plan.planner == {"cost": "closest"} and plan.distance is None  # the planner refuses both
    assert plan.solver["num_candidates"] == 32 and plan.solver["stop_std"] == 0.25
