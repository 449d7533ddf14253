"""Draws what an encoder sees in a clip: its features as colours, and how much of them is position alone.

    python examples/feature_picture.py MODEL VIDEO OUTPUT.png [--frames 16] [--fps F] [--size PIXELS] [--clips 8]

After the demo:

    python examples/feature_picture.py runs/demo/pretrain/final runs/demo/episodes features.png

MODEL is a folder or Hub id that holds an encoder; VIDEO a video file, or a folder of shards (its first row is drawn).
Rows of the picture: the frames; the first three principal components of the tokens as red, green and blue; the same
after each place's mean over time is taken away (grey: unchanged); both again for an encoder with random weights.
`OUTPUT.json` beside it holds the shares of variance, which are printed too: of the clip, and over `--clips` rows, or
clips of the file. `examples/look.py` has the pictures that need no second encoder.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from vjepa2_hf import VJepa2Encoder, VJepa2VideoProcessor
from vjepa2_hf.data.files import write_aside, write_json
from vjepa2_hf.data.shards import ShardSource, open_stream
from vjepa2_hf.training.settings import exit_on_user_error, refuse_missing_model
from vjepa2_hf.video_io import VideoReader
from vjepa2_hf.visualization.figures import MAX_COLUMNS, draw_rows, evenly_spaced
from vjepa2_hf.visualization.measures import dense_features, feature_colours


SHARES = ("position", "time", "rest")


def read_clips(video: str | Path, num_frames: int, fps: float | None = None, count: int = 1) -> list[np.ndarray]:
    """Clips of a video file, evenly spaced in it, or the first frames of the first rows of shards: a list of uint8
    (T, H, W, 3).

    Args:
        video: a video file, or what `vjepa2_hf.data.shards.ShardSource` takes.
        num_frames: T.
        fps: frames a second; None takes the video's own.
        count: clips at most. Those of a file do not overlap, and the first one begins with it. The first row of shards
            has to hold one; later rows that are too short are passed over.

    Raises:
        FileNotFoundError: there is nothing at `video`.
        ValueError: it does not decode, or is shorter than the clip.
    """
    _check_numbers(num_frames, fps, count)
    if _is_video(video):
        return _read_clips(video, str(video), num_frames, fps, count)
    clips = []
    for _, _, _, row in open_stream(ShardSource(str(video)), seed=None):
        try:
            clips += _read_clips(row["video"], f"the first video of {video}", num_frames, fps, 1)
        except ValueError:
            if not clips:
                raise
        if len(clips) == count:
            break
    if not clips:
        raise ValueError(f"{video} holds no row that reads; give a video file or a folder of shards.")
    return clips


def read_clip(video: str | Path, num_frames: int, fps: float | None = None, number: int = 0) -> np.ndarray:
    """One clip, uint8 (T, H, W, 3): of a video file the one that follows `number` others without a gap, of shards the
    first frames of row `number`.

    Args:
        video, num_frames, fps: as of `read_clips`.
        number: counted from 0.

    Raises:
        FileNotFoundError: there is nothing at `video`.
        ValueError: it does not decode, or there is no such clip.
    """
    if number < 0:
        raise ValueError(f"Clip {number} was asked for; clips are counted from 0.")
    _check_numbers(num_frames, fps, 1)
    if not _is_video(video):
        rows, place = open_stream(ShardSource(str(video)), seed=None), -1
        for place, (_, _, _, row) in enumerate(rows):
            if place == number:
                return _read_clips(row["video"], f"the video of row {number} of {video}", num_frames, fps, 1)[0]
        raise ValueError(f"Clip {number} was asked for, but {video} has {place + 1} rows, counted from 0.")
    with VideoReader(video) as reader:
        available = _frames_at(reader, fps, str(video), num_frames)
        if available < (number + 1) * num_frames:
            raise ValueError(
                f"Clip {number} was asked for, but {video} has {available} frames, which is {available // num_frames} "
                f"clips of {num_frames}, counted from 0."
            )
        return _read_frames(reader, number * num_frames, num_frames, fps)


def _check_numbers(num_frames: int, fps: float | None, count: int) -> None:
    if min(num_frames, count) < 1 or (fps is not None and not fps > 0):
        raise ValueError(f"frames={num_frames}, fps={fps} and clips={count} were asked for; all must be positive.")


def _is_video(video: str | Path) -> bool:
    return Path(video).is_file() and Path(video).suffix not in (".parquet", ".tar")


def _frames_at(reader: VideoReader, fps: float | None, name: str, needed: int) -> int:
    """How many frames a video has at a rate; at least those of a clip."""
    available = len(reader) if fps is None else int((reader.times[-1] + 5e-4) * fps) + 1
    if available < needed:
        rate = "" if fps is None else f" at {fps:g} a second"
        raise ValueError(f"{name} has {available} frames{rate}, but the clip needs {needed}: ask for fewer.")
    return available


def _read_frames(reader: VideoReader, start: int, num_frames: int, fps: float | None) -> np.ndarray:
    numbers = start + np.arange(num_frames)
    return reader.frames(numbers if fps is None else reader.indices_at(numbers / fps))


def _read_clips(source: Any, name: str, num_frames: int, fps: float | None, count: int) -> list[np.ndarray]:
    with VideoReader(source) as reader:
        available = _frames_at(reader, fps, name, num_frames)
        count = min(count, available // num_frames)
        starts = np.linspace(0, available - num_frames, count).astype(int) if count > 1 else [0]
        return [_read_frames(reader, start, num_frames, fps) for start in starts]


def load_processor(model: str | Path, encoder: VJepa2Encoder, size: int | None = None) -> VJepa2VideoProcessor:
    """The model's own processor, or whole frames at `size` (the encoder's where the model brings no processor)."""
    if size is None and (Path(model) / "video_preprocessor_config.json").is_file():
        return VJepa2VideoProcessor.from_pretrained(model)
    size = size or encoder.config.crop_size
    return VJepa2VideoProcessor(size=size, crop_size=size)


def random_encoder(encoder: VJepa2Encoder, seed: int = 0) -> VJepa2Encoder:
    """An encoder of the same sizes before any training; torch's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VJepa2Encoder(encoder.config).eval()


