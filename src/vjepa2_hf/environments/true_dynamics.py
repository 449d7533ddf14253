"""Planning with the true dynamics of the package's environments.

Letters: N tasks, n of them active, S state size, J candidates, P planning horizon, A action size of a model step, k
environment actions of a model step, T tokens of a frame, D width of a latent.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..modeling_costs import sum_over_steps
from ..pipelines.latent_planning import VJepa2Planner
from ..planning import CEM
from ..visualization.rollout_windows import encode_frames
from .plane import PlaneEnv
from .planner_policy import PlannerPolicy
from .tasks import Tasks


def true_states(env: PlaneEnv, states: np.ndarray, actions: np.ndarray) -> Iterator[np.ndarray]:
    """The states (n, J, S) after every step of actions (n, J, P, 2) from states (n, S)."""
    reached = np.broadcast_to(states[:, None], (*actions.shape[:2], states.shape[-1]))
    for step in range(actions.shape[2]):
        reached = env.dynamics(reached, actions[:, :, step])
        yield reached


def oracle_plan(seed: int = 0) -> Callable[[Tasks], np.ndarray]:
    """CEM on the true states and the true dynamics as a `plan` for `run_closed_loop`, 6 environment steps ahead.

    Its cost is the smallest `cost_to_go` over the steps, of the whole state if a level of success judges it. A cost of
    the last step alone would postpone its goal again and again.
    """
    solver = CEM(horizon=6, num_candidates=128, num_iterations=3, num_elites=12)
    generator = torch.Generator().manual_seed(seed)

    def plan(tasks: Tasks) -> np.ndarray:
        active = np.flatnonzero(tasks.active)
        states, goals = tasks.states[active], tasks.goals[active, None]

        def cost(actions: torch.Tensor) -> torch.Tensor:  # (n, J, P, 2) -> (n, J)
            steps = true_states(tasks.env, states, actions.numpy())
            left = [tasks.env.cost_to_go(step, goals, tasks.whole_state) for step in steps]
            return torch.from_numpy(np.min(left, axis=0).astype(np.float32))

        plans = np.zeros((len(tasks), solver.horizon, 2), np.float32)
        if len(active):
            plans[active] = solver(cost, batch_size=len(active), action_dim=2, generator=generator).actions.numpy()
        return plans

    return plan


@dataclass
class _WithCost:
    """A solver that minimizes a cost of its own instead of the one it is called with."""

    solver: Any
    cost: Callable[[torch.Tensor], torch.Tensor]

    @property
    def horizon(self) -> int:
        return self.solver.horizon

    def __call__(self, cost: Callable[[torch.Tensor], torch.Tensor], **settings: Any) -> Any:
        return self.solver(self.cost, **settings)


class TrueDynamicsPolicy(PlannerPolicy):
    """A planner that imagines with the environment instead of the world model's dynamics.

    Every candidate's true states are rendered and encoded, and the planner's cost judges these latents. Failures are
    then due to the cost or the encoder, not to the dynamics. Rendering and encoding all candidates is slow: use few
    candidates and few episodes. `tasks` must be [`Tasks`]. Takes the arguments of [`PlannerPolicy`],
    and returns (N, steps, A) as it does.
    """

    def __init__(self, planner: VJepa2Planner, *arguments: Any, **settings: Any):
        super().__init__(planner, *arguments, **settings)
        unused = {
            "subgoals": planner.subgoals is not None,
            "several samples": planner.num_samples != 1 or planner.cost.needs_samples,
            "a cost of proprio states": planner.cost.needs_proprio,
            "a solver by gradient": getattr(planner.solver, "needs_gradient", False),
        }
        for name, is_used in unused.items():
            if is_used:
                raise ValueError(f"The planner has {name}, which true dynamics do not support: leave it out.")
        self.solver = planner.solver

    def __call__(self, tasks: Tasks) -> np.ndarray:
        if tasks.active.any():
            self.planner.solver = _WithCost(self.solver, self._true_cost(tasks))
        try:
            return super().__call__(tasks)
        finally:
            self.planner.solver = self.solver

    @torch.no_grad()
    def _true_cost(self, tasks: Tasks) -> Callable[[torch.Tensor], torch.Tensor]:
        """The cost (n, J) of actions (n, J, P, A) of the active tasks."""
        model, cost, active = self.planner.model, self.planner.cost, np.flatnonzero(tasks.active)
        encode = functools.partial(encode_frames, model, self.planner.video_processor)
        states, goals = tasks.states[active], encode(tasks.goal_images[active])[:, None, None]  # (n, 1, 1, T, D)
        present = encode(tasks.render(active))[:, None]
        embedded_goals = model.distance_embedding(goals[:, :, None]) if cost.needs_distance_head else None

        def away(latents: torch.Tensor) -> torch.Tensor:  # (n, J, 1, P, T, D) -> (n, J, 1, P)
            return model.embedded_distance(model.distance_embedding(latents), embedded_goals)

        def latents(actions: torch.Tensor) -> Iterator[torch.Tensor]:  # (n, J, T, D) after each model step
            k = model.config.actions_per_step
            single = actions.unflatten(-1, (k, -1)).flatten(2, 3).numpy()
            for reached in itertools.islice(true_states(tasks.env, states, single), k - 1, None, k):
                pairs = [(state, i) for i, candidates in zip(active, reached, strict=True) for state in candidates]
                images = [tasks.env.render_state(state, tasks.appearances[i]) for state, i in pairs]
                yield encode(np.stack(images)).unflatten(0, reached.shape[:2])

        @torch.no_grad()
        def score(actions: torch.Tensor) -> torch.Tensor:
            given = (actions, present, 1, model.predict_rewards, None, goals, None, away)
            return sum_over_steps(cost, latents(actions), *given, whitening=model.state_whitening)

        return score
