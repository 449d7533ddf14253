"""The error of a model's predictions of the future by horizon, next to guesses that need no model.

    python examples/studies/measure_future.py MODEL VIDEOS OUT.json [--past 8] [--horizons 1 2 4 8] [--clips 500]

MODEL is a masked-latent model; VIDEOS are shards or a folder. A clip is the middle of a video: `--past` frames that
the model sees, and as many after them as the furthest horizon. The error at horizon `h` is that of the tubelet with
the `h`-th frame after the past.

- Targets: the target encoder's tokens of the whole clip at the future's positions, normalized as in training, with all
  clips as one batch.
- `one step`, `autoregressive`: `predict_future` from the past, all future tubelets at once or one after another.
- `copy the last tubelet`, `linear extrapolation` (of the last two): tokens of the target encoder that has seen only
  the past, normalized in the same way.
- `mean of all clips`: the mean of these clips' targets at each position and time.

OUT.json holds the mean squared and absolute errors over clips, positions and channels by future tubelet (`errors`),
and at the horizons the same divided by the error of copying (`over_copying`).
"""

import argparse
import vjepa2_cli  # noqa: F401 (a quick --help)
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import study
import torch
from tqdm.auto import tqdm

from vjepa2_hf import VJepa2ForMaskedLatentPrediction, VJepa2VideoProcessor
from vjepa2_hf.data.files import write_json
from vjepa2_hf.probing.labeled_clips import ClipViews, LabeledClips
from vjepa2_hf.training.settings import exit_on_user_error, refuse_missing_model


COPY = "copy the last tubelet"
METRICS = {"mse": "mean squared error", "l1": "mean absolute error"}


def tubelet_of(horizon: int, tubelet_size: int) -> int:
    """Index of the future tubelet that holds the frame `horizon` frames after the past."""
    return (horizon - 1) // tubelet_size


def covered(index: int, tubelet_size: int) -> str:
    """The frames of a future tubelet, such as "3–4"."""
    first, last = index * tubelet_size + 1, (index + 1) * tubelet_size
    return f"{first}" if first == last else f"{first}–{last}"


def iterate_clips(videos: str, frames: int, fps: float | None, processor, count: int, batch: int) -> Iterator:
    """Normalized clips (B, T, C, H, W) from the middles of long enough videos; fewer than 2 in all are an error."""
    stream = LabeledClips(videos, ClipViews(frames, fps=fps), processor)
    # Indices (1, T) increase: videos that are too short start again, and frames repeat at rates above the own one
    found = (clip["frames"] for clip in stream if "frames" in clip and (clip["frame_indices"].diff(dim=1) > 0).all())
    found, total = islice(found, count), 0
    while taken := list(islice(found, batch)):
        total += len(taken)
        yield processor.normalize_cropped(torch.cat(taken))
    if total < 2:
        rate = "each video's own rate" if fps is None else f"--fps {fps:g}"
        more = "" if fps is None else ", or an --fps that is not above their own"
        raise ValueError(
            f"{total} videos of {videos!r} hold {frames} different frames at {rate}, but at least 2 are expected: "
            f"give longer videos, or more of them{more}."
        )


@torch.no_grad()
def measure(model: VJepa2ForMaskedLatentPrediction, clips: Iterator[torch.Tensor], past: int) -> dict[str, Any]:
    """`errors` by method and metric, one float per future tubelet, and `clips`, their number.

    Batches of clips are (B, T, C, H, W); the first `past` of their T frames are what the model sees.
    """
    if model.config.normalize_targets == "position":
        raise ValueError(
            "normalize_targets='position' subtracts a clip's mean over time, which is unknown to baselines that see "
            "only the past; give a model of another normalization."
        )
    tubelet, found = model.config.encoder_config.tubelet_size, []
    for batch in clips:
        batch = batch.to(model.device)
        seen, future = batch[:, :past], batch.shape[1] - past
        parts = {"whole": model.encode_targets(batch), "past": model.encode_targets(seen)}
        parts["one step"] = model.predict_future(seen, future)
        if model.config.target_type != "pixels":  # which cannot be context
            parts["autoregressive"] = model.predict_future(seen, future, autoregressive=True)
        found.append({name: values.float().cpu() for name, values in parts.items()})
    values = {name: torch.cat([batch[name] for batch in found]) for name in found[0]}
    whole, known = (model.normalize_targets(values.pop(name)) for name in ("whole", "past"))
    steps = past // tubelet
    positions = known.shape[1] // steps
    whole, known = whole.unflatten(1, (-1, positions)), known.unflatten(1, (steps, positions))
    truth = whole[:, steps:]  # (E, f, P, D): clips, future tubelets, positions, channels
    guesses = values | baselines(known, truth)
    return {"clips": len(truth), "errors": {name: errors(guess, truth) for name, guess in guesses.items()}}


