"""How imagination error and planning success of world models follow compute and data.

    python examples/studies/scaling.py [--sizes 16x1,32x1,48x2,96x2] [--episodes 40,400] [--steps 600]

World models of several sizes (width x blocks) are trained on several numbers of recorded pushing episodes for equal
steps, on the latents of one pretrained encoder per seed, with the published loss: L1, teacher forcing and a rollout of
two steps. Compute is the number of floating-point operations of the whole training of the dynamics, which PyTorch
counts. Imagination error is the mean absolute error of rollouts on episodes that no model was trained on, averaged
over the horizons. A line and a parabola are fitted to the logarithm of the error over the logarithm of compute, for
each seed (arXiv 2610.10515 finds the parabola). Results go to `results/scaling.json`, docs/scale.md and
docs/scaling.png. The options take any size: see docs/scale.md.
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
import torch
import yaml
from scipy.stats import spearmanr
from torch.utils.flop_counter import FlopCounterMode

from vjepa2_hf import VJepa2WorldModel
from vjepa2_hf.data.files import write_aside
from vjepa2_hf.metrics.planning_success.planning_success import t_interval


TEST_SEED = 5_000_000  # of the environment: no model is trained on these episodes
FIRST_TASK = 940_000  # of no other study
HORIZONS = [1, 2, 4]  # model steps
HEAD_SIZE = 16
RECIPE = {  # published: L1, teacher forcing and a rollout of two steps
    "rollout_start": 0.0,
    "world_model.loss_exponent": 1,
    "world_model.teacher_forcing_weight": 1.0,
    "world_model.rollout_weight": 1.0,
    "world_model.rollout_steps": 2,
}
PEAK_RATE, RATE_WIDTH = 3e-3, 64  # wider models get a smaller rate, in inverse proportion
SOLVER = {"solver.num_candidates": 64, "solver.num_iterations": 3, "solver.num_elites": 8}


def sizes_of(options: argparse.Namespace) -> list[tuple[int, int]]:
    """Width and number of blocks of each model."""
    try:
        sizes = [tuple(int(number) for number in size.split("x")) for size in options.sizes.split(",")]
    except ValueError:
        sizes = []
    if not sizes or any(len(size) != 2 or size[0] % HEAD_SIZE or min(size) < 1 for size in sizes):
        expected = f"widths, multiples of {HEAD_SIZE}, and blocks, such as 32x2,64x3"
        raise ValueError(f"sizes are {options.sizes!r}; expected {expected}.")
    return sizes


def amounts_of(options: argparse.Namespace) -> list[int]:
    """Numbers of training episodes."""
    amounts = options.episodes.split(",")
    if not all(amount.isdigit() and int(amount) > 0 for amount in amounts):
        raise ValueError(f"episodes are {options.episodes!r}; expected numbers of episodes, such as 40,160.")
    return sorted(map(int, amounts))


def run(options: argparse.Namespace) -> None:
    sizes, amounts = sizes_of(options), amounts_of(options)
    shared, command = study.RunFolder(options.output), f"{study.ENVIRONMENTS['pushing']} --num_proc 2"
    shared.record(options.output / "episodes", f"{command} --episodes {amounts[-1]}")
    shared.record(options.output / "test_episodes", f"{command} --episodes 60 --seed {TEST_SEED}")
    seeds = range(options.seeds)
    study.run_side_by_side([partial(pretrain, options, seed) for seed in seeds], options.jobs)
    models = [partial(run_model, options, *one) for one in product(seeds, sizes, amounts)]
    study.run_side_by_side(models, options.jobs)


def pretrain(options: argparse.Namespace, seed: int) -> Path:
    settings = {"data": options.output / "episodes", "seed": seed, "max_steps": options.pretrain_steps}
    runs = study.RunFolder(options.output / f"seed-{seed}")
    return runs.configured("pretrain", "pretrain.py", "demo/pretrain.yaml", settings | study.SHORT_RUN)


def folder_of(options: argparse.Namespace, seed: int, size: tuple[int, int], amount: int) -> Path:
    return options.output / f"seed-{seed}" / f"width_{size[0]}_blocks_{size[1]}_episodes_{amount}"


def run_model(options: argparse.Namespace, seed: int, size: tuple[int, int], amount: int) -> None:
    """Trains a world model, measures its rollouts on test episodes, and plans with it."""
    runs, width = study.RunFolder(folder_of(options, seed, size, amount)), size[0]
    settings = {"data": options.output / "episodes", "max_episodes": amount, "seed": seed}
    settings |= {"encoder": pretrain(options, seed), "max_steps": options.steps, **RECIPE}
    settings |= {"cache_dir": options.output / f"seed-{seed}" / f"latents_{amount}"}
    settings |= {"learning_rate.peak": PEAK_RATE * min(1.0, RATE_WIDTH / width), **study.SHORT_RUN}
    settings |= {"world_model.predictor_hidden_size": width, "world_model.predictor_num_hidden_layers": size[1]}
    settings |= {"world_model.predictor_num_attention_heads": width // HEAD_SIZE}
    settings.pop("num_workers")
    model = runs.configured("world_model", "train_world_model.py", "demo/world_model.yaml", settings)

    test, output = options.output / "test_episodes", runs.path / "rollouts.json"
    given = {"model": model, "data": test, "output": output, "validation_fraction": 1.0, "horizons": HORIZONS}
    given |= {"probe_data": options.output / "episodes", "probe_episodes": 20, "num_threads": 1}
    runs.run("rollouts", output, "evaluate_world_model.py", *study.key_values(given))

    planning = {"models": {study.MODEL: str(model)}, "baselines": [], "seed": seed, "videos": 0, **SOLVER}
    planning |= {"episodes": options.tasks, "first_task": FIRST_TASK + 1000 * seed}
    runs.configured("plan", "plan.py", "demo/plan.yaml", planning, result="results.json")


def training_flops(run: Path) -> float:
    """Floating-point operations of the whole training of a run's dynamics, forward and backward."""
    model = VJepa2WorldModel.from_pretrained(run / "final")
    model.set_attn_implementation("eager")  # whose products the counter knows on every device
    settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    frames = settings["frames_per_window"]
    latents = torch.zeros(1, frames, model.tokens_per_frame, model.latent_size)
    with FlopCounterMode(display=False) as counter:
        model(latents=latents, actions=torch.zeros(1, frames - 1, model.config.action_dim)).loss.backward()
    return float(counter.get_total_flops() * settings["batch_size"] * settings["max_steps"])


