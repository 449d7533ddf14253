"""A folder of video files becomes shards; what cannot be decoded is listed, and a wrong call ends in one sentence."""

import os
import subprocess
import sys
from pathlib import Path

import make_video_shards
import numpy as np
import pytest
from datasets import load_dataset

from vjepa2_hf.data.clips import ClipStream
from vjepa2_hf.data.video_writing import encode_video
from vjepa2_hf.video_io import VideoReader


SCRIPT = Path(make_video_shards.__file__)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1] / "src")}


@pytest.fixture
def source(tmp_path) -> Path:
    folder = tmp_path / "source"
    rng = np.random.default_rng(0)
    sizes = {"a/one.mp4": (24, 36), "b/two.MP4": (40, 20), "b/c/three.mp4": (16, 16)}
    for number, (name, size) in enumerate(sizes.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_video(rng.integers(0, 256, (20 + number, *size, 3), np.uint8), fps=10, crf=30))
    (folder / "b" / "broken.mp4").write_bytes(b"no video")
    (folder / "a" / "notes.txt").write_text("no video either")
    return folder


def rows(folder) -> dict:
    dataset = load_dataset("parquet", data_files=f"{folder}/*.parquet", split="train", streaming=True)
    return {row["path"]: row for row in dataset}


def test_videos_become_rows_and_the_broken_one_is_listed(source, tmp_path, capfd):
    out = tmp_path / "out"
    make_video_shards.main([str(source), str(out), "--height", "32", "--num_proc", "1", "--num_shards", "2"])
    found = rows(out)
    assert sorted(found) == ["a/one.mp4", "b/c/three.mp4", "b/two.MP4"]
    sizes = {}
    for name, row in found.items():
        with VideoReader(row["video"]) as reader:
            sizes[name] = reader.frames().shape
            assert row["num_frames"] == len(reader)
            assert row["fps"] == pytest.approx(10)
            keys = np.searchsorted(reader._pts, reader._key_pts)
            assert max(np.diff([*keys, len(reader)])) <= 12  # short groups of pictures
    assert sizes == {"a/one.mp4": (20, 32, 48, 3), "b/two.MP4": (21, 32, 16, 3), "b/c/three.mp4": (22, 32, 32, 3)}
    assert found["a/one.mp4"]["label"] == 0 and found["b/two.MP4"]["label"] == 1
    (line,) = (out / "skipped.txt").read_text().splitlines()
    assert line.startswith("b/broken.mp4\t") and "cannot be decoded" in line
    assert sorted(path.name for path in out.iterdir()) == [
        "data-00000-of-00002.parquet", "data-00001-of-00002.parquet", "skipped.txt",
    ]  # fmt: skip
    assert "encoding" in capfd.readouterr().err  # the progress bar
    assert len(list(ClipStream(out, 8, crop_size=16, epochs=1))) == 3


def test_a_video_that_x264_does_not_take_is_listed_as_well(source, tmp_path, caplog):
    """A strip 300 times as wide as high, 19,200 pixels at a height of 64."""
    (source / "b" / "strip.mp4").write_bytes(encode_video(np.zeros((3, 4, 1200, 3), np.uint8), fps=10))
    out = tmp_path / "out"
    make_video_shards.main([str(source), str(out), "--height", "64", "--num_proc", "1"])
    assert sorted(rows(out)) == ["a/one.mp4", "b/c/three.mp4", "b/two.MP4"]
    lines = (out / "skipped.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["b/broken.mp4", "b/strip.mp4"]
    assert "cannot be encoded at a height of 64 pixels" in lines[1]
    assert "skipped b/strip.mp4: it cannot be encoded" in caplog.text


def test_two_processes_from_the_command_line(source, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, SCRIPT, source, out, "--height", "16", "--num_proc", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert len(rows(out)) == 3
    assert "b/broken.mp4" in done.stderr
    assert "1 of 4 inputs skipped" in done.stderr


def test_order_is_set_by_the_seed(source, tmp_path):
    orders = []
    for number, seed in enumerate((0, 0, 1, 2, 3)):
        out = tmp_path / f"out{number}"
        make_video_shards.main(
            [str(source), str(out), "--height", "16", "--num_proc", "1", "--num_shards", "1", "--seed", str(seed)]
        )
        orders.append(tuple(rows(out)))
    assert orders[0] == orders[1]
    assert len(set(orders)) > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/missing", "{tmp}/out"], "There is no folder"),
        (["{tmp}/empty", "{tmp}/out"], "There is no video file in"),
        (["{tmp}/bad", "{tmp}/out"], "None of the 1 inputs"),
        (["{tmp}/source", "{tmp}/full"], "exists and is not empty"),
        (["{tmp}/source", "{tmp}/out", "--height", "15"], "--height is 15"),
        (["{tmp}/source", "{tmp}/out", "--num_proc", "0"], "--num_proc is 0"),
    ],
)
def test_a_wrong_call_ends_in_one_sentence(source, tmp_path, capfd, arguments, message):
    (tmp_path / "empty").mkdir()
    for folder in ("bad", "full"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.mp4").write_bytes(b"x")
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    with pytest.raises(SystemExit) as ended:
        make_video_shards.main(["--num_proc", "1", *arguments])
    assert ended.value.code not in (0, None)
    errors = capfd.readouterr().err
    assert message in errors and "Traceback" not in errors
    assert not (tmp_path / "out").exists()
