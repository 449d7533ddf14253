"""Ingest and reading of videos per core: transcoding to shards, their size, and training clips from them.

    python benchmarks/ingest.py                       # docs/scale.md; about a minute on one core
    python benchmarks/ingest.py --videos FOLDER       # your own videos, printed

Without `--videos` the source is made here: a pan over smoothed noise with moving squares, 10 seconds at 30 frames per
second. Times are CPU times of one thread. Results go to `results/ingest.json`, and into docs/scale.md between its
markers.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Features
from scipy.ndimage import gaussian_filter

from vjepa2_hf.data.clips import ClipStream
from vjepa2_hf.data.shards import find_videos, write_parquet
from vjepa2_hf.data.video_shards import COLUMNS
from vjepa2_hf.data.video_writing import encode_video, transcode_video
from vjepa2_hf.video_io import VideoReader
from vjepa2_hf.visualization.tables import format_table, publish_tables


ROOT = Path(__file__).resolve().parent.parent
FPS, SECONDS = 30, 10
SOURCES = {"1920 x 1080": (1080, 1920), "1280 x 720": (720, 1280), "640 x 360": (360, 640)}
CLIPS = 24


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


def measure(name: str, videos: list[bytes | Path], height: int) -> dict[str, Any]:
    """Transcodes videos, and reads training clips of the published size from them and from their shard."""
    seconds, size, spent, before, after = 0.0, 0, 0.0, [], []
    for video in videos:
        begin = time.process_time()
        mp4, num_frames, fps = transcode_video(video, height=height)
        spent += time.process_time() - begin
        with VideoReader(mp4) as reader:
            seconds += reader.duration
        size += len(mp4)
        row = {"path": None, "fps": fps, "num_frames": num_frames}
        source = video if isinstance(video, bytes) else video.read_bytes()
        before.append({**row, "video": {"bytes": source, "path": None}})
        after.append({**row, "video": {"bytes": mp4, "path": None}})
    return {
        "source": name,
        "seconds_of_video_per_cpu_second": seconds / spent,
        "gigabytes_per_hour_of_video": size / seconds * 3600 / 1e9,
        "clips_per_cpu_second_from_source": clips_per_second(before),
        "clips_per_cpu_second": clips_per_second(after),
    }


def clips_per_second(rows: list[dict[str, Any]]) -> float:
    """Training clips per CPU second from a shard of these rows."""
    with tempfile.TemporaryDirectory() as folder:
        write_parquet(rows, Path(folder) / "data-00000-of-00001.parquet", Features(COLUMNS))
        clips = iter(ClipStream(folder, frames_per_clip=16, crop_size=256))
        next(clips)  # opens the shard
        begin = time.process_time()
        for _ in range(CLIPS):
            next(clips)
        return CLIPS / (time.process_time() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, help="folder of videos to measure instead")
    parser.add_argument("--height", type=int, default=256, help="of the stored videos (default: 256)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.videos:
        results = [measure(str(args.videos), find_videos(args.videos), args.height)]
    else:
        results = [measure(name, [make_video(*size)], args.height) for name, size in SOURCES.items()]
    titles = ["source", "seconds of video transcoded per core and second", "GB per hour of video"]
    titles += ["clips read per core and second, from the source", "from the shard"]
    rows = [[f"{value:.3g}" if isinstance(value, float) else value for value in result.values()] for result in results]
    setting = (
        f"Stored {args.height} pixels high. A clip has 16 frames of 256 x 256 pixels, 4 per second, as published."
    )
    text = "\n".join([*format_table(titles, rows), "", setting])
    pages, path = ([], None) if args.videos else ([ROOT / "docs" / "scale.md"], ROOT / "results" / "ingest.json")
    publish_tables({"height": args.height, "results": results}, text, path, pages, "ingest")


if __name__ == "__main__":
    main()
