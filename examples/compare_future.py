"""Future prediction and anticipation, measured: masks in space and time beside masks of the future, in two tables.

    python examples/compare_future.py [--output runs/future_prediction] [--seeds 3] [--lanes 2] [--steps 600]

Data: Moving Digits, videos of 24 frames for pretraining and of 16 for the rest, scores on other digits. Each seed
pretrains two masked-latent models on clips of 16 frames, which differ in their masks: blocks of space and time, or
these and the second half of the clip. `measure_future.py` measures how well each predicts 8 frames that follow 8.

Then anticipation: `train_probe.py` reads from the first 8 frames where the digit will be in the 16th (`place`, of
4 x 4 fields; it may bounce before), from the encoder's tokens with and without those predicted of the 8 frames to
come, pretrained and with random weights, and for comparison from the last 8 frames, which show the answer.

Runs go side by side, one thread each; a stopped command goes on where it was. Results go to
`results/future_prediction.json` and into docs/future_prediction.md between its markers.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ablate_pretraining import cell, slug
from demo import Road, script
from measure_future import METRICS, columns, relative
from reproduce import ROOT, refuse_to_publish_nothing
from seed_tables import claim_settings, over_seeds, settings_of
from tqdm import tqdm

from vjepa2_hf.metrics.planning_success.planning_success import t_interval
from vjepa2_hf.training.settings import exit_on_user_error
from vjepa2_hf.visualization.tables import publish_tables


CONFIGS = ROOT / "examples" / "configs"
RECIPE = CONFIGS / "demo" / "pretrain_digits.yaml"
PAST, FUTURE = 8, 8  # frames
HORIZONS = (1, 2, 4, 8)
BLOCKS, BOTH = "blocks", "blocks and future"
# recording: arguments; `--clips` are those to fit probes on
RECORDINGS = {
    "videos": ("train", 0.75, "--frames 24 --seed 0"),
    "train": ("train", 1.0, f"--frames {PAST + FUTURE} --seed 1"),
    "test": ("test", 0.5, f"--frames {PAST + FUTURE} --seed 2"),
}
# The rows of the second table: what differs between the probes
UNSEEN = [f"anticipate_frames={FUTURE}"]
PROBES = {
    "encoder and predictor": [*UNSEEN, f"predicted_frames={FUTURE}"],
    "encoder and predictor's last tubelet": [*UNSEEN, "predicted_frames=2"],  # published: one tubelet
    "encoder": UNSEEN,
    "random encoder and predictor": [*UNSEEN, f"predicted_frames={FUTURE}", "random_weights=true"],
    "random encoder": [*UNSEEN, "random_weights=true"],
    "encoder, of the last 8 frames": ["anticipate_frames=0"],
}
SCORES = {"accuracy": "accuracy", "class_mean_recall_at_5": "class-mean recall at 5"}


class Chain:
    """The runs of one seed, one after the other; those of no seed are the recordings."""

    def __init__(self, arguments: argparse.Namespace, seed: int | None = None):
        self.arguments, self.seed = arguments, seed
        self.folder = arguments.output / ("shared" if seed is None else f"seed-{seed}")

    def run_step(self, name: str, result: Path, command: list[str]) -> None:
        """Runs a command unless its result is there; logs and times lie in a folder of its own."""
        Road(self.folder / "logs" / slug(name), threads=1, quiet=True).run(name, (slug(name), result, command))

    def recording(self, name: str) -> Path:
        return self.arguments.output / "data" / name

    def record(self) -> None:
        for name, (split, share, more) in RECORDINGS.items():
            command = ["record_moving_digits.py", "--split", split, *more.split()]
            command += ["--videos", str(round(self.arguments.clips * share)), "--output", str(self.recording(name))]
            self.run_step(f"record {name}", self.recording(name), script(*command))

    def model(self, masks: str) -> Path:
        return self.folder / slug(f"pretrain {masks}") / "final"

    def pretrain(self, masks: str) -> None:
        specs = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["masks"]
        specs = specs if masks == BOTH else [spec for spec in specs if spec["type"] != "future"]
        command = script("pretrain.py", "--config", str(RECIPE), f"data={self.recording('videos')}")
        command += [f"output_dir={self.model(masks).parent}", f"seed={self.seed}", f"masks={json.dumps(specs)}"]
        command += [f"max_steps={self.arguments.steps}", f"frames_per_clip={PAST + FUTURE}"]
        command += ["num_workers=0", "num_threads=1", "save_every=1000000", "resume=latest"]
        self.run_step(f"pretrain {masks}", self.model(masks), command)

    def measure(self, masks: str) -> None:
        result = self.folder / f"{slug(f'future {masks}')}.json"
        command = script("measure_future.py", str(self.model(masks)), str(self.recording("test")), str(result))
        command += ["--past", str(PAST), "--horizons", *map(str, HORIZONS), "--num_threads", "1"]
        self.run_step(f"measure {masks}", result, command)

    def probe(self, row: str) -> None:
        output = self.folder / "probes" / slug(row)
        command = script("train_probe.py", "--config", str(CONFIGS / "demo" / "probe.yaml"), "label=place")
        command += [f"data={self.recording('train')}", f"validation_data={self.recording('test')}"]
        command += [f"encoder={self.model(BOTH)}", f"output_dir={output}", f"frames_per_clip={PAST}"]
        command += [f"cache_dir={self.folder / 'features'}", f"max_steps={self.arguments.probe_steps}"]
        command += [f"seed={self.seed}", "num_threads=1", "log_every=50", "save_every=1000000", "resume=latest"]
        self.run_step(f"probe {row}", output / "results.json", [*command, *PROBES[row]])

    def run(self) -> None:
        """Pretraining and errors with both masks, then the probes."""
        for masks in (BOTH, BLOCKS):
            self.pretrain(masks)
            self.measure(masks)
        for row in PROBES:
            self.probe(row)


def settings(arguments: argparse.Namespace) -> dict[str, int]:
    """What the results of every run depend on."""
    return {name: getattr(arguments, name) for name in ("steps", "probe_steps", "clips")}


def run_all(arguments: argparse.Namespace) -> None:
    """Every seed, `lanes` at a time."""
    Chain(arguments).record()
    chains = [Chain(arguments, seed) for seed in range(arguments.seeds)]
    with tqdm(total=len(chains), desc="seeds") as progress, ThreadPoolExecutor(arguments.lanes) as lanes:
        for done in [lanes.submit(chain.run) for chain in chains]:
            done.result()
            progress.update()


def read(arguments: argparse.Namespace, name: str) -> list[dict[str, Any]]:
    """The results of a run, of every seed that has it."""
    files = [arguments.output / f"seed-{seed}" / name for seed in range(arguments.seeds)]
    return [json.loads(file.read_text()) for file in files if file.exists()]


def collect(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything that was measured."""
    future, names = {}, []
    for masks in (BLOCKS, BOTH):
        runs = read(arguments, f"{slug(f'future {masks}')}.json")
        if runs:
            names = columns(runs[0])
            future[masks] = {metric: summarise_errors(runs, metric, names) for metric in METRICS}
    anticipation = {}
    for row in PROBES:
        runs = read(arguments, f"probes/{slug(row)}/results.json")
        if runs:
            found = {score: over_seeds([run["validation"][score] for run in runs]) for score in SCORES}
            guess = float(np.mean([run["same_answer_for_all"] for run in runs]))
            anticipation[row] = {**found, "same_answer_for_all": guess}
    refuse_to_publish_nothing(arguments.output, bool(future or anticipation))
    counts = settings_of(arguments.output, settings(arguments))
    return {**counts, "frames": names, "future": future, "anticipation": anticipation}


