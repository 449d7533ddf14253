"""A planner in closed loop on one task, to watch: what it imagined, what it considered, and what each step showed.

    planner = WatchedPlanner(models.planner, PlanSettings(num_candidates=64), models.lock, imagery)
    episode = Episode("world model", make_task(env_id, start, goal), planner)
    while not episode.ended:
        episode.advance()             # to the next plan or step
        episode.image, planner.view   # what a page shows

Letters: P planning horizon, A action size, E candidates shown, N tokens and D width of a latent, H W pixels, S state.
"""

import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..pipelines.encoded_goals import EncodedGoal
from ..pipelines.latent_planning import VJepa2Planner
from ..planning import SOLVERS, build_solver
from ..planning.candidates import KeepCheapest
from ..visualization.imagination import Imagery
from ..visualization.rollout_windows import encode_frames
from .closed_loop import Plan, step_closed_loop
from .tasks import Tasks


SHOWN = 8  # E
LANDSCAPE_POINTS = 13
ON_ITS_WAY = "On its way"  # begins the outcome of an episode that goes on
CLOSEST, LEARNED, SQUARED, ABSOLUTE = (
    "closest approach, latent and learned",
    "learned distance (frames)",
    "latent distance, squared",
    "latent distance, absolute",
)
COSTS = {CLOSEST: "closest", LEARNED: "temporal", SQUARED: "l2", ABSOLUTE: "l1"}


def list_costs(config: Any) -> list[str]:
    """The distances to choose from, the best first: without a distance head there are no learned ones."""
    return list(COSTS) if config.distance_head else [SQUARED, ABSOLUTE]


def list_solvers(config: Any) -> list[str]:
    """The solvers for the model's actions, the default first."""
    discrete = config.action_type == "discrete"
    return [name for name in SOLVERS if (name == "categorical_cem") == discrete]


@dataclass(frozen=True)
class PlanSettings:
    """What a session chooses; `cost` is one of `list_costs`."""

    solver: str = "cem"
    num_candidates: int = 128
    num_iterations: int = 3
    horizon: int = 3
    cost: str = SQUARED
    seed: int = 0
    budget_ms: float | None = None

    def build_solver(self) -> Any:
        """The solver with these settings."""
        counts = {"num_candidates": self.num_candidates, "num_iterations": self.num_iterations}
        return build_solver(self.solver, horizon=self.horizon, **counts)


@dataclass
class PlanView:
    """One plan and what was imagined for it."""

    plan: dict[str, Any]  # of the planner
    candidates: np.ndarray  # (E, P, A), the cheapest of the last iteration first
    images: np.ndarray | None = None  # uint8 (P, H, W, 3), imagined under the plan
    ends: np.ndarray | None = None  # uint8 (E, H, W, 3), the last imagined step of every candidate
    path: np.ndarray | None = None  # (P + 1, S), states read from what is imagined, the present first
    paths: np.ndarray | None = None  # (E, P + 1, S)


