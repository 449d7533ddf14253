# /// script
# requires-python = ">=3.11"
# dependencies = ["vjepa2-hf[demo]"]
# ///
"""Measures anomaly detection on synthetic anomalies, inserted into a video at random times.

    python examples/detect_anomalies.py MODEL VIDEO OUT_DIR [--placements 20] [--seed 0] [--more_models MODEL ...]
    python examples/detect_anomalies.py --cut NORMAL.mp4 VIDEO        # the training part of the video

The video is assumed to be normal. Its first half is for training, the third quarter calibrates the detector, and
anomalies are inserted into the last quarter: a jumping object, reversed frames, a frozen image. The ROC AUC is over
the scored frames of a segment with one anomaly. The baseline is the change from frame to frame, the detector's score
"frames". --more_models adds models of other training seeds, on the same placements. OUT_DIR gets anomalies.json and a
heat map of the first placement of each anomaly.
"""

import argparse
import vjepa2_cli  # noqa: F401 (a quick --help)
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import torch
from tqdm.auto import tqdm

import vjepa2_hf
from vjepa2_hf import (
    VJepa2AnomalyDetector,
    VJepa2Encoder,
    VJepa2ForMaskedLatentPrediction,
    VJepa2VideoProcessor,
)
from vjepa2_hf.data.frame_source import FrameSource
from vjepa2_hf.data.video_writing import encode_video
from vjepa2_hf.metrics.planning_success.planning_success import crossed_interval, seed_interval
from vjepa2_hf.pipelines.anomaly_scores import SCORES, Calibration, calibrate, measure_video
from vjepa2_hf.training.settings import exit_on_user_error, refuse_missing_model
from vjepa2_hf.video_io import VideoReader
from vjepa2_hf.visualization.tables import format_table, publish_tables


TRAINED, CALIBRATED = 0.5, 0.75  # fractions of the video where training and calibration end
METHODS = {  # what is measured, two_sided, score
    "model, errors above and below": ("errors", True, "error"),
    "model, errors above": ("errors", False, "error"),
    "model, change of errors": ("errors", True, "change"),
    "model, reversal": ("errors", True, "reversal"),
    "change from frame to frame, above and below": ("errors", True, "frames"),
    "change from frame to frame, above": ("changes", False, "error"),
}


# Anomalies map frames (T, C, H, W) of a segment, an interval and a generator to frames with the anomaly