def summarise_errors(runs: list[dict[str, Any]], metric: str, names: list[str]) -> dict[str, dict[str, Any]]:
    """By method and frames after the past: errors as multiples of copying's."""
    found = [relative(run, metric) for run in runs]
    return {
        method: {name: over_seeds([one[method][i] for one in found], t_interval) for i, name in enumerate(names)}
        for method in found[0]
    }


def format_tables(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    seeds = max([len(row["accuracy"]["by_seed"]) for row in results["anticipation"].values()] or [0])
    lines = [f"{results['steps']} steps of pretraining; means over seeds (95 % interval over seeds)."]
    for metric, title in METRICS.items():
        lines += ["", f"{title.capitalize()} over that of copying the last tubelet, by frames after the past:", ""]
        lines += [f"| masks | prediction | {' | '.join(results['frames'])} |"]
        lines += ["|---" * (2 + len(results["frames"])) + "|"]
        for masks, found in results["future"].items():
            for method, values in found[metric].items():
                cells = [cell(value, len(value["by_seed"])) for value in values.values()]
                lines.append(f"| {masks} | {method} | {' | '.join(cells)} |")
    if results["anticipation"]:
        lines += ["", f"Anticipation, {results['probe_steps']} steps of a probe on {results['clips']} clips ({seeds}"]
        lines[-1] += f" seeds), masks: {BOTH}:"
        lines += ["", f"| probe on | {' | '.join(SCORES.values())} |", "|---|---|---|"]
        guess = next(iter(results["anticipation"].values()))["same_answer_for_all"]
        lines.append(f"| the same answer for all | {guess:.2f} | |")
        for row, found in results["anticipation"].items():
            cells = [cell(found[score], len(found[score]["by_seed"])) for score in SCORES]
            lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/future_prediction"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lanes", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--steps", type=int, default=600, help="of pretraining")
    parser.add_argument("--probe_steps", type=int, default=400, help="of every probe")
    parser.add_argument("--clips", type=int, default=2000, help="to fit probes on; half as many for scores")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "future_prediction.json")
    document = ROOT / "docs" / "future_prediction.md"
    parser.add_argument("--document", type=Path, default=document, help="file with markers")
    parser.add_argument("--collect", action="store_true", help="run nothing: publish what the runs so far measured")
    options = parser.parse_args(arguments)
    if not options.collect:
        claim_settings(options.output, settings(options))
        run_all(options)
    results = collect(options)
    publish_tables(results, format_tables(results), options.results, [options.document], "future_prediction")


if __name__ == "__main__":
    main()
