import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vjepa2_hf import training
from vjepa2_hf.training import (
    LearningRateSchedule,
    MomentumSchedule,
    Run,
    exit_on_user_error,
    latest_checkpoint,
    load_config,
    parameter_groups,
    parse_arguments,
    read_metrics,
    save_checkpoint,
    set_learning_rate,
    truncate_metrics,
)


GOLDEN = json.loads((Path(__file__).parent / "fixtures" / "schedules.json").read_text())


@dataclass
class Inner:
    peak: float = 1e-3
    kind: Literal["cosine", "constant"] = "cosine"


@dataclass
class Config:
    output_dir: str
    max_steps: int = 10
    rate: Inner = field(default_factory=Inner)
    encoder: dict[str, Any] = field(default_factory=dict)
    masks: list[dict[str, Any]] = field(default_factory=list)
    fps: float | None = None
    scale: tuple[float, float] = (0.3, 1.0)
    gradient_checkpointing: bool = False


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


# --- Configs


def test_config_file_and_overrides_make_one_config(tmp_path):
    path = write(
        tmp_path / "c.yaml", "output_dir: runs/a\nmasks: [{type: future}, {num_blocks: 8}]\nscale: [0.5, 1]\n"
    )
    overrides = ["encoder.hidden_size=96", "rate.peak=3e-4", "masks.1.num_blocks=2", "fps=4", "max_steps=7"]
    config = load_config(Config, path, overrides)
    assert config.encoder == {"hidden_size": 96}
    assert config.rate.peak == 3e-4 and config.rate.kind == "cosine"
    assert config.masks == [{"type": "future"}, {"num_blocks": 2}]
    assert config.fps == 4.0 and isinstance(config.fps, float)
    assert config.scale == (0.5, 1.0) and config.max_steps == 7


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("", ["output_dr=x"], "'output_dr'; did you mean 'output_dir'"),
        ("output_dir: x", ["rate.peek=1"], "'rate.peek'; did you mean 'rate.peak'"),
        ("output_dir: x", ["zzz=1"], "known ones are encoder, "),
        ("max_steps: 3", [], "'output_dir' is missing"),
        ("output_dir: x", ["max_steps=many"], "'max_steps' must be int, got 'many'"),
        ("output_dir: x", ["max_steps=true"], "'max_steps' must be int, got True"),
        ("output_dir: x", ["max_steps=1.5"], "'max_steps' must be int, got 1.5"),
        ("output_dir: x", ["rate.kind=cosin"], "must be one of 'cosine', 'constant', got 'cosin'"),
        ("output_dir: x", ["rate=3"], "'rate' must hold"),
        ("output_dir: x", ["fps=fast"], "'fps' must be float, got 'fast'"),
        ("output_dir: x", ["scale=[1, 2, 3]"], "'scale' must be tuple"),
        ("output_dir: x", ["masks=[1]"], "'masks.0' must be dict"),
        ("masks: [{}]", ["masks.3.num_blocks=1"], "'masks.3' does not exist: the part before '3' is a list of 1"),
        ("max_steps: 3", ["max_steps.a=1"], "'max_steps' is the single value 3"),
        ("output_dir: x", ["max_steps"], "not of the form key=value"),
        ("output_dir: x", ["max_steps=[1"], "not valid YAML"),
        ("output_dir: [x", [], "not valid YAML"),
        ("- a\n- b", [], "holds a list"),
    ],
)
def test_a_wrong_config_is_one_sentence_that_names_it(tmp_path, text, overrides, message):
    with pytest.raises(ValueError, match=r"^[A-Z]") as error:
        load_config(Config, write(tmp_path / "c.yaml", text or "{}"), overrides)
    assert message in str(error.value)


def test_missing_config_file_is_named():
    with pytest.raises(FileNotFoundError, match="'nowhere.yaml' does not exist"):
        load_config(Config, "nowhere.yaml")


def test_command_line(tmp_path):
    config = parse_arguments(Config, "test", ["--config", write(tmp_path / "c.yaml", "output_dir: a"), "max_steps=3"])
    assert (config.output_dir, config.max_steps) == ("a", 3)


@pytest.mark.parametrize(
    "error", [ValueError("the value\nis wrong"), FileNotFoundError("no file"), OSError("no disk")]
)
def test_user_errors_end_in_one_line_without_a_traceback(error, capsys):
    @exit_on_user_error
    def main():
        raise error

    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 1
    assert capsys.readouterr().err == f"error: {' '.join(str(error).split())}\n"


def test_an_error_inside_a_data_worker_is_one_line_too(capsys):
    class Broken(torch.utils.data.IterableDataset):
        def __iter__(self):
            raise FileNotFoundError("The shard 'a' is gone.")

    @exit_on_user_error
    def main():
        next(iter(torch.utils.data.DataLoader(Broken(), num_workers=1)))

    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == "error: The shard 'a' is gone.\n"


