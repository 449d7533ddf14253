"""Draws what an encoder, a probe or a predictor sees in videos; a .png is a figure, a .gif or .mp4 plays it.

    python examples/look.py pca MODEL VIDEO [VIDEO ...] OUTPUT        # features as colours, clips side by side
    python examples/look.py attention PROBE VIDEO OUTPUT              # where and when an attentive probe looks
    python examples/look.py nearest MODEL VIDEO [VIDEO ...] OUTPUT    # frames of other clips with the nearest latents
    python examples/look.py loss MODEL VIDEO [VIDEO ...] OUTPUT       # the prediction loss of each place when hidden

After the demo:

    python examples/look.py pca runs/demo/pretrain/final runs/demo/episodes features.gif

VIDEO is a video file, from which clips are taken evenly spaced (of attention `--clip` numbers those that follow each
other without a gap), or a folder of shards, of which each row gives its first frames. MODEL is a folder or Hub id: for
pca and nearest anything that holds an encoder, for attention what `examples/train_probe.py` left with
`kind=attentive`, for loss a masked-latent model; its masks are those of its run (`config.yaml` above `final/`), the
published ones where there is none, or of `--masks`.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from feature_picture import load_processor, read_clip, read_clips

from vjepa2_hf import (
    VJepa2Encoder,
    VJepa2ForMaskedLatentPrediction,
    VJepa2ForVideoClassification,
    VJepa2VideoProcessor,
)
from vjepa2_hf.masking import PUBLISHED_MASKS, build_mask_samplers
from vjepa2_hf.training.settings import exit_on_user_error, load_config, refuse_missing_model
from vjepa2_hf.visualization.figures import (
    check_output,
    plot_feature_pca,
    plot_loss_by_position,
    plot_nearest_frames,
    plot_probe_attention,
    write_picture,
)
from vjepa2_hf.visualization.measures import dense_features, feature_colours, loss_by_position, nearest_frames


# What write_picture takes: a figure of what is shown, and how many pictures there are to show
Picture = tuple[Callable[[Sequence[int] | None], Any], int]


@dataclass
class MaskSettings:
    """The part of a pretraining run's settings that says what is hidden."""

    masks: list[dict[str, Any]] = field(default_factory=lambda: PUBLISHED_MASKS)
    mask_token_index: int | None = None


@dataclass
class Clips:
    """What a model is shown: pixels (T, C, H, W) a clip, and a name."""

    pixels: list[torch.Tensor]
    names: list[str]
    processor: VJepa2VideoProcessor

    @property
    def pictures(self) -> list[np.ndarray]:
        """uint8 (T, H, W, 3) a clip."""
        return [self.processor.to_pictures(clip) for clip in self.pixels]