def encode_grid(encoder: VJepa2Encoder, pixel_values_videos: torch.Tensor) -> torch.Tensor:
    """Features (T', H', W', D) of one clip (1, T, C, H, W).

    Raises:
        ValueError: the clip has fewer than two time steps, so nothing could be told about position.
    """
    features = dense_features(encoder, pixel_values_videos)
    if len(features) < 2:
        needed = 2 * encoder.config.tubelet_size
        raise ValueError(f"The clip has {pixel_values_videos.shape[1]} frames, but at least {needed} are needed.")
    return features


def variance_shares(features: torch.Tensor) -> dict[str, float]:
    """Splits the tokens' variance in what the place alone explains, what the time alone explains, and the rest.

    A two-way analysis of variance without replication; the shares sum to 1. `position` is the variance, between
    places, of each place's mean over time. It bounds the part of mere position from above: what stands still counts
    in it too, and even noise has 1 / T' of its variance there. Clips joined along time leave it what is the same in
    all of them; `time` then is what sets whole frames and clips apart.

    Args:
        features: (T', H', W', D).

    Raises:
        ValueError: all tokens are equal.
    """
    tokens = features.double().flatten(1, 2)  # (T', P, D)
    tokens = tokens - tokens.mean(dim=(0, 1))
    total = tokens.square().sum(-1).mean().item()
    if total < 1e-20:
        raise ValueError("All tokens of the clip are equal, so there is no variance to explain; take another clip.")
    position = tokens.mean(dim=0).square().sum(-1).mean().item() / total
    time = tokens.mean(dim=1).square().sum(-1).mean().item() / total
    return {"position": position, "time": time, "rest": 1 - position - time}