def test_a_programming_error_keeps_its_traceback():
    @exit_on_user_error
    def main():
        raise KeyError("bug")

    with pytest.raises(KeyError):
        main()


# --- Schedules


def at_every_step(schedule, max_steps=100):
    return [schedule.at(step, max_steps) for step in range(1, max_steps + 1)]


def close(expected):
    return pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_published_learning_rates():
    ramp = {"peak": 5.25e-4, "final": 1e-6}
    warmup_cosine = LearningRateSchedule("warmup_cosine", start=1e-4, warmup_steps=20, schedule_scale=1.25, **ramp)
    assert at_every_step(warmup_cosine) == close(GOLDEN["warmup_cosine"]["values"])
    stable = LearningRateSchedule("warmup_stable_decay", 4.25e-4, start=7.5e-5, warmup_steps=10, decay_steps=20)
    assert at_every_step(stable) == close(GOLDEN["warmup_stable_decay"]["values"])
    assert at_every_step(LearningRateSchedule("linear", **ramp)) == close(GOLDEN["linear_decay"]["values"])


def test_published_weight_decay():
    values = [training.cosine(step, 125, start=0.04, final=0.4) for step in range(1, 101)]
    assert values == close(GOLDEN["cosine_weight_decay"]["values"])


def test_published_momenta():
    linear = MomentumSchedule("linear", start=0.996, final=1.0, schedule_scale=1.25)
    assert at_every_step(linear) == close(GOLDEN["ema_linear"]["values"])
    cosine = MomentumSchedule("cosine", start=0.996, final=1.0)
    assert at_every_step(cosine) == close(GOLDEN["ema_cosine"]["values"])
    assert at_every_step(MomentumSchedule(start=0.9)) == [0.9] * 100


def test_published_cooldown_stops_before_its_end():
    """Linear over 15 k steps, stopped after 12 k: 1.06e-4 (RECIPES section 4)."""
    cooldown = LearningRateSchedule("linear", peak=5.25e-4, final=1e-6, schedule_scale=1.25)
    assert cooldown.at(12_000, 12_000) == pytest.approx(1.06e-4, rel=0.01)


@given(
    st.sampled_from(["warmup_cosine", "warmup_stable_decay", "linear", "constant"]),
    st.integers(0, 50),
    st.integers(0, 50),
    st.integers(1, 200),
    st.integers(1, 300),
)
def test_a_learning_rate_stays_between_its_ends(schedule, warmup_steps, decay_steps, max_steps, step):
    config = LearningRateSchedule(schedule, 1.0, 0.1, 0.01, warmup_steps, decay_steps)
    assert 0.01 - 1e-12 <= config.at(step, max_steps) <= 1.0


def test_schedules_refuse_impossible_numbers():
    with pytest.raises(ValueError, match="peak=-1"):
        LearningRateSchedule(peak=-1)
    with pytest.raises(ValueError, match="between 0 and 1.*start=1.5"):
        MomentumSchedule(start=1.5)


# --- Optimiser


def test_biases_norms_and_frozen_parameters_are_not_decayed():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4))
    model[2].requires_grad_(False)
    decayed, kept = parameter_groups(model, weight_decay=0.04)
    assert decayed["weight_decay"] == 0.04 and [p.ndim for p in decayed["params"]] == [2]
    assert kept["weight_decay"] == 0.0 and len(kept["params"]) == 3


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_refused_with_advice(loss):
    with pytest.raises(ValueError, match=f"loss of step 7 is {loss}; lower the learning rate"):
        training.check_finite_loss(loss, 7)


# --- A run's folder


