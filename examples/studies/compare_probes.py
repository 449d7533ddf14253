"""Probes of pretrained and random encoders: all kinds of probes, few labels, temporal order, other speeds.

    python examples/studies/compare_probes.py [--output runs/probes] [--seeds 3] [--jobs 2] [--steps 600]
        [--probe_steps 400]

Data: Moving Digits, and recordings of pushing. Each seed pretrains an encoder (the recipe of docs/pretraining.md with
variance and covariance terms) and has a random one of the same architecture. Probes (`train_probe.py`) are fitted on
2000 clips, a tenth of them held out to choose the setting, and scored on 1000 others. `first motion` is which of two
motions came first: no single frame shows this, and the column with shuffled frames is its control. Then: linear probes
on a fraction of the labels; probes of motion on the test digits at half and at double speed, also with an encoder that
was pretrained at these three speeds; and the time of a sweep of 20 heads next to that of one head.
"""

import argparse
import vjepa2_cli  # noqa: F401 (a quick --help)
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import study


RECIPE = "demo/pretrain.yaml#variance"
DIGITS, PUSHING = "moving_digits", "pushing"
ENCODERS = ("pretrained", "random")
NO_TIME = "attentive without positions in time"
SHUFFLED = "first motion, shuffled frames"
FEW_LABELS = ("content", "motion")  # tasks of Moving Digits
FRACTIONS = (0.01, 0.05, 0.1, 0.5, 1.0)
SPLITS = {"train": 1, "test": 2}  # with the seed of the recording
SPEEDS = {"half speed": 0.5, "double speed": 2.0}  # the test clips of Moving Digits' motion, slower and faster
SPEED_KINDS = ("linear", "attentive")
# An encoder pretrained at all three speeds: it sees every, every second or every fourth frame of videos with half as
# much motion per frame and twice as many frames (10 per second, as in all recordings)
SEVERAL_RATES, SLOW_VIDEOS = "pretrained at three speeds", "--speed 0.5 --frames 48"
SEVERAL_FPS = [10, 5, 2.5]
VIDEOS = ("videos", "slow_videos")  # recordings for pretraining
# Fractions of `--clips`, the number of clips that probes are fitted on: test clips, and videos for pretraining
TEST_FRACTION, VIDEO_FRACTION = 0.5, {DIGITS: 0.75, PUSHING: 0.28}
# By dataset: task -> recording, label column. SHUFFLED removes the order of the frames
TASKS = {
    dataset: {
        "content": ("clips", content),
        "motion": ("clips", "direction"),
        "first motion": (turns, "first_motion"),
        SHUFFLED: (turns, "first_motion"),
    }
    for dataset, content, turns in ((DIGITS, "digit", "turns"), (PUSHING, "place", "clips"))
}
ATTENTIVE = {"kind": "attentive", "learning_rates": [3e-3, 1e-3], "weight_decays": [0.1]}
# Rows of the table: what differs from the demo's probe
KINDS = {
    "linear": {"kind": "linear", "standardize": True, "learning_rates": [1e-2, 3e-3, 1e-3], "batch_size": 64},
    "attentive": ATTENTIVE,
    NO_TIME: {**ATTENTIVE, "head.pooler_time_positions": False},  # as published
    "knn": {"kind": "knn", "standardize": True},
    "finetune": {"kind": "finetune", "learning_rates": [1e-3], "weight_decays": [0.05]},
}
SWEEPS = {
    "sweep": {"learning_rates": [5e-3, 3e-3, 1e-3, 3e-4, 1e-4], "weight_decays": [0.01, 0.1, 0.4, 0.8]},  # published
    "one head": {"learning_rates": [1e-3], "weight_decays": [0.01]},
}
HEADS = 20
# By dataset: settings of attentive heads, and the factor of all probes' steps. Digits are large, and no task asks for
# their position; the pushing disc is small, and a head finds it only after hundreds of steps
SETTINGS = {DIGITS: {"head.pooler_space_positions": False}, PUSHING: {}}
STEPS_FACTOR = {DIGITS: 1, PUSHING: 3}


def recording(options: argparse.Namespace, dataset: str, name: str, split: str) -> Path:
    return options.output / dataset / "data" / study.slug(name if name in VIDEOS else f"{name} {split}")


