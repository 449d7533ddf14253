"""What probes read from pretrained and random encoders: every kind of probe, few labels, order in time, other speeds.

    python examples/compare_probes.py [--output runs/probes] [--seeds 3] [--lanes 2] [--steps 600] [--probe_steps 400]

Data: Moving Digits, and recordings of pushing. Each seed pretrains an encoder of its own (the
recipe of docs/pretraining.md for seeing) and has a random one of the same architecture. Linear, attentive, k-NN and
fine-tuned probes (`train_probe.py`) are fitted on 2000 clips, a tenth of them held out to choose the setting, and
reported on 1000 others. `first motion` is which of two motions came first: an order that no single frame shows, and
that the column with shuffled frames cannot know. Then: linear probes on a part of the labels; probes of Moving Digits'
motion on the test digits at half and at double speed, with an encoder that was pretrained at these three speeds beside
that of one; and the time that a sweep of 20 heads takes beside one head. Runs go side by side, one thread each; a
stopped command goes on where it was.
Results go to `results/probes.json` and into docs/probes.md between its markers.
"""

import argparse
import json
import multiprocessing
import os
import runpy
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from ablate_pretraining import cell, slug
from demo import ALLOCATOR, script
from reproduce import ROOT, refuse_to_publish_nothing, seed_interval
from seed_tables import claim_settings, settings_of
from tqdm import tqdm

from vjepa2_hf.training.settings import exit_on_user_error
from vjepa2_hf.visualization.tables import publish_tables


CONFIGS = ROOT / "examples" / "configs"
RECIPE = CONFIGS / "ablations" / "pretrain_variance.yaml"
ENCODERS = ("pretrained", "random")
NO_TIME = "attentive without positions in time"
SHUFFLED = "first motion, shuffled frames"
FEW_LABELS = ("moving_digits", ("content", "motion"))  # dataset and tasks
FRACTIONS = (0.01, 0.05, 0.1, 0.5, 1.0)
SPLITS = {"train": 1, "test": 2}  # with the seed of the recording
# The test clips of the motion task, played slower and faster
SPEEDS = {"half speed": 0.5, "double speed": 2.0}
SPEED_TASK, SPEED_KINDS = ("moving_digits", "motion"), ("linear", "attentive")
# An encoder pretrained at all three speeds: it sees every, every second or every fourth frame of videos that show half
# as much motion from frame to frame and have twice the frames (10 a second, as all recordings have)
SEVERAL_RATES, SLOW_VIDEOS = "pretrained at three speeds", "--speed 0.5 --frames 48"
SEVERAL_FPS = "fps=[10,5,2.5]"
VIDEOS = ("videos", "slow_videos")  # recordings for pretraining
# Shares of `--clips`, the labelled clips that probes are fitted on: those for the result, and videos for pretraining
TEST_SHARE, VIDEO_SHARE = 0.5, {"moving_digits": 0.75, "pushing": 0.28}
# (task, recording, column) of each dataset; with SHUFFLED the frames' order is taken away
TASKS = {
    "moving_digits": [
        ("content", "clips", "digit"),
        ("motion", "clips", "direction"),
        ("first motion", "turns", "first_motion"),
        (SHUFFLED, "turns", "first_motion"),
    ],
    "pushing": [
        ("content", "clips", "place"),
        ("motion", "clips", "direction"),
        ("first motion", "clips", "first_motion"),
        (SHUFFLED, "clips", "first_motion"),
    ],
}
ATTENTIVE = ["kind=attentive", "learning_rates=[3e-3, 1e-3]", "weight_decays=[0.1]"]
# The rows of the table: what differs from the demo's probe
KINDS = {
    "linear": ["kind=linear", "standardize=true", "learning_rates=[1e-2, 3e-3, 1e-3]", "batch_size=64"],
    "attentive": ATTENTIVE,
    NO_TIME: [*ATTENTIVE, "head.pooler_time_positions=false"],  # as published
    "knn": ["kind=knn", "standardize=true"],
    "finetune": ["kind=finetune", "learning_rates=[1e-3]", "weight_decays=[0.05]"],
}
PUBLISHED_SWEEP = ["learning_rates=[5e-3, 3e-3, 1e-3, 3e-4, 1e-4]", "weight_decays=[0.01, 0.1, 0.4, 0.8]"]
ONE_HEAD = ["learning_rates=[1e-3]", "weight_decays=[0.01]"]
HEADS = 20
# Of each dataset: settings of attentive heads, and the factor of all probes' steps. Digits are large, and no question
# is where they are; the pushing disc is small, and a head finds it only after hundreds of steps
SETTINGS = {"moving_digits": ["head.pooler_space_positions=false"], "pushing": []}
STEPS_FACTOR = {"moving_digits": 1, "pushing": 3}
# Hundreds of runs of a few seconds: forked from one process that has imported what they need
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["train_probe", "pretrain"])