class WatchedPlanner:
    """A `plan` for `closed_loop` that keeps a view of its last plan, and its goal encoded until another one is given.

    Args:
        planner: whose model is used; it does not change.
        settings: of the search.
        lock: held while the model computes.
        imagery: shows what is imagined; `None`: the view holds plans and candidates alone.
    """

    def __init__(
        self,
        planner: VJepa2Planner,
        settings: PlanSettings,
        lock: AbstractContextManager | None = None,
        imagery: Imagery | None = None,
    ):
        self.solver, self.settings, self.imagery = KeepCheapest(settings.build_solver(), SHOWN), settings, imagery
        self.lock = threading.RLock() if lock is None else lock
        given = {"solver": self.solver, "cost": COSTS[settings.cost], "device": planner.device}
        self.planner = VJepa2Planner(planner.model, planner.video_processor, **given)
        self.view: PlanView | None = None
        self.plans = 0
        self._goal: EncodedGoal | None = None

    def __call__(self, tasks: Tasks) -> np.ndarray:
        """Actions (1, P * k, A / k) of one task, with k environment actions in a model step."""
        self.look(tasks.render()[0], tasks.goal_images[0], **self.arguments(tasks))
        return self.view.plan["actions"].reshape(1, -1, tasks.action_dim)

    def arguments(self, tasks: Tasks) -> dict[str, Any]:
        """What the model needs to know of one task beside its image."""
        return {"proprio_state": tasks.proprio_states[0]} if self.planner.model.config.proprio_dim else {}

    def look(self, image: np.ndarray, goal: np.ndarray, **given: Any) -> PlanView:
        """Plans once for images, uint8 (H, W, 3); `given` are the planner's `proprio_state` and `extrinsics`."""
        seed = self.settings.seed * 1000 + self.plans
        with self.lock:
            plan = self.planner(image, self._encode(goal), seed=seed, budget_ms=self.settings.budget_ms, **given)
            self.view = PlanView(plan, self.solver.candidates[0].cpu().numpy())
            if self.imagery is not None:
                self._imagine(image, given)
        self.plans += 1
        return self.view

    def _encode(self, goal: np.ndarray) -> EncodedGoal:
        if self._goal is None or not np.array_equal(self._goal.images, goal):
            self._goal = self.planner.encode_goal(goal.copy())
        return self._goal

    @torch.no_grad()
    def _imagine(self, image: np.ndarray, given: dict[str, Any]) -> None:
        model, view = self.planner.model, self.view
        present = encode_frames(model, self.planner.video_processor, image[None], targets=False)
        names = {"proprio_state": "proprio_states", "extrinsics": "extrinsics"}
        states = {
            names[name]: torch.as_tensor(value, dtype=torch.float32, device=model.device).reshape(1, 1, -1)
            for name, value in given.items()
        }
        actions = np.concatenate([view.plan["actions"][None], view.candidates])
        actions = torch.from_numpy(actions).unsqueeze(0).to(model.device)  # (1, 1 + E, P, A)
        futures = model.rollout(present.unsqueeze(0), actions, **states)[0]
        view.images, view.ends = self.imagery.images(futures[0]), self.imagery.images(futures[1:, -1])
        seen = torch.cat([present.expand(len(futures), 1, -1, -1), futures], dim=1)
        read = self.imagery.states(seen)
        if read is not None:
            view.path, view.paths = read[0], read[1:]

    def landscape(self, image: np.ndarray, goal: np.ndarray, points: int = LANDSCAPE_POINTS, **given: Any) -> dict:
        """As `VJepa2Planner.energy_landscape`, over the first action of the last plan; images are (H, W, 3)."""
        with self.lock:
            actions = self.view.plan["actions"]
            return self.planner.energy_landscape(image, self._encode(goal), points=points, actions=actions, **given)


@dataclass
class Episode:
    """One task under one planner or policy."""

    name: str
    tasks: Tasks
    plan: Plan
    executed_actions: int = 1
    steps: int = 0
    planning: bool = field(default=False)  # the last event was a plan, whose first action has not been taken yet

    def __post_init__(self) -> None:
        self._events = step_closed_loop(self.tasks, self.plan, self.executed_actions)

    @property
    def reached(self) -> bool:
        """Whether the goal was reached."""
        return bool(self.tasks.reached[0])

    @property
    def ended(self) -> bool:
        """Whether no step is left to take."""
        return not self.tasks.active[0] or self.steps >= self.tasks.max_steps

    @property
    def image(self) -> np.ndarray:
        """uint8 (H, W, 3)."""
        return self.tasks.render()[0]

    def advance(self) -> None:
        """To the next plan, or to the next step."""
        self.planning = next(self._events) is None
        self.steps += not self.planning

    def advance_step(self) -> None:
        """Takes one step, with a plan before it if one is needed; an episode that has ended stays as it is."""
        before = self.steps
        while self.steps == before and not self.ended:
            self.advance()

    @property
    def outcome(self) -> str:
        """One sentence."""
        steps = f"{self.steps} step{'s' if self.steps != 1 else ''}"
        if self.tasks.solved[0]:
            return "The start already solves the task: move the goal."
        if self.reached:
            return f"Reached the goal after {steps}."
        if self.ended:
            return f"Did not reach the goal in {steps}; it ended {self.tasks.distances[0]:.0f} pixels away."
        return f"{ON_ITS_WAY} after {steps}, {self.tasks.distances[0]:.0f} pixels from the goal."


def make_task(env_id: str, start: np.ndarray, goal: np.ndarray, env_kwargs: dict[str, Any] | None = None) -> Tasks:
    """One task from a start to a goal (S,), in one of the package's environments."""
    chosen = (np.float32([start]), np.float32([goal]))
    return Tasks(env_id, [0], env_kwargs=env_kwargs, chosen=chosen)
