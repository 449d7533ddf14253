"""Whether the world model's optional parts do what they say: pixel decoder, stochastic latent, reward head.

    python examples/measure_optional_parts.py --encoder runs/demo/pretrain/final [--output FOLDER] [--seeds 1]

On the pushing environment, by the demo's recipe, all measured on held-out episodes by `evaluate_world_model.py`:

- A model with a reward head, on episodes with rewards, and a pixel decoder of its latents: how far the block in the
  decoded picture of a prediction is from where it will be, and how far the rewards of imagined steps are off.
- Two models of episodes in which chance pushes the agent after every action (`random_force`), one with a stochastic
  latent and one without: how often their intervals hold what happened, and how wide they are. The one without has none
  of its own; it gets its one-step errors on training episodes, wider with the root of the steps.

Without `--encoder` it is pretrained first. The seed is that of world models and decoder. A stopped command goes on
where it was. Results go to `results/optional_parts.json` and into docs/world_model.md between its markers; the picture
of predictions is `OUTPUT/seed-0/world_model.png`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from demo import Road, script
from reproduce import CONFIGS, ROOT

from vjepa2_hf.environments import IMAGE_SIZE, PUSHING, PushingEnv
from vjepa2_hf.training.settings import exit_on_user_error
from vjepa2_hf.visualization.tables import publish_tables


RANDOM_FORCE = 0.3  # 1.9 pixels a frame, 2.7 a model step: several times what a world model of this size gets wrong
STATES = {"pusher": [0, 1], "block": [2, 3]}
EVALUATION = ("windows_per_episode=4", "num_samples=49", "levels=[0.5, 0.9]", "num_threads=1")
SPACES = {"latents": ("", 1), "pusher": ("pusher_", IMAGE_SIZE), "block": ("block_", IMAGE_SIZE)}  # columns, scale


class Chain:
    """The runs of one seed, one after the other; what the seeds share is made by the first.

    Args:
        arguments: of the command line.
        seed: of world models and decoder.
    """

    def __init__(self, arguments: argparse.Namespace, seed: int):
        self.arguments, self.seed = arguments, seed
        self.shared, self.folder = arguments.output, arguments.output / f"seed-{seed}"
        self.encoder = arguments.encoder or self.shared / "pretrain" / "final"

    def run(self) -> None:
        """All runs that have not left their result yet."""
        self.record("episodes", "--rewards")
        self.record("random_episodes", "--env_kwargs", json.dumps({"random_force": RANDOM_FORCE}))
        if not self.arguments.encoder:
            self.train("pretrain", "pretrain.py", "pretrain.yaml", self.shared, self.shared / "episodes")
        self.train_world_model("world_model", "episodes", "world_model.reward_head=true")
        data, model = self.shared / "episodes", self.folder / "world_model" / "final"
        steps = f"max_steps={self.arguments.decoder_steps}"
        self.train("decoder", "train_decoder.py", "decoder.yaml", self.folder, data, f"world_model={model}", steps)
        colors = {"block": PushingEnv.plain_colors[STATES["block"][0] // 2]}
        pictures = [f"object_colors={json.dumps(colors)}", f"pixels_per_unit={IMAGE_SIZE}"]
        self.evaluate("world_model", "episodes", f"decoder={self.folder / 'decoder' / 'final'}", *pictures)
        for name, size in (("deterministic", 0), ("stochastic", self.arguments.stochastic_dim)):
            self.train_world_model(name, "random_episodes", f"world_model.stochastic_dim={size}")
            self.evaluate(name, "random_episodes", "residual_intervals=true")

    def step(self, name: str, folder: Path, result: Path, command: list[str]) -> None:
        Road(folder, threads=1, quiet=True).run(name, (name, result, command))

    def record(self, name: str, *settings: str) -> None:
        arguments = ["--env", PUSHING, "--policy", "drawn_to_block", "--num_proc", "1"]
        arguments += ["--episodes", str(self.arguments.episodes), "--output", str(self.shared / name), *settings]
        self.step(name, self.shared, self.shared / name, script("record_episodes.py", *arguments))

    def train(self, name: str, file: str, config: str, folder: Path, data: Path, *settings: str) -> None:
        command = script(file, "--config", str(CONFIGS / config), f"output_dir={folder / name}", f"data={data}")
        command += [f"seed={self.seed}", "num_threads=1", "resume=latest", *settings]
        self.step(name, folder, folder / name / "final", command)

    def train_world_model(self, name: str, data: str, *settings: str) -> None:
        source = [f"encoder={self.encoder}", f"max_steps={self.arguments.steps}"]
        source.append(f"cache_dir={self.shared / 'latents'}")
        self.train(
            name, "train_world_model.py", "world_model.yaml", self.folder, self.shared / data, *source, *settings
        )

    def evaluate(self, name: str, data: str, *settings: str) -> None:
        """`NAME.json`, and with a decoder `NAME.png`, in the seed's folder."""
        result = self.folder / f"{name}.json"
        command = script("evaluate_world_model.py", f"model={self.folder / name / 'final'}", f"output={result}")
        command += [f"data={self.shared / data}", f"state_groups={json.dumps(STATES)}", *EVALUATION, *settings]
        self.step(f"evaluate_{name}", self.folder, result, command)