def record(dataset: str, recording: str, split: str, clips: int, output: Path) -> list[str]:
    """The command that records videos for pretraining ("videos", "slow_videos"), or labelled clips of 8 frames."""
    count = clips if split == "train" else round(clips * TEST_SHARE)
    count = round(clips * VIDEO_SHARE[dataset]) if recording in VIDEOS else count
    seed = 0 if recording in VIDEOS else SPLITS[split]
    if dataset == "moving_digits":
        what = f"record_moving_digits.py --split {split} --videos {count}"
        what += {"videos": "", "slow_videos": f" {SLOW_VIDEOS}", "turns": " --frames 8 --two_motions"}.get(
            recording, f" --frames 8 --speed {SPEEDS.get(recording, 1)}"
        )
    else:
        what = "record_episodes.py --env vjepa2_hf/Pushing-v0 --policy drawn_to_block --num_proc 1"
        what += f" --episodes {count}" + ("" if recording == "videos" else " --labels --length 7")
    return script(*what.split(), "--seed", str(seed), "--output", str(output))


def run_script(command: list[str], log: Path) -> None:
    """Becomes the command, in a process that has its imports already."""
    with open(log, "w", encoding="utf-8") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


class Chain:
    """The runs of one dataset, or of one dataset and seed, one after the other.

    Args:
        arguments: of the command line.
        dataset: a name of `TASKS`.
        seed: of the runs; None for what all seeds share.
    """

    def __init__(self, arguments: argparse.Namespace, dataset: str, seed: int | None = None):
        self.arguments, self.dataset, self.seed = arguments, dataset, seed
        self.data = arguments.output / dataset / "data"
        self.folder = arguments.output / dataset / ("shared" if seed is None else f"seed-{seed}")

    def encoder(self, name: str) -> Path:
        """Of what a row calls so; a random one has the architecture of the pretrained one."""
        return self.folder / ("pretrain_rates" if name == SEVERAL_RATES else "pretrain") / "final"

    @property
    def speeds(self) -> dict[str, float]:
        return SPEEDS if self.dataset == SPEED_TASK[0] and SPEED_TASK[1] in self.titles else {}

    @property
    def titles(self) -> list[str]:
        return [task[0] for task in TASKS[self.dataset]]

    def run_step(self, name: str, result: Path, command: list[str]) -> None:
        """Runs a command unless its result is there; its output goes to a log."""
        if result.exists():
            return
        log = self.folder / "logs" / f"{slug(name)}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        process = FORKS.Process(target=run_script, args=(command, log))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(f"{name} failed; see {log}.")

    def prepare(self) -> None:
        """All recordings."""
        recordings = [("videos", "train")]
        recordings += [(name, split) for name in {task[1] for task in TASKS[self.dataset]} for split in SPLITS]
        recordings += [("slow_videos", "train"), *((name, "test") for name in self.speeds)] if self.speeds else []
        for recording, split in recordings:
            target = self.recording(recording, split)
            self.run_step(
                f"record {target.name}", target, record(self.dataset, recording, split, self.arguments.clips, target)
            )

    def recording(self, name: str, split: str) -> Path:
        return self.data / slug(name if name in VIDEOS else f"{name} {split}")

    def pretrain(self, name: str = "pretrained") -> None:
        several = name == SEVERAL_RATES
        data = self.recording("slow_videos" if several else "videos", "train")
        encoder = self.encoder(name)
        command = script("pretrain.py", "--config", str(RECIPE), f"data={data}", *([SEVERAL_FPS] if several else []))
        command += [f"output_dir={encoder.parent}", f"seed={self.seed}", f"max_steps={self.arguments.steps}"]
        command += ["num_workers=0", "num_threads=1", "save_every=1000000", "resume=latest"]
        self.run_step(encoder.parent.name, encoder, command)

    def probe(self, task: tuple[str, str, str], kind: str, encoder: str, name: str, *more: str) -> None:
        """One run of train_probe.py; its results lie in the folder `name`."""
        title, recording, column = task
        output = self.folder / "runs" / slug(name)
        train, test = (self.recording(recording, split) for split in SPLITS)
        command = script("train_probe.py", "--config", str(CONFIGS / "demo" / "probe.yaml"))
        command += [f"data={train}", f"validation_data={test}", f"label={column}", f"output_dir={output}"]
        command += [f"encoder={self.encoder(encoder)}", f"random_weights={str(encoder == 'random').lower()}"]
        command += [f"cache_dir={self.arguments.output / self.dataset / 'features'}", f"seed={self.seed}"]
        steps = STEPS_FACTOR[self.dataset] * self.arguments.probe_steps
        steps //= 2 if kind == "finetune" else 1  # its steps take longer
        command += [f"max_steps={steps}", "num_threads=1", "log_every=50", "save_every=1000000"]
        command += [
            f"shuffle_time={str(title == SHUFFLED).lower()}",
            "resume=latest",
            *KINDS[kind],
            *SETTINGS[self.dataset],
            *more,
        ]
        if self.speeds and title == SPEED_TASK[1] and kind in SPEED_KINDS:
            others = {speed: str(self.recording(speed, "test")) for speed in self.speeds}
            command.append(f"evaluate_on={json.dumps(others)}")
        self.run_step(name, output / "results.json", command)

    def run(self) -> None:
        """Pretraining, then every probe, the few labels, other speeds and, of the first seed, the times."""
        self.pretrain()
        for encoder in ENCODERS:
            for task in TASKS[self.dataset]:
                for kind in kinds_of(self.dataset, task[0], encoder):
                    self.probe(task, kind, encoder, run_name(task[0], kind, encoder))
                if self.dataset == FEW_LABELS[0] and task[0] in FEW_LABELS[1]:
                    for fraction in FRACTIONS[:-1]:
                        name = run_name(task[0], "linear", encoder, fraction)
                        self.probe(task, "linear", encoder, name, f"label_fraction={fraction}")
        if self.speeds:
            self.pretrain(SEVERAL_RATES)
            task = TASKS[self.dataset][self.titles.index(SPEED_TASK[1])]
            for kind in SPEED_KINDS:
                self.probe(task, kind, SEVERAL_RATES, run_name(task[0], kind, SEVERAL_RATES))
        if self.seed == 0 and self.dataset == FEW_LABELS[0]:
            for kind in ("linear", "attentive"):
                cache = f"cache_dir={self.folder / 'runs' / f'features_{kind}'}"  # its own, so that it is timed
                for title, sweep in (("sweep", PUBLISHED_SWEEP), ("one head", ONE_HEAD)):
                    name = f"{title} {kind}"
                    self.probe(TASKS[self.dataset][0], kind, "pretrained", name, cache, *sweep)


