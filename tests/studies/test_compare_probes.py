"""The table of probes holds what the runs measured; the page's commands run at tiny size."""

import dataclasses
import json
import re
import shlex
import sys
from pathlib import Path

import compare_probes
import numpy as np
import pytest
import record_episodes
import record_moving_digits
import torch
import train_probe
from study import slug

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig, VJepa2VideoProcessor
from vjepa2_hf.data.video_writing import encode_video


ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "probes.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(command)
    for block in re.findall(r"^```\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    for command in block.replace("\\\n", " ").splitlines()
]
TINY = ["max_steps=2", "num_threads=1", "validation_fraction=0.3", "selection_fraction=0.3", "batch_size=2"]
SCRIPTS = {
    "record_moving_digits": record_moving_digits,
    "record_episodes": record_episodes,
    "train_probe": train_probe,
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with an encoder where the demo leaves it, somebody's videos, and what the page records, small."""
    folder = tmp_path_factory.mktemp("page")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "crop_size": 64}
    for encoder in (folder / "runs" / "demo" / "pretrain" / "final", folder / "runs" / "mine" / "final"):
        VJepa2Encoder(VJepa2EncoderConfig(**sizes)).save_pretrained(encoder)
        VJepa2VideoProcessor(size=64, crop_size=64).save_pretrained(encoder)
    for number in range(16):
        own = folder / "my_videos" / ("fast" if number % 2 else "slow")
        own.mkdir(parents=True, exist_ok=True)
        frames = np.random.default_rng(number).integers(0, 255, (9, 32, 48, 3), dtype=np.uint8)
        (own / f"{number}.mp4").write_bytes(encode_video(frames, fps=10))
    return folder


def run(monkeypatch, command: list[str]) -> None:
    """Runs a command of the page in this process: fewer videos and steps, the rest as written."""
    script = next(part for part in command if part.startswith("examples/"))
    arguments = command[command.index(script) + 1 :]
    for name in ("--videos", "--episodes"):
        if name in arguments:
            arguments[arguments.index(name) + 1] = "20"
    arguments = [str(ROOT / part) if part.startswith("examples/") else part for part in arguments]
    arguments += TINY if "train_probe" in script else ["--num_shards", "1"]
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    SCRIPTS[Path(script).stem].main()


def test_every_command_of_the_page_runs(monkeypatch, workplace):
    monkeypatch.chdir(workplace)
    assert len(COMMANDS) > 10
    for command in COMMANDS:
        run(monkeypatch, command)
    probes = {path.parent.name for path in (workplace / "runs" / "probes").glob("*/results.json")}
    named = set(re.findall(r"output_dir=runs/probes/(\w+)", PAGE))
    assert probes == named
    for name in named:
        assert (workplace / "runs" / "probes" / name / "final" / "model.safetensors").exists()


def results(folder: Path, name: str, value: float, **more) -> None:
    output = folder / "runs" / slug(name)
    output.mkdir(parents=True)
    other = {speed: {"accuracy": value - 0.3} for speed in compare_probes.SPEEDS}
    found = {
        "score": "accuracy",
        "validation": {"accuracy": value},
        "same_answer_for_all": 0.125,
        "evaluate_on": other,
    }
    (output / "results.json").write_text(json.dumps({**found, **more}))


def test_the_table_holds_what_the_runs_measured(run_study, tmp_path):
    for seed, value in enumerate((0.4, 0.6)):
        folder = tmp_path / "runs" / "moving_digits" / f"seed-{seed}"
        results(folder, compare_probes.run_name("motion", "attentive", "pretrained"), value)
        results(folder, compare_probes.run_name("content", "linear", "random", 0.05), value + 0.1)
    folder = tmp_path / "runs" / "moving_digits" / "seed-0"
    for name, seconds in (("sweep linear", 7.0), ("one head linear", 2.0)):
        results(folder, name, 0.5, seconds={"features": 10.0, "heads": seconds})
    text = run_study(compare_probes.STUDY, "--collect")
    assert "| attentive, pretrained |  | 0.50 (0.00–1.00) |" in text  # the interval of two seeds is wide
    assert "| content, random |  | 0.60 (0.00–1.00) |" in text and "**Moving digits** (2 seeds)" in text
    assert "| attentive, pretrained | 0.20 (0.00–1.00) | 0.50 (0.00–1.00) | 0.20 (0.00–1.00) |" in text  # other speeds
    assert "| linear | 10 | 7 | 50 |" in text and "| the same answer for all |  | 0.12 |" in text
    assert json.loads((tmp_path / "results.json").read_text())["datasets"]["pushing"]["seconds"] == {}


def test_runs_with_other_settings_are_neither_taken_nor_published_as_these(run_study, tmp_path, capsys):
    command = dataclasses.replace(compare_probes.STUDY, run=lambda options: None)
    for seed in (0, 1, 5):
        folder = tmp_path / "runs" / "moving_digits" / f"seed-{seed}"
        results(folder, compare_probes.run_name("motion", "linear", "pretrained"), 0.1 * seed)
    run_study(command, "--probe_steps", "20")
    with pytest.raises(SystemExit):
        run_study(command, "--clips", "50")
    assert "holds runs with other clips (2000, now 50), probe_steps (20, now 400)" in capsys.readouterr().err
    assert "600 steps of pretraining, 20 of a probe" in run_study(command, "--collect", "--seeds", "2")
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["datasets"]["moving_digits"]["probes"]["linear, pretrained"]["motion"]["by_seed"] == [0.0, 0.1]


@pytest.mark.slow
def test_the_whole_command_runs_at_tiny_size(tiny_runs, run_study, tmp_path, monkeypatch):
    some = {kind: compare_probes.KINDS[kind] for kind in ("linear", "attentive")}
    monkeypatch.setattr(compare_probes, "KINDS", some)
    monkeypatch.setattr(compare_probes, "FRACTIONS", (0.5, 1.0))
    digits = {name: task for name, task in compare_probes.TASKS["moving_digits"].items() if name != "content"}
    tasks = {"pushing": {"content": compare_probes.TASKS["pushing"]["content"]}, "moving_digits": digits}
    monkeypatch.setattr(compare_probes, "TASKS", tasks)
    size = ["--seeds", "1", "--jobs", "1", "--clips", "80", "--steps", "2", "--probe_steps", "2"]
    text = run_study(compare_probes.STUDY, *size)
    found = json.loads((tmp_path / "results.json").read_text())["datasets"]
    for dataset in ("pushing", "moving_digits"):
        probes = found[dataset]["probes"]
        for name, row in probes.items():
            control = compare_probes.SHUFFLED if "random" in name else None  # of pretrained encoders alone
            assert all(value for task, value in row.items() if task != control) and len(probes) == 4
    assert set(found["moving_digits"]["seconds"]) == {"linear", "attentive"}
    speeds = found["moving_digits"]["speeds"]
    assert all(value for row in speeds.values() for value in row.values()) and len(speeds) == 6
    assert "| linear, pretrained at three speeds | " in text
