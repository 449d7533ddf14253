"""Ingest and reading of videos per core: transcoding to shards, training clips, frames by decoder, and metadata.

    python benchmarks/ingest.py                       # docs/scale.md; a few minutes on one core
    python benchmarks/ingest.py --videos FOLDER       # your own videos, printed

Without `--videos` the source is made here: a pan over smoothed noise with moving squares, 10 seconds at 30 frames per
second. Times are CPU times of one thread. torchcodec is measured if it can be imported (`pip install torchcodec`, and
the libraries of FFmpeg). Results go to `results/ingest.json`, and into docs/scale.md between its markers.
"""

import argparse
import tempfile
import time
import vjepa2_cli  # noqa: F401 (a quick --help)
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Features
from scipy.ndimage import gaussian_filter

from vjepa2_hf.data.clips import ClipStream
from vjepa2_hf.data.labels import describe_files
from vjepa2_hf.data.sampling import FrameSampler
from vjepa2_hf.data.shards import ShardSource, find_videos, write_parquet
from vjepa2_hf.data.video_shards import COLUMNS
from vjepa2_hf.data.video_writing import encode_video, transcode_video
from vjepa2_hf.video_io import VideoReader, torchcodec_decoder
from vjepa2_hf.visualization.tables import format_table, publish_tables


ROOT = Path(__file__).resolve().parent.parent
FPS, SECONDS = 30, 10
SOURCES = {"1920 x 1080": (1080, 1920), "1280 x 720": (720, 1280), "640 x 360": (360, 640)}
CLIPS, FRAMES, RATE = 24, 16, 4
FILES, ROWS, ROW_BYTES = 100_000, 10_000, 8192  # of the metadata, and of the rows of a shard


def make_video(height: int, width: int, seed: int = 0) -> bytes:
    """A pan over smoothed noise, 4 pixels a frame, with three squares that move on their own."""
    rng = np.random.default_rng(seed)
    scene = rng.normal(size=(height, width + 4 * FPS * SECONDS, 3))
    scene = sum(gaussian_filter(scene, (sigma, sigma, 0)) * sigma for sigma in (1, 4, 16))
    scene = np.clip(128 + 40 * scene / scene.std(), 0, 255).astype(np.uint8)
    side, starts, speeds = height // 8, rng.uniform(0, height, 3), rng.uniform(2, 8, 3)

    def frames():
        for number in range(FPS * SECONDS):
            frame = scene[:, 4 * number : 4 * number + width].copy()
            for start, speed in zip(starts, speeds):
                top = int(start + speed * number) % (height - side)
                frame[top : top + side, int(2 * start) : int(2 * start) + side] = 255
            yield frame

    return encode_video(frames(), fps=FPS, crf=20, pixel_format="yuv420p")


def cpu_seconds(function: Callable[[], Any]) -> float:
    """CPU time of one call."""
    begin = time.process_time()
    function()
    return time.process_time() - begin


