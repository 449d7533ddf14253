"""A planner in closed loop: `VJepa2Planner` as a `plan` for `closed_loop.run_closed_loop`.

Letters: N episodes, n of them active, P model steps of a plan, A action of a model step.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..pipelines.latent_planning import VJepa2Planner
from ..planning import shift_plan
from .goal_policies import count_left, imagine, load_policy
from .kept_goals import KeptGoals
from .tasks import TaskBatch
from .views import select_views, split_views


class PlannerPolicy:
    """Plans for all active episodes in one call; a call returns environment actions (N, steps, A). Goals are encoded
    once per episode.

    Args:
        planner: the planner.
        seed: of the planner's samples; each call since `begin` has its own seed.
        progress: shows the calls and the number of episodes that reached their goal.
        executed_actions: environment actions between two calls.
        warm_start: start from the last plan's "warm_start", shifted by the executed actions.
        budget_ms: time limit of a call, see `VJepa2Planner.__call__`; a goal's encoding and a proposal count too.
        proposal: folder of a policy on this planner's world model; its rollout initializes the search.
    """

    def __init__(
        self,
        planner: VJepa2Planner,
        seed: int,
        progress: tqdm,
        executed_actions: int = 1,
        warm_start: bool = False,
        budget_ms: float | None = None,
        proposal: str | None = None,
    ):
        self.planner, self.seed, self.progress, self.budget_ms = planner, seed, progress, budget_ms
        config = planner.model.config
        self.executed_steps = executed_actions // config.actions_per_step if warm_start else 0
        if warm_start and executed_actions % config.actions_per_step:
            raise ValueError(
                f"warm_start shifts plans by model steps of {config.actions_per_step} environment actions, but "
                f"executed_actions is {executed_actions}: give a multiple."
            )
        self.proposal = None if proposal is None else load_policy(proposal, planner.model).to(planner.model.device)
        self.kept_goals = KeptGoals(lambda images: self.planner.encode_goal(split_views(images)))
        self.calls, self.plans, self.call_seconds, self.cpu_seconds = 0, 0, [], 0.0
        self.last_starts: dict[int, np.ndarray] = {}  # by episode

    def begin(self, group: int) -> "PlannerPolicy":
        """Resets the state between groups of episodes."""
        self.calls, self.last_starts = 0, {}
        return self

    def __call__(self, tasks: TaskBatch) -> np.ndarray:
        config, horizon = self.planner.embodied_config, self.planner.solver.horizon
        if config.action_dim != tasks.action_dim * config.actions_per_step:
            raise ValueError(
                f"The world model has actions of {config.action_dim} numbers, {config.actions_per_step} environment "
                f"actions each, but the environment's have {tasks.action_dim}."
            )
        active = np.flatnonzero(tasks.active)
        plans = np.zeros((len(tasks), horizon, config.action_dim), np.float32)
        if len(active):
            proprio = list(tasks.proprio_states[active]) if config.proprio_dim else None
            images, goal_images = (
                select_views(self.planner.model.config, tasks.observe(active, goals)) for goals in (False, True)
            )
            started, cpu_started = time.perf_counter(), time.process_time()
            goal = self.kept_goals(tasks, active, goal_images)
            starts, seed = self._starts(active, tasks.steps_taken), self.seed * 1000 + self.calls
            given = {"proprio_state": proprio, "seed": seed, "warm_start": starts}
            if self.budget_ms is not None:  # of all that is timed here
                given["budget_ms"] = max(0.0, self.budget_ms - 1000 * (time.perf_counter() - started))
            found = self.planner(split_views(images), goal, **given)
            self.call_seconds.append(time.perf_counter() - started)
            self.cpu_seconds += time.process_time() - cpu_started
            self.plans += len(active)
            plans[active] = np.stack([plan["actions"] for plan in found])
            self.last_starts = {episode: one["warm_start"] for episode, one in zip(active, found, strict=True)}
        self.calls += 1
        self.progress.set_postfix(reached=int(tasks.reached.sum()))
        self.progress.update()
        return plans.reshape(len(tasks), -1, tasks.action_dim)  # k environment actions a model step

    def _starts(self, active: np.ndarray, taken: int = 0) -> list[np.ndarray] | Callable[..., torch.Tensor] | None:
        """Initial action sequences of the search: (P, A) or (E, P, A) for each active episode, or what proposes them
        after `taken` environment steps."""
        if self.proposal is not None:
            return functools.partial(self._propose, taken)
        if not self.executed_steps or not self.last_starts:
            return None
        steps = self.executed_steps - 1  # a plan's own warm start is shifted by one step already
        return [shift_plan(torch.from_numpy(self.last_starts[episode]), steps).numpy() for episode in active]

    @torch.no_grad()
    def _propose(self, taken: int, latents: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        """Actions (n, P, A) of the policy in the world model, from latents (n, 1, N, D) of observations and goals."""
        model, seen = self.planner.model, latents[:, -1]
        left = count_left(self.proposal, taken // model.config.actions_per_step, seen)
        return imagine(self.proposal, model, seen, goal[:, 0], self.planner.solver.horizon, left)[0]

    def timings(self) -> dict[str, Any]:
        """`plan_milliseconds` and `plan_cpu_milliseconds` (of all threads), means per plan; `call_milliseconds`,
        median and 95th percentile of the calls, which plan several episodes; with a budget `within_budget`, the
        fraction of calls within it."""
        milliseconds = 1000 * np.array(self.call_seconds)
        median, high = np.percentile(milliseconds, [50, 95])
        found: dict[str, Any] = {"plan_milliseconds": float(milliseconds.sum() / self.plans)}
        found["plan_cpu_milliseconds"] = 1000 * self.cpu_seconds / self.plans
        found |= {"call_milliseconds": {"median": float(median), "95 %": float(high)}}
        if self.budget_ms is not None:
            found["within_budget"] = float((milliseconds <= self.budget_ms).mean())
        return found