def kinds_of(dataset: str, task: str, encoder: str) -> list[str]:
    """The probes of a task: controls (shuffled frames, no positions in time) only where they can show something, and
    fine-tuning of many steps only for content."""
    if task == SHUFFLED:
        return ["linear", "attentive", "knn"] if encoder == "pretrained" else []
    left_out = set() if (task, encoder) == ("first motion", "pretrained") else {NO_TIME}
    left_out |= {"finetune"} if dataset == "pushing" and task != "content" else set()
    return [kind for kind in KINDS if kind not in left_out]


def run_name(task: str, kind: str, encoder: str, fraction: float = 1.0) -> str:
    return f"{task} {kind} {encoder}" + ("" if fraction == 1 else f" {fraction:g}")


def settings(arguments: argparse.Namespace) -> dict[str, int]:
    """What the results of every run depend on."""
    return {name: getattr(arguments, name) for name in ("steps", "probe_steps", "clips")}


def run_all(arguments: argparse.Namespace) -> None:
    """Every dataset and seed, `lanes` at a time."""
    os.environ.update({**ALLOCATOR, "OMP_NUM_THREADS": "1"})  # the runs inherit it
    for dataset in arguments.datasets:
        Chain(arguments, dataset).prepare()
    chains = [Chain(arguments, dataset, seed) for seed in range(arguments.seeds) for dataset in arguments.datasets]
    with tqdm(total=len(chains), desc="seeds") as progress, ThreadPoolExecutor(arguments.lanes) as lanes:

        def run(chain: Chain) -> None:
            chain.run()
            progress.update()

        for done in [lanes.submit(run, chain) for chain in chains]:
            done.result()


