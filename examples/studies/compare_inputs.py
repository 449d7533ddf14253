"""What a learned state should read under varied appearance: pixels, or tokens of a pretrained or a random encoder.

    python examples/studies/compare_inputs.py [--seeds 5] [--seconds 300] [--episodes 1000] [--tasks 100] [--jobs 2]

All models learn from the same recorded episodes of pushing, where floor, colors, light and other objects differ from
episode to episode. The first stage of every model has the same core time: two short runs per row measure what a step
costs on this machine, and each row has as many steps as fit into `--seconds`. The second stage, the dynamics on cached
states, has the same number of steps in all rows. Each training seed plans on tasks of its own. A linear read-out
measures on fresh episodes how well the states show the positions of pusher and block.

Rows that read pixels train their whole network. Those that read tokens train the network on top of an encoder, which
encodes the augmented frames in every step; this is part of their time. The encoder is frozen, except in one row, which
trains the pretrained one along. Pretraining it, on the videos of the same episodes, is paid extra, and both rows share
it. `LeWM-like` replaces the contrast by the mean squared error of the next state and
SIGReg (arXiv 2603.19312). The weight of SIGReg is chosen by trials on another seed and other tasks. Results go to
`results/compare_inputs.json` and docs/states.md.

`--rows` measures some rows again, with all of their seeds. The other rows stay as they are in the results file, and so
do the steps of the first stage and the weight of SIGReg. A row is replaced once it has as many seeds as before.
"""

import argparse
import json
import threading
import vjepa2_cli  # noqa: F401 (a quick --help)
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import study
import torch

from vjepa2_hf import VJepa2VideoProcessor, VJepa2WorldModel
from vjepa2_hf.data.episodes import read_episodes
from vjepa2_hf.data.files import write_json
from vjepa2_hf.metrics.r_squared.r_squared import r_squared
from vjepa2_hf.visualization.rollout_windows import encode_frames
from vjepa2_hf.visualization.state_probe import choose_probe


PIXELS, PATCHES, LEWM = "pixels, convolutional stem", "pixels, linear patches", "LeWM-like"
PRETRAINED, RANDOM = "tokens, pretrained encoder", "tokens, random encoder"
ALONG = "tokens, pretrained encoder trained along"
SIZE, PATCH = 64, 8  # pixels
ENCODER = {  # the preset "single-frame", smaller, with a convolutional stem
    "patch_size": PATCH,
    "tubelet_size": 1,
    "patch_stem": "conv",
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "initializer_range": 0.1,
    "depth_scaled_init": False,
}
ROWS: dict[str, dict[str, Any]] = {  # in the table's order: settings of train_world_model.py
    PIXELS: {},
    PATCHES: {"world_model.state_stem": "patches", "encoder_config": {"crop_size": SIZE, "patch_size": PATCH}},
    PRETRAINED: {"world_model.state_input": "tokens", "encoder_config": {}},
    ALONG: {"world_model.state_input": "tokens", "encoder_config": {}, "state.train_encoder": True},
    RANDOM: {
        "world_model.state_input": "tokens",
        "encoder": "random",
        "encoder_config": {"crop_size": SIZE, **ENCODER},
    },
    LEWM: {"state.episode_contrast_weight": 0.0, "state.prediction_weight": 1.0, "state.sigreg_weight": 0.1},
}
# The second one waits for the pretraining of the first, the last one for the trials
LONGEST_FIRST = PRETRAINED, ALONG, RANDOM, PIXELS, PATCHES, LEWM
PAIRS = [(row, PIXELS) for row in ROWS if row != PIXELS] + [(PRETRAINED, RANDOM), (ALONG, PRETRAINED)]
PRETRAINING = {  # docs/pretraining.md, "Varied appearance", with the variance and covariance terms of the ablations
    **{f"encoder.{name}": value for name, value in ENCODER.items()},
    "normalize_targets": "position",
    "temporal_contrastive_weight": 0.1,
    "temporal_contrastive_negatives": "times",
    "temporal_contrastive_temperature": 10,
    "batch_size": 8,
    "clips_per_video": 1,
}
RECORD = f"{study.ENVIRONMENTS['pushing']} --varied_appearance"
BATCH_SIZE = 128  # of the second stage: half of the config's, which leaves more of the time to the first
FRAMES = 16  # of an episode, among which the first stage looks for one; of the config
RECORDERS = 8  # processes at most
SPEED_STEPS, SPEED_EPISODES = (10, 60), 40  # of the two runs that measure a step
TRIAL_WEIGHTS = 0.01, 0.1, 1.0  # of SIGReg
TRIAL_PART = 0.5  # of the time of a reported model
TRIAL_SEED, TRIAL_TASK = 100, 300_000  # of no row
FIRST_TASK = 990_000  # of no other study; each seed has 1000
READ_OUT = {"pusher": [0, 1], "block": [2, 3]}  # columns of an episode's states
READ_OUT_EPISODES, READ_OUT_SEED = 200, 1
_loading = threading.Lock()  # from_pretrained changes global state