def tiny_run(output_dir, seed=0, width=3, **settings):
    torch.manual_seed(seed)
    accelerator = Accelerator(cpu=True)
    model = nn.Linear(width, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    return Run(output_dir, Config(output_dir=str(output_dir)), accelerator, **settings), model, optimizer


def train(run, model, optimizer, steps):
    for step in steps:
        set_learning_rate(optimizer, 0.1 / step)
        loss = model(torch.randn(4, 3)).square().mean()
        run.accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        run.log({"step": step, "loss": loss.detach()})


def test_a_resumed_run_repeats_the_uninterrupted_one_to_the_bit(tmp_path):
    run, model, optimizer = tiny_run(tmp_path / "a")
    assert run.resume(None) == (0, {})
    train(run, model, optimizer, range(1, 4))
    run.save_checkpoint(3, {"position": 12})
    train(run, model, optimizer, range(4, 7))
    uninterrupted = read_metrics(tmp_path / "a")

    run, model, optimizer = tiny_run(tmp_path / "a", seed=1)
    assert run.resume("latest") == (3, {"position": 12})
    assert [line["step"] for line in read_metrics(tmp_path / "a")] == [1, 2, 3]
    train(run, model, optimizer, range(4, 7))
    assert read_metrics(tmp_path / "a") == uninterrupted


@pytest.mark.parametrize("crash_in", ["save_accelerator_state", "fsync", "replace"])
def test_a_crash_while_saving_leaves_no_partial_checkpoint(tmp_path, monkeypatch, crash_in):
    run, model, optimizer = tiny_run(tmp_path)
    run.resume(None)
    run.save_checkpoint(1)

    def crash(*args, **kwargs):
        raise KeyboardInterrupt

    if crash_in == "save_accelerator_state":
        write_nothing = torch.save
        # the weights are on disk already when the optimiser's file is written
        monkeypatch.setattr(torch, "save", lambda *args, **kwargs: (write_nothing(*args, **kwargs), crash()))
    else:
        monkeypatch.setattr(training.os, crash_in, crash)
    with pytest.raises(KeyboardInterrupt):
        run.save_checkpoint(2)
    monkeypatch.undo()
    assert (tmp_path / "checkpoint-2.tmp").is_dir()
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-1"

    run, *_ = tiny_run(tmp_path)
    assert not (tmp_path / "checkpoint-2.tmp").exists()
    assert run.resume("latest")[0] == 1


def test_only_the_last_checkpoints_are_kept(tmp_path):
    run, *_ = tiny_run(tmp_path, keep_last=2)
    for step in (5, 10, 20, 100):
        run.save_checkpoint(step)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-100", "checkpoint-20"]
    assert latest_checkpoint(tmp_path).name == "checkpoint-100"
    assert latest_checkpoint(tmp_path / "nowhere") is None


def test_latest_without_a_checkpoint_starts_from_the_beginning(tmp_path):
    run, *_ = tiny_run(tmp_path)
    run.log({"step": 1, "loss": 1.0})
    assert run.resume("latest") == (0, {})
    assert read_metrics(tmp_path) == []
    assert load_config(Config, tmp_path / "config.yaml") == run.config


def test_a_new_run_does_not_overwrite_another(tmp_path):
    run, *_ = tiny_run(tmp_path)
    run.save_checkpoint(1)
    with pytest.raises(ValueError, match="already holds a run .checkpoint-1.; set resume=latest"):
        run.resume(None)


def test_resuming_in_the_middle_does_not_mix_two_histories(tmp_path):
    run, *_ = tiny_run(tmp_path / "a")
    run.save_checkpoint(1)
    run.save_checkpoint(2)
    with pytest.raises(ValueError, match="holds checkpoint-2, later than step 1"):
        run.resume("checkpoint-1")
    other, *_ = tiny_run(tmp_path / "b")
    assert other.resume(str(tmp_path / "a" / "checkpoint-1"))[0] == 1


def test_checkpoints_that_cannot_be_continued_are_refused(tmp_path):
    run, *_ = tiny_run(tmp_path)
    with pytest.raises(FileNotFoundError, match="'nowhere' is no checkpoint"):
        run.resume("nowhere")
    whole = save_checkpoint(run.accelerator, tmp_path, 3)
    wider, *_ = tiny_run(tmp_path, width=5)
    with pytest.raises(ValueError, match="does not fit the configured model"):
        wider.resume("latest")
    (whole / "progress.json").write_text('{"step": 3, "num_processes": 2}')
    with pytest.raises(ValueError, match="written by 2 processes and this run has 1"):
        run.resume("latest")


def test_metrics_are_truncated_after_the_resumed_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2}\n{"step": 2, "loss": 1}\n{"step": 3, "lo')
    truncate_metrics(path, 1)
    assert path.read_text() == '{"step": 1, "loss": 2}\n'


def test_metrics_hold_plain_json_numbers(tmp_path):
    run, *_ = tiny_run(tmp_path)
    run.log({"step": 1, "loss": torch.tensor(0.5), "target_std": float("nan"), "rank": None})
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5, "target_std": None, "rank": None}]


def test_final_folder_is_written_aside_and_replaces_the_old_one(tmp_path):
    class Model(nn.Linear):
        def save_pretrained(self, path, state_dict):
            assert Path(path).name == "final.tmp"
            torch.save(state_dict, Path(path) / "model.bin")

    accelerator = Accelerator(cpu=True)
    run = Run(tmp_path, Config("a"), accelerator)
    for value in (1.0, 2.0):
        model = Model(2, 1)
        nn.init.constant_(model.weight, value)
        final = run.save_final(accelerator.prepare(model))
    assert torch.load(final / "model.bin")["weight"].unique() == 2.0
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_importing_the_package_leaves_heavy_imports_to_those_who_train():
    heavy = ["datasets", "gymnasium", "matplotlib", "vjepa2_hf.data", "vjepa2_hf.video_io", "vjepa2_hf.training"]
    code = f"import vjepa2_hf, sys; print([name for name in {heavy} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
