"""A folder of video files becomes shards; what cannot be decoded is listed, and a wrong call ends in one sentence."""

import os
import subprocess
import sys
from pathlib import Path

import make_video_shards
import numpy as np
import pytest
from datasets import load_dataset

from vjepa2_hf.data import video_shards
from vjepa2_hf.data.clips import ClipStream
from vjepa2_hf.data.feature_cache import data_fingerprint
from vjepa2_hf.data.ingest import list_files
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
        "README.md", "data-00000-of-00002.parquet", "data-00001-of-00002.parquet", "skipped.txt",
    ]  # fmt: skip
    assert "encoding" in capfd.readouterr().err  # the progress bar
    assert len(list(ClipStream(out, 8, crop_size=16, epochs=1))) == 3


@pytest.mark.skipif(os.name != "posix", reason="names of files are bytes")
def test_names_that_are_not_utf_8_are_escaped(source, tmp_path):
    os.rename(os.fsencode(source / "a/one.mp4"), os.fsencode(source / "a") + b"/caf\xe9.mp4")
    os.rename(os.fsencode(source / "b/broken.mp4"), os.fsencode(source / "b") + b"/broken\xff.mp4")
    out = tmp_path / "out"
    make_video_shards.main([str(source), str(out), "--height", "32", "--num_proc", "1", "--num_shards", "1"])
    assert sorted(rows(out)) == ["a/caf\\udce9.mp4", "b/c/three.mp4", "b/two.MP4"]
    assert (out / "skipped.txt").read_text().startswith("b/broken\\udcff.mp4\t")
    assert data_fingerprint(source) == data_fingerprint(source)


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


def make(source, out, *options) -> None:
    make_video_shards.main([str(source), str(out), "--height", "16", "--num_proc", "1", *map(str, options)])


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_job_array_with_a_killed_job_writes_the_shards_of_one_job(source, tmp_path, monkeypatch, caplog):
    (source / "b" / "two.MP4").unlink()  # 8 pixels wide at this height: FFmpeg's scaling then differs by run
    (source / "b" / "two.mp4").write_bytes(encode_video(np.full((20, 20, 30, 3), 90, np.uint8), fps=10))
    caplog.set_level("INFO")
    make(source, tmp_path / "one", "--num_shards", 2)
    out = tmp_path / "array"
    with monkeypatch.context() as patch:

        class Killed(BaseException):
            pass

        def stops(job, transcode=video_shards.transcode):
            if stops.calls:
                raise Killed
            stops.calls += 1
            return transcode(job)

        stops.calls = 0
        patch.setattr(video_shards, "transcode", stops)
        with pytest.raises(Killed):
            make(source, out, "--num_shards", 2, "--shard_index", 0)
    (out / ".data-00000-of-00002.parquet.9.tmp").write_bytes(b"what a kill leaves")
    assert not list(out.glob("data-*"))
    make(source, out, "--num_shards", 2, "--shard_index", 1)
    assert "1 of 2 shards are in" in caplog.text and "missing: 0" in caplog.text
    make(source, out, "--num_shards", 2, "--shard_index", 0, "--resume")
    assert contents(out) == contents(tmp_path / "one")


