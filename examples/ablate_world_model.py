"""What matters in the world model, by planning: every variant and ablation on three seeds, in one table.

    python examples/ablate_world_model.py [--output runs/reproduce] [--seeds 3] [--first_seed 0] [--lanes 2]
        [--steps 2400] [--episodes 50] [--rows recipe addition ...] [--collect]

Episodes and encoders are those of `reproduce.py`, in its folders; the ones that are missing are made there. The
recipe is examples/configs/demo/world_model.yaml; a row changes one thing: the dynamics by a file
examples/configs/ablations/world_model_*.yaml, or the encoder under the recipe's dynamics. All rows have the same
number of steps and plan on the same tasks, those of the seed.

Rows run in the order of the table, each with all its seeds, side by side on one thread each; a stopped command goes on
where it was, and leaves whole rows. Seeds that the results file has already, with the same numbers of steps and tasks,
and `OUTPUT` has not (other seeds, or runs of another machine) stay in the table. Latents are encoded once for all of
them, into `OUTPUT/ENVIRONMENT/latents`. The encoder that learns along runs only by name (`--rows learning_encoder`):
it encodes every frame at every step. Results go to `results/world_model.json` and into docs/world_model.md between its
markers.
"""

import argparse
import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from demo import RANDOM_ENCODER, Road, script
from reproduce import ENVIRONMENTS, ROOT, record
from safetensors import safe_open
from seed_tables import interval_cell, joined, known_rows, over_seeds, paired, run_lanes, success_cells

from vjepa2_hf.training.run import read_metrics
from vjepa2_hf.visualization.tables import publish_tables