def read(options: argparse.Namespace, encoder: VJepa2Encoder, count: int) -> Clips:
    """`count` clips, if there are as many: of each video the same number, rounded up."""
    processor = load_processor(options.model, encoder, options.size)
    num_frames = encoder.config.frames_per_clip if options.frames is None else options.frames
    each = -(-count // len(options.videos))
    stems = {video: Path(video).stem for video in options.videos}
    if len(set(stems.values())) < len(stems):
        stems = {video: video for video in options.videos}
    clips, names = [], []
    for video in options.videos:
        found = read_clips(video, num_frames, options.fps, each)
        name = stems[video] if len(options.videos) > 1 else "clip"
        names += [f"{name} {number}" for number in range(1, len(found) + 1)] if each > 1 else [name]
        clips += found
    pixels = [processor(clip, return_tensors="pt")["pixel_values_videos"][0] for clip in clips]
    if len({clip.shape for clip in pixels}) > 1:
        raise ValueError(f"The clips have sizes {sorted({tuple(clip.shape) for clip in pixels})}; expected one size.")
    return Clips(pixels, names, processor)


def load(model_class: type, model: str, part: str, hint: str) -> Any:
    """A model whose file has the weights of `part`."""
    loaded, info = model_class.from_pretrained(model, output_loading_info=True)
    missing = [name for name in info["missing_keys"] if name.startswith(part)]
    if missing:
        raise ValueError(f"{model} has no weights of a {part} ({missing[0]} is missing); {hint}.")
    return loaded.eval()


def look_at_features(options: argparse.Namespace) -> Picture:
    encoder = VJepa2Encoder.from_pretrained(options.model).eval()
    clips = read(options, encoder, options.clips)
    colours = feature_colours([dense_features(encoder, clip[None]) for clip in clips.pixels])
    return partial(plot_feature_pca, clips.pictures, colours, names=clips.names), len(clips.pixels[0])


def look_at_attention(options: argparse.Namespace) -> Picture:
    hint = "give what examples/train_probe.py leaves with kind=attentive"
    model = load(VJepa2ForVideoClassification, options.model, "pooler", hint)
    processor, config = load_processor(options.model, model.encoder, options.size), model.config
    num_frames = model.encoder.config.frames_per_clip if options.frames is None else options.frames
    clip = read_clip(options.videos[0], num_frames, options.fps, options.clip)
    pixels = processor(clip, return_tensors="pt")["pixel_values_videos"][0]
    attention, tubelet = model.pooler_attention(pixels[None])[0], config.encoder_config.tubelet_size
    seen = attention.shape[1] - config.predicted_frames // tubelet
    titles = [answer(model, pixels)]
    if config.predicted_frames:  # of which there is no picture to draw on
        share = (attention[:, seen:].sum() / attention.sum()).item()
        titles.append(f"{share:.0%} of the attention is on {config.predicted_frames} predicted frames, not drawn")
    title = "; ".join(filter(None, titles)) or None
    pictures = processor.to_pictures(pixels)
    draw = partial(plot_probe_attention, pictures, attention[:, :seen], tubelet, by_head=options.heads, title=title)
    return draw, len(pixels)


@torch.no_grad()
def answer(model: VJepa2ForVideoClassification, pixels: torch.Tensor) -> str | None:
    """The likeliest class of a clip (T, C, H, W); `None` where a probe's answer is not one class."""
    config = model.config
    if config.problem_type not in (None, "single_label_classification") or config.labels_per_frame:
        return None
    chance, label = model(pixels[None]).logits[0].softmax(-1).max(dim=-1)
    return f"the probe's answer: {config.id2label[label.item()]} ({chance.item():.2f})"


def look_at_neighbours(options: argparse.Namespace) -> Picture:
    encoder = VJepa2Encoder.from_pretrained(options.model).eval()
    clips = read(options, encoder, options.clips)
    if len(clips.pixels) < 2:
        raise ValueError("There is 1 clip; nearest frames are looked for in others: give more videos, or --clips.")
    tokens = torch.stack([dense_features(encoder, clip[None]) for clip in clips.pixels])  # (B, T', H', W', D)
    latents = tokens.mean(dim=(2, 3)) if options.pool == "frame" else tokens.flatten(2)
    steps = latents.shape[1]
    others = torch.arange(len(clips.pixels) - 1).repeat_interleave(steps)
    distances, places = nearest_frames(
        latents[0], latents[1:].flatten(0, 1), options.neighbours, options.metric, groups=others
    )
    size = len(clips.pixels[0]) // steps
    pictures = np.stack(clips.pictures)[:, ::size][:, :steps]  # the first frame of each tubelet
    draw = partial(
        plot_nearest_frames,
        pictures[0],
        pictures[1:].reshape(-1, *pictures.shape[2:])[places],
        distances,
        [f"frame {step * size}" for step in range(steps)],
        [[f"{clips.names[1 + at // steps]}, frame {at % steps * size}" for at in row] for row in places.tolist()],
        title=f"{options.metric} distance of latents to {clips.names[0]}",
    )
    return draw, steps


def look_at_losses(options: argparse.Namespace) -> Picture:
    hint = "give what examples/pretrain.py leaves"
    model = load(VJepa2ForMaskedLatentPrediction, options.model, "predictor", hint)
    clips = read(options, model.encoder, options.clips)
    own = Path(options.model).parent / "config.yaml"
    source = options.masks or (own if own.is_file() else None)
    settings = MaskSettings() if source is None else load_config(MaskSettings, source, part=True)
    found = loss_by_position(
        model,
        torch.stack(clips.pixels),
        build_mask_samplers(settings.masks),
        options.draws,
        options.seed,
        settings.mask_token_index,
    )
    named = "the published masks" if source is None else f"the masks of {source}"
    print(f"{len(clips.pixels)} clips, {options.draws} draws of {named}: mean loss {found.mean.nanmean():.4f}.")
    named = "published masks" if source is None else f"{Path(source).name}'s masks"
    title = f"prediction loss when hidden: {len(clips.pixels)} clips, {options.draws} draws of {named}"
    size = len(clips.pixels[0]) // len(found.mean)
    return partial(plot_loss_by_position, found.mean, size, title=title), len(found.mean)


LOOKS = {
    "pca": look_at_features,
    "attention": look_at_attention,
    "nearest": look_at_neighbours,
    "loss": look_at_losses,
}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="look", required=True, metavar="|".join(LOOKS))
    parsers = {name: commands.add_parser(name) for name in LOOKS}
    for name, command in parsers.items():
        command.add_argument("model", metavar="MODEL", help="folder or Hub id")
        several = {"nargs": 1} if name == "attention" else {"nargs": "+"}
        command.add_argument("videos", metavar="VIDEO", **several, help="video file, or folder of shards")
        command.add_argument("output", metavar="OUTPUT", type=Path, help="name that ends in .png, .gif or .mp4")
        command.add_argument("--frames", type=int, help="length of a clip (default: the model's)")
        command.add_argument("--fps", type=float, help="frames a second of a clip (default: the video's own)")
        command.add_argument("--size", type=int, help="whole frames as squares of so many pixels")
        command.add_argument("--play_fps", type=float, default=6.0, help="pictures a second of a GIF or mp4 (6)")
        if name != "attention":
            count = 3 if name == "pca" else 16
            command.add_argument("--clips", type=int, default=count, help=f"of all VIDEOs, rounded up ({count})")
    parsers["attention"].add_argument(
        "--clip",
        type=int,
        default=0,
        help="of a file, or row of shards, from 0 (0)",
    )
    parsers["attention"].add_argument("--heads", action="store_true", help="each head, beside their mean")
    near = parsers["nearest"]
    near.add_argument("--neighbours", type=int, default=4, help="frames a row, of different clips (4)")
    near.add_argument("--metric", choices=("cosine", "l2"), default="cosine", help="cosine is of centred latents")
    near.add_argument("--pool", choices=("tokens", "frame"), default="tokens", help="all places, or their mean")
    parsers["loss"].add_argument("--masks", type=Path, help="YAML with `masks` (default: of the model's run)")
    parsers["loss"].add_argument("--draws", type=int, default=16, help="of masks for the batch of clips (16)")
    parsers["loss"].add_argument("--seed", type=int, default=0, help="of the masks (0)")
    return parser


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    options = make_parser().parse_args(arguments)
    check_output(options.output, options.play_fps)
    refuse_missing_model(options.model)
    draw, count = LOOKS[options.look](options)
    write_picture(options.output, lambda shown: draw(shown=shown), count, options.play_fps)
    print(f"{options.output} is written.")


if __name__ == "__main__":
    main()