def feature_picture(
    encoder: VJepa2Encoder, processor: VJepa2VideoProcessor, clips: list[np.ndarray]
) -> tuple[Figure, dict[str, Any]]:
    """The picture of the first clip, and the numbers of all.

    Args:
        encoder: the trained one; one with random weights is made beside it.
        processor: resizes and normalises the frames.
        clips: uint8 (T, H, W, 3) each.

    Returns:
        The figure, and `{"grid": [T', H', W'], "trained": shares, "random": shares}` (see `variance_shares`) of the
        first clip; with more clips also `"over_clips": {"clips": n, "trained": shares, "random": shares}`, where what
        stands still in one clip alone is no longer counted as position.
    """
    pixels = [processor(clip, return_tensors="pt")["pixel_values_videos"] for clip in clips]  # (1, T, C, H, W) each
    encoders = {"trained": encoder, "random": random_encoder(encoder)}
    features = {name: [encode_grid(model, clip) for clip in pixels] for name, model in encoders.items()}
    first = {name: values[0] for name, values in features.items()}
    numbers = {"grid": list(first["trained"].shape[:3]), **{name: variance_shares(first[name]) for name in first}}
    if len(clips) > 1:
        same = {name: [part for part in values if part.shape == values[0].shape] for name, values in features.items()}
        numbers["over_clips"] = {
            "clips": len(same["trained"]),
            **{name: variance_shares(torch.cat(values)) for name, values in same.items()},
        }
    return draw_features(pixels[0][0], first, processor), numbers


def draw_features(clip: torch.Tensor, features: dict[str, torch.Tensor], processor: VJepa2VideoProcessor) -> Figure:
    """The frames (T, C, H, W) that the encoders were given, and their features (T', H', W', D) as colours."""
    steps = len(next(iter(features.values())))
    shown = evenly_spaced(steps, MAX_COLUMNS)
    first_frames = shown * len(clip) // steps
    rows = {"frames": processor.to_pictures(clip[first_frames])}
    for name, values in features.items():
        moving = values - values.mean(dim=0)
        rows[f"{name} encoder:\nfeatures"] = feature_colours([values])[0][shown]
        rows[f"{name} encoder:\nwhat changes"] = feature_colours([moving], around_zero=True)[0][shown]
    return draw_rows(list(rows.items()), [f"frame {frame}" for frame in first_frames])


def list_shares(numbers: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """Titled rows of shares, of the drawn clip and over all clips."""
    rows = [(f"{name} encoder, this clip", numbers[name]) for name in ("trained", "random")]
    if over := numbers.get("over_clips"):
        rows += [(f"{name} encoder, over {over['clips']} clips", over[name]) for name in ("trained", "random")]
    return rows


def format_shares(numbers: dict[str, Any]) -> str:
    """The shares of variance as a Markdown table."""
    lines = ["| share of variance | " + " | ".join(SHARES) + " |", "|---|" + "---|" * len(SHARES)]
    for title, shares in list_shares(numbers):
        lines.append(f"| {title} | " + " | ".join(f"{shares[share]:.3f}" for share in SHARES) + " |")
    return "\n".join(lines)


def write_files(output: Path, figure: Figure, numbers: dict[str, Any]) -> None:
    """Picture and numbers."""
    with write_aside(output) as partial:
        figure.savefig(partial, format="png", dpi=150)
    write_json(output.with_suffix(".json"), numbers)


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id of a model that holds an encoder")
    parser.add_argument("video", metavar="VIDEO", help="video file, or folder of shards (its first row)")
    parser.add_argument("output", metavar="OUTPUT.png", type=Path)
    parser.add_argument("--frames", type=int, default=16, help="length of the clip")
    parser.add_argument("--fps", type=float, help="frames a second; default: the video's own")
    parser.add_argument("--clips", type=int, default=8, help="rows, or clips of the file, for the numbers")
    parser.add_argument("--size", type=int, help="whole frames as squares of so many pixels")
    options = parser.parse_args(arguments)
    if options.output.suffix != ".png":
        raise ValueError(f"OUTPUT is {str(options.output)!r}, but a name that ends in .png is expected.")
    refuse_missing_model(options.model)
    clips = read_clips(options.video, options.frames, options.fps, options.clips)
    encoder = VJepa2Encoder.from_pretrained(options.model).eval()
    figure, numbers = feature_picture(encoder, load_processor(options.model, encoder, options.size), clips)
    settings = {"model": options.model, "video": options.video, "frames": options.frames, "fps": options.fps}
    write_files(options.output, figure, {**settings, "size": options.size, **numbers})
    print(format_shares(numbers))
    print(f"{options.output} and {options.output.with_suffix('.json')} are written.")


if __name__ == "__main__":
    main()