# ---------------------------------------------------------------------------------------------------------------------
# Runs
# ---------------------------------------------------------------------------------------------------------------------
def run(options: argparse.Namespace) -> None:
    if torch.cuda.is_available():
        raise ValueError("A GPU is visible, but core seconds are compared: run with CUDA_VISIBLE_DEVICES set to ''.")
    torch.set_num_threads(1)  # of a read-out: they run side by side
    shared = study.RunFolder(options.output)
    command = f"{RECORD} --episodes {options.episodes} --num_proc {min(options.jobs, RECORDERS)}"
    fresh = f"{RECORD} --episodes {READ_OUT_EPISODES} --num_proc 1 --seed {READ_OUT_SEED}"
    recordings = {"episodes": command, "read_out": fresh}
    records = [partial(shared.record, options.output / name, one) for name, one in recordings.items()]
    study.run_side_by_side(records, options.jobs)
    study.run_side_by_side(queue_of(options), options.jobs)


def queue_of(options: argparse.Namespace) -> list[Callable[[], Any]]:
    """All runs in an order in which those that wait come after those that they wait for: the runs that measure a step,
    then the longest ones; trials come early, the row that they decide last."""
    if kept_results(options):
        waits = Waits([], {}, [Future() for _ in range(options.seeds)])
        rows = [row for row in LONGEST_FIRST if row in options.rows]
        return [partial(run_model, options, row, seed, waits) for row in rows for seed in range(options.seeds)]
    measured = [row for row in ROWS if row != PRETRAINED]  # a step costs as much with a random encoder
    speeds = {(steps, row): Future() for steps in reversed(SPEED_STEPS) for row in measured}
    trials = {weight: Future() for weight in TRIAL_WEIGHTS}
    waits = Waits(list(speeds.values()), trials, [Future() for _ in range(options.seeds)])
    first, *others = (
        [partial(run_model, options, row, seed, waits) for seed in range(options.seeds)] for row in LONGEST_FIRST
    )
    queue = [finishing(future, partial(measure_speed, options, row, steps)) for (steps, row), future in speeds.items()]
    queue += first
    queue += [finishing(future, partial(run_trial, options, weight, waits)) for weight, future in trials.items()]
    return queue + [one for runs in others for one in runs]


def kept_results(options: argparse.Namespace) -> dict[str, Any] | None:
    """The results file, whose other rows, steps and weight of SIGReg are kept, where not all rows are to run.

    Raises:
        ValueError: when there is none with the same settings and all of the other rows.
    """
    if set(options.rows) == set(ROWS):
        return None
    found = json.loads(options.results.read_text(encoding="utf-8")) if options.results.exists() else {}
    missing = [name for name in ("rows", "sigreg_weight", *SETTINGS) if name not in found]
    missing += [row for row in ROWS if row not in found.get("rows", ())]
    if missing:
        raise ValueError(f"{options.results} lacks {missing}: first measure all rows, without --rows.")
    given, has = ({name: source[name] for name in SETTINGS} for source in (vars(options), found))
    if given != has:
        raise ValueError(f"{options.results} was measured with {has}, --rows with {given}: give the same settings.")
    if ALONG in options.rows and PRETRAINED not in options.rows:
        raise ValueError(f"{ALONG!r} starts from the encoder of {PRETRAINED!r}: give both to --rows.")
    seeds = max(len(found["rows"][row]["success"]["by_seed"]) for row in options.rows)
    if options.seeds < seeds:
        raise ValueError(
            f"--seeds is {options.seeds}, but {options.rows} have {seeds} in {options.results}: give more."
        )
    return found


@dataclass(frozen=True)
class Waits:
    """What a run may have to wait for: the runs that measure a step, the success of each trial, by weight, and the
    pretrained encoder of each seed."""

    speeds: Sequence[Future]
    trials: dict[float, Future]
    encoders: Sequence[Future]

    def for_speeds(self) -> None:
        for one in self.speeds:
            one.result()

    def for_best_weight(self) -> float:
        return best_weight({weight: one.result() for weight, one in self.trials.items()})


