"""Linear probes of content and motion on a frozen encoder, on random weights, or on raw pixels.

    python examples/studies/linear_probes.py --encoder runs/demo/pretrain/final --train probe/train --test probe/test
    python examples/studies/linear_probes.py --encoder runs/demo/pretrain/final --weights random --train ... --test ...
    python examples/studies/linear_probes.py --encoder pixels --train ... --test ...

TRAIN and TEST are shards of labeled clips, one per row:

- `digit` and `direction` (record_moving_digits.py): content is the digit, motion its direction; scores are accuracies.
- `states` (record_episodes.py): content is the last state, motion the agent's displacement during the clip; scores are
  R2, averaged over coordinates and clipped at 0 (a constant prediction).

Each probe is a ridge regression (or ridge classifier) on standardized features; its penalty is chosen by leave-one-out
on the training clips. Two readouts: the `average` of all tokens, and all `tokens` concatenated. For raw pixels these
are patches averaged over the clip, and concatenated frames of 16 x 16 pixels. `between_clips` is the fraction of the
tokens' variance (around the mean at each position) that lies between clips, the clips' constant appearance.
"""

import argparse
import json
import vjepa2_cli  # noqa: F401 (a quick --help)
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from sklearn.linear_model import RidgeClassifierCV, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vjepa2_hf import VJepa2Encoder, VJepa2VideoProcessor
from vjepa2_hf.data.files import write_json
from vjepa2_hf.data.shards import ShardSource
from vjepa2_hf.training.settings import exit_on_user_error
from vjepa2_hf.video_io import VideoReader


PENALTIES = np.logspace(0, 6, 13)
BATCH_SIZE = 50
PIXELS = 16  # height and width to which raw pixels are reduced, and of a raw patch


def read_labeled_clips(data: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Frames uint8 (N, T, H, W, 3), and labels "content" and "motion", each (N,) int or (N, S) float."""
    frames, labels = [], []
    for *_, row in ShardSource(data).read_all():
        with VideoReader(row["video"]) as reader:
            frames.append(reader.frames())
        labels.append(clip_labels(row, data))
    if len(shapes := {clip.shape for clip in frames}) != 1:
        raise ValueError(f"The clips in {data!r} have the shapes {sorted(shapes)}, but all must have the same.")
    return np.stack(frames), {name: np.stack([one[name] for one in labels]) for name in labels[0]}


def clip_labels(row: dict[str, Any], data: str) -> dict[str, np.ndarray]:
    """Content and motion of a row."""
    if "digit" in row:
        return {"content": np.int64(row["digit"]), "motion": np.int64(row["direction"])}
    if row.get("states"):
        states = np.asarray(row["states"], np.float32)
        return {"content": states[-1], "motion": (states[-1] - states[0])[:2]}
    raise ValueError(
        f"The rows of {data!r} have the columns {sorted(row)}, but `digit` and `direction`, or `states`, are needed; "
        "record them with examples/record_moving_digits.py or examples/record_episodes.py."
    )


def pixel_readouts(frames: np.ndarray) -> dict[str, np.ndarray]:
    """Features (N, F) by readout of frames uint8 (N, T, H, W, 3); sizes are multiples of 16."""
    scaled = frames.astype(np.float32) / 255
    tubelets = rearrange(scaled, "n (t u) (h p) (w q) c -> n (t h w) (u p q c)", u=2, p=PIXELS, q=PIXELS)
    cells = rearrange(scaled, "n t (h p) (w q) c -> n t h p w q c", h=PIXELS, w=PIXELS).mean(axis=(3, 5))
    return {"average": tubelets.mean(axis=1), "tokens": cells.reshape(len(frames), -1)}


def between_clips(tokens: np.ndarray) -> float:
    """Fraction of the variance of tokens (N, tokens, D), around the mean at each position, that lies between clips."""
    centered = tokens - tokens.mean(axis=0)
    return float((centered.mean(axis=1) ** 2).sum() / (centered**2).sum() * tokens.shape[1])


def probe(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> float:
    """Score on the test clips of a probe fitted on the training clips: accuracy of int labels, R2 of float labels."""
    classes = np.issubdtype(train_labels.dtype, np.integer)
    model = make_pipeline(StandardScaler(), (RidgeClassifierCV if classes else RidgeCV)(alphas=PENALTIES))
    model.fit(train.astype(np.float64), train_labels)
    return max(0.0, float(model.score(test.astype(np.float64), test_labels)))


def measure(encoder: str, train: str, test: str, weights: str = "saved", seed: int = 0) -> dict[str, Any]:
    """Scores of `content` and `motion` for both readouts, and `between_clips` (None for pixels); the arguments are
    the options of the command."""
    frames, labels = zip(*map(read_labeled_clips, (train, test)), strict=True)
    if encoder == "pixels":
        features = [pixel_readouts(clips) for clips in frames]
        scores: dict[str, Any] = {"between_clips": None}
    else:
        processor, model = VJepa2VideoProcessor.from_pretrained(encoder), VJepa2Encoder.from_pretrained(encoder)
        if weights == "random":
            torch.manual_seed(seed)
            model = VJepa2Encoder(model.config)
        tokens = [encode_clips(model.eval(), processor, clips) for clips in frames]
        features = [{"average": each.mean(axis=1), "tokens": each.reshape(len(each), -1)} for each in tokens]
        scores = {"between_clips": between_clips(tokens[1])}
    for readout in ("average", "tokens"):
        fitted, unseen = (split[readout] for split in features)
        scores[readout] = {name: probe(fitted, labels[0][name], unseen, labels[1][name]) for name in labels[1]}
    return scores


def encode_clips(encoder: VJepa2Encoder, processor: VJepa2VideoProcessor, frames: np.ndarray) -> np.ndarray:
    """Tokens float32 (N, tokens, D) of frames uint8 (N, T, H, W, 3)."""
    batches = np.array_split(frames, max(1, len(frames) // BATCH_SIZE))
    pixels = (processor(list(batch), return_tensors="pt")["pixel_values_videos"] for batch in batches)
    return np.concatenate([encoder.encode(batch).numpy() for batch in pixels])


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", required=True, help="folder or Hub id of a model, or 'pixels'")
    parser.add_argument("--train", required=True, help="shards of labeled clips, for the probes")
    parser.add_argument("--test", required=True, help="shards of labeled clips, for the scores")
    parser.add_argument("--weights", default="saved", choices=["saved", "random"], help="random: newly initialized")
    parser.add_argument("--seed", default=0, type=int, help="of random weights (default 0)")
    parser.add_argument("--output", type=Path, help="JSON file for the scores, which are also printed")
    options = vars(parser.parse_args(arguments))
    output, scores = options.pop("output"), measure(**options)
    print(json.dumps(scores, indent=1))
    if output:
        write_json(output, scores)


if __name__ == "__main__":
    main()
