"""Long video: the features of its chunks to the bit, whatever it comes as; memory of one chunk; runs that go on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from builders import TINY_ENCODER, noise_frames, noise_pixels, spread

import vjepa2_hf
from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig, VJepa2VideoProcessor
from vjepa2_hf.data.long_video import LongFeatures
from vjepa2_hf.data.video_writing import encode_video
from vjepa2_hf.video_io import VideoDecodeError, VideoReader


def by_chunks(encoder, frames: torch.Tensor, chunk: int, overlap: int = 0) -> torch.Tensor:
    """What is promised, written down plainly: (T, C, H, W) in memory -> (1, N, D)."""
    tubelet = encoder.config.tubelet_size
    missing = -len(frames) % tubelet
    frames = torch.cat([frames, *[frames[-1:]] * missing])
    found, first = [], 0
    while first == 0 or first + overlap < len(frames):
        clip = frames[first : first + chunk]
        tokens = encoder.encode(clip.unsqueeze(0)).unflatten(1, (len(clip) // tubelet, -1))
        found.append(tokens[:, (overlap if first else 0) // tubelet :].flatten(1, 2))
        first += chunk - overlap
    return torch.cat(found, dim=1)


class TestInMemory:
    @pytest.mark.parametrize("frames", [2, 8, 9, 16, 17, 21])
    @pytest.mark.parametrize(("chunk", "overlap"), [(8, 0), (8, 2), (8, 6), (4, 2)])
    def test_features_are_those_of_the_chunks_to_the_bit(self, encoder, frames, chunk, overlap):
        found = encoder.encode_long(noise_pixels(frames), chunk_frames=chunk, overlap=overlap)
        assert torch.equal(found, by_chunks(encoder, noise_pixels(frames), chunk, overlap))
        assert found.shape[1] == (frames + 1) // 2 * 4

    @pytest.mark.parametrize("frames", [1, 2, 8])
    def test_one_chunk_is_encode(self, encoder, frames):
        clip = noise_pixels(frames).unsqueeze(0)
        assert torch.equal(encoder.encode_long(clip), encoder.encode(clip))
        assert torch.equal(encoder.encode_long(clip, pool="frame"), encoder.encode(clip, pool="frame"))

    def test_stride_keeps_every_third_frame(self, encoder):
        found = encoder.encode_long(noise_pixels(20), chunk_frames=4, stride=3)
        assert torch.equal(found, by_chunks(encoder, noise_pixels(20)[::3], 4))

    def test_overlapped_frames_are_context_for_later_tokens_alone(self, encoder):
        changed = noise_pixels(12).clone()
        changed[6:8] += 1  # the overlap of the first chunk with the second
        without, overlapped = (
            [encoder.encode_long(frames, 8, overlap).unflatten(1, (6, 4)) for frames in (noise_pixels(12), changed)]
            for overlap in (0, 2)
        )
        assert torch.equal(without[0][:, 4:], without[1][:, 4:])
        assert not torch.allclose(overlapped[0][:, 4:], overlapped[1][:, 4:])

    @pytest.mark.parametrize("kind", ["generator", "list", "tensor of one video"])
    def test_frames_of_any_form(self, encoder, kind):
        frames = noise_pixels(11)
        given = {"generator": iter(frames), "list": list(frames), "tensor of one video": frames.unsqueeze(0)}[kind]
        assert torch.equal(encoder.encode_long(given, chunk_frames=4), by_chunks(encoder, frames, 4))

    def test_pictures_of_any_form(self, encoder, processor):
        frames = noise_frames(11)
        expected = by_chunks(encoder, processor(frames, return_tensors="pt")["pixel_values_videos"][0], 4, 2)
        images = (PIL.Image.fromarray(frame) for frame in frames)
        for given in (frames, torch.from_numpy(frames).permute(0, 3, 1, 2), list(frames), images):
            found = encoder.encode_long(given, chunk_frames=4, overlap=2, processor=processor)
            assert torch.equal(found, expected)

    def test_a_file_is_its_frames(self, encoder, processor, video):
        with VideoReader(video) as reader:
            frames = processor(reader.frames()[::2], return_tensors="pt")["pixel_values_videos"][0]
        for given in (video, str(video), video.read_bytes()):
            found = encoder.encode_long(given, chunk_frames=4, overlap=2, stride=2, processor=processor)
            assert torch.equal(found, by_chunks(encoder, frames, 4, 2))

    def test_the_processor_saved_beside_the_model_is_taken(self, encoder, processor, video, tmp_path):
        encoder.save_pretrained(tmp_path)
        loaded = VJepa2Encoder.from_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"must be resized and normalized by a processor, and .* holds none"):
            loaded.encode_long(video)
        VJepa2VideoProcessor(size=32, crop_size=32, do_random_resized_crop=True).save_pretrained(tmp_path)
        assert torch.equal(loaded.encode_long(video), encoder.encode_long(video, processor=processor))


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"chunk_frames": 7}, "chunk_frames is 7; expected a multiple of the tubelet size, 2"),
            ({"chunk_frames": 0}, "chunk_frames is 0"),
            ({"chunk_frames": 4, "overlap": 4}, "overlap is 4; expected a multiple of the tubelet size, 2, below"),
            ({"overlap": 3}, "overlap is 3"),
            ({"stride": 0}, "stride is 0; expected"),
            ({"pool": "clip"}, "pool is 'clip'"),
            ({"processor": VJepa2VideoProcessor(size=32)}, "floats, which are taken as normalized pixels"),
        ],
    )
    def test_settings(self, encoder, options, message):
        with pytest.raises(ValueError, match=message):
            encoder.encode_long(noise_pixels(8), **options)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (iter([]), "the video has no frame"),
            (noise_pixels(2).unsqueeze(0).expand(2, -1, -1, -1, -1), "one video at a time"),
            (noise_pixels(2).double().numpy(), "A frame of the video is float64"),
            ([noise_pixels(1)[0], noise_pixels(1, 32)[0]], "differ in kind or size"),
            ([*noise_pixels(4), *noise_pixels(4, 32)], r"change from \(3, 16, 16\) to \(3, 32, 32\)"),
            (3, "video is a int"),
            (noise_frames(2), "the model was not loaded from a folder: give `processor"),
        ],
        ids=range(7),
    )
    def test_what_is_no_video(self, encoder, given, message):
        with pytest.raises(ValueError, match=message):
            encoder.encode_long(given, chunk_frames=4)

    def test_a_missing_file_and_one_that_ends_early(self, encoder, processor, video, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no video file at 'nowhere\.mp4'"):
            encoder.encode_long("nowhere.mp4", processor=processor)
        damaged = bytearray(video.read_bytes())
        damaged[len(damaged) // 2 : len(damaged) // 2 + 20_000] = bytes(20_000)
        with pytest.raises(VideoDecodeError, match="cannot be decoded"):
            encoder.encode_long(bytes(damaged), processor=processor)


class Stop(Exception):  # noqa: N818, no error
    pass


def stops_after(frames, count):
    for number, frame in enumerate(frames):
        if number == count:
            raise Stop
        yield frame


class TestOnDisk:
    def test_reads_as_what_memory_gives(self, encoder, processor, video, tmp_path):
        options = {"chunk_frames": 4, "overlap": 2, "processor": processor}
        found = encoder.encode_long(video, output_dir=tmp_path / "out", **options)
        tokens = encoder.encode_long(video, **options)
        assert found.grid == (12, 4, 4) and found.shape == (12, 16, 24) and len(found) == 12
        assert (found.frames, found.frames_per_step, found.fps) == (23, 2, pytest.approx(10))
        assert torch.equal(found.tokens(), tokens) and torch.equal(torch.cat(list(found)).flatten(0, 1), tokens[0])
        steps = tokens[0].unflatten(0, (12, 16))
        for part in (slice(3, 9), slice(None), slice(-2, None), slice(5, 5), 7, -1):
            assert torch.equal(found[part], steps[part])
        with pytest.raises(IndexError):
            found[12]

    def test_pooled(self, encoder, tmp_path):
        found = encoder.encode_long(noise_pixels(9), chunk_frames=4, output_dir=tmp_path / "out", pool="frame")
        assert found.shape == (5, 24) and torch.equal(found[2:4], found.tokens()[0, 2:4])
        assert torch.equal(found.tokens(), encoder.encode_long(noise_pixels(9), chunk_frames=4, pool="frame"))

    def test_a_finished_folder_is_not_encoded_again(self, encoder, tmp_path, monkeypatch):
        encoder.encode_long(noise_pixels(9), chunk_frames=4, output_dir=tmp_path)
        monkeypatch.setattr(type(encoder), "encode", None)
        assert encoder.encode_long(noise_pixels(9), chunk_frames=4, output_dir=tmp_path).frames == 9
        assert encoder.encode_long(noise_pixels(9), chunk_frames=4, output_dir=str(tmp_path)).frames == 9

    @pytest.mark.parametrize("overlap", [0, 2, 6])
    @pytest.mark.parametrize("count", [3, 8, 15, 21])
    def test_an_iterator_that_stopped_goes_on(self, encoder, tmp_path, monkeypatch, overlap, count):
        frames, options = noise_pixels(21), {"chunk_frames": 8, "overlap": overlap, "output_dir": tmp_path}
        with pytest.raises(Stop):
            encoder.encode_long(stops_after([*frames, None], count), **options)
        with pytest.raises(FileNotFoundError, match="not finished"):
            LongFeatures(tmp_path)
        kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("part-*.safetensors")}
        found = encoder.encode_long(iter(frames), **options)
        assert torch.equal(found.tokens(), by_chunks(encoder, frames, 8, overlap))
        assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}.items()
        monkeypatch.setattr(type(encoder), "encode", None)
        assert encoder.encode_long(iter(frames), **options).frames == 21

    @pytest.mark.parametrize("change", ["first frame", "overlap", "fewer", "more"])
    @pytest.mark.parametrize("length", [20, 21])
    def test_an_iterator_of_other_frames_is_refused(self, encoder, tmp_path, change, length):
        frames, options = noise_pixels(length), {"chunk_frames": 8, "overlap": 2, "output_dir": tmp_path}
        encoder.encode_long(iter(frames), **options)
        other = frames.clone()
        other[{"first frame": 0, "overlap": 7}.get(change, 19)] += 1
        other = {"fewer": frames[:17], "more": torch.cat([frames, frames])}.get(change, other)
        with pytest.raises(ValueError, match=r"the first \d+ frames of the video are not those"):
            encoder.encode_long(iter(other), **options)

    def test_other_weights_settings_or_video_are_refused(self, encoder, processor, video, tmp_path):
        options = {"chunk_frames": 4, "processor": processor, "output_dir": tmp_path}
        encoder.encode_long(video, **options)
        other = spread(VJepa2Encoder(encoder.config)).eval()
        with pytest.raises(ValueError, match="holds features with other weights"):
            other.encode_long(video, **options)
        with pytest.raises(ValueError, match=r"holds features with other stride \(1, now 2\)"):
            encoder.encode_long(video, stride=2, **options)
        with pytest.raises(ValueError, match="holds features with other video"):
            encoder.encode_long(encode_video(noise_frames(4), fps=10), **options)
        with pytest.raises(ValueError, match="holds features with other processor"):
            encoder.encode_long(video, **{**options, "processor": VJepa2VideoProcessor(size=16, crop_size=16)})
        assert encoder.encode_long(video, **options).frames == 23

    def test_a_foreign_folder_is_left_alone(self, encoder, tmp_path):
        (tmp_path / "notes.tmp").write_text("mine")
        with pytest.raises(FileExistsError, match="holds files, but no features"):
            encoder.encode_long(noise_pixels(4), output_dir=tmp_path)
        assert (tmp_path / "notes.tmp").read_text() == "mine"

    def test_features_that_dropout_makes_random_are_refused(self, tmp_path):
        model = VJepa2Encoder(VJepa2EncoderConfig(**TINY_ENCODER, drop_path_rate=0.5)).train()
        with pytest.raises(ValueError, match=r"call eval\(\) first"):
            model.encode_long(noise_pixels(4), output_dir=tmp_path)


SCRIPT = """if True:
    import resource, sys, torch
    from vjepa2_hf import VJepa2Encoder, VJepa2VideoProcessor
    torch.set_num_threads(1)
    encoder = VJepa2Encoder.from_pretrained(sys.argv[1])
    encoder.encode_long(sys.argv[2], chunk_frames=16, output_dir=sys.argv[3])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def start(*arguments) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(Path(vjepa2_hf.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def model(encoder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    encoder.save_pretrained(folder)
    VJepa2VideoProcessor(size=16, crop_size=16).save_pretrained(folder)
    return folder


def long_file(path: Path, frames: int) -> Path:
    numbers = np.random.default_rng(0).integers(0, 256, (50, 16, 16, 3), dtype=np.uint8)
    path.write_bytes(encode_video((numbers[i % 50] for i in range(frames)), fps=30, crf=40))
    return path


def test_a_killed_run_goes_on(model, tmp_path):
    video = long_file(tmp_path / "video.mp4", 3000)
    process = start(model, video, tmp_path / "out")
    give_up = time.monotonic() + 300
    while len(list((tmp_path / "out").glob("part-*.safetensors"))) < 3 and time.monotonic() < give_up:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*.safetensors")}
    assert len(kept) >= 3 and not (tmp_path / "out" / "index.json").exists()
    encoder = VJepa2Encoder.from_pretrained(model)
    found = encoder.encode_long(video, chunk_frames=16, output_dir=tmp_path / "out")
    assert found.frames == 3000
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}.items()
    assert torch.equal(found.tokens(), encoder.encode_long(video, chunk_frames=16))


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_video(model, tmp_path):
    peaks = []
    for frames in (1_000, 10_000):
        process = start(model, long_file(tmp_path / f"{frames}.mp4", frames), tmp_path / str(frames))
        output, _ = process.communicate(timeout=900)
        assert process.returncode == 0
        peaks.append(int(output))
    assert peaks[1] < 1.1 * peaks[0], peaks


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"chunk_frames": 1e30}, "chunk_frames is 1e"), ({"chunk_frames": 4.0}, "chunk_frames is 4.0"),
        ({"chunk_frames": "4"}, "chunk_frames is '4'"), ({"chunk_frames": True}, "chunk_frames is True"),
        ({"chunk_frames": 4, "overlap": 2.0}, "overlap is 2.0"), ({"chunk_frames": 4, "stride": 1.5}, "stride is 1.5"),
        ({"chunk_frames": 4, "stride": "2"}, "stride is '2'"),
    ],
)  # fmt: skip
def test_sizes_that_are_no_whole_numbers_are_named(encoder, arguments, message):
    with pytest.raises(ValueError, match=message):
        encoder.encode_long(noise_pixels(8), **arguments)


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "index"])
def test_a_damaged_part_is_encoded_again(encoder, tmp_path, damage, caplog):
    video = noise_pixels(20)
    whole = encoder.encode_long(video, chunk_frames=4, output_dir=tmp_path / "f").tokens()
    victim = tmp_path / "f" / ("index.json" if damage == "index" else "part-00002.safetensors")
    content = bytearray(victim.read_bytes())
    content[-5] ^= 4
    victim.write_bytes({"cut": content[:-40], "empty": b"", "flipped": content, "index": content[:30]}[damage])
    again = encoder.encode_long(video, chunk_frames=4, output_dir=tmp_path / "f")
    assert torch.equal(again.tokens(), whole) and "again" in caplog.text