def measure_speed(options: argparse.Namespace, row: str, steps: int) -> None:
    """A short run of a row, whose core time is kept by the folder."""
    runs = study.RunFolder(options.output / "speed")
    settings = {"max_episodes": SPEED_EPISODES, "max_steps": 1, "state.max_steps": steps}
    if row == ALONG:  # a step costs as much from random weights
        settings |= {name: ROWS[RANDOM][name] for name in ("encoder", "encoder_config")}
    train(options, runs, f"{row} {steps}", row, settings)


def step_seconds(options: argparse.Namespace) -> dict[str, float]:
    """Core seconds of a step of the first stage by row: the difference of its two short runs."""
    times, (short, long) = study.RunFolder(options.output / "speed").core_times, SPEED_STEPS
    found = {
        row: (times[f"{row} {long}"] - times[f"{row} {short}"]) / (long - short) for row in ROWS if row != PRETRAINED
    }
    for row, seconds in found.items():
        if seconds <= 0:
            runs = f"{short} and {long} steps of {row!r} took {times[f'{row} {short}']} and {times[f'{row} {long}']} s"
            raise ValueError(f"{runs}, so a step cannot be measured: remove {options.output / 'speed'} and try again.")
    found[PRETRAINED] = found[RANDOM]
    return {row: found[row] for row in ROWS}


def steps_of(options: argparse.Namespace, row: str) -> int:
    """Steps of the first stage that fit into its time."""
    if kept := kept_results(options):
        return kept["rows"][row]["steps"]
    return max(1, int(options.seconds / step_seconds(options)[row]))


def train(options: argparse.Namespace, runs: study.RunFolder, name: str, row: str, settings: dict[str, Any]) -> Path:
    """Both stages of a model. All rows share the cached frames."""
    given = {"data": options.output / "episodes", "cache_dir": options.output / "cache", "crop_size": SIZE}
    given |= {"batch_size": BATCH_SIZE, "save_every": 1_000_000, "resume": "latest", **ROWS[row], **settings}
    return runs.configured(name, "train_world_model.py", "demo/world_model_learned.yaml", given)


def pretrain(options: argparse.Namespace, runs: study.RunFolder, seed: int) -> Path:
    """The encoder of a seed."""
    given = {"data": options.output / "episodes", "seed": seed, "max_steps": options.pretrain_steps}
    given |= PRETRAINING | study.SHORT_RUN
    return runs.configured("pretrain", "pretrain.py", "demo/pretrain.yaml#variance", given)


def plan(options: argparse.Namespace, runs: study.RunFolder, row: str, model: Path, settings: dict[str, Any]) -> Path:
    given = {"models": {row: str(model)}, "videos": 0, "episodes": options.tasks, "baselines": []}
    given |= {"varied_appearance": True, "distance": "whitened"}
    return runs.configured(f"plan {row}", "plan.py", "demo/plan.yaml", given | settings, result="results.json")


def run_model(options: argparse.Namespace, row: str, seed: int, waits: Waits) -> None:
    """A model of a row: its encoder where that is pretrained for it, both stages, planning, and the read-out."""
    runs = study.RunFolder(options.output / f"seed-{seed}")
    settings = {"seed": seed, "max_steps": options.steps}
    kept = kept_results(options)
    if row == PRETRAINED:
        finishing(waits.encoders[seed], partial(pretrain, options, runs, seed))()
    if row in (PRETRAINED, ALONG):
        settings["encoder"] = waits.encoders[seed].result()
    if row == LEWM:
        settings["state.sigreg_weight"] = kept["sigreg_weight"] if kept else waits.for_best_weight()
    waits.for_speeds()
    settings["state.max_steps"] = steps_of(options, row)
    model = train(options, runs, row, row, settings)
    planning: dict[str, Any] = {"seed": seed, "first_task": FIRST_TASK + 1000 * seed}
    manifest = study.manifest_of(options.results, seed)
    if kept and manifest.exists():  # the tasks of the rows that are kept
        planning["manifest"] = manifest
    plan(options, runs, row, model, planning | ({"baselines": ["data_policy", "oracle"]} if row == PIXELS else {}))
    read_out = read_out_of(runs.path, row)
    if not read_out.exists():
        write_json(read_out, measure_read_out(model, options.output / "read_out"))


def run_trial(options: argparse.Namespace, weight: float, waits: Waits) -> float:
    """Success with a weight of SIGReg, on a seed and tasks that are not reported."""
    runs = study.RunFolder(options.output / f"trial_{study.slug(str(weight))}")
    waits.for_speeds()
    settings = {"seed": TRIAL_SEED, "max_steps": options.steps, "state.sigreg_weight": weight}
    settings["state.max_steps"] = max(1, int(TRIAL_PART * steps_of(options, LEWM)))
    model = train(options, runs, LEWM, LEWM, settings)
    return success_of(plan(options, runs, LEWM, model, {"seed": TRIAL_SEED, "first_task": TRIAL_TASK}), LEWM)


