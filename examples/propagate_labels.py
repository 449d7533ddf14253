# /// script
# requires-python = ">=3.11"
# dependencies = ["vjepa2-hf[demo]"]
# ///
"""Propagates a mask of the first frame over a video by nearest neighbors of an encoder's features.

    python examples/propagate_labels.py MODEL VIDEO MASK OUTPUT [--size 288 352] [--by frame|clip] [--levels all]

MASK is a label image of the first frame (PNG, one number per pixel, 0 is the background), a folder of label images
named by the number of their frame in the video, or a JSON file of polygons (vjepa2_hf/probing/label_files.py). The
result is compared with label images of later frames: J is the intersection over union of each object, averaged over
these frames. OUTPUT (.gif, .mp4 or .png) shows the labels over the frames; OUTPUT.npz holds `labels`, uint8 (T, H, W),
and OUTPUT.json the scores and settings.

The protocol is that of DINO (arXiv 2104.14294): each position takes the labels of the `--top_k` most similar positions
in the first frame and in `--context_frames` frames before, at most `--radius` positions away.
"""

import argparse
import dataclasses
import functools
import vjepa2_cli  # noqa: F401 (a quick --help)
from pathlib import Path

import numpy as np
import torch

from vjepa2_hf import VJepa2Encoder
from vjepa2_hf.data.files import write_aside, write_json
from vjepa2_hf.probing.dense_clips import step_frames
from vjepa2_hf.probing.label_files import check_mask_size, first_labels, read_label_frames
from vjepa2_hf.probing.label_propagation import Propagation, label_video, region_similarity
from vjepa2_hf.training.settings import exit_on_user_error, refuse_missing_model
from vjepa2_hf.video_io import VideoReader
from vjepa2_hf.visualization.dense_figures import plot_propagation
from vjepa2_hf.visualization.figures import check_output, write_figure
from vjepa2_hf.visualization.video_clips import load_processor


DEFAULTS = Propagation()


def read_frames(video: str, count: int, every: int) -> tuple[np.ndarray, np.ndarray]:
    """Every `every`-th frame from the start, uint8 (T, H, W, 3), and their numbers in the video (T,)."""
    numbers = np.arange(count) * every
    with VideoReader(video) as reader:
        if count < 2 or every < 1 or numbers[-1] >= len(reader):
            raise ValueError(
                f"--frames {count} --every {every} need {max(count - 1, 0) * every + 1} frames, but {video} has "
                f"{len(reader)}; expected at least 2 frames, within the video."
            )
        return reader.frames(numbers), numbers


def propagate(options: argparse.Namespace) -> None:
    encoder = VJepa2Encoder.from_pretrained(options.model).eval()
    encoder.to("cuda" if torch.cuda.is_available() else "cpu")
    masks = read_label_frames(options.mask)
    frames, numbers = read_frames(options.video, options.frames, options.every)
    check_mask_size(masks, frames.shape[1:3])
    processor = load_processor(options.model, encoder, options.size or encoder.config.crop_size)
    pixels = processor(frames, return_tensors="pt")["pixel_values_videos"][0].to(encoder.device)
    radius = options.radius if options.radius >= 0 else None
    settings = Propagation(options.top_k, options.context_frames, radius, options.temperature, not options.no_center)
    count = len(masks.names)
    labels = label_video(encoder, pixels, first_labels(masks), count, settings, options.by, options.levels).numpy()
    if options.by == "clip":  # a step has the labels of the last frame of its tubelet
        shown = step_frames(len(frames), len(labels)).numpy()
        frames, numbers = frames[shown], numbers[shown]
    steps = {int(number): step for step, number in enumerate(numbers) if step > 0}
    known = {steps[number]: image for number, image in masks.frames.items() if number in steps}
    scores = region_similarity(labels, known, count) if known else None
    if scores:
        scores["by_frame"] = {str(numbers[step]): value for step, value in scores["by_frame"].items()}
        by_label = ", ".join(f"{name} {value:.3f}" for name, value in zip(masks.names[1:], scores["by_label"]))
        print(f"J mean {scores['mean']:.3f} over {len(known)} frames ({by_label})")
    plain = {name: value for name, value in vars(options).items() if name not in ("mask", "output")}
    write_json(options.output.with_suffix(".json"), {**plain, **dataclasses.asdict(settings), "scores": scores})
    with write_aside(options.output.with_suffix(".npz")) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, labels=labels.astype(np.uint8), frames=numbers)
    references = known if options.output.suffix == ".png" else None
    plot = functools.partial(plot_propagation, frames, labels, references)
    write_figure(options.output, lambda shown: plot(shown=shown), len(labels), options.play_fps)
    print(f"Wrote {options.output}.")


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id of a model with an encoder")
    parser.add_argument("video", metavar="VIDEO", help="video file")
    parser.add_argument("mask", metavar="MASK", help="label image, folder of label images, or JSON file of polygons")
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="name that ends in .gif, .mp4 or .png")
    parser.add_argument("--frames", type=int, default=32, help="frames from the start of the video (32)")
    parser.add_argument("--every", type=int, default=1, help="take every N-th frame (1)")
    parser.add_argument("--size", type=int, nargs="+", help="height and width of the frames (default: crop_size)")
    parser.add_argument(
        "--by", choices=("frame", "clip"), default="frame", help="encode each frame alone, or the clip"
    )
    parser.add_argument("--levels", choices=("last", "all"), default="last", help="features of the last block, or all")
    parser.add_argument("--top_k", type=int, default=DEFAULTS.top_k, help="nearest positions (5)")
    parser.add_argument("--context_frames", type=int, default=DEFAULTS.context_frames, help="frames before (7)")
    parser.add_argument("--radius", type=float, default=DEFAULTS.radius, help="in positions; negative: anywhere (12)")
    parser.add_argument("--temperature", type=float, default=DEFAULTS.temperature, help="of the weights (0.1)")
    parser.add_argument("--no_center", action="store_true", help="keep the mean feature of the video")
    parser.add_argument("--play_fps", type=float, default=6.0, help="frames per second of a GIF or mp4 (6)")
    options = parser.parse_args(arguments)
    check_output(options.output, options.play_fps)
    refuse_missing_model(options.model)
    propagate(options)


if __name__ == "__main__":
    main()
