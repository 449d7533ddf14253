"""The commands and snippets of docs/training_curves.md, docs/fine_tuning.md and docs/memory.md run, at tiny size."""

import json
import sys
from pathlib import Path

import pretrain
import pytest
import torch
import train_probe
from builders import ROOT, TINY_ENCODER, TINY_PREDICTOR, moving_square
from script_runs import blocks, commands
from transformers import VJEPA2Config, VJEPA2Model

from vjepa2_hf import VJepa2Encoder, VJepa2ForMaskedLatentPrediction, VJepa2VideoProcessor
from vjepa2_hf import VJepa2MaskedLatentPredictionConfig as MaskedConfig
from vjepa2_hf.training import capacity


# What makes a command tiny, by its script; later settings win
SIZES = ("hidden_size=24", "num_hidden_layers=1", "num_attention_heads=2")
SMALL_MODEL = [f"{part}.{size}" for part in ("encoder", "predictor") for size in SIZES]
TINY = {
    "pretrain": ["max_steps=3", "batch_size=2", "log_every=1", "num_workers=0", "crop_size=64", "frames_per_clip=4",
                 "mixed_precision='no'", "learning_rate.warmup_steps=1"],
    "train_probe": ["max_steps=2", "batch_size=4", "frames_per_clip=4", "validation_fraction=0.3", "crop_size=32",
                    "selection_fraction=0.3", "head={num_pooler_layers: 1, pooler_num_attention_heads: 2}"],
    "record_episodes": ["--episodes", "6", "--length", "8", "--num_proc", "1", "--num_shards", "1"],
    "record_moving_digits": ["--videos", "40", "--frames", "8", "--num_shards", "1"],
    "make_video_shards": ["--num_proc", "1", "--num_shards", "2"],
    "linear_probes": [],
    "plot_training_curves": [],
}  # fmt: skip


def run(command: list[str]) -> None:
    """A command of a page, or one that a script would start, in this process."""
    place = next(i for i, part in enumerate(command) if part.endswith(".py"))
    name, arguments = Path(command[place]).stem, command[place + 1 :]
    arguments = [str(ROOT / part) if part.startswith("examples/configs/") else part for part in arguments]
    arguments += TINY[name]
    if name == "pretrain" and not any(part.startswith("init_from=") or "continue" in part for part in arguments):
        arguments += SMALL_MODEL
    module = {"pretrain": pretrain, "train_probe": train_probe}.get(name) or __import__(name)
    if name in ("pretrain", "train_probe"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [name, *arguments])
            module.main()
    else:
        module.main(arguments)


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder with what the pages name."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = VJepa2ForMaskedLatentPrediction(MaskedConfig(encoder_config=TINY_ENCODER, **TINY_PREDICTOR))
    model.save_pretrained("runs/mine/final")
    VJepa2VideoProcessor(size=32, crop_size=32).save_pretrained("runs/mine/final")
    for number in range(24):
        path = Path("my_videos", "ab"[number % 2], f"{number}.mp4")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(moving_square(8 + number % 2))
    return tmp_path


@pytest.mark.filterwarnings("ignore:target_type='online'")
def test_training_curves(work):
    for folder in ("docs", "results"):
        Path(folder).mkdir()
    page = "training_curves.md"
    Path("docs", page).write_text((ROOT / "docs" / page).read_text(encoding="utf-8"), encoding="utf-8")
    found = commands(page)
    (drawn,) = (command for command in found if "runs/mine" in command)
    for command in found:
        if command is not drawn:
            run(command)
    run([part.replace("runs/mine", "runs/curves/healthy") for part in drawn])
    assert Path("curves.png").is_file() and Path("docs/training_curves.png").is_file()
    results = json.loads(Path("results/training_curves.json").read_text())
    assert {run["steps"] for run in results.values()} == {3}
    assert "| steps | 3 |" in Path("docs", page).read_text()


def test_every_number_of_a_log_is_explained(work):
    """A number that a run logs and the page does not name leaves its reader alone."""
    run(["examples/make_video_shards.py", "my_videos", "runs/shards", "--height", "32"])
    overrides = ["data=runs/shards", "output_dir=runs/log", "fps=null", "variance_weight=0.1", "encoder.patch_size=8"]
    run(["examples/pretrain.py", *overrides])
    lines = Path("runs/log/metrics.jsonl").read_text().splitlines()
    page = (ROOT / "docs" / "training_curves.md").read_text(encoding="utf-8")
    assert {name for name in json.loads(lines[-1]) if f"`{name}`" not in page} == {"step", "mask_loss_1"}


def test_images_and_videos_in_one_run(work):
    first, second = (
        command for command in commands("pretraining.md") if "digits" in str(command) or "images" in str(command)
    )
    run(first)
    run(second)
    line = json.loads(Path("runs/images/pretrain/metrics.jsonl").read_text().splitlines()[-1])
    assert line["image_loss"] != line["video_loss"]
    page = (ROOT / "docs" / "training_curves.md").read_text(encoding="utf-8")
    assert {name for name in line if f"`{name}`" not in page} == {"step"}


def test_fine_tuning(work):
    sizes = {f"pred_{name.removeprefix('predictor_')}": value for name, value in TINY_PREDICTOR.items()}
    torch.manual_seed(1)
    released = VJEPA2Model(VJEPA2Config(**TINY_ENCODER, **sizes, pred_num_mask_tokens=2))
    released.save_pretrained("facebook/vjepa2-vitl-fpc64-256")
    for command in commands("fine_tuning.md"):
        if "examples/studies/measure_fine_tuning.py" not in command:
            run(command)
    continued = VJepa2Encoder.from_pretrained("runs/my_vitl_64/final")
    theirs = VJepa2Encoder.from_pretrained("facebook/vjepa2-vitl-fpc64-256")
    moved = [(a - b).abs().max() for a, b in zip(continued.parameters(), theirs.parameters(), strict=True)]
    assert 0 < max(moved) < 0.01, "it goes on from the released weights"
    for name in ("frozen", "finetuned"):
        assert json.loads(Path("runs/probes", name, "results.json").read_text())
    names = {}
    (snippet,) = blocks("fine_tuning.md", "python")
    exec(snippet, names)
    blocks_learn = [all(p.requires_grad for p in block.parameters()) for block in names["model"].encoder.layer]
    assert blocks_learn == [False, True]


def test_the_commands_of_memory(capsys):
    first, *plans = commands("memory.md")
    assert first == ["python", "benchmarks/memory_table.py"]  # tests/test_memory_table.py
    for command in plans:
        arguments = command[command.index("vjepa2_hf.training.capacity") + 1 :]
        capacity.main([str(ROOT / part) if part.endswith(".yaml") else part for part in arguments])
    printed = capsys.readouterr().out
    assert "GB in all, with checkpointing (of 80)" in printed
    assert "GB in all, without checkpointing (of 24)" in printed
