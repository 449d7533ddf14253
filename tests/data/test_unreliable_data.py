"""Data that is broken in every usual way: what reads is read right, the rest is passed over and listed, each once."""

import io
import itertools
import json
import logging
import shutil
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pretrain
import pytest
from builders import CLIP_FEATURES, numbered_frames, numbered_video, numbers_of, write_numbered_shards

from vjepa2_hf.data.clips import ClipStream, DataSource
from vjepa2_hf.data.sampling import FrameSampler
from vjepa2_hf.data.shards import write_shards
from vjepa2_hf.data.skip_log import SkipLog, read_skipped
from vjepa2_hf.data.video_writing import encode_video
from vjepa2_hf.training.run import Run
from vjepa2_hf.video_io import VideoDecodeError, read_image, read_video


SETTINGS = [
    "batch_size=2", "num_threads=1", "log_every=1", "save_every=100", "frames_per_clip=4", "fps=null", "crop_size=16",
    "encoder={hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, patch_size: 8}",
    "predictor={hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2}",
    "masks=[{type: future}]", "ema.schedule=constant", "learning_rate={schedule: constant, peak: 1e-3}",
]  # fmt: skip


def raw(frames, generator):
    return frames.float()


def matroska(frames: np.ndarray, pixel_format: str, times: list[int] | None = None) -> bytes:
    """Lossless video; `times` in tenths of a second."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixel_format
        source = "rgba" if frames.shape[3] == 4 else "rgb24"
        for time, frame in zip(times or range(len(frames)), frames):
            picture = av.VideoFrame.from_ndarray(frame, format=source).reformat(format=pixel_format)
            picture.pts, picture.time_base = time, Fraction(1, 10)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return buffer.getvalue()


def sound_only() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        for _ in range(8):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.rate = 8000
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def overwritten(video: bytes) -> bytes:
    return video[: len(video) // 4] + bytes(len(video) // 2) + video[len(video) * 3 // 4 :]


def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (12, 16, 16, 3), np.uint8)


def transparent(num_frames: int = 12) -> np.ndarray:
    return np.concatenate([numbered_frames(num_frames), np.full((num_frames, 16, 16, 1), 128, np.uint8)], axis=3)


GOOD = {
    "ordinary": lambda: numbered_video(12, fps=10),
    "variable": lambda: matroska(numbered_frames(12), "yuv444p", [0, 1, 2, 3, 9, 10, 11, 30, 31, 32, 60, 61]),
    "grey": lambda: matroska(numbered_frames(12), "gray"),
    "transparent": lambda: matroska(transparent(), "bgra"),
}
BAD = {
    "corrupt": lambda: overwritten(encode_video(noise(), fps=10)),
    "no video": lambda: b"not a video at all",
    "truncated": lambda: numbered_video(12, fps=10)[:-400],
    "sound only": sound_only,
    "one frame": lambda: numbered_video(1, fps=10),
    "short": lambda: numbered_video(3, fps=10),
}  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """40 videos, 4 in each way, in 9 shards; another shard is cut short, another will disappear."""
    videos = {name: make() for name, make in (GOOD | BAD).items()}
    rows = [
        {"video": {"bytes": video, "path": None}, "path": f"{name} {number}"}
        for number in range(4)
        for name, video in videos.items()
    ]
    folder = tmp_path_factory.mktemp("unreliable") / "shards"
    write_shards(rows, folder, CLIP_FEATURES, num_shards=9)
    for name in ("cut", "gone"):
        path = write_numbered_shards(folder.parent / name, num_videos=4, num_shards=1, bad=())
        shutil.move(next(Path(path).glob("*.parquet")), folder / f"{name}.parquet")
    (folder / "cut.parquet").write_bytes((folder / "cut.parquet").read_bytes()[:-500])
    return folder


def expected_names(shards: Path) -> list[str]:
    """The bad rows, and both shards."""
    rows = [(number, way) for number in range(4) for way in GOOD | BAD]
    names = [
        f"{shards}/data-{i % 9:05d}-of-00009.parquet, row {i // 9} ({way} {number})"
        for i, (number, way) in enumerate(rows)
        if way in BAD
    ]
    return sorted([*names, f"{shards}/cut.parquet", f"{shards}/gone.parquet"])


def run_script(monkeypatch, shards, output_dir: Path, *overrides: str) -> None:
    arguments = [f"data={shards}", f"output_dir={output_dir}", *SETTINGS, *overrides]
    monkeypatch.setattr(sys, "argv", ["pretrain.py", *arguments])
    pretrain.main()


@pytest.mark.parametrize(
    ("way", "frames"),
    [("variable", [0, 3, 5, 6, 6, 6, 7, 9]), ("grey", [0, 5, 10, 11]), ("transparent", [0, 5, 10, 11])],
)
def test_unusual_videos_are_read_right(way, frames):
    assert numbers_of(read_video(GOOD[way](), times=[0.5 * i for i in range(len(frames))])) == frames


@pytest.mark.parametrize("way", [way for way in BAD if way not in ("one frame", "short")])
def test_videos_that_do_not_decode_say_so(way):
    with pytest.raises(VideoDecodeError):
        read_video(BAD[way]())


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "I;16", "1", "CMYK"])
def test_images_of_any_mode_become_rgb(mode, tmp_path):
    value = 204 * 256 if mode == "I;16" else 204  # 204 is in the usual palette
    grey = PIL.Image.fromarray(np.full((6, 8), value, np.uint16 if mode == "I;16" else np.uint8))
    image = grey if mode == "I;16" else grey.convert("RGB").convert(mode)
    image.save(tmp_path / ("a.tiff" if mode == "CMYK" else "a.png"))
    pixels = read_image(str(next(tmp_path.iterdir())))
    assert pixels.shape == (6, 8, 3) and pixels.dtype == np.uint8
    assert mode == "1" or np.abs(pixels.astype(int) - 204).max() <= 1


def test_an_image_filmed_sideways_is_turned(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    PIL.Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(str(tmp_path / "a.jpg")).shape == (8, 6, 3)


@pytest.mark.parametrize("content", [b"", b"no image", b"cut"])
def test_an_image_that_does_not_decode_says_so(content):
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)).save(buffer, "png")
    content = buffer.getvalue()[:500] if content == b"cut" else content
    with pytest.raises(VideoDecodeError, match="cannot be decoded as an image"):
        read_image(content)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_ends_with_exactly_the_bad_ones_listed(monkeypatch, shards, tmp_path, num_workers):
    data = shutil.copytree(shards, tmp_path / "shards")

    def log(self, metrics, log=Run.log):
        log(self, metrics)
        if metrics["step"] == 6:
            (data / "gone.parquet").unlink()

    monkeypatch.setattr(Run, "log", log)
    settings = [f"num_workers={num_workers}", "max_steps=36", "short_videos=skip", "max_skipped_fraction=null"]
    run_script(monkeypatch, data, tmp_path / "run", *settings)
    listed = [json.loads(line) for line in (tmp_path / "run/skipped.jsonl").read_text().splitlines()]
    assert sorted(entry["name"] for entry in listed) == expected_names(data)
    assert {entry["source"] for entry in listed} == {str(data)}
    reasons = {entry["name"].split("(")[-1][:-3]: entry["reason"] for entry in listed}
    assert "fewer than the 4 of a clip" in reasons["short"] and "fewer than a tubelet" in reasons["one frame"]
    assert "no video stream" in reasons["sound only"] and "cannot be decoded" in reasons["truncated"]
    assert (tmp_path / "run/final").is_dir()


def test_a_run_stopped_and_resumed_lists_the_same(monkeypatch, shards, tmp_path):
    class Stop(Exception):
        pass

    def stop(self, step, *arguments, save=Run.save_checkpoint):
        save(self, step, *arguments)
        raise Stop

    settings = ["max_steps=16", "save_every=5", "max_skipped_fraction=null"]
    run_script(monkeypatch, shards, tmp_path / "a", *settings)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Run, "save_checkpoint", stop)
        run_script(patch, shards, tmp_path / "b", *settings)
    half = read_skipped(tmp_path / "b")
    with open(tmp_path / "b/skipped.jsonl", "a") as file:  # written by steps after the checkpoint, and cut by the kill
        file.write(json.dumps({"step": 9, "source": "x", "name": "later", "reason": "y"}) + '\n{"step": 9, "sou')
    run_script(monkeypatch, shards, tmp_path / "b", *settings, "resume=latest")
    whole = (tmp_path / "a/skipped.jsonl").read_text()
    assert (tmp_path / "b/skipped.jsonl").read_text() == whole
    assert 0 < len(half) < len(whole.splitlines())


def test_a_run_stops_when_too_much_is_bad_and_names_the_source(monkeypatch, capsys, shards, tmp_path):
    good = write_numbered_shards(tmp_path / "good", bad=())
    data = f"data=[{{path: {good}, weight: 0.5}}, {{path: {shards}, weight: 0.5}}]"
    with pytest.raises(SystemExit):
        run_script(monkeypatch, shards, tmp_path / "run", data, "max_steps=300", "max_skipped_fraction=0.25")
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"rows of {str(shards)!r} had to be skipped" in error and "max_skipped_fraction=0.25" in error
    assert {entry["source"] for entry in read_skipped(tmp_path / "run")} == {str(shards)}


def test_targets_that_are_not_finite_stop_a_run_that_logs_every_step(monkeypatch, capsys, tmp_path):
    """Its meters, measured before the loss is looked at, must not raise in its place."""
    good = write_numbered_shards(tmp_path / "good", bad=())
    settings = ["max_steps=9", "learning_rate={schedule: constant, peak: 1e30}", "ema.start=0.0"]
    with pytest.raises(SystemExit):
        run_script(monkeypatch, good, tmp_path / "run", *settings)
    assert "offending_batch.json" in capsys.readouterr().err.strip().splitlines()[-1]
    assert json.loads((tmp_path / "run/offending_batch.json").read_text())["loss"] is None


def test_a_broken_shard_that_readers_share_counts_by_its_part(tmp_path):
    """One of two rows is lost, however many readers meet the shard in every epoch."""
    write_numbered_shards(tmp_path / "shards", num_videos=1, num_shards=1, bad=())
    (tmp_path / "shards/broken.parquet").write_bytes(b"broken")
    stream = ClipStream(tmp_path / "shards", 4, transform=raw, rank=1, world_size=6, max_skipped_fraction=0.6)
    assert len(list(itertools.islice(stream, 30))) == 30


def test_the_bound_is_on_rows_and_a_broken_shard_counts_as_many(tmp_path):
    folder = Path(write_numbered_shards(tmp_path / "shards", num_videos=40, num_shards=4, bad=()))
    broken = sorted(folder.glob("*.parquet"))[2]
    broken.write_bytes(b"broken")
    list(ClipStream(folder, 4, transform=raw, epochs=3, max_skipped_fraction=0.3))
    with pytest.raises(ValueError, match="max_skipped_fraction=0.2"):
        list(ClipStream(folder, 4, transform=raw, epochs=3, max_skipped_fraction=0.2))


def test_an_epoch_in_which_a_readers_share_is_all_bad_does_not_stop_it(tmp_path):
    data = write_numbered_shards(tmp_path / "shards", num_videos=8, num_shards=2, bad=(1, 3, 5, 7))
    for rank in range(2):
        clips = list(ClipStream(data, 4, transform=raw, rank=rank, world_size=2, epochs=6))
        assert 4 <= len(clips) <= 20


def test_few_bad_rows_at_the_start_do_not_stop_a_run(tmp_path):
    data = write_numbered_shards(tmp_path / "shards", num_videos=30, num_shards=1, bad=(0, 1))
    assert len(list(ClipStream(data, 4, transform=raw, epochs=1, max_skipped_fraction=0.1))) == 28


def test_skipped_of_one_source_come_with_the_clips(shards):
    stream = ClipStream([DataSource(str(shards))], 4, frame_sampler=FrameSampler(), transform=raw, epochs=1)
    lines = [line for clip in stream for line in clip["skipped"].splitlines()]
    names = {json.loads(line)["name"] for line in lines}
    assert len(lines) == len(names) and f"{shards}/cut.parquet" in names | {*stream.sources[0].skipped}


def test_other_shards_than_at_the_checkpoint_begin_the_epoch_anew_and_say_so(tmp_path, caplog):
    folder = Path(write_numbered_shards(tmp_path / "shards", num_videos=8, bad=()))
    stream = ClipStream(folder, 4, transform=raw)
    clips = iter(stream)
    for _ in range(11):
        next(clips)
    state = stream.state_dict()
    assert state["sources"][0]["order"]["epoch"] == 1
    sorted(folder.glob("*.parquet"))[0].unlink()
    resumed = ClipStream(folder, 4, transform=raw, epochs=2)
    with caplog.at_level(logging.WARNING):
        resumed.load_state_dict(state)
    assert "have changed since the checkpoint (3 now)" in caplog.text
    assert len({clip["clip_name"] for clip in resumed}) == 6


class TestSkipLog:
    LINES = [json.dumps({"source": "s", "name": name, "reason": "r"}) for name in "abc"]

    def test_each_is_listed_once_also_after_a_resume(self, tmp_path):
        skipped = SkipLog(tmp_path)
        skipped.add(1, self.LINES[:2])
        skipped.add(4, self.LINES[1:])
        assert len(skipped) == 3
        again = SkipLog(tmp_path, last_step=3)
        assert len(again) == 2
        again.add(5, self.LINES)
        assert [(entry["step"], entry["name"]) for entry in read_skipped(tmp_path)] == [(1, "a"), (1, "b"), (5, "c")]

    def test_the_lists_of_several_processes_become_one(self, tmp_path):
        lists = [SkipLog(tmp_path, rank=rank) for rank in range(2)]
        lists[1].add(1, self.LINES[:2])
        lists[0].add(2, self.LINES[1:])
        assert {path.name for path in tmp_path.iterdir()} == {"skipped.jsonl", "skipped-1.jsonl"}
        lists[0].merge()
        assert [path.name for path in tmp_path.iterdir()] == ["skipped.jsonl"]
        assert [(entry["step"], entry["name"]) for entry in read_skipped(tmp_path)] == [(1, "a"), (1, "b"), (2, "c")]

    def test_lists_of_an_abandoned_run_of_more_processes_are_not_merged_into_a_new_one(self, tmp_path):
        for rank in (1, 3):
            SkipLog(tmp_path, rank=rank).add(1, self.LINES[:1])
        new = [SkipLog(tmp_path, rank=rank, world_size=2) for rank in range(2)]
        new[1].add(2, self.LINES[1:2])
        new[0].merge()
        assert [(entry["step"], entry["name"]) for entry in read_skipped(tmp_path)] == [(2, "b")]

    @pytest.mark.parametrize("line", ["nonsense", "{}", "3"])
    def test_a_line_that_is_no_entry_names_file_and_line(self, tmp_path, line):
        SkipLog(tmp_path).add(1, self.LINES[:1])
        with open(tmp_path / "skipped.jsonl", "a") as file:
            file.write(line + "\n")
        with pytest.raises(ValueError, match=rf"Line 2 of '.*skipped.jsonl' is not an entry .*{line}"):
            SkipLog(tmp_path, last_step=3)

    def test_nothing_skipped_leaves_no_file(self, tmp_path):
        SkipLog(tmp_path).add(1, [])
        SkipLog(tmp_path).merge()
        assert list(tmp_path.iterdir()) == []