def jump(frames: torch.Tensor, first: int, last: int, rng: np.random.Generator) -> torch.Tensor:
    """A square of coarse random colors, a sixth of the frame wide, that jumps every fourth frame."""
    frames, (height, width) = frames.clone(), frames.shape[2:]
    size = max(height // 6, 2)
    colors = torch.from_numpy(rng.standard_normal((1, frames.shape[1], 3, 3)).astype(np.float32)) * 1.5
    square = torch.nn.functional.interpolate(colors, size=(size, size), mode="nearest")[0]
    for number in range(first, last):
        if (number - first) % 4 == 0:
            top, left = rng.integers(height - size), rng.integers(width - size)
        frames[number, :, top : top + size, left : left + size] = square
    return frames


def reverse(frames: torch.Tensor, first: int, last: int, rng: np.random.Generator) -> torch.Tensor:
    """The interval runs backwards."""
    return torch.cat([frames[:first], frames[first:last].flip(0), frames[last:]])


def freeze(frames: torch.Tensor, first: int, last: int, rng: np.random.Generator) -> torch.Tensor:
    """The interval repeats its first frame."""
    return torch.cat([frames[:first], frames[first : first + 1].expand(last - first, -1, -1, -1), frames[last:]])


ANOMALIES = {"object that jumps": jump, "frames reversed": reverse, "frozen": freeze}


class Scorers:
    """The calibrated methods: frames (T, C, H, W) -> a score per frame, NaN where there is none."""

    def __init__(self, detector: VJepa2AnomalyDetector, normal: torch.Tensor):
        self.detector = detector
        detector.calibrate(normal)
        measured = self.measure(normal)
        self.calibrations: dict[str, Calibration] = {}
        for name, (values, two_sided, score) in METHODS.items():
            settings = {**detector.settings, "two_sided": two_sided, "scores": [score]}
            others = ([measured["backward"]], [measured["changes"]])
            self.calibrations[name] = calibrate([measured[values]], 0.99, settings, *others)

    def measure(self, frames: torch.Tensor) -> dict[str, torch.Tensor]:
        """What all scores are computed from, (T', H', W')."""
        window = (self.detector.settings["context_frames"], self.detector.settings["future_frames"])
        statistics = self.detector.calibration.statistics
        return measure_video(self.detector.model, FrameSource(frames), *window, statistics=statistics, scores=SCORES)

    def __call__(self, frames: torch.Tensor) -> dict[str, np.ndarray]:
        measured = self.measure(frames)
        tubelet, scores = self.detector.model.config.encoder_config.tubelet_size, {}
        for name, calibration in self.calibrations.items():
            values, _, score = METHODS[name]
            steps = calibration.named_scores(score, measured[values], measured["backward"], measured["changes"])
            scores[name] = steps.repeat_interleave(tubelet).numpy()
        return scores


def sample_placement(frames: int, segment: int, length: int, rng: np.random.Generator) -> tuple[int, int]:
    """First frames of a segment and of the anomaly in it, away from the ends, as the model needs context."""
    margin = (segment - length) // 4
    return int(rng.integers(frames - segment + 1)), int(rng.integers(2 * margin, segment - length - margin + 1))


def measure(scorers: Scorers, test: torch.Tensor, args: argparse.Namespace, plot: bool) -> dict[str, Any]:
    """AUC by anomaly, method and placement; with `plot`, plots the first placements."""
    metric = evaluate.load(str(Path(vjepa2_hf.__file__).parent / "metrics" / "roc_auc"))
    aucs = {anomaly: {method: [] for method in METHODS} for anomaly in ANOMALIES}
    for number in tqdm(range(args.placements), desc="placements"):
        for anomaly, paste in ANOMALIES.items():
            rng = np.random.default_rng([args.seed, number])
            start, first = sample_placement(len(test), args.segment, args.length, rng)
            frames = paste(test[start : start + args.segment], first, first + args.length, rng)
            labels = np.zeros(len(frames), np.int32)
            labels[first : first + args.length] = 1
            for method, scores in scorers(frames).items():
                scored = np.isfinite(scores)
                found = metric.compute(predictions=scores[scored], references=labels[: len(scores)][scored])
                aucs[anomaly][method].append(found["roc_auc"])
            if number == 0 and plot:
                figure = scorers.detector.heat_map(frames, scorers.detector(frames), labels=labels)
                figure.savefig(args.out_dir / f"{anomaly.replace(' ', '_')}.png", dpi=120)
    return aucs


def format_tables(results: dict[str, Any]) -> str:
    """The table of AUCs in Markdown."""
    settings = results["settings"]
    models = settings.get("models", 1)
    over = f"{models} training seeds and placements" if models > 1 else "placements"
    caption = (
        f"AUC over {settings['placements']} placements of {settings['length']} frames in {settings['segment']}: mean "
        f"(95 % interval of the mean over {over}), lowest."
    )

    def cell(values: list[float] | list[list[float]]) -> str:
        table = np.atleast_2d(values)  # (models, placements)
        if table.size == 1:
            interval = "one placement"
        else:
            several = len(table) > 1
            low, high = crossed_interval(table) if several else seed_interval(table[0].tolist())
            interval = f"{max(low, 0):.2f}–{min(high, 1):.2f}"
        return f"{table.mean():.2f} ({interval}), {table.min():.2f}"

    aucs = list(results["auc"].values())
    rows = ([method, *(cell(values[method]) for values in aucs)] for method in METHODS if method in aucs[0])
    return "\n".join([caption, "", *format_table(["scores", *results["auc"]], rows)])


def detect(args: argparse.Namespace) -> None:
    processor = VJepa2VideoProcessor.from_pretrained(args.model)
    chunks = FrameSource(args.video, processor, stride=args.stride).chunks(64)
    frames = torch.cat([pixels for pixels, _ in chunks])  # (T, C, H, W)
    ends = [int(fraction * len(frames)) for fraction in (TRAINED, CALIBRATED)]
    normal, test = frames[ends[0] : ends[1]], frames[ends[1] :]
    if len(test) < args.segment:
        raise ValueError(f"The last quarter of {args.video} has {len(test)} frames; --segment is {args.segment}.")
    args.out_dir.mkdir(parents=True, exist_ok=True)
    found = []
    for name in [args.model, *args.more_models]:
        detector = VJepa2AnomalyDetector(VJepa2ForMaskedLatentPrediction.from_pretrained(name), processor)
        if args.teacher is not None:
            detector.model.set_teacher(VJepa2Encoder.from_pretrained(args.teacher).to(detector.device))
        found.append(measure(Scorers(detector, normal), test, args, plot=name == args.model))
    aucs = found[0]
    if len(found) > 1:  # lists of (models, placements)
        aucs = {kind: {method: [one[kind][method] for one in found] for method in METHODS} for kind in ANOMALIES}
    names = ("placements", "seed", "segment", "length", "stride")
    results = {"settings": {name: getattr(args, name) for name in names} | {"models": len(found)}, "auc": aucs}
    documents = [args.document] if args.document else []
    path = args.results or args.out_dir / "anomalies.json"
    publish_tables(results, format_tables(results), path, documents, "anomalies")


def cut(video: str, path: Path) -> None:
    """Writes the training part of a video."""
    with VideoReader(video) as reader:
        last, fps = int(TRAINED * len(reader)), reader.fps
        frames = (reader.to_rgb(frame) for number, (_, frame) in enumerate(reader.iterate()) if number < last)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_video(frames, fps=fps, crf=18))
    print(f"{last} frames were written to {path}.")


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", nargs="?", help="folder or Hub id of a masked-latent model")
    parser.add_argument("video", metavar="VIDEO", help="without anomalies")
    parser.add_argument("out_dir", metavar="OUT_DIR", nargs="?", type=Path)
    parser.add_argument("--cut", metavar="NORMAL.mp4", type=Path, help="only write the first half of the video")
    parser.add_argument("--placements", type=int, default=20, help="of each anomaly (default: 20)")
    parser.add_argument("--segment", type=int, default=80, help="frames of a placement (default: 80)")
    parser.add_argument("--length", type=int, default=20, help="frames of an anomaly (default: 20)")
    parser.add_argument("--stride", type=int, default=1, help="every stride-th frame is kept (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the placements (default: 0)")
    parser.add_argument(
        "--more_models", metavar="MODEL", nargs="+", default=[], help="models of other training seeds, like the first"
    )
    teacher = "folder or Hub id of the encoder that distilled models learned from (target_type=teacher)"
    parser.add_argument("--teacher", metavar="FOLDER", help=teacher)
    parser.add_argument("--results", type=Path, help="JSON of the results (default: OUT_DIR/anomalies.json)")
    parser.add_argument("--document", type=Path, help="page with markers between which the table is written")
    args = parser.parse_args(arguments)
    if args.cut is not None:
        cut(args.video, args.cut)
        return
    if args.model is None or args.out_dir is None:
        raise ValueError("Give MODEL, VIDEO and OUT_DIR, or --cut NORMAL.mp4 and VIDEO.")
    for name in ("placements", "segment", "length", "stride"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} is {getattr(args, name)}, expected a positive number.")
    if args.segment < 3 * args.length:
        raise ValueError(f"--segment is {args.segment}; expected at least three times --length ({args.length}).")
    for name in [args.model, *args.more_models, *([args.teacher] if args.teacher is not None else [])]:
        refuse_missing_model(name)
    detect(args)


if __name__ == "__main__":
    main()