def test_labels_are_classes_and_never_splits(tmp_path, caplog):
    video = encode_video(np.zeros((4, 16, 16, 3), np.uint8), fps=10)
    folder = tmp_path / "source"
    for name in ("train/cat/a.mp4", "train/dog/a.mp4", "test/cat/a.mp4", "val/dog/a.mp4", "test/loose.mp4"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(video)
    make(folder, tmp_path / "a", "--height", 16)
    found = {name: (row["label"], row["split"]) for name, row in rows(tmp_path / "a").items()}
    assert found == {
        "train/cat/a.mp4": (0, "train"), "train/dog/a.mp4": (1, "train"), "test/cat/a.mp4": (0, "test"),
        "val/dog/a.mp4": (1, "validation"), "test/loose.mp4": (None, "test"),
    }  # fmt: skip
    assert "1 of 5 files lie in no class folder, like test/loose.mp4" in caplog.text
    lines = [f"{name},{number}" for number, name in enumerate(found)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,label", *lines]))
    make(folder, tmp_path / "b", "--height", 16)
    assert {name: row["label"] for name, row in rows(tmp_path / "b").items()} == dict(zip(found, range(5)))


def test_resume_leaves_finished_shards_as_they_are(source, tmp_path, monkeypatch, capfd):
    (source / "b" / "two.MP4").unlink()  # as above
    out = tmp_path / "out"
    make(source, out, "--num_shards", 2)
    whole = contents(out)
    (out / "data-00001-of-00002.parquet").unlink()
    kept = (out / "data-00000-of-00002.parquet").stat().st_mtime_ns
    make(source, out, "--num_shards", 2, "--resume")
    assert contents(out) == whole
    assert (out / "data-00000-of-00002.parquet").stat().st_mtime_ns == kept
    for options, message in (
        (["--num_shards", 2], "is not empty"),
        (["--num_shards", 2, "--shard_index", 0], "is there already; add --resume"),
        (["--num_shards", 3, "--resume"], "is of a job with other num_shards"),
        (["--num_shards", 2, "--resume", "--seed", 1], "is of a job with other videos or another order of them"),
        (["--num_shards", 2, "--shard_index", 2], "--shard_index is 2; expected 0 to 1"),
        (["--num_shards", 0], "--num_shards is 0"),
    ):
        with pytest.raises(SystemExit):
            make(source, out, *options)
        assert message in capfd.readouterr().err
    assert contents(out) == whole


def test_a_file_list_names_the_videos(source, tmp_path, capfd, caplog):
    listed = tmp_path / "list.txt"
    listed.write_text(f"a/one.mp4\n\nb/c/three.mp4\n{source}/a/one.mp4\n./a/one.mp4\nnowhere.mp4\n")
    make(source, tmp_path / "out", "--file_list", listed)
    assert sorted(rows(tmp_path / "out")) == ["a/one.mp4", "b/c/three.mp4"]
    assert "more than once" in caplog.text
    assert (tmp_path / "out" / "skipped.txt").read_text().startswith("nowhere.mp4\tThere is no video file")
    listed.write_bytes(b"\xff\xfe")
    for path, message in ((listed, "is not a text file in UTF-8"), (tmp_path / "none", "There is no file list")):
        with pytest.raises(SystemExit):
            make(source, tmp_path / "other", "--file_list", path)
        assert message in capfd.readouterr().err


@pytest.mark.slow
def test_a_job_does_not_continue_with_other_videos_of_the_same_names(source, tmp_path, capfd):
    (source / "b" / "broken.mp4").unlink()
    make(source, tmp_path / "out", "--num_shards", 3, "--shard_index", 0, 1)
    for path in source.rglob("*.[mM][pP]4"):
        path.write_bytes(path.read_bytes() + b"more")
    capfd.readouterr()
    with pytest.raises(SystemExit):
        make(source, tmp_path / "out", "--num_shards", 3, "--resume")
    assert "was made from another" in capfd.readouterr().err
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 2


def test_a_file_list_of_windows_names_its_first_video(source, tmp_path):
    (tmp_path / "files.txt").write_bytes(b"\xef\xbb\xbfa/one.mp4\r\nb/two.MP4\r\n")
    assert list_files(source, tmp_path / "files.txt") == [source / "a/one.mp4", source / "b/two.MP4"]


def test_ray_data_writes_the_same_shards(source, tmp_path):
    pytest.importorskip("ray", reason="needs the extra `ray`")
    (source / "b" / "two.MP4").unlink()  # as above
    make(source, tmp_path / "one", "--num_shards", 2)
    command = [sys.executable, SCRIPT, source, tmp_path / "ray", "--height", "16", "--num_shards", "2", "--ray"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "ray") == contents(tmp_path / "one")
