# /// script
# requires-python = ">=3.11"
# dependencies = ["vjepa2-hf[demo]"]
# ///
"""Plots what an encoder, a probe or a predictor sees in videos: .png is a figure, .gif and .mp4 are animations.

    python examples/look.py pca MODEL VIDEO [VIDEO ...] OUTPUT        # features as colors, clips side by side
    python examples/look.py pca MODEL IMAGE OUTPUT --compare OTHER    # of one clip or image, encoders side by side
    python examples/look.py attention PROBE VIDEO OUTPUT              # attention of an attentive probe
    python examples/look.py nearest MODEL VIDEO [VIDEO ...] OUTPUT    # frames of other clips with the nearest latents
    python examples/look.py loss MODEL VIDEO [VIDEO ...] OUTPUT       # prediction loss at each masked position

After the demo:

    python examples/look.py pca runs/demo/pretrain/final runs/demo/episodes features.gif

VIDEO is a video file, of which evenly spaced clips are read (with attention the clip `--clip`), an image, or a folder
of shards, of which each row gives its first frames. MODEL is a folder or Hub id: for pca and nearest any model with an
encoder, for attention a probe from `examples/train_probe.py` with `kind=attentive`, for loss a masked-latent model.
"""

import argparse
import sys
import vjepa2_cli  # noqa: F401 (a quick --help)
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vjepa2_hf import VJepa2Encoder, VJepa2ForMaskedLatentPrediction, VJepa2ForVideoClassification
from vjepa2_hf.training.settings import exit_on_user_error, refuse_missing_model
from vjepa2_hf.visualization import figures
from vjepa2_hf.visualization.clip_figures import Masks, Plot, plot_losses, plot_neighbors
from vjepa2_hf.visualization.dense_figures import plot_feature_comparison
from vjepa2_hf.visualization.measures import dense_features, feature_colors
from vjepa2_hf.visualization.video_clips import load_processor, read_clip, read_clips


# Of each clip: pixels (T, C, H, W), frames uint8 (T, H, W, 3), and a name
Clips = tuple[list[torch.Tensor], list[np.ndarray], list[str]]