def read(arguments: argparse.Namespace, dataset: str, name: str) -> list[dict[str, Any]]:
    """The results of a run, of every seed that has it."""
    seeds = [arguments.output / dataset / f"seed-{seed}" for seed in range(arguments.seeds)]
    files = [seed / "runs" / slug(name) / "results.json" for seed in seeds]
    return [json.loads(file.read_text()) for file in files if file.exists()]


def summarise(results: list[dict[str, Any]], other: str | None = None) -> dict[str, Any] | None:
    """Mean, interval over seeds and values by seed of the score on the test clips, or on those of `evaluate_on`."""
    if not results:
        return None
    found = [result["evaluate_on"][other] if other else result["validation"] for result in results]
    values = [scores[result["score"]] for scores, result in zip(found, results, strict=True)]
    low, high = seed_interval(values)
    guess = float(np.mean([result["same_answer_for_all"] for result in results]))
    return {"mean": float(np.mean(values)), "low": low, "high": high, "by_seed": values, "same_answer_for_all": guess}


def collect(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything that was measured."""
    datasets = {}
    for dataset in arguments.datasets:
        tasks = TASKS[dataset]
        titles = [task[0] for task in tasks]
        rows = {
            f"{kind}, {encoder}": {
                title: summarise(read(arguments, dataset, run_name(title, kind, encoder))) for title in titles
            }
            for kind in KINDS
            for encoder in ENCODERS
        }
        few = {
            f"{title}, {encoder}": {
                f"{100 * part:g} %": summarise(read(arguments, dataset, run_name(title, "linear", encoder, part)))
                for part in FRACTIONS
            }
            for title in FEW_LABELS[1]
            for encoder in ENCODERS
        }
        datasets[dataset] = {"probes": rows, "few_labels": few, "seconds": sweep_seconds(arguments, dataset)}
        if dataset == SPEED_TASK[0]:
            datasets[dataset]["speeds"] = speed_rows(arguments)
    probes = [value for found in datasets.values() for row in found["probes"].values() for value in row.values()]
    refuse_to_publish_nothing(arguments.output, any(probes))
    return {**settings_of(arguments.output, settings(arguments)), "datasets": datasets}


def speed_rows(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """By probe and encoder: the motion task at every speed."""
    (dataset, task), rows = SPEED_TASK, {}
    for kind in SPEED_KINDS:
        for encoder in (*ENCODERS, SEVERAL_RATES):
            results = read(arguments, dataset, run_name(task, kind, encoder))
            half, double = (summarise(results, speed) for speed in SPEEDS)
            rows[f"{kind}, {encoder}"] = {"half speed": half, "as trained": summarise(results), "double speed": double}
    return rows


def sweep_seconds(arguments: argparse.Namespace, dataset: str) -> dict[str, dict[str, float]]:
    """Of each kind: the feature pass, a sweep of 20 heads, and one head, in seconds."""
    found = {}
    for kind in ("linear", "attentive"):
        sweep, one = (read(arguments, dataset, f"{title} {kind}") for title in ("sweep", "one head"))
        if sweep and one:
            features = sweep[0]["seconds"]["features"]
            found[kind] = {"features": features, "sweep": sweep[0]["seconds"]["heads"]}
            found[kind]["one_head"] = one[0]["seconds"]["heads"]
    return found


def format_tables(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        f"{results['steps']} steps of pretraining, {results['probe_steps']} of a probe (in pushing "
        f"{STEPS_FACTOR['pushing']} times as many; fine-tuning: half as many) on {results['clips']} clips; accuracy "
        "on others, means over seeds (95 % interval over seeds)."
    ]
    for dataset, found in results["datasets"].items():
        title = dataset.replace("_", " ").capitalize()
        titles = [task[0] for task in TASKS[dataset]]
        seeds = max(
            [len(value["by_seed"]) for row in found["probes"].values() for value in row.values() if value] or [0]
        )
        lines += ["", f"**{title}** ({seeds} seeds)", "", f"| probe, encoder | {' | '.join(titles)} |"]
        lines += ["|---" * (len(titles) + 1) + "|"]
        guesses = [next((row[t] for row in found["probes"].values() if row[t]), None) for t in titles]
        known = [f"{guess['same_answer_for_all']:.2f}" if guess else "" for guess in guesses]
        lines.append(f"| the same answer for all | {' | '.join(known)} |")
        rows = {name: [row[t] for t in titles] for name, row in found["probes"].items()}
        lines += [table_row(name, values) for name, values in rows.items() if any(values)]
        shares = [f"{100 * part:g} %" for part in FRACTIONS]
        few = [table_row(name, [row[s] for s in shares]) for name, row in found["few_labels"].items()]
        if dataset == FEW_LABELS[0]:
            lines += ["", "Linear probes on a part of the labels:", ""]
            lines += [f"| task, encoder | {' | '.join(shares)} |", "|---" * (len(shares) + 1) + "|", *few]
        if any(value for row in found.get("speeds", {}).values() for value in row.values()):
            lines += ["", "Motion, probes fitted at normal speed, on the same digits at other speeds:", ""]
            columns = list(next(iter(found["speeds"].values())))
            lines += [f"| probe, encoder | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
            lines += [table_row(name, list(row.values())) for name, row in found["speeds"].items()]
        if found["seconds"]:
            lines += ["", f"Seconds, one thread, beside other runs ({HEADS} heads at once, or one):", ""]
            lines += [f"| heads | features | {HEADS} at once | features + {HEADS} × one |", "|---|---|---|---|"]
            for kind, seconds in found["seconds"].items():
                apart = seconds["features"] + HEADS * seconds["one_head"]
                together = f"{seconds['features']:.0f} | {seconds['sweep']:.0f}"
                lines.append(f"| {kind} | {together} | {apart:.0f} |")
    return "\n".join(lines)


def table_row(name: str, values: list[dict[str, Any] | None]) -> str:
    cells = ["" if value is None else cell(value, len(value["by_seed"])) for value in values]
    return f"| {' | '.join([name, *cells])} |"


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/probes"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lanes", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--steps", type=int, default=600, help="of pretraining")
    parser.add_argument("--probe_steps", type=int, default=400, help="of every probe")
    parser.add_argument("--clips", type=int, default=2000, help="to fit probes on; half as many for scores")
    parser.add_argument("--datasets", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "probes.json")
    parser.add_argument("--document", type=Path, default=ROOT / "docs" / "probes.md", help="file with markers")
    parser.add_argument("--collect", action="store_true", help="run nothing: publish what the runs so far measured")
    options = parser.parse_args(arguments)
    if not options.collect:
        claim_settings(options.output, settings(options))
        run_all(options)
    results = collect(options)
    publish_tables(results, format_tables(results), options.results, [options.document], "probes")


if __name__ == "__main__":
    main()
