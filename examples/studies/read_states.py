"""Positions read out of a world model's states by linear regression, in appearances that it was not fitted on.

    python examples/studies/read_states.py MODEL OUT.json [--env vjepa2_hf/Pushing-v0] [--episodes 200]

Episodes of the environment's data policy have an appearance each: floor, colors, distractors, light. A ridge
regression from the state of a frame to the positions of the agent and of other discs is fitted on `--episodes` of
them. OUT.json has its R² on a quarter as many held-out episodes in other appearances. OUT.png, beside it, shows one
motion in five of these appearances: an image of each, and the true positions next to those that were read out.
"""

import argparse
import vjepa2_cli  # noqa: F401 (a quick --help)
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vjepa2_hf import VJepa2VideoProcessor, VJepa2WorldModel
from vjepa2_hf.data.files import write_json
from vjepa2_hf.environments import DATA_POLICY, PUSHING
from vjepa2_hf.environments.closed_loop import policy_plan, run_closed_loop
from vjepa2_hf.environments.tasks import Tasks
from vjepa2_hf.metrics.r_squared.r_squared import r_squared
from vjepa2_hf.specs import check_at_least
from vjepa2_hf.training.settings import exit_on_user_error, refuse_missing_model
from vjepa2_hf.visualization.figures import write_figure
from vjepa2_hf.visualization.read_out_figures import plot_read_out
from vjepa2_hf.visualization.rollout_windows import encode_frames
from vjepa2_hf.visualization.state_probe import choose_probe


FIT, HELD_OUT = 600_000, 650_000  # first seeds of the episodes
APPEARANCES = 5  # in the figure


def play(env_id: str, first_seed: int, episodes: int) -> tuple[Tasks, np.ndarray]:
    """Episodes of the data policy, each in its own appearance, and their states (E, T, S)."""
    tasks = Tasks(env_id, range(first_seed, first_seed + episodes), varied_appearance=True)
    result = run_closed_loop(tasks, policy_plan(DATA_POLICY[env_id], first_seed))
    return tasks, result.states


@torch.no_grad()
def encode(model: VJepa2WorldModel, processor: Any, tasks: Tasks, states: np.ndarray, episode: int) -> torch.Tensor:
    """Latents (T, N·D) of states (T, S) in the appearance of an episode."""
    appearance = tasks.appearances[episode]
    frames = np.stack([tasks.env.render_state(state, appearance) for state in states])
    return encode_frames(model, processor, frames).flatten(1).cpu()


def measure(model: VJepa2WorldModel, processor: Any, env_id: str, episodes: int) -> tuple[dict[str, Any], Any]:
    """R² by disc, and the figure."""
    fitted, known = play(env_id, FIT, episodes)
    latents = [encode(model, processor, fitted, states, number) for number, states in enumerate(known)]
    probe, ridge = choose_probe(latents, list(torch.from_numpy(known)))

    def read(tasks: Tasks, states: np.ndarray, episode: int) -> np.ndarray:
        return probe(encode(model, processor, tasks, states, episode).unsqueeze(1)).numpy()

    others, true = play(env_id, HELD_OUT, max(APPEARANCES, episodes // 4))
    found = np.concatenate([read(others, states, number) for number, states in enumerate(true)])
    discs, flat = list(others.env.discs), np.concatenate(true)
    columns = [slice(2 * index, 2 * index + 2) for index in range(len(discs))]
    scores = [r_squared(found[:, part], flat[:, part]) for part in columns]

    # The motion in which the last disc, which in pushing is the block, goes furthest
    moved = np.linalg.norm(np.diff(true[..., columns[-1]], axis=1), axis=-1).sum(axis=1)
    motion = true[int(moved.argmax())]
    shown = range(APPEARANCES)
    images = np.stack([others.env.render_state(motion[0], others.appearances[number]) for number in shown])
    paths = np.stack([read(others, motion, number) for number in shown])
    shape = (len(motion), len(discs), 2)
    positions, paths = motion[:, : 2 * len(discs)].reshape(shape), paths[..., : 2 * len(discs)].reshape(-1, *shape)
    figure = plot_read_out(images, positions, paths, discs, scores, len(true))
    about = {"env": env_id, "episodes": episodes, "held_out": len(true), "ridge": ridge}
    return about | {"r_squared": dict(zip(discs, scores, strict=True))}, figure


@exit_on_user_error
def main() -> None:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    parser.add_argument("model", help="world model, with its video processor")
    parser.add_argument("output", type=Path, help="JSON file to write; the figure beside it ends in .png")
    parser.add_argument("--env", default=PUSHING, choices=list(DATA_POLICY))
    parser.add_argument("--episodes", type=int, default=200, help="episodes to fit on (default: 200)")
    options = parser.parse_args()
    check_at_least(options, "--", episodes=2)
    refuse_missing_model(options.model)
    model = VJepa2WorldModel.from_pretrained(options.model).eval()
    processor = VJepa2VideoProcessor.from_pretrained(options.model)
    found, figure = measure(model, processor, options.env, options.episodes)
    write_figure(options.output.with_suffix(".png"), lambda _: figure)
    write_json(options.output, found)  # written last: it implies the figure


if __name__ == "__main__":
    main()