def measure(name: str, videos: list[bytes], height: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Transcodes videos, and reads training clips of the published size from them and from their shard. Also returns
    the frames per second of both, by decoder."""
    seconds, spent, stored, before, after = 0.0, 0.0, [], [], []
    for video in videos:
        begin = time.process_time()
        mp4, num_frames, fps = transcode_video(video, height=height)
        spent += time.process_time() - begin
        with VideoReader(mp4) as reader:
            seconds += reader.duration
        stored.append(mp4)
        row = {"path": None, "fps": fps, "num_frames": num_frames}
        before.append({**row, "video": {"bytes": video, "path": None}})
        after.append({**row, "video": {"bytes": mp4, "path": None}})
    decoded = 2 * sum(row["num_frames"] * 3 * (2 * height) ** 2 for row in after)  # room for all
    result = {
        "source": name,
        "seconds_of_video_per_cpu_second": seconds / spent,
        "gigabytes_per_hour_of_video": sum(map(len, stored)) / seconds * 3600 / 1e9,
        "clips_per_cpu_second_from_source": clips_per_second(before),
        "clips_per_cpu_second": clips_per_second(after),
        "clips_per_cpu_second_cached": clips_per_second(after, decoded),
    }
    return result, [frames_per_second(name, videos), frames_per_second(f"{name}, in the shard", stored)]


def clips_per_second(rows: list[dict[str, Any]], video_cache_bytes: int = 0) -> float:
    """Training clips per CPU second from a shard of these rows, after each has been read once."""
    with tempfile.TemporaryDirectory() as folder:
        write_parquet(rows, Path(folder) / "data-00000-of-00001.parquet", Features(COLUMNS))
        sampler = FrameSampler(fps=RATE)
        clips = iter(ClipStream(folder, FRAMES, 256, sampler, video_cache_bytes=video_cache_bytes))
        for _ in rows if video_cache_bytes else rows[:1]:  # opens the shard
            next(clips)
        return CLIPS / cpu_seconds(lambda: [next(clips) for _ in range(CLIPS)])


def frames_per_second(name: str, videos: list[bytes]) -> dict[str, Any]:
    """Frames per CPU second by decoder: all of a video in order, and those of random clips, each opened anew."""
    sampler, generator = FrameSampler(fps=RATE), torch.Generator().manual_seed(0)
    whole, clips = [], []
    for video in videos:
        with VideoReader(video) as reader:
            whole.append((video, np.arange(len(reader))))
            clips += [(video, sampler(reader, FRAMES, generator)) for _ in range(-(-CLIPS // len(videos)))]
    decoders = {"pyav": read_by_pyav, "torchcodec": read_by_torchcodec if torchcodec_decoder() else None}
    found = {"video": name}
    for kind, requests in {"in_order": whole, "clips": clips}.items():
        frames = sum(len(indices) for _, indices in requests)
        for decoder, read in decoders.items():
            spent = cpu_seconds(lambda: [read(*request) for request in requests]) if read else None  # noqa: B023
            found[f"{kind}_{decoder}"] = frames / spent if spent else None
    return found


def read_by_pyav(video: bytes, indices: np.ndarray) -> np.ndarray:
    """Frames as this package reads them."""
    with VideoReader(video) as reader:
        return reader.frames(indices)


def read_by_torchcodec(video: bytes, indices: np.ndarray) -> np.ndarray:
    """The same frames by torchcodec, with the exact positions of frames."""
    decoder = torchcodec_decoder()(video, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
    return decoder.get_frames_at(indices.tolist()).data.numpy()


def metadata_per_second() -> dict[str, float]:
    """Rows of metadata per CPU second. None of the first three reads a video."""
    with tempfile.TemporaryDirectory() as folder:
        root, names = Path(folder), [f"class_{i % 50}/{i}.mp4" for i in range(FILES)]
        lines = [f"{name},{number % 50},train" for number, name in enumerate(names)]
        (root / "metadata.csv").write_text("\n".join(["file_name,label,split", *lines]))
        (root / "list.csv").write_text("\n".join(["path,label,split", *lines]))
        video = {"video": {"bytes": bytes(ROW_BYTES), "path": None}, "fps": FPS, "num_frames": FPS * SECONDS}
        rows = ({**video, "path": name} for name in names[:ROWS])
        write_parquet(rows, root / "data-00000-of-00001.parquet", Features(COLUMNS))
        source = ShardSource(root / "data-00000-of-00001.parquet")
        readings = {
            "labels and splits of files, from metadata.csv": (FILES, lambda: describe_files(root, names)),
            "list of files with labels (.csv)": (FILES, lambda: ShardSource(root / "list.csv")),
            "one column of a parquet shard": (ROWS, lambda: source.values_of(source.shards[0], "num_frames")),
            "whole rows of a parquet shard, with undecoded videos of 8 kB": (ROWS, lambda: list(source.read_all())),
        }
        return {name: count / cpu_seconds(read) for name, (count, read) in readings.items()}


def number(value: float | str | None) -> str:
    """Three digits of a number; the name of a row; "not installed" for None."""
    if value is None:
        return "not installed"
    return value if isinstance(value, str) else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, help="folder of videos to measure instead")
    parser.add_argument("--height", type=int, default=256, help="of the stored videos (default: 256)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.videos:
        sources = {str(args.videos): [path.read_bytes() for path in find_videos(args.videos)]}
    else:
        sources = {name: [make_video(*size)] for name, size in SOURCES.items()}
    measured = [measure(name, videos, args.height) for name, videos in sources.items()]
    results, frames = [result for result, _ in measured], [row for _, rows in measured for row in rows]
    metadata = metadata_per_second()

    titles = ["source", "seconds of video transcoded per core and second", "GB per hour of video"]
    titles += ["clips read per core and second, from the source", "from the shard", "from decoded videos in memory"]
    of_frames = [
        "frames per core and second",
        "all in order, PyAV",
        "torchcodec",
        "of random clips, PyAV",
        "torchcodec",
    ]
    setting = (
        f"Stored {args.height} pixels high. A clip has {FRAMES} frames of 256 x 256 pixels, {RATE} per second, as "
        "published. The last column is with `video_cache_bytes`, once each video has been decoded."
    )
    text = "\n".join(
        [
            *format_table(titles, [map(number, result.values()) for result in results]),
            "",
            setting,
            "",
            "Decoding alone. This package reads videos with PyAV; torchcodec is measured beside it, and not used.",
            "",
            *format_table(of_frames, [map(number, row.values()) for row in frames]),
            "",
            "Reading of metadata. Only the last row reads videos, and decodes none.",
            "",
            *format_table(["metadata", "rows per core and second"], [map(number, row) for row in metadata.items()]),
        ]
    )
    pages, path = ([], None) if args.videos else ([ROOT / "docs" / "scale.md"], ROOT / "results" / "ingest.json")
    found = {"height": args.height, "results": results, "frames": frames, "metadata": metadata}
    publish_tables(found, text, path, pages, "ingest")


if __name__ == "__main__":
    main()