def finishing(future: Future, call: Callable[[], Any]) -> Callable[[], None]:
    """A call whose value, or error, others wait for."""

    def finish() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)
            raise

    return finish


def best_weight(success: dict[float, float]) -> float:
    """The weight with the highest success; of equal ones the first."""
    return max(success, key=lambda weight: success[weight])


@torch.no_grad()
def measure_read_out(model: Path, data: Path) -> dict[str, float]:
    """R² of positions read from states by ridge regression, fitted on half of the episodes and scored on the others;
    below 0 it counts as 0."""
    with _loading:
        world_model = VJepa2WorldModel.from_pretrained(model).eval()
        processor = VJepa2VideoProcessor.from_pretrained(model)
    latents, states = [], []
    for episode in read_episodes(data, world_model.config.frame_skip):
        latents.append(encode_frames(world_model, processor, episode["frames"]).flatten(1).float())
        states.append(torch.from_numpy(episode["states"]).float())
    half = len(latents) // 2
    probe, _ = choose_probe(latents[:half], states[:half])
    predicted, true = probe(torch.cat(latents[half:]).unsqueeze(1)).numpy(), torch.cat(states[half:]).numpy()
    return {name: max(0.0, r_squared(predicted[:, at], true[:, at])) for name, at in READ_OUT.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Results
# ---------------------------------------------------------------------------------------------------------------------
def success_of(results: Path, row: str) -> float:
    rows = json.loads(results.read_text(encoding="utf-8"))["rows"]
    return next(one["success"] for one in rows if one["name"] == row)


def planned(folder: Path, row: str) -> Path:
    return folder / study.slug(f"plan {row}") / "results.json"


def read_out_of(folder: Path, row: str) -> Path:
    return folder / f"read_out_{study.slug(row)}.json"


def found_frames(folder: Path, row: str) -> float | None:
    """Fraction of predictions that found their frame in the last logged batch of stage 1; rows without the contrast
    have none."""
    lines = (folder / study.slug(row) / "state" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads(lines[-1]).get("found_frames")


def collect(options: argparse.Namespace) -> dict[str, Any] | None:
    """Rows over the seeds that each has, their differences over common seeds, and what everything cost."""
    kept = kept_results(options) or {}
    rows = dict(kept.get("rows", {}))
    seeds = {row: len(rows[row]["success"]["by_seed"]) if kept else 1 for row in options.rows}  # at least
    finished = {row: finished_seeds(options, row) for row in options.rows}
    finished = {row: folders for row, folders in finished.items() if len(folders) >= seeds[row]}
    if not finished or (not kept and len(finished) < len(ROWS)):
        return None
    seconds = {row: one["step_seconds"] for row, one in rows.items()} if kept else step_seconds(options)
    for row, folders in finished.items():
        success = [success_of(planned(folder, row), row) for folder in folders]
        probes = study.read_results(read_out_of(folder, row) for folder in folders)
        found = {"success": study.over_seeds(success)}
        found |= {name: study.over_seeds([probe[name] for probe in probes]) for name in READ_OUT}
        found |= {"steps": steps_of(options, row), "step_seconds": seconds[row]}
        found["training_core_seconds"] = [study.RunFolder(folder).core_times[row] for folder in folders]
        found["found_frames"] = [found_frames(folder, row) for folder in folders]
        rows[row] = found
    results = {name: value for name, value in kept.items() if name not in ("seeds", "rows", "differences", *SETTINGS)}
    if PIXELS in finished:
        results["baselines"] = collect_baselines(finished[PIXELS])
        study.copy_manifests(options.output, options.results, study.slug(f"plan {PIXELS}"))
    if PRETRAINED in finished:
        cores = [study.RunFolder(folder).core_times["pretrain"] for folder in finished[PRETRAINED]]
        results["pretraining_core_seconds"] = cores
    if not kept:
        results |= collect_trials(options)
    rows = {name: rows[name] for name in ROWS}
    most = max(len(row["success"]["by_seed"]) for row in rows.values())
    return {"seeds": most, "rows": rows, "differences": study.paired(rows, "success", PAIRS)} | results


def collect_baselines(folders: list[Path]) -> dict[str, Any]:
    """Success of the methods without a world model, by name."""
    found = [json.loads(planned(folder, PIXELS).read_text(encoding="utf-8"))["rows"] for folder in folders]
    success = [{one["name"]: one["success"] for one in rows if one["name"] != PIXELS} for rows in found]
    return {name: study.over_seeds([one[name] for one in success]) for name in success[0]}


def collect_trials(options: argparse.Namespace) -> dict[str, Any]:
    folders = {weight: options.output / f"trial_{study.slug(str(weight))}" for weight in TRIAL_WEIGHTS}
    trials = {weight: success_of(planned(folder, LEWM), LEWM) for weight, folder in folders.items()}
    return {"trials": {str(weight): one for weight, one in trials.items()}, "sigreg_weight": best_weight(trials)}


def finished_seeds(options: argparse.Namespace, row: str) -> list[Path]:
    """The folders of the seeds 0, 1, and so on up to the first that lacks this row."""
    folders = [options.output / f"seed-{seed}" for seed in range(options.seeds)]
    return list(takewhile(lambda one: planned(one, row).exists() and read_out_of(one, row).exists(), folders))


@study.markdown
def format_tables(results: dict[str, Any]) -> Iterator[str | tuple]:
    fewer = {name: len(row["found_frames"]) for name, row in results["rows"].items()}
    fewer = ", ".join(f"{count} of {name}" for name, count in fewer.items() if count < results["seeds"])
    seeds, tasks, paid = results["seeds"], results["tasks"], results["pretraining_core_seconds"]
    yield (
        f"Pushing with varied appearance, {results['episodes']} episodes, "
        f"{study.counted(seeds, 'training seed')}{f' ({fewer})' if fewer else ''} × {tasks} tasks: "
        "mean (95 % interval over seeds). Every first stage has the steps that fit into "
        f"{results['seconds']} core seconds by the step's time in two short runs, every second stage "
        f"{results['steps']} steps. The last column is what a model then took, with encoding the episodes. "
        "Pretraining is paid extra: "
        f"{results['pretrain_steps']} steps, {sum(paid) / len(paid):.0f} core seconds per seed. R² is of positions "
        f"that ridge regression reads from the states of {READ_OUT_EPISODES} fresh episodes, half of them for the fit."
    )
    titles = [
        "state reads",
        "success",
        *(f"R² {name}" for name in READ_OUT),
        "steps of stage 1",
        "ms per step",
        "core s, both stages",
    ]
    rows = [
        [
            name,
            row["success"],
            *(row[part] for part in READ_OUT),
            str(row["steps"]),
            f"{1e3 * row['step_seconds']:.0f}",
            f"{sum(row['training_core_seconds']) / len(row['training_core_seconds']):.0f}",
        ]
        for name, row in results["rows"].items()
    ]
    rows += [[name, success, *[None] * (len(titles) - 2)] for name, success in results["baselines"].items()]
    yield titles, rows
    chance = 1 / FRAMES
    failed = {
        name: sum(one is not None and one < chance for one in row["found_frames"])
        for name, row in results["rows"].items()
    }
    failed = ", ".join(f'"{name}" {count}' for name, count in failed.items() if count)
    yield f"Seeds whose stage 1 found fewer frames at its end than chance (1 of {FRAMES}) would: {failed or 'none'}."
    trials = ", ".join(f"{success:.2f} with {weight}" for weight, success in results["trials"].items())
    yield (
        f"LeWM-like uses the weight {results['sigreg_weight']} of SIGReg, the best of {len(results['trials'])} trials "
        f"on one other seed and {tasks} other tasks, each with {TRIAL_PART:g} of the time of stage 1: success "
        f"{trials}. No setting of the other rows was chosen here."
    )
    yield "Differences of success, paired by training seed, with 95 % intervals:"
    differences = results["differences"]
    yield (
        ["difference", "success"],
        [[f"{one['row']} − {one['minus']}", study.difference_cell(one)] for one in differences],
    )


SETTINGS = {
    "episodes": (1000, "recorded episodes"),
    "seconds": (300, "core seconds of the first stage of every model"),
    "steps": (1200, "steps of the second stage"),
    "pretrain_steps": (300, "steps of pretraining"),
    "tasks": (100, "tasks of planning per seed"),
}
SEEDS, CHOICES = {"seeds": (5, "training seeds")}, {"rows": (tuple(ROWS), tuple(ROWS))}
STUDY = study.Study(
    *("compare_inputs", __doc__, run, collect, format_tables, ["docs/states.md"]),
    *(SETTINGS, SEEDS, CHOICES),
    check=kept_results,
)


if __name__ == "__main__":
    STUDY.main()