def prepare(options: argparse.Namespace, dataset: str) -> None:
    """Records videos for pretraining and labeled clips of 8 frames."""
    recordings = [("videos", "train")]
    recordings += [(name, split) for name in {task[0] for task in TASKS[dataset].values()} for split in SPLITS]
    if dataset == DIGITS:
        recordings += [("slow_videos", "train"), *((name, "test") for name in SPEEDS)]
    special = {"videos": "", "slow_videos": SLOW_VIDEOS, "turns": "--frames 8 --two_motions"}
    for name, split in recordings:
        clips = options.clips * (1 if split == "train" else TEST_FRACTION)
        count = round(options.clips * VIDEO_FRACTION[dataset] if name in VIDEOS else clips)
        if dataset == DIGITS:
            more = special.get(name, f"--frames 8 --speed {SPEEDS.get(name, 1)}")
            command = f"record_moving_digits.py --split {split} --videos {count} {more}"
        else:
            more = "" if name == "videos" else "--labels --length 7"
            command = f"{study.ENVIRONMENTS[PUSHING]} --num_proc 1 --episodes {count} {more}"
        command += f" --seed {0 if name in VIDEOS else SPLITS[split]}"
        study.RunFolder(options.output / dataset / "shared").record(recording(options, dataset, name, split), command)


def run_seed(options: argparse.Namespace, dataset: str, seed: int) -> None:
    """Pretraining and all probes of one dataset and seed. A random encoder has the pretrained one's architecture."""
    runs, data = study.RunFolder(options.output / dataset / f"seed-{seed}"), partial(recording, options, dataset)
    settings = {"data": data("videos", "train"), "seed": seed, "max_steps": options.steps, **study.SHORT_RUN}
    encoders = dict.fromkeys(ENCODERS, runs.configured("pretrain", "pretrain.py", RECIPE, settings))
    if dataset == DIGITS:
        settings |= {"data": data("slow_videos", "train"), "fps": SEVERAL_FPS}
        encoders[SEVERAL_RATES] = runs.configured("pretrain_rates", "pretrain.py", RECIPE, settings)
    for name, task, kind, encoder, more in probes_of(dataset, timed=seed == 0):
        source, label = TASKS[dataset][task]
        steps = STEPS_FACTOR[dataset] * options.probe_steps
        settings = {
            "data": data(source, "train"),
            "validation_data": data(source, "test"),
            "label": label,
            "encoder": encoders[encoder],
            "random_weights": encoder == "random",
            "cache_dir": options.output / dataset / "features",
            "seed": seed,
            "max_steps": steps // 2 if kind == "finetune" else steps,  # its steps take longer
            "shuffle_time": task == SHUFFLED,
        }
        if more in SWEEPS.values():  # the cache is its own, so that encoding is timed
            settings["cache_dir"] = runs.path / "runs" / f"features_{kind}"
        if dataset == DIGITS and task == "motion" and kind in SPEED_KINDS:
            settings["evaluate_on"] = {speed: str(data(speed, "test")) for speed in SPEEDS}
        settings |= {**KINDS[kind], **SETTINGS[dataset], **more}
        runs.train_probe(name, runs.path / "runs" / study.slug(name), settings)


def probes_of(dataset: str, timed: bool) -> Iterator[tuple[str, str, str, str, dict[str, Any]]]:
    """Name, task, kind, encoder and further settings of all probes: those of the table, few labels, other speeds and,
    where `timed`, sweeps."""
    for encoder in ENCODERS:
        for task in TASKS[dataset]:
            for kind in kinds_of(dataset, task, encoder):
                yield run_name(task, kind, encoder), task, kind, encoder, {}
            for fraction in FRACTIONS[:-1] if dataset == DIGITS and task in FEW_LABELS else ():
                name = run_name(task, "linear", encoder, fraction)
                yield name, task, "linear", encoder, {"label_fraction": fraction}
    for kind in SPEED_KINDS if dataset == DIGITS else ():
        yield run_name("motion", kind, SEVERAL_RATES), "motion", kind, SEVERAL_RATES, {}
        for sweep, more in SWEEPS.items() if timed else ():
            yield f"{sweep} {kind}", next(iter(TASKS[DIGITS])), kind, "pretrained", more


def kinds_of(dataset: str, task: str, encoder: str) -> list[str]:
    """The probes of a task: controls (shuffled frames, no positions in time) only where they can show something, and
    fine-tuning of many steps only for content."""
    if task == SHUFFLED:
        return [kind for kind in ("linear", "attentive", "knn") if encoder == "pretrained" and kind in KINDS]
    left_out = set() if (task, encoder) == ("first motion", "pretrained") else {NO_TIME}
    left_out |= {"finetune"} if dataset == PUSHING and task != "content" else set()
    return [kind for kind in KINDS if kind not in left_out]


def run_name(task: str, kind: str, encoder: str, fraction: float = 1.0) -> str:
    return f"{task} {kind} {encoder}" + ("" if fraction == 1 else f" {fraction:g}")


def run(options: argparse.Namespace) -> None:
    for dataset in options.datasets:
        prepare(options, dataset)
    seeds = [(dataset, seed) for seed in range(options.seeds) for dataset in options.datasets]
    study.run_side_by_side([partial(run_seed, options, *one) for one in seeds], options.jobs)