CONFIGS = ROOT / "examples" / "configs"
MODEL = "world model"  # its name among the rows of plan.py
HORIZONS = (1, 2, 5)  # model steps; the cosine is that of the longest measured one


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        title: what the table calls it.
        config: of the dynamics.
        encoder: "random", "pixels", or the config that it is pretrained with.
        default: whether it runs when no rows are named.
    """

    title: str
    config: str = "demo/world_model.yaml"
    encoder: str = "demo/pretrain.yaml"
    default: bool = True


def variant(title: str, name: str, **fields: Any) -> Row:
    """A row with dynamics of its own."""
    return Row(title, f"ablations/world_model_{name}.yaml", **fields)


RECIPE = "recipe"
ROWS = {  # in the order in which they run
    RECIPE: Row("the recipe: concatenation, width 64, rollouts of 3 steps"),
    "random": Row("no pretraining: random encoder", encoder="random"),
    "pixels": Row("no encoder: raw pixels", encoder="pixels"),
    "addition": variant("addition instead of concatenation", "addition"),
    "wide": variant("width 128 instead of 64", "wide"),
    "one_step": variant("one-step loss alone", "one_step"),
    "five_steps": variant("rollouts of 5 steps (H = 5)", "five_steps"),
    "online_target": Row("no EMA in pretraining", encoder="ablations/pretrain_online_target.yaml"),
    "pixel_target": Row("pixels as target of pretraining", encoder="ablations/pretrain_pixels.yaml"),
    "pooled": variant("pooled state: the mean token", "pooled"),
    "merged": variant("merged state: 4 tokens", "merged"),
    "mlp_slow": variant("MLP on 64 slow features", "mlp_slow"),
    "mlp_pca": variant("MLP on 64 principal components", "mlp_pca"),
    "cross_attention": variant("cross-attention instead of concatenation", "cross_attention"),
    "history": variant("history of 3 frames, block-causal", "history"),
    "linear_actions": variant("linear action encoder", "linear_actions"),
    "learning_encoder": variant("encoder that learns along", "learning_encoder", default=False),
}
# What is compared with what, and the difference of success that seed 003 tells (sec. 9.4)
SEED_003 = {
    ("addition", RECIPE): -0.03,
    ("wide", RECIPE): -0.06,
    ("five_steps", "one_step"): 0.04,
    ("random", RECIPE): -0.30,
    ("pixel_target", RECIPE): -0.19,
    ("online_target", RECIPE): -0.43,
}


class Chain:
    """The runs of one environment and seed.

    Args:
        arguments: of the command line.
        environment: a name of `reproduce.ENVIRONMENTS`.
        seed: of training, planning and tasks.
    """

    def __init__(self, arguments: argparse.Namespace, environment: str, seed: int):
        self.shared, self.environment, self.seed = arguments.output / environment, environment, seed
        self.steps, self.episodes = arguments.steps, arguments.episodes
        self.folder = self.shared / f"seed-{seed}"
        self.common = [f"data={self.shared / 'episodes'}", f"seed={seed}", "num_threads=1", "resume=latest"]

    def row_folder(self, name: str) -> Path:
        """Of a row's own runs and logs; those of another number of steps are not taken for it."""
        return self.folder / f"ablations-{self.steps}-steps" / name

    def results(self, name: str) -> Path:
        return self.row_folder(name) / f"plan-{self.episodes}" / "results.json"

    def road(self, folder: Path) -> Road:
        return Road(folder, threads=1, quiet=True)

    def pretrain(self, folder: Path, config: str) -> Path:
        """The encoder that a config of pretraining gives, in `folder`/pretrain as `reproduce.py` has it."""
        output = folder / "pretrain"
        command = script("pretrain.py", "--config", str(CONFIGS / config), f"output_dir={output}", *self.common)
        title = f"{self.environment} seed {self.seed}: pretrain"
        self.road(folder).run(title, ("pretrain", output / "final", command))
        return output / "final"

    def encoder(self, name: str) -> list[str]:
        """The settings that name a row's encoder."""
        encoder = ROWS[name].encoder
        if encoder in ("random", "pixels"):
            return [f"encoder={encoder}", RANDOM_ENCODER]
        folder = self.folder if encoder == ROWS[RECIPE].encoder else self.row_folder(name)
        return [f"encoder={self.pretrain(folder, encoder)}"]

    def run(self, name: str) -> None:
        """Trains a row and plans with it; with the recipe's the methods without a world model run, too."""
        if self.results(name).exists():
            return
        folder, road = self.row_folder(name), self.road(self.row_folder(name))
        model = folder / "world_model"
        command = script("train_world_model.py", "--config", str(CONFIGS / ROWS[name].config), *self.encoder(name))
        command += [f"output_dir={model}", f"max_steps={self.steps}", f"cache_dir={self.shared / 'latents'}"]
        road.run("train", ("train", model / "final", command + self.common))

        config = CONFIGS / "demo" / ENVIRONMENTS[self.environment]["plan"]
        command = script("plan.py", "--config", str(config), f"output_dir={self.results(name).parent}", "videos=0")
        command += [f"models={json.dumps({MODEL: str(model / 'final')})}", f"seed={self.seed}", "num_threads=1"]
        # others than `reproduce.py`'s: a table of choices must not wear those out
        command += [f"first_task={100_000 + 1000 * self.seed}", f"episodes={self.episodes}"]
        command += [] if name == RECIPE else ["baselines=[]"]
        road.run("plan", ("plan", self.results(name), command))

    def measured(self, name: str) -> dict[str, Any]:
        """What a finished row left: numbers of the table, and `baselines` by name."""
        model = self.row_folder(name) / "world_model"
        planned = {row["name"]: row for row in json.loads(self.results(name).read_text())["rows"]}
        errors = {row["horizon"]: row for row in json.loads((model / "rollout_error.json").read_text())}
        last = errors[max(errors)]
        own = planned.pop(MODEL)
        return {
            "success": own["success"],
            "plan_milliseconds": own["plan_milliseconds"],
            "minutes": training_minutes(model),
            "error_over_copy": {str(k): errors[k]["error"] / errors[k]["copy_error"] for k in HORIZONS},
            "cosine": last["cosine"],
            "copy_cosine": last["copy_cosine"],
            "cosine_horizon": last["horizon"],
            "baselines": {baseline: row["success"] for baseline, row in planned.items()},
        }


