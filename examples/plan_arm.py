# /// script
# requires-python = ">=3.11"
# dependencies = ["vjepa2-hf[demo]"]
# ///
"""Plans an arm's next action towards a goal image as published for V-JEPA 2-AC, and measures its direction.

    python examples/plan_arm.py --config examples/configs/franka/plan.yaml [key=value ...]

Held-out episodes give pairs of frames: the first frame with the arm's state is the observation, the image some steps
later is the goal. The first action of each plan is compared with the displacement to the goal, which the states give
and the planner does not see. Baselines are the recorded action and uniform random actions within the planner's bounds.
Prints the first plan and a table, and writes `OUTPUT_DIR/results.json`; `publish=true` also writes
results/franka.json and docs/franka.md.

The model is one of train_world_model.py with configs/franka/world_model.yaml, or a published action-conditioned
checkpoint (`python -m vjepa2_hf.convert_checkpoints vjepa2-ac-vitg.pt runs/ac`). The data is any LeRobot dataset or
shards with states of xyz (m), extrinsic Euler angles xyz (rad) and gripper (closed 1), at the model's frame rate.
"""

import dataclasses
import vjepa2_cli  # noqa: F401 (a quick --help)
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from tqdm import tqdm

from vjepa2_hf import VJepa2Planner
from vjepa2_hf.data.episodes import read_episodes
from vjepa2_hf.data.files import write_json, write_text
from vjepa2_hf.metrics.planning_success.planning_success import wilson_interval
from vjepa2_hf.specs import check_at_least
from vjepa2_hf.training.settings import exit_on_user_error, parse_arguments
from vjepa2_hf.visualization.tables import format_table, publish_tables


ROOT = Path(__file__).resolve().parent.parent
DIRECTED = 45  # degrees between an action and the displacement to the goal that count as towards it
RANDOM_ACTIONS = 1000  # per pair


@dataclass
class PlanArmConfig:
    """Settings of one measurement."""

    output_dir: str
    model: str
    """Folder or Hub id of a world model of an arm."""
    data: str
    """Episodes that the model was not trained on."""
    camera: str | None = None
    """Camera of episodes with several."""
    pairs: int = 40
    """Number of pairs, one per episode."""
    steps_ahead: int = 4
    """Model steps from the observation to the goal."""
    smallest_distance: float = 0.03
    """Meters to the goal; nearer goals have no clear direction and are skipped."""
    planner: dict[str, Any] = field(default_factory=dict)
    """Settings of VJepa2Planner, such as the embodiment that is the arm; empty: as saved with the model."""
    plans_at_once: int = 8
    seed: int = 0
    """Seed of the pairs, the planner's samples and the random actions."""
    num_threads: int | None = None
    device: str | None = None
    """null: an accelerator if there is one."""
    publish: bool = False
    """Also write the repository's results and page."""

    def __post_init__(self):
        check_at_least(self, pairs=1, steps_ahead=1, plans_at_once=1, smallest_distance=1e-6)


class Pair(NamedTuple):
    """An observation and a goal: images uint8 (H, W, 3), states (7,), and the recorded action (7,)."""

    image: np.ndarray
    goal_image: np.ndarray
    state: np.ndarray
    goal_state: np.ndarray
    action: np.ndarray


def sample_pairs(config: PlanArmConfig) -> list[Pair]:
    """Samples up to `pairs` pairs, one from each episode that has one."""
    rng, pairs = np.random.default_rng(config.seed), []
    for episode in read_episodes(config.data, camera=config.camera):
        states = episode["proprio_states"]
        if states is None or states.shape[1] != 7:
            found = "none" if states is None else f"{states.shape[1]} numbers"
            raise ValueError(
                f"The states of {config.data!r} are {found}, but 7 are expected: xyz, Euler angles xyz, gripper."
            )
        away = np.linalg.norm(states[config.steps_ahead :, :3] - states[: -config.steps_ahead, :3], axis=-1)
        starts = np.flatnonzero(away >= config.smallest_distance)
        if len(starts):
            start = int(rng.choice(starts))
            frames, end = episode["frames"], start + config.steps_ahead
            pairs.append(Pair(frames[start], frames[end], states[start], states[end], episode["actions"][start]))
        if len(pairs) == config.pairs:
            break
    if not pairs:
        raise ValueError(
            f"No episode of {config.data!r} has states {config.smallest_distance} m apart within "
            f"steps_ahead={config.steps_ahead} steps: lower smallest_distance, or raise steps_ahead."
        )
    return pairs