def collect(options: argparse.Namespace) -> dict[str, Any] | None:
    datasets = {dataset: collect_dataset(options, dataset) for dataset in options.datasets}
    probes = [value for found in datasets.values() for row in found["probes"].values() for value in row.values()]
    return {"datasets": datasets} if any(probes) else None


def collect_dataset(options: argparse.Namespace, dataset: str) -> dict[str, Any]:
    def read(name: str) -> list[dict[str, Any]]:
        return study.read_seeds(options.output / dataset, f"runs/{study.slug(name)}/results.json", options.seeds)

    found: dict[str, Any] = {"probes": {}, "few_labels": {}, "seconds": {}}
    for kind, encoder in product(KINDS, ENCODERS):
        row = {task: summarize(read(run_name(task, kind, encoder))) for task in TASKS[dataset]}
        found["probes"][f"{kind}, {encoder}"] = row
    for task, encoder in product(FEW_LABELS, ENCODERS):
        row = {f"{100 * part:g} %": summarize(read(run_name(task, "linear", encoder, part))) for part in FRACTIONS}
        found["few_labels"][f"{task}, {encoder}"] = row
    for kind in SPEED_KINDS:
        sweep, one = (read(f"{title} {kind}") for title in SWEEPS)
        if sweep and one:  # of encoding, of 20 heads at once, and of one head
            seconds = {"features": sweep[0]["seconds"]["features"], "sweep": sweep[0]["seconds"]["heads"]}
            found["seconds"][kind] = seconds | {"one_head": one[0]["seconds"]["heads"]}
    if dataset == DIGITS:
        found["speeds"] = {}
        for kind, encoder in product(SPEED_KINDS, (*ENCODERS, SEVERAL_RATES)):
            results = read(run_name("motion", kind, encoder))
            half, double = (summarize(results, speed) for speed in SPEEDS)
            row = {"half speed": half, "as trained": summarize(results), "double speed": double}
            found["speeds"][f"{kind}, {encoder}"] = row
    return found


def summarize(results: list[dict[str, Any]], other: str | None = None) -> dict[str, Any] | None:
    """The score over seeds, on the test clips or on those of `evaluate_on`."""
    if not results:
        return None
    found = [result["evaluate_on"][other] if other else result["validation"] for result in results]
    values = [scores[result["score"]] for scores, result in zip(found, results, strict=True)]
    guess = float(np.mean([result["same_answer_for_all"] for result in results]))
    return {**study.over_seeds(values), "same_answer_for_all": guess}


@study.markdown
def format_tables(results: dict[str, Any]) -> Iterator[str | tuple]:
    yield (
        f"{results['steps']} steps of pretraining, {results['probe_steps']} of a probe (in pushing "
        f"{STEPS_FACTOR[PUSHING]} times as many; fine-tuning: half as many) on {results['clips']} clips; accuracy on "
        "others, means over seeds (95 % interval over seeds)."
    )
    for dataset, found in results["datasets"].items():
        measured = {name: row for name, row in found["probes"].items() if any(row.values())}
        seeds = max([len(value["by_seed"]) for row in measured.values() for value in row.values() if value] or [0])
        yield f"**{study.capitalized(dataset)}** ({seeds} seeds)"
        guess = dict.fromkeys(TASKS[dataset])
        for row in reversed(measured.values()):  # of the first row that has it
            guess |= {task: value["same_answer_for_all"] for task, value in row.items() if value}
        yield study.table("probe, encoder", {"the same answer for all": guess, **measured})
        if dataset == DIGITS:
            yield "Linear probes on a fraction of the labels:"
            yield study.table("task, encoder", found["few_labels"])
        if any(value for row in found.get("speeds", {}).values() for value in row.values()):
            yield "Motion, probes fitted at normal speed, on the same digits at other speeds:"
            yield study.table("probe, encoder", found["speeds"])
        if found["seconds"]:
            yield f"Seconds on one thread, with another run side by side ({HEADS} heads at once, or one):"
            rows = {}
            for kind, one in found["seconds"].items():
                seconds = one["features"], one["sweep"], one["features"] + HEADS * one["one_head"]
                titles = "features", f"{HEADS} at once", f"features + {HEADS} × one"
                rows[kind] = {title: f"{value:.0f}" for title, value in zip(titles, seconds, strict=True)}
            yield study.table("heads", rows)


CHOICES = {"datasets": (TASKS, TASKS)}
STUDY = study.Study(
    "probes", __doc__, run, collect, format_tables, ["docs/probes.md"], study.PROBE_SETTINGS, choices=CHOICES
)


if __name__ == "__main__":
    STUDY.main()