def fit(compute: list[float], errors: list[float]) -> dict[str, float]:
    """Exponent of error ~ compute^exponent, and curvature of the parabola through the same points in log-log.

    The curvature needs three sizes; with two it is left out.
    """
    x, y = np.log(compute), np.log(errors)
    x = x - x.mean()
    fitted = {"exponent": float(np.polyfit(x, y, 1)[0])}
    return fitted | ({"curvature": float(np.polyfit(x, y, 2)[0])} if len(set(compute)) > 2 else {})


def collect(options: argparse.Namespace) -> dict[str, Any] | None:
    """A row for every finished size and amount of data, and the fits by amount."""
    rows = []
    for size, amount in product(sizes_of(options), amounts_of(options)):
        folders = [folder_of(options, seed, size, amount) for seed in range(options.seeds)]
        if not all((folder / "plan" / "results.json").is_file() for folder in folders):
            continue
        rollouts = study.read_results(folder / "rollouts.json" for folder in folders)
        planned = [study.planned_row(folder / "plan" / "results.json")[0] for folder in folders]
        row = {"size": f"{size[0]} x {size[1]}", "episodes": amount}
        row["flops"] = training_flops(folders[0] / "world_model")
        for name, column in {"error": "absolute_error", "copy_error": "copy_absolute_error"}.items():
            means = [float(np.mean([at[column] for at in one["horizons"]])) for one in rollouts]
            row[name] = study.over_seeds(means, t_interval)
        row["success"] = study.over_seeds([one["success"] for one in planned])
        rows.append(row)
    if not rows:
        return None
    results = {"seeds": options.seeds, "rows": rows, "fits": fits(rows), "success_by_error": follow(rows)}
    draw(results, options.documents)
    return results