def angles(moves: np.ndarray, displacements: np.ndarray) -> np.ndarray:
    """Degrees between moves and displacements (..., 3); 90 for a move of length 0."""
    lengths = np.linalg.norm(moves, axis=-1) * np.linalg.norm(displacements, axis=-1)
    return np.degrees(np.arccos(((moves * displacements).sum(-1) / np.maximum(lengths, 1e-12)).clip(-1, 1)))


def measure(moves: np.ndarray, displacements: np.ndarray) -> dict[str, Any]:
    """Compares moves (M, n, 3), M for each of n pairs, with the displacements (n, 3) to their goals, in meters."""
    found = angles(moves, displacements)
    after = np.linalg.norm(displacements - moves, axis=-1)
    before = np.linalg.norm(displacements, axis=-1)
    return {
        "median_degrees": float(np.median(found)),
        "directed": float((found < DIRECTED).mean()),  # fraction
        "remaining": float(after.mean() / before.mean()),  # distance to the goal after the move over that before it
        "right_sign": ((moves > 0) == (displacements > 0)).mean(axis=(0, 1)).tolist(),  # fraction, by axis
    }


def compare(plans: list[dict[str, Any]], pairs: list[Pair], planner: VJepa2Planner, seed: int) -> dict[str, Any]:
    """The measures of planned, recorded and random actions, and every pair."""
    displacements = np.stack([pair.goal_state[:3] - pair.state[:3] for pair in pairs])
    planned = np.stack([plan["action"][:3] for plan in plans])
    recorded = np.stack([pair.action[:3] for pair in pairs])
    low, high = planner.action_low[:3], planner.action_high[:3]
    sampled = np.random.default_rng(seed).uniform(low, high, (RANDOM_ACTIONS, len(pairs), 3))
    moves = {"planned": planned[None], "recorded": recorded[None], "random": sampled}
    rows = {name: measure(moved, displacements) for name, moved in moves.items()}
    count = int((angles(planned, displacements) < DIRECTED).sum())
    rows["planned"]["directed_low"], rows["planned"]["directed_high"] = wilson_interval(count, len(pairs))
    each = [
        {"action": plan["action"].tolist(), "cost": plan["cost"], "way": displacement.tolist()}
        for plan, displacement in zip(plans, displacements, strict=True)
    ]
    distance = float(np.linalg.norm(displacements, axis=-1).mean())
    return {"pairs": len(pairs), "mean_distance": distance, **rows, "each": each}


def tabulate(results: dict[str, Any]) -> str:
    """The measures as a Markdown table."""
    cells = []
    for name in ("planned", "recorded", "random"):
        row = results[name]
        directed = f"{row['directed']:.2f}"
        if "directed_low" in row:
            directed += f" ({row['directed_low']:.2f}–{row['directed_high']:.2f})"
        signs = ", ".join(f"{number:.2f}" for number in row["right_sign"])
        cells.append([name, f"{row['median_degrees']:.0f}°", directed, f"{row['remaining']:.2f}", signs])
    titles = ["first action", "median angle to the goal", "under 45°", "distance left", "right sign of x, y, z"]
    return "\n".join(format_table(titles, cells))


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    config = parse_arguments(PlanArmConfig, __doc__, arguments)
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    planner = VJepa2Planner.from_pretrained(config.model, device=config.device, **config.planner)
    model_config = planner.embodied_config
    if (model_config.proprio_transition, model_config.frame_skip) != ("pose_delta", 1):
        raise ValueError(
            f"{config.model!r} is not a world model of an arm's poses: train one with proprio_transition: pose_delta "
            "and frame_skip: 1, as in configs/franka/world_model.yaml."
        )
    pairs, plans = sample_pairs(config), []
    for begin in tqdm(range(0, len(pairs), config.plans_at_once), desc="plans"):
        images, goals, states, *_ = zip(*pairs[begin : begin + config.plans_at_once], strict=True)
        plans += planner(list(images), list(goals), proprio_state=list(states), seed=config.seed)
    results = compare(plans, pairs, planner, config.seed)
    output = Path(config.output_dir)
    write_text(output / "config.yaml", yaml.safe_dump(dataclasses.asdict(config), sort_keys=False))
    write_json(output / "results.json", results)
    first = results["each"][0]
    parts = (first["action"][:3], first["action"][3:6], first["way"])
    xyz, rotation, way = (", ".join(f"{number:+.3f}" for number in part) for part in parts)
    print(f"first plan: Δxyz {xyz} m   Δeuler {rotation} rad   Δgripper {first['action'][6]:+.2f} (closed = 1)")
    print(f"displacement to its goal: {way} m\n")
    if config.publish:
        documents = [ROOT / "docs" / "franka.md"]
        publish_tables(results, tabulate(results), ROOT / "results" / "franka.json", documents, "franka")
    else:
        print(tabulate(results))


if __name__ == "__main__":
    main()