def read(options: argparse.Namespace, encoder: VJepa2Encoder, count: int) -> Clips:
    """Reads up to `count` clips, rounded up to the same number from each video."""
    processor = load_processor(options.model, encoder, options.size)
    num_frames = encoder.config.frames_per_clip if options.frames is None else options.frames
    each = -(-count // len(options.videos))
    stems = {video: Path(video).stem for video in options.videos}
    if len(set(stems.values())) < len(stems):
        stems = {video: video for video in options.videos}
    clips, names = [], []
    for video in options.videos:
        try:
            found = read_clips(video, num_frames, options.fps, each)
        except (ValueError, OSError) as error:
            if not clips:  # the others are compared with the first
                raise
            print(f"{video} is left out: {error}", file=sys.stderr)
            continue
        name = stems[video] if len(options.videos) > 1 else "clip"
        names += [f"{name} {number}" for number in range(1, len(found) + 1)] if each > 1 else [name]
        clips += found
    pixels = [processor(clip, return_tensors="pt")["pixel_values_videos"][0] for clip in clips]
    if len({clip.shape for clip in pixels}) > 1:
        raise ValueError(f"The clips have sizes {sorted({tuple(clip.shape) for clip in pixels})}; expected one size.")
    return pixels, [processor.to_images(clip) for clip in pixels], names


def load(model_class: type, model: str, part: str, hint: str) -> Any:
    """Loads a model; refuses one saved without the weights of `part`, which would be random."""
    loaded, info = model_class.from_pretrained(model, allow_missing=True, output_loading_info=True)
    missing = [name for name in info["missing_keys"] if name.startswith(part)]
    if missing:
        raise ValueError(f"{model} has no weights of a {part} ({missing[0]} is missing); {hint}.")
    return loaded.eval()


def look_at_features(options: argparse.Namespace) -> Plot:
    encoder = VJepa2Encoder.from_pretrained(options.model).eval()
    pixels, frames, names = read(options, encoder, 1 if options.compare else options.clips)
    colors = feature_colors([dense_features(encoder, clip[None], options.levels) for clip in pixels])
    if not options.compare:
        return partial(figures.plot_feature_pca, frames, colors, names=names), len(pixels[0])
    found = {short_name(options.model): colors[0]}
    for model in options.compare:
        refuse_missing_model(model)
        other = VJepa2Encoder.from_pretrained(model).eval()
        levels = options.levels if other.config.output_levels is not None else "last"
        clip = load_processor(model, other, frames[0].shape[1:3])(frames[0], return_tensors="pt")[
            "pixel_values_videos"
        ]
        name = short_name(model)
        found[model if name in found else name] = feature_colors([dense_features(other, clip, levels)])[0]
    return partial(plot_feature_comparison, frames[0], found), len(pixels[0])


def short_name(model: str) -> str:
    """What a model is called over its features: its folder, without `final`."""
    parts = [part for part in Path(model).parts if part not in ("final", ".", "/")]
    return parts[-1] if parts else model


def look_at_attention(options: argparse.Namespace) -> Plot:
    hint = "give a probe from examples/train_probe.py with kind=attentive"
    model = load(VJepa2ForVideoClassification, options.model, "pooler", hint)
    processor, config = load_processor(options.model, model.encoder, options.size), model.config
    num_frames = model.encoder.config.frames_per_clip if options.frames is None else options.frames
    clip = read_clip(options.videos[0], num_frames, options.fps, options.clip)
    pixels = processor(clip, return_tensors="pt")["pixel_values_videos"][0]
    attention, tubelet = model.pooler_attention(pixels[None])[0], config.encoder_config.tubelet_size
    seen = attention.shape[1] - config.predicted_frames // tubelet
    titles = [predict_class(model, pixels)]
    if config.predicted_frames:  # there is no image to plot their attention on
        fraction = (attention[:, seen:].sum() / attention.sum()).item()
        titles.append(f"{fraction:.0%} of the attention is on {config.predicted_frames} predicted frames (not shown)")
    title = "; ".join(filter(None, titles)) or None
    frames = processor.to_images(pixels)
    plot = partial(
        figures.plot_probe_attention, frames, attention[:, :seen], tubelet, by_head=options.heads, title=title
    )
    return plot, len(pixels)


@torch.no_grad()
def predict_class(model: VJepa2ForVideoClassification, pixels: torch.Tensor) -> str | None:
    """The most likely class of a clip (T, C, H, W); `None` where the probe does not predict a single class."""
    config = model.config
    if config.problem_type not in (None, "single_label_classification") or config.labels_per_frame:
        return None
    probability, label = model(pixels[None]).logits[0].softmax(-1).max(dim=-1)
    return f"prediction: {config.id2label[label.item()]} ({probability.item():.2f})"


def look_at_neighbors(options: argparse.Namespace) -> Plot:
    encoder = VJepa2Encoder.from_pretrained(options.model).eval()
    pixels, frames, names = read(options, encoder, options.clips)
    if len(pixels) < 2:
        raise ValueError("There is 1 clip, and nearest frames come from other clips; give more videos or --clips.")
    return plot_neighbors(encoder, pixels, frames, names, options.neighbors, options.metric, options.pool)


def look_at_losses(options: argparse.Namespace) -> Plot:
    hint = "give a model from examples/pretrain.py"
    model = load(VJepa2ForMaskedLatentPrediction, options.model, "predictor", hint)
    if options.teacher is not None:
        refuse_missing_model(options.teacher)
        model.set_teacher(VJepa2Encoder.from_pretrained(options.teacher))
    pixels, _, _ = read(options, model.encoder, options.clips)
    masks = Masks.of_run(options.model, options.masks)
    plot, losses = plot_losses(model, pixels, masks, options.mask_samples, options.seed)
    kind = "the published masks" if masks.source is None else f"the masks of {masks.source}"
    counts = f"{len(pixels)} clips, {options.mask_samples} samples of"
    print(f"{counts} {kind}: mean loss {losses.mean.nanmean():.4f}.")
    return plot


LOOKS = {"pca": look_at_features, "attention": look_at_attention, "nearest": look_at_neighbors, "loss": look_at_losses}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="look", required=True, metavar="|".join(LOOKS))
    parsers = {name: commands.add_parser(name) for name in LOOKS}
    for name, command in parsers.items():
        command.add_argument("model", metavar="MODEL", help="folder or Hub id")
        several = {"nargs": 1} if name == "attention" else {"nargs": "+"}
        command.add_argument("videos", metavar="VIDEO", **several, help="video file or folder of shards")
        command.add_argument("output", metavar="OUTPUT", type=Path, help="name that ends in .png, .gif or .mp4")
        command.add_argument("--frames", type=int, help="length of a clip (default: the model's)")
        command.add_argument("--fps", type=float, help="frames per second of a clip (default: the video's own rate)")
        size = "resize whole frames to this height and width, or to squares"
        command.add_argument("--size", type=int, nargs="+", metavar="PIXELS", help=size)
        command.add_argument("--play_fps", type=float, default=6.0, help="frames per second of a GIF or mp4 (6)")
        if name != "attention":
            count = 3 if name == "pca" else 16
            command.add_argument("--clips", type=int, default=count, help=f"clips in all, rounded up ({count})")
    features = parsers["pca"]
    features.add_argument("--compare", metavar="MODEL", nargs="+", help="other encoders, for the first clip")
    features.add_argument("--levels", choices=("last", "all"), default="last", help="last block, or all output levels")
    attention = parsers["attention"]
    attention.add_argument("--clip", type=int, default=0, help="number of the clip, or of the row of shards (0)")
    attention.add_argument("--heads", action="store_true", help="plot each head too")
    near = parsers["nearest"]
    near.add_argument("--neighbors", type=int, default=4, help="neighbors of a frame, each from another clip (4)")
    near.add_argument("--metric", choices=("cosine", "l2"), default="cosine", help="cosine is of centered latents")
    pools = ("tokens", "frame")
    near.add_argument("--pool", choices=pools, default="tokens", help="compare all tokens, or their mean")
    loss = parsers["loss"]
    own = "those of the model's run (config.yaml above final/), else the published ones"
    loss.add_argument("--masks", type=Path, help=f"YAML with `masks` (default: {own})")
    loss.add_argument("--mask_samples", type=int, default=16, help="how often masks of the clips are sampled (16)")
    teacher = "folder or Hub id of the encoder that a distilled model learned from (target_type=teacher)"
    loss.add_argument("--teacher", metavar="FOLDER", help=teacher)
    loss.add_argument("--seed", type=int, default=0, help="of the masks (0)")
    return parser


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    options = make_parser().parse_args(arguments)
    figures.check_output(options.output, options.play_fps)
    refuse_missing_model(options.model)
    plot, count = LOOKS[options.look](options)
    figures.write_figure(options.output, lambda shown: plot(shown=shown), count, options.play_fps)
    print(f"Wrote {options.output}.")


if __name__ == "__main__":
    main()
