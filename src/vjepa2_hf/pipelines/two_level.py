"""Subgoals of a second time scale: a plan over macro-actions, whose first imagined latents are the next goal.

::

    observation, goal ──► solver over macro-actions ──► first imagined latents ──► goal of the planner

The world model of the larger scale is trained with `macro_action_dim` on longer steps and on the latents of the
planner's model (`state_of` of `examples/train_world_model.py`); arXiv 2610.06805 and 2604.03208 plan like this.

Letters: B problems, N tokens of a frame, D width of a latent.
"""

import json
from pathlib import Path
from typing import Any

import torch

from ..configuration_world_model import VJepa2WorldModelConfig
from ..data.parts import DamagedPartError, check_part, read_tensors, save_part
from ..modeling_world_model import VJepa2WorldModel
from ..planning import Closest, LatentDistance, TemporalDistance
from .planner_settings import choose_cost, choose_solver


WEIGHTS_FILE = "macro_model.safetensors"
SHARED = ("encoder", "target_encoder", "distance_head")  # parts of the planner's model that this scale uses
SOLVER = {"solver": "cem", "horizon": 4, "num_candidates": 128, "num_iterations": 3}
PLANNER_ONLY = ("candidate_chunk_size", "constraints", "num_samples", "uncertainty_weight", "subgoals")
SEED = 0


class MacroActionSubgoals:
    """Subgoals one step of a larger time scale away, and the goal itself once it is as near.

    The solver's noise has a fixed seed: a subgoal depends on the observation and the goal alone. Distances are those
    of the planner's model, whose encoder and distance head this scale shares.

    Args:
        model: a world model of longer steps, see `copy_state`; with `macro_action_dim` the solver searches over
            macro-actions. `config.planner` may hold settings of the solver and a cost. Default: CEM, and the closest
            approach in 2 · squared latent distance + temporal distance.
        planner_model: the model of the planner, which has a distance head.
    """

    name = "macro_actions"

    def __init__(self, model: VJepa2WorldModel, planner_model: VJepa2WorldModel):
        from ..training.time_scales import check_same_latents  # other planners do without modules of training

        if not planner_model.config.distance_head:
            raise ValueError(
                "subgoals of a second time scale need a planner's model with a distance head: train one with "
                "examples/train_distance_head.py."
            )
        steps = [each.config.frame_skip for each in (model, planner_model)]
        if steps[0] <= steps[1]:
            expected = "expected one of longer steps, trained with a larger frame_skip"
            raise ValueError(f"the model of subgoals has frame_skip={steps[0]}, the planner's {steps[1]}: {expected}.")
        if model.config.proprio_dim or model.config.extrinsics_dim:
            raise ValueError("the model of subgoals needs proprio states or extrinsics, which subgoals do not have.")
        macro = model if model.config.macro_action_dim is None else model.macro_model()
        self.model = macro.to(planner_model.device, planner_model.dtype).eval()
        check_same_latents(self.model, planner_model, "the model of subgoals")
        for name in SHARED:
            if hasattr(planner_model, name):
                setattr(self.model, name, getattr(planner_model, name))
        config = self.model.config
        for name in ("distance_head", "distance_hidden_size", "distance_embedding_size"):
            setattr(config, name, getattr(planner_model.config, name))
        cost = Closest(2.0 * LatentDistance("l2") + TemporalDistance())
        own = {name: value for name, value in (config.planner or {}).items() if name not in PLANNER_ONLY}
        saved = {"cost": cost, **SOLVER, **own}
        self.cost = choose_cost(None, None, saved)
        self.solver = choose_solver(config, None, {}, saved)

    @torch.no_grad()
    def choose(
        self, model: VJepa2WorldModel, latents: torch.Tensor, goal: torch.Tensor
    ) -> tuple[torch.Tensor, list[dict[str, Any]]]:
        """The latents (B, N, D) to plan for, from those of the observations to those of the goals (B, N, D)."""
        goal_distance, chosen = model.temporal_distance(latents, goal), goal.clone()
        far = goal_distance > self.model.config.frame_skip
        if far.any():
            chosen[far] = self._first_step(latents[far].unsqueeze(1), goal[far]).to(goal)
        distance = model.temporal_distance(latents, chosen)
        found = zip(far.tolist(), distance.tolist(), goal_distance.tolist(), strict=True)
        names = ("reason", "distance", "goal_distance")  # in frames
        return chosen, [
            dict(zip(names, ("macro-action" if is_far else "goal within reach", *frames), strict=True))
            for is_far, *frames in found
        ]

    def _first_step(self, latents: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        """The first imagined latents (B, N, D) of the cheapest plan from latents (B, 1, N, D) to goals (B, N, D)."""
        config = self.model.config

        def score(macro_actions: torch.Tensor) -> torch.Tensor:
            return self.model.score(latents, goal, macro_actions.to(latents.device), cost=self.cost)

        found = self.solver(
            score,
            batch_size=len(latents),
            action_dim=config.action_dim,
            action_low=-1.0 if config.action_low is None else config.action_low,
            action_high=1.0 if config.action_high is None else config.action_high,
            generator=torch.Generator().manual_seed(SEED),
        )
        return self.model.rollout(latents, found.actions[:, :1].to(latents.device))[:, 0]

    def save_pretrained(self, folder: Path) -> None:
        """Saves the dynamics and settings of this scale, without what it shares with the planner's model."""
        config = self.model.config
        config.planner = {**self.solver.to_dict(), "cost": self.cost.to_dict()}
        config.save_pretrained(folder)
        weights = {name: value.cpu() for name, value in self.model.state_dict().items() if not _is_shared(name)}
        save_part(folder / WEIGHTS_FILE, weights, self.name, {})

    @classmethod
    def from_pretrained(cls, folder: Path, model: VJepa2WorldModel) -> "MacroActionSubgoals":
        """Subgoals as saved, or those of a world model in its own folder; `model` is the planner's."""
        path = folder / WEIGHTS_FILE
        if not path.is_file():
            return cls(VJepa2WorldModel.from_pretrained(folder), model)
        try:
            check_part(path, cls.name)
            with torch.device("meta"):
                macro = VJepa2WorldModel(VJepa2WorldModelConfig.from_pretrained(folder))
            shared = {name: value for name, value in model.state_dict().items() if _is_shared(name)}
            macro.load_state_dict({**read_tensors(path), **shared}, assign=True)
        except (DamagedPartError, OSError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(
                f"{str(folder)!r} holds damaged subgoals, or those of another planner ({reason}): save the planner "
                "that they belong to again."
            ) from error
        return cls(macro, model)


def holds_macro_model(folder: Path) -> bool:
    """Whether a folder holds a world model that was trained with macro-actions."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return config.get("macro_action_dim") is not None
    except (OSError, ValueError, AttributeError):
        return False


def _is_shared(name: str) -> bool:
    return name.startswith(tuple(f"{part}." for part in SHARED))
