"""The commands and snippets of docs/ecosystem.md run, at tiny size."""

from pathlib import Path

import pytest
import torch
from builders import GOAL, OBSERVATION, ROOT, TINY_ENCODER, build_planner, moving_square, same_plan
from datasets import load_dataset
from pretrain import PretrainConfig
from script_runs import blocks, commands, run_command

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig, VJepa2Planner, VJepa2VideoProcessor
from vjepa2_hf.training.settings import parse_arguments


RELEASED = "facebook/vjepa2-vitl-fpc64-256"


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder with what the page names."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    VJepa2Encoder(VJepa2EncoderConfig(**TINY_ENCODER)).save_pretrained("encoder")
    VJepa2VideoProcessor(size=32, crop_size=32).save_pretrained("encoder")
    Path("my_videos").mkdir()
    for name in ("a.mp4", "b.mp4"):
        Path("my_videos", name).write_bytes(moving_square(30))
    return tmp_path


def commands_with(word: str) -> list[list[str]]:
    return [command for command in commands("ecosystem.md") if word in command]


def run_block(word: str, **names) -> dict:
    (block,) = [block for block in blocks("ecosystem.md", "python") if word in block]
    exec(block, names)
    return names


def test_scripts_run_as_with_uv_and_their_results_stream(work, monkeypatch):
    shards, features = commands_with("run")
    assert shards[:2] == ["uv", "run"] and features[:4] == ["hf", "jobs", "uv", "run"]
    run_command([*shards, "--num_proc", "1"])
    uploads = []
    for name in ("create_repo", "upload_folder"):
        monkeypatch.setattr(f"huggingface_hub.HfApi.{name}", lambda self, *_, **how: uploads.append(how))
    rows = run_block("upload_folder")["rows"]
    assert sorted(row["path"] for row in rows) == ["a.mp4", "b.mp4"]
    assert uploads[0]["private"] and Path(uploads[1]["folder_path"], "README.md").is_file()
    mounted = {RELEASED: "encoder", "/videos": "my_videos", "/runs/features": "runs/features"}
    run_command([mounted.get(part, part) for part in features])
    assert len(load_dataset("runs/features", split="train")[0]["embedding"]) == TINY_ENCODER["hidden_size"]


def test_the_run_of_the_page_is_tracked(monkeypatch):
    """tests/examples/test_pretrain.py runs it where trackio is installed."""
    monkeypatch.chdir(ROOT)
    (command,) = commands_with("log_with=trackio")
    assert parse_arguments(PretrainConfig, "", command[3:]).log_with == "trackio"


def test_the_planner_of_the_page_plans_the_same_after_a_download(work, hub):
    build_planner().save_pretrained("runs/mine_world_model/final")
    names = run_block("push_to_hub")
    assert hub.private == [True]
    loaded = VJepa2Planner.from_pretrained(hub.write_to(work / "there"), device="cpu")
    assert loaded.solver.horizon == 4
    assert same_plan(loaded(OBSERVATION, GOAL), names["planner"](OBSERVATION, GOAL))


def test_the_exported_encoder_is_used_as_the_page_says(work):
    onnx, program = commands_with("examples/export_encoder.py")
    assert onnx[-1] == "encoder.onnx"  # tests/examples/test_export_encoder.py runs it where onnxruntime is installed
    run_command([{"runs/mine/final": "encoder"}.get(part, part) for part in program])
    clips = torch.randn(3, TINY_ENCODER["frames_per_clip"], 3, 32, 32)
    tokens = run_block("torch.export.load", pixel_values_videos=clips)["tokens"]
    expected = VJepa2Encoder.from_pretrained("encoder").encode(clips)
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-4)