# ---------------------------------------------------------------------------------------------------------------------
# Results
# ---------------------------------------------------------------------------------------------------------------------
def collect(arguments: argparse.Namespace) -> dict[str, Any]:
    """By model and column of its evaluation: means over seeds, a number for each horizon, and those of every seed."""
    models: dict[str, Any] = {}
    for name in ("world_model", "deterministic", "stochastic"):
        files = [arguments.output / f"seed-{seed}" / f"{name}.json" for seed in range(arguments.seeds)]
        runs = [json.loads(file.read_text())["horizons"] for file in files if file.exists()]
        if not runs:
            raise ValueError(f"no seed has measured {name!r} in {str(arguments.output)!r}: run without --collect.")
        by_seed = {column: [[row[column] for row in run] for run in runs] for column in runs[0][0]}
        means = {column: seed_means(values) for column, values in by_seed.items() if column != "horizon"}
        models[name] = {"horizon": by_seed["horizon"][0], "mean": means, "by_seed": by_seed}
    facts = {"seeds": len(runs), "random_force": RANDOM_FORCE}
    return facts | {"minutes": minutes(arguments.output), "models": models}


def seed_means(values: list[list[float | None]]) -> list[float | None]:
    """Of (seeds, horizons); None where a seed has no finite number."""
    return [None if None in column else float(np.mean(column)) for column in zip(*values, strict=True)]


def minutes(output: Path) -> float:
    """Wall time of all runs together, as they took it one after the other on this machine."""
    files = [output / "timings.json", *output.glob("seed-*/timings.json")]
    return sum(sum(json.loads(file.read_text()).values()) for file in files if file.exists()) / 60


def table(title: str, horizons: list[int], rows: dict[str, list[str]]) -> list[str]:
    """Lines of Markdown, horizons across."""
    lines = [f"| {title} | " + " | ".join(map(str, horizons)) + " |", "|---" * (len(horizons) + 1) + "|"]
    return [*lines, *(f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items()), ""]


def cells(values: list[float | None], digits: int = 2) -> list[str]:
    return ["–" if value is None else f"{value:.{digits}f}" for value in values]


def decoder_table(model: dict[str, Any]) -> list[str]:
    """Where the block is in pictures."""
    measured = {
        "decoded prediction": "painted_px",
        "decoded true latents": "decoder_px",
        "last known frame": "copy_px",
        "true position, of the true frame": "locator_px",
    }
    rows = {name: cells(model["mean"][f"block_{column}"]) for name, column in measured.items()}
    lost = {"decoded prediction": "not_painted", "decoded true latents": "not_decoded"}
    rows |= {f"share without a block: {name}": cells(model["mean"][f"block_{c}"], 3) for name, c in lost.items()}
    return table("pixels between the block and where it is in the true frame, steps ahead", model["horizon"], rows)


def interval_table(models: dict[str, Any], level: int) -> list[str]:
    """Coverage, width and score of the latents' and the positions' intervals."""
    kinds = {
        "samples": ("stochastic", ""),
        "one-step errors · √h around its middle": ("stochastic", "residual_"),
        "one-step errors · √h": ("deterministic", "residual_"),
        "its one future": ("deterministic", ""),
    }
    rows = {}
    for what, (space, scale) in SPACES.items():
        for kind, (name, prefix) in kinds.items():
            mean = models[name]["mean"]
            columns = [mean[f"{space}{prefix}{column}_{level}"] for column in ("coverage", "width", "score")]
            rows[f"{what}: {name}, {kind}"] = [
                f"{c:.2f}, {scale * w:.2g}, {scale * s:.2g}" for c, w, s in zip(*columns, strict=True)
            ]
    return table(
        f"{level} % intervals: coverage, width, interval score (positions in pixels), steps ahead",
        models["stochastic"]["horizon"],
        rows,
    )


def reward_table(model: dict[str, Any]) -> list[str]:
    """How far rewards are off."""
    measured = {
        "imagined step": "reward_error",
        "true latents": "reward_head_error",
        "the last known reward": "reward_copy_error",
        "the mean reward": "reward_mean_error",
    }
    rows = {name: cells(model["mean"][column], 3) for name, column in measured.items()}
    return table("error of a step's reward, steps ahead", model["horizon"], rows)


def format_tables(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    seeds, models = results["seeds"], results["models"]
    head = f"{seeds} seed{'s' if seeds > 1 else ''}, {results['minutes']:.0f} minutes of wall time."
    lines = [head, "", *decoder_table(models["world_model"])]
    lines += [*interval_table(models, 90), *interval_table(models, 50)]
    return "\n".join([*lines, *reward_table(models["world_model"])]).rstrip()


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", type=Path, help="folder of a pretrained model, for pictures of 64 pixels")
    parser.add_argument("--output", type=Path, default=Path("runs/optional_parts"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--episodes", type=int, default=560, help="with rewards, and as many with chance")
    parser.add_argument("--steps", type=int, default=2000, help="of every world model")
    parser.add_argument("--decoder_steps", type=int, default=1000)
    parser.add_argument("--stochastic_dim", type=int, default=16, help="rank of what chance moves together")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "optional_parts.json")
    parser.add_argument("--document", type=Path, default=ROOT / "docs" / "world_model.md", help="file with markers")
    parser.add_argument("--collect", action="store_true", help="run nothing: publish what the runs so far measured")
    arguments = parser.parse_args()
    if not arguments.collect:
        for seed in range(arguments.seeds):
            Chain(arguments, seed).run()
    results = collect(arguments)
    publish_tables(results, format_tables(results), arguments.results, [arguments.document], "optional_parts")


if __name__ == "__main__":
    main()
