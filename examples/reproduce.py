"""Every figure that README and the model card quote: three training seeds, both environments, all encoders and
baselines, in hours on 2 cores.

    python examples/reproduce.py [--output runs/reproduce] [--seeds 3] [--lanes 2]

Each environment and seed is a chain of the demo's steps: pretrain, three world models (pretrained encoder, random
encoder, raw pixels; the same dynamics and as many training steps), cloning and an actor that improves it in
imagination on the first, planning on 100 tasks of its own, on the first model also from what cloning proposes. Two
rooms has dynamics with history. Chains run side by side, one thread each; a run that was stopped goes on where it was.
At the end the means over seeds, with intervals that contain their spread, go to `results/reproduce.json`, into README
and into the model card between their markers.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from demo import RANDOM_ENCODER, Road, script
from tqdm import tqdm

from vjepa2_hf.metrics.planning_success.planning_success import seed_interval
from vjepa2_hf.visualization.tables import publish_tables


ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "examples" / "configs" / "demo"
ENVIRONMENTS = {
    "pushing": {
        "id": "vjepa2_hf/Pushing-v0",
        "policy": "drawn_to_block",
        "model": "world_model.yaml",
        "plan": "plan.yaml",
    },
    "two_rooms": {
        "id": "vjepa2_hf/TwoRooms-v0",
        "policy": "wander",
        "model": "world_model_two_rooms.yaml",
        "plan": "plan_two_rooms.yaml",
    },
}
POLICIES = {
    "cloning": "goal-conditioned behaviour cloning",
    "cloning_even": "behaviour cloning, goals drawn evenly",
    "actor": "actor: cloning, improved in imagination",
}
ENCODERS = {"pretrained": "CEM, pretrained encoder", "random": "CEM, random encoder", "pixels": "CEM, raw pixels"}
PROPOSED = "CEM, pretrained encoder, from cloning's proposals"

FIRST_TASK = 700_000  # the demo's and the ablations' tasks lie below: choices have been made on those


def record(output: Path, environment: str) -> None:
    """Episodes of one environment, which all its seeds share."""
    settings, episodes = ENVIRONMENTS[environment], output / environment / "episodes"
    arguments = f"--env {settings['id']} --policy {settings['policy']} --episodes 560 --num_proc 2 --output {episodes}"
    Road(output / environment, threads=2).run(
        f"{environment}: episodes", ("record", episodes, script("record_episodes.py", *arguments.split()))
    )


def run_chain(output: Path, environment: str, seed: int, progress: tqdm) -> None:
    """Pretraining, world models and planning of one environment and seed."""
    folder, episodes = output / environment / f"seed-{seed}", output / environment / "episodes"
    settings = ENVIRONMENTS[environment]
    road = Road(folder, threads=1, quiet=True)
    common = [f"data={episodes}", f"seed={seed}", "num_threads=1", "resume=latest"]

    def step(name: str, file: str, config: str, result: str, *settings: str) -> None:
        command = script(file, "--config", str(CONFIGS / config), f"output_dir={folder / name}", *settings)
        road.run(f"{environment} seed {seed}: {name}", (name, folder / name / result, command))
        progress.update()

    step("pretrain", "pretrain.py", "pretrain.yaml", "final", *common)
    for encoder in ENCODERS:
        source = [f"encoder={folder / 'pretrain' / 'final'}"]
        if encoder != "pretrained":
            source = [f"encoder={encoder}", RANDOM_ENCODER]
        step(f"world_model_{encoder}", "train_world_model.py", settings["model"], "final", *source, *common)
    world_model = f"world_model={folder / 'world_model_pretrained' / 'final'}"
    step("cloning", "train_cloning.py", "cloning.yaml", "final", world_model, *common)
    step("cloning_even", "train_cloning.py", "cloning.yaml", "final", world_model, "goal_draws=1", *common)
    start = f"start={folder / 'cloning' / 'final'}"
    step("actor", "train_actor.py", "actor.yaml", "final", world_model, start, *common)
    policies = {name: str(folder / policy / "final") for policy, name in POLICIES.items()}
    models = {name: str(folder / f"world_model_{encoder}" / "final") for encoder, name in ENCODERS.items()}
    models[PROPOSED] = models[ENCODERS["pretrained"]]
    planning = [f"models={json.dumps(models)}", f"policies={json.dumps(policies)}"]
    planning.append(f"proposals={json.dumps({PROPOSED: policies[POLICIES['cloning']]})}")
    planning += [f"seed={seed}", "num_threads=1", "videos=10"]
    # tasks of its own, so that the spread over seeds holds the tasks' too
    planning.append(f"first_task={FIRST_TASK + 1000 * seed}")
    step("plan", "plan.py", settings["plan"], "results.json", *planning)


def collect(output: Path, environment: str, seeds: int) -> dict[str, Any]:
    """Means over seeds of success and of rollout errors of one environment."""
    folders = [output / environment / f"seed-{seed}" for seed in range(seeds)]
    folders = [folder for folder in folders if (folder / "plan" / "results.json").exists()]
    tables = [json.loads((folder / "plan" / "results.json").read_text())["rows"] for folder in folders]
    rows = []
    for row in max(tables, key=len):  # of a stopped run one seed may have more rows than another
        same = [other for table in tables for other in table if other["name"] == row["name"]]
        success = [other["success"] for other in same]
        low, high = seed_interval(success)
        rows.append(
            {
                "name": row["name"],
                "success": float(np.mean(success)),
                "low": low,
                "high": high,
                "by_seed": success,
                "episodes": row["episodes"],
            }
        )
    errors = {}
    for encoder in ENCODERS:
        files = [folder / f"world_model_{encoder}" / "rollout_error.json" for folder in folders]
        measured = [json.loads(file.read_text()) for file in files if file.exists()]
        if not measured:
            continue
        errors[encoder] = {
            str(row["horizon"]): float(np.mean([one[i]["error"] / one[i]["copy_error"] for one in measured]))
            for i, row in enumerate(measured[0])
        }
    return {"rows": rows, "rollout_error_over_copy": errors}


def format_tables(results: dict[str, Any]) -> str:
    """The results as Markdown, for README."""
    lines = []
    for environment, result in results["environments"].items():
        seeds = max(len(row["by_seed"]) for row in result["rows"])
        title = environment.replace("_", " ").capitalize()
        lines += [f"**{title}** (success; {seeds} training seeds × {result['rows'][0]['episodes']} episodes)", ""]
        lines += ["| method | mean | 95 % interval over seeds | by seed |", "|---|---|---|---|"]
        for row in result["rows"]:
            by_seed = ", ".join(f"{value:.2f}" for value in row["by_seed"])
            interval = f"{row['low']:.2f}–{row['high']:.2f}"
            interval = interval if len(row["by_seed"]) > 1 else "one seed"
            lines.append(f"| {row['name']} | {row['success']:.2f} | {interval} | {by_seed} |")
        lines += ["", "Rollout error over the error of copying the last state, held out, by model steps ahead:", ""]
        horizons = list(result["rollout_error_over_copy"]["pretrained"])
        lines += ["| encoder | " + " | ".join(horizons) + " |", "|---" * (len(horizons) + 1) + "|"]
        for encoder, errors in result["rollout_error_over_copy"].items():
            lines.append(f"| {encoder} | " + " | ".join(f"{errors[horizon]:.2f}" for horizon in horizons) + " |")
        lines.append("")
    return "\n".join(lines)


def refuse_to_publish_nothing(output: Path, found: bool) -> None:
    """Ends the command where no run has finished: a page with figures is not replaced by one without."""
    if not found:
        raise SystemExit(f"error: no run is finished in {output}: nothing to publish.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/reproduce"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lanes", type=int, default=2, help="chains that run side by side, one thread each")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "reproduce.json")
    parser.add_argument("--collect", action="store_true", help="run nothing: publish what the runs so far measured")
    documents = [ROOT / "README.md", ROOT / "model_cards" / "demo.md"]
    parser.add_argument("--documents", type=Path, nargs="*", default=documents, help="files with markers")
    arguments = parser.parse_args()
    if not arguments.collect:
        run_all(arguments)
    publish(arguments)


def run_all(arguments: argparse.Namespace) -> None:
    """Every chain, `lanes` at a time."""
    for environment in ENVIRONMENTS:
        record(arguments.output, environment)
    chains = [(environment, seed) for seed in range(arguments.seeds) for environment in ENVIRONMENTS]
    with (
        tqdm(total=len(chains) * (2 + len(ENCODERS) + len(POLICIES)), desc="steps") as progress,
        ThreadPoolExecutor(arguments.lanes) as lanes,
    ):
        for done in [lanes.submit(run_chain, arguments.output, *chain, progress) for chain in chains]:
            done.result()


def publish(arguments: argparse.Namespace) -> None:
    """Writes what the runs measured to `results/reproduce.json` and into README."""
    results = {"environments": {}}
    for name in ENVIRONMENTS:
        if list((arguments.output / name).glob("seed-*/plan/results.json")):
            results["environments"][name] = collect(arguments.output, name, arguments.seeds)
    refuse_to_publish_nothing(arguments.output, bool(results["environments"]))
    publish_tables(results, format_tables(results), arguments.results, arguments.documents, "reproduce")


if __name__ == "__main__":
    main()
