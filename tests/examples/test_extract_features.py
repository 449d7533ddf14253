"""A folder of videos becomes parquet of embeddings: equal to the encoder's, resumed, on several processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import extract_features
import numpy as np
import pytest
import torch
from builders import TINY_ENCODER, noise_frames, spread
from datasets import load_dataset
from script_runs import run_processes

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig, VJepa2VideoProcessor
from vjepa2_hf.data.parts import PartWriter
from vjepa2_hf.data.video_writing import encode_video
from vjepa2_hf.pipelines import feature_shards
from vjepa2_hf.video_io import read_video


LENGTHS = {"a/one.mp4": 9, "a/two.mp4": 4, "b/three.mp4": 8, "four.mp4": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    spread(VJepa2Encoder(VJepa2EncoderConfig(**TINY_ENCODER))).save_pretrained(folder)
    VJepa2VideoProcessor(size=16, crop_size=16).save_pretrained(folder)
    return folder


@pytest.fixture
def source(tmp_path):
    for name, frames in LENGTHS.items():
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_video(noise_frames(frames), fps=10))
    (tmp_path / "videos" / "a" / "bad.mp4").write_bytes(b"no video")
    return tmp_path / "videos"


def run(*arguments) -> None:
    extract_features.main([str(argument) for argument in arguments])


def read(folder, cache) -> dict:
    rows = load_dataset(str(folder), split="train", cache_dir=str(cache))
    return {(row["path"], row["clip"]): row for row in rows}


def expected(model, source, pool=None) -> dict:
    encoder, processor = VJepa2Encoder.from_pretrained(model), VJepa2VideoProcessor.from_pretrained(model)
    found = {}
    for name in LENGTHS:
        pixels = processor(read_video(source / name), return_tensors="pt")["pixel_values_videos"]
        for number, clip in enumerate(pixels.split(4, dim=1)):
            clip = torch.cat([clip, clip[:, -1:]], dim=1) if clip.shape[1] % 2 else clip
            found[name, number] = encoder.encode(clip, pool=pool)[0]
    return found


@pytest.mark.parametrize(("pool", "name"), [("clip", "clip"), ("frame", "frame"), (None, "tokens")])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_embeddings_are_the_encoders(model, source, tmp_path, pool, name, batch_size):
    run(model, source, tmp_path / "out", "--pool", name, "--batch_size", batch_size)
    rows, wanted = read(tmp_path / "out", tmp_path / "cache"), expected(model, source, pool)
    assert rows.keys() == wanted.keys()
    for key, value in wanted.items():
        assert np.allclose(rows[key]["embedding"], value.numpy(), atol=1e-4), key
    assert rows["a/one.mp4", 2]["first_frame"] == 8 and rows["a/one.mp4", 2]["start"] == pytest.approx(0.8)


def test_what_does_not_decode_is_listed_and_the_rest_is_there(model, source, tmp_path):
    run(model, source, tmp_path / "out")
    name, reason = (tmp_path / "out" / "skipped.txt").read_text().strip().split("\t")
    assert name == "a/bad.mp4" and "cannot be decoded as a video" in reason
    for path in source.rglob("*.mp4"):
        path.write_bytes(b"no video")
    with pytest.raises(SystemExit):
        run(model, source, tmp_path / "none")


def test_a_stopped_run_goes_on(model, source, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_shards, "PART_VIDEOS", 1)
    encode, calls = VJepa2Encoder.encode, []

    def stops(self, video, pool=None):
        calls.append(len(video))
        if len(calls) == 3:
            raise ValueError("stopped")
        return encode(self, video, pool)

    monkeypatch.setattr(VJepa2Encoder, "encode", stops)
    with pytest.raises(SystemExit):
        run(model, source, tmp_path / "out", "--batch_size", 1, "--frames", 8)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}
    assert len(kept) == 1
    calls.clear()
    monkeypatch.setattr(VJepa2Encoder, "encode", encode)
    run(model, source, tmp_path / "out", "--batch_size", 1, "--frames", 8)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(read(tmp_path / "out", tmp_path / "cache")) == 5  # nine frames are two clips
    monkeypatch.setattr(VJepa2Encoder, "encode", None)
    run(model, source, tmp_path / "out", "--batch_size", 1, "--frames", 8)  # nothing is left to do


def test_settings_weights_and_files_do_not_mix(model, source, tmp_path, capsys):
    run(model, source, tmp_path / "out")
    with pytest.raises(SystemExit):
        run(model, source, tmp_path / "out", "--pool", "frame")
    assert "holds features with other pool (clip, now frame)" in capsys.readouterr().err
    (source / "four.mp4").write_bytes(encode_video(noise_frames(6), fps=10))
    with pytest.raises(SystemExit):
        run(model, source, tmp_path / "out")
    assert "four.mp4' has changed since it was embedded" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(model, source, tmp_path / "other", "--frames", 3)
    assert "--frames is 3; expected a multiple of the model's tubelet size, 2" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(model, source, source)
    assert "holds files, but no features" in capsys.readouterr().err


def test_a_signal_keeps_the_finished_videos_and_the_repeated_command_does_the_others(
    model, source, tmp_path, monkeypatch, capfd
):
    paths = []

    def read_clips(path, *arguments, read=feature_shards.read_clips):
        paths.append(path)
        if len(paths) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return read(path, *arguments)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(feature_shards, "read_clips", read_clips)
        run(model, source, tmp_path / "out", "--batch_size", 1)
    assert stop.value.code == 0
    assert "Stopped by SIGTERM; finished videos are kept, repeat the command" in capfd.readouterr().err
    kept = read(tmp_path / "out", tmp_path / "cache").keys()
    assert 0 < len(kept) < len(expected(model, source))
    run(model, source, tmp_path / "out")
    assert read(tmp_path / "out", tmp_path / "other").keys() == expected(model, source).keys()


def test_a_video_that_the_memory_cannot_hold_is_skipped(model, source, tmp_path, monkeypatch):
    def read_clips(path, *arguments, read=feature_shards.read_clips):
        if path.name == "two.mp4":
            raise MemoryError
        yield from read(path, *arguments)

    monkeypatch.setattr(feature_shards, "read_clips", read_clips)
    run(model, source, tmp_path / "out")
    assert "a/two.mp4\tout of memory\n" in (tmp_path / "out" / "skipped.txt").read_text()


def test_two_processes_share_what_a_stopped_run_left(model, source, tmp_path, monkeypatch):
    def stops(self, job, num_bytes, add=PartWriter.add):
        add(self, job, num_bytes)
        self.flush()
        raise ValueError("stopped")

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(PartWriter, "add", stops)
        run(model, source, tmp_path / "out")
    (kept,) = (tmp_path / "out").glob("*.parquet")
    written = kept.stat().st_mtime_ns
    run_processes(Path(extract_features.__file__), list(map(str, (model, source, tmp_path / "out"))))
    assert {path.name for path in (tmp_path / "out").glob("*.parquet")} == {
        "train-00000-00000.parquet", "train-00000-00001.parquet", "train-00001-00000.parquet",
    }  # fmt: skip
    assert kept.stat().st_mtime_ns == written
    assert read(tmp_path / "out", tmp_path / "cache").keys() == expected(model, source).keys()
    assert (tmp_path / "out" / "skipped.txt").read_text().startswith("a/bad.mp4\t")


def test_jobs_of_an_array_share_the_videos_and_one_may_be_repeated(model, source, tmp_path, caplog, capsys):
    caplog.set_level("INFO")
    out = tmp_path / "out"
    run(model, source, out, "--num_shards", 2, "--shard_index", 1)
    assert "1 of 2 shards are in" in caplog.text and not (out / "skipped.txt").exists()
    for _ in range(2):
        run(model, source, out, "--num_shards", 2, "--shard_index", 0, "--resume")
    assert read(out, tmp_path / "cache").keys() == expected(model, source).keys()
    assert (out / "skipped.txt").read_text().startswith("a/bad.mp4\t")
    with pytest.raises(SystemExit):
        run(model, source, out, "--num_shards", 3)
    assert "holds features with other num_shards (2, now 3)" in capsys.readouterr().err


def test_a_file_list_names_the_videos(model, source, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text("four.mp4\nnowhere.mp4\n")
    run(model, source, tmp_path / "out", "--file_list", listed)
    assert {path for path, _ in read(tmp_path / "out", tmp_path / "cache")} == {"four.mp4"}
    assert (tmp_path / "out" / "skipped.txt").read_text().startswith("nowhere.mp4\t")


@pytest.mark.slow
def test_ray_data_extracts_the_same_embeddings(model, source, tmp_path):
    pytest.importorskip("ray", reason="needs the extra `ray`")
    root = Path(extract_features.__file__).parents[1]
    command = [sys.executable, extract_features.__file__, model, source, tmp_path / "out", "--ray"]
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    subprocess.run([*map(str, command), "--num_shards", "2"], env=environment, check=True, timeout=300)
    rows, wanted = read(tmp_path / "out", tmp_path / "cache"), expected(model, source, "clip")
    assert rows.keys() == wanted.keys()
    assert all(np.allclose(rows[key]["embedding"], value.numpy(), atol=1e-4) for key, value in wanted.items())