def baselines(known: torch.Tensor, truth: torch.Tensor) -> dict[str, torch.Tensor]:
    """Guesses (E, f, P, D) without a model, from the past (E, T', P, D)."""
    last, ahead = known[:, -1:], torch.arange(1, truth.shape[1] + 1).view(1, -1, 1, 1)
    found = {COPY: last.expand_as(truth)}
    if known.shape[1] > 1:
        found["linear extrapolation"] = last + ahead * (last - known[:, -2:-1])
    return {**found, "mean of all clips": truth.mean(dim=0, keepdim=True).expand_as(truth)}


def errors(guess: torch.Tensor, truth: torch.Tensor) -> dict[str, list[float]]:
    """Mean errors of (E, f, P, D) over clips, positions and channels, one per future tubelet."""
    difference = guess - truth
    values = {"mse": difference.square(), "l1": difference.abs()}
    return {name: value.mean(dim=(0, 2, 3)).tolist() for name, value in values.items()}


def over_copying(found: dict[str, Any], metric: str, indices: list[int]) -> dict[str, list[float]]:
    """By method: the errors of some future tubelets divided by that of copying."""
    copied = found[COPY][metric]
    return {name: [values[metric][i] / max(copied[i], 1e-12) for i in indices] for name, values in found.items()}


@study.markdown
def format_tables(results: dict[str, Any]) -> Iterator[str | tuple]:
    for metric, title in METRICS.items():
        titles = [f"{title} over that of copying, frames after the past", *results["frames"]]
        yield titles, [[name, *values] for name, values in results["over_copying"][metric].items()]


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub id of a masked-latent model")
    parser.add_argument("videos", help="shards, or a folder of videos")
    parser.add_argument("output", type=Path, help="JSON file to write")
    parser.add_argument("--past", type=int, default=8, help="frames that the model sees (default: 8)")
    parser.add_argument("--horizons", type=int, nargs="+", default=[1, 2, 4, 8], help="frames after the past")
    parser.add_argument("--fps", type=float, help="frames per second; default: the video's own")
    parser.add_argument("--clips", type=int, default=500, help="maximum number (default: 500)")
    parser.add_argument("--batch_size", type=int, default=16, help="clips at once (default: 16)")
    parser.add_argument("--num_threads", type=int, help="of torch")
    options = parser.parse_args(arguments)
    if options.num_threads:
        torch.set_num_threads(options.num_threads)
    if options.clips < 2:
        raise ValueError(f"--clips is {options.clips}; expected 2 or more, for the mean of all clips to be a guess.")
    refuse_missing_model(options.model)
    model = VJepa2ForMaskedLatentPrediction.from_pretrained(options.model).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    tubelet = model.config.encoder_config.tubelet_size
    if options.past < tubelet or options.past % tubelet or min(options.horizons) < 1:
        raise ValueError(
            f"--past is {options.past} and --horizons {options.horizons}, but a multiple of the model's tubelet of "
            f"{tubelet} frames, and frames from 1, are expected."
        )
    horizons = {str(horizon): tubelet_of(horizon, tubelet) for horizon in sorted(options.horizons)}
    indices = sorted(set(horizons.values()))
    frames = options.past + (indices[-1] + 1) * tubelet
    processor = VJepa2VideoProcessor.from_pretrained(options.model)
    clips = iterate_clips(options.videos, frames, options.fps, processor, options.clips, options.batch_size)
    results = measure(model, tqdm(clips, desc="clips", unit="batch"), options.past)
    results = {"model": options.model, "past": options.past, "tubelet_size": tubelet, "horizons": horizons, **results}
    results["frames"] = [covered(index, tubelet) for index in indices]
    results["over_copying"] = {metric: over_copying(results["errors"], metric, indices) for metric in METRICS}
    write_json(options.output, results)
    print(format_tables(results))


if __name__ == "__main__":
    main()