def training_minutes(model: Path) -> float:
    """Wall time of a run's steps, without encoding the data; of a step that a stopped run did twice, the last time."""
    windows = yaml.safe_load((model / "config.yaml").read_text())["batch_size"]
    seconds, before = 0.0, 0
    for row in read_metrics(model):
        seconds += (row["step"] - before) * windows / row["windows_per_second"]
        before = row["step"]
    return seconds / 60


def dynamics_parameters(folder: Path) -> int:
    """Numbers in the dynamics of a saved world model."""
    with safe_open(folder / "model.safetensors", "pt") as weights:
        names = [name for name in weights.keys() if name.startswith("predictor.")]  # noqa: SIM118, no dict
        return sum(math.prod(weights.get_slice(name).get_shape()) for name in names)


def run_all(arguments: argparse.Namespace) -> None:
    """Episodes, encoders, then every row with all its seeds, `lanes` runs at a time."""
    for environment in arguments.environments:
        record(arguments.output, environment)
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    chains = [Chain(arguments, name, seed) for name in arguments.environments for seed in seeds]
    with ThreadPoolExecutor(arguments.lanes) as lanes:
        # first: rows of one seed that run side by side would both make its encoder
        for done in [lanes.submit(chain.pretrain, chain.folder, ROWS[RECIPE].encoder) for chain in chains]:
            done.result()
    run_lanes(chains, arguments.rows, arguments.lanes)


def collect(arguments: argparse.Namespace) -> dict[str, Any]:
    """Means over seeds, and the values by seed, of every row that is finished in every environment, with those that
    are in the results already."""
    results: dict[str, Any] = {"steps": arguments.steps, "episodes": arguments.episodes, "environments": {}}
    known = known_rows(arguments.results, results)
    for environment in ENVIRONMENTS:
        folders = (arguments.output / environment).glob("seed-*")
        chains = [Chain(arguments, environment, seed) for seed in sorted(int(path.name[5:]) for path in folders)]
        rows = [joined(known.get((environment, name)), summarise(name, chains)) for name in ROWS]
        rows = [row for row in rows if row["seeds"]]
        if rows:
            results["environments"][environment] = {"rows": rows, "differences": differences(rows)}
    if not results["environments"]:
        raise SystemExit(f"no row of {arguments.steps} steps is finished in {arguments.output}: nothing to publish.")
    return results


def summarise(name: str, chains: list[Chain]) -> dict[str, Any]:
    """One row over the seeds that have finished it."""
    chains = [chain for chain in chains if chain.results(name).exists()]
    row: dict[str, Any] = {"name": name, "title": ROWS[name].title, "seeds": [chain.seed for chain in chains]}
    if not chains:
        return row
    found = [chain.measured(name) for chain in chains]
    row["parameters"] = dynamics_parameters(chains[0].row_folder(name) / "world_model" / "final")
    row["success"] = over_seeds([one["success"] for one in found])
    for column in ("minutes", "plan_milliseconds", "cosine", "copy_cosine", "cosine_horizon"):
        row[column] = float(np.mean([one[column] for one in found]))
    for column in ("error_over_copy", "baselines"):
        row[column] = {key: over_seeds([one[column][key] for one in found]) for key in found[0][column]}
    return row