def fits(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Exponent and curvature over the seeds, by number of episodes."""
    found = {}
    for amount in sorted({row["episodes"] for row in rows}):
        chosen = [row for row in rows if row["episodes"] == amount]
        compute = [row["flops"] for row in chosen]
        if len(set(compute)) < 2:
            continue
        by_seed = zip(*(row["error"]["by_seed"] for row in chosen), strict=True)
        fitted = [fit(compute, list(errors)) for errors in by_seed]
        found[str(amount)] = {name: study.over_seeds([one[name] for one in fitted], t_interval) for name in fitted[0]}
    return found


def follow(rows: list[dict[str, Any]]) -> float | None:
    """Spearman's rank correlation of success and error over all models; None for fewer than three."""
    errors, success = ([value for row in rows for value in row[name]["by_seed"]] for name in ("error", "success"))
    constant = len(set(errors)) < 2 or len(set(success)) < 2
    return None if constant or len(errors) < 3 else float(spearmanr(errors, success).statistic)


def draw(results: dict[str, Any], documents: list[Path]) -> None:
    """Writes scaling.png beside the first page: error over compute, and success over error."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from vjepa2_hf.visualization.curves import STYLE

    if not documents:
        return
    with pyplot.rc_context(STYLE):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
        for amount in sorted({row["episodes"] for row in results["rows"]}):
            rows = [row for row in results["rows"] if row["episodes"] == amount]
            compute, errors = [row["flops"] for row in rows], [row["error"] for row in rows]
            low, high = ([error[name] or error["mean"] for error in errors] for name in ("low", "high"))
            means = np.array([error["mean"] for error in errors])
            spread = np.abs(np.array([low, high]) - means)
            left.errorbar(compute, means, yerr=spread, marker="o", capsize=3, label=f"{amount} episodes")
            flat = [[value for row in rows for value in row[name]["by_seed"]] for name in ("error", "success")]
            right.plot(*flat, "o", alpha=0.7, label=f"{amount} episodes")
        left.set(xscale="log", yscale="log", xlabel="operations of training", ylabel="L1 of rollouts, held out")
        right.set(xlabel="L1 of rollouts, held out", ylabel="success rate of planning", ylim=(0, 1.02))
        left.legend()
        with write_aside(documents[0].with_name("scaling.png")) as partial:
            figure.savefig(partial, format="png", dpi=120)
        pyplot.close(figure)


@study.markdown
def format_tables(results: dict[str, Any]) -> Iterator[str | tuple]:
    seeds, tasks, steps = study.counted(results["seeds"], "training seed"), results["tasks"], results["steps"]
    yield (
        f"World models of pushing, {seeds}, {steps} steps each; {tasks} tasks per model. "
        "Means (95 % interval over seeds); errors are over those of copying the last known latents where it says so."
    )
    titles = ["width x blocks", "episodes", "operations", "L1 of rollouts", "over copying", "success"]
    yield (
        titles,
        [
            [
                row["size"],
                str(row["episodes"]),
                f"{row['flops']:.2g}",
                precise(row["error"]),
                row["error"]["mean"] / row["copy_error"]["mean"],
                row["success"],
            ]
            for row in results["rows"]
        ],
    )
    yield "Fits of log error over log compute, by number of episodes:"
    yield (
        ["episodes", "exponent of the power law", "curvature of the parabola"],
        [
            [amount, *(precise(one[name]) if name in one else None for name in ("exponent", "curvature"))]
            for amount, one in results["fits"].items()
        ],
    )
    if results["success_by_error"] is not None:
        yield f"Rank correlation of success with error over all models: {results['success_by_error']:.2f}."


def precise(value: dict[str, Any]) -> str:
    """Mean and interval with three decimals."""
    interval = f" ({value['low']:.3f} to {value['high']:.3f})" if value["low"] is not None else ""
    return f"{value['mean']:.3f}{interval}"


SETTINGS = {
    "sizes": ("16x1,32x1,48x2,96x2", "width x blocks of the dynamics"),
    "episodes": ("40,400", "numbers of training episodes"),
    "steps": (600, "steps of every world model"),
    "pretrain_steps": (300, "steps of pretraining"),
    "tasks": (40, "tasks of planning per model"),
}
STUDY = study.Study("scaling", __doc__, run, collect, format_tables, ["docs/scale.md"], SETTINGS)


if __name__ == "__main__":
    STUDY.main()