def differences(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Success of one row minus another's on the same seeds and tasks: the comparisons that seed 003 makes, then every
    other row against the recipe."""
    found = {row["name"]: dict(zip(row["seeds"], row["success"]["by_seed"], strict=True)) for row in rows}
    pairs = [*SEED_003, *((name, RECIPE) for name in ROWS if name != RECIPE and (name, RECIPE) not in SEED_003)]
    compared = []
    for one, other in pairs:
        difference = paired(found.get(one, {}), found.get(other, {}))
        if difference:
            compared.append({"row": one, "minus": other, **difference, "seed_003": SEED_003.get((one, other))})
    return compared


def format_tables(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = []
    for environment, result in results["environments"].items():
        rows = result["rows"]
        seeds = max(len(row["seeds"]) for row in rows)
        lines += [
            f"**{environment.replace('_', ' ').capitalize()}**: {results['steps']} steps of training in every row, "
            f"up to {seeds} training seeds, {results['episodes']} tasks a seed. Means over seeds; success with its "
            "95 % interval over seeds. Minutes of training and milliseconds a plan: wall time, as runs went side by "
            "side.",
            "",
            *format_rows(rows),
            "",
            "Error is that of rollouts on held-out episodes over the error of copying the last state, by model steps "
            "ahead (two frames each); cosine stands beside that of copying. Both are of each state's own space: they "
            "do not compare rows with different encoders or states. Success does.",
            "",
            *format_differences(result["differences"]),
        ]
    return "\n".join(lines).rstrip("\n")


def format_rows(rows: list[dict[str, Any]]) -> list[str]:
    """The rows, and the methods without a world model below them."""
    horizons = list(rows[0]["error_over_copy"])
    titles = ["row", "parameters", "minutes", *(f"error {horizon}" for horizon in horizons)]
    titles += [f"cosine {rows[0]['cosine_horizon']:.0f}", "success", "by seed", "ms a plan"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in rows:
        cells = [row["title"], f"{row['parameters']:,}", f"{row['minutes']:.1f}"]
        cells += [f"{row['error_over_copy'][horizon]['mean']:.2f}" for horizon in horizons]
        cells += [f"{row['cosine']:.2f} ({row['copy_cosine']:.2f})", *success_cells(row["success"])]
        cells.append(f"{row['plan_milliseconds']:.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    empty = [""] * (3 + len(horizons))
    for row in rows:
        for name, success in row["baselines"].items():
            lines.append(f"| {' | '.join([name, *empty, *success_cells(success), ''])} |")
    return lines


def format_differences(compared: list[dict[str, Any]]) -> list[str]:
    """The comparisons; nothing where there are none."""
    if not compared:
        return []
    lines = [
        "**Differences of success**, paired by seed (the same tasks), beside what seed 003 says:",
        "",
    ]
    lines += ["| row | minus | seed 003 | here | 95 % interval | by seed |", "|---|---|---|---|---|---|"]
    for row in compared:
        said = "" if row["seed_003"] is None else f"{row['seed_003']:+.2f}"
        interval = interval_cell(row)
        minus = "the recipe" if row["minus"] == RECIPE else ROWS[row["minus"]].title
        by_seed = ", ".join(f"{value:+.2f}" for value in row["by_seed"])
        lines.append(f"| {ROWS[row['row']].title} | {minus} | {said} | {row['mean']:+.2f} | {interval} | {by_seed} |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/reproduce"), help="the folder of reproduce.py")
    parser.add_argument("--environments", nargs="+", choices=list(ENVIRONMENTS), default=["pushing"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--lanes", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--steps", type=int, default=2400, help="of training, in every row")
    parser.add_argument("--episodes", type=int, default=50, help="tasks a row and seed")
    default = [name for name, row in ROWS.items() if row.default]
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=default, help="rows to run")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "world_model.json")
    parser.add_argument("--document", type=Path, default=ROOT / "docs" / "world_model.md", help="file with markers")
    parser.add_argument("--collect", action="store_true", help="run nothing: publish what the runs so far measured")
    arguments = parser.parse_args()
    if not arguments.collect:
        run_all(arguments)
    results = collect(arguments)
    publish_tables(results, format_tables(results), arguments.results, [arguments.document], "world_model")


if __name__ == "__main__":
    main()
