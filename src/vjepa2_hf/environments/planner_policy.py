"""A planner in closed loop: `VJepa2Planner` as a `plan` for `tasks.run_closed_loop`, as `examples/plan.py` runs it.

Letters: N episodes, n of them active, P model steps of a plan, A action of a model step.
"""

import time
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..pipelines.latent_planning import VJepa2Planner
from ..planning import shift_plan
from ..visualization.rollout_windows import encode_frames
from .goal_policies import check_latents, imagine, load_policy
from .tasks import TaskBatch


class PlannerPolicy:
    """Plans for the episodes that are active, in one call.

    Args:
        planner: the planner.
        seed: of its noise; each call has its own, counted from `begin`.
        progress: shows calls and episodes that have reached their goal.
        executed_actions: environment actions between two calls.
        warm_start: start from the last plan's "warm_start", moved on by what was carried out.
        budget_ms: of a call, see `VJepa2Planner.__call__`.
        proposal: folder of a policy on the latents of this planner's world model, which proposes where to start.

    Raises:
        ValueError: executed actions are no whole model steps with `warm_start`, or a policy of other latents.
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
        self.moved_on = executed_actions // config.actions_per_step if warm_start else 0
        if warm_start and executed_actions % config.actions_per_step:
            raise ValueError(
                f"warm_start moves plans on by model steps of {config.actions_per_step} environment actions, but "
                f"executed_actions is {executed_actions}: give a multiple."
            )
        self.proposal = None if proposal is None else load_policy(proposal).to(planner.model.device)
        if self.proposal is not None:
            check_latents(self.proposal, proposal, planner.model)
        self.calls, self.plans, self.call_seconds = 0, 0, []
        self.last_starts: dict[int, np.ndarray] = {}  # by episode

    def begin(self, group: int) -> "PlannerPolicy":
        """Forgets the episodes before, for the next group of them."""
        self.calls, self.last_starts = 0, {}
        return self

    def __call__(self, tasks: TaskBatch) -> np.ndarray:
        config, horizon = self.planner.model.config, self.planner.solver.horizon
        if config.action_dim != tasks.action_dim * config.actions_per_step:
            raise ValueError(
                f"the world model has actions of {config.action_dim} numbers, {config.actions_per_step} environment "
                f"actions each, but the environment's have {tasks.action_dim}."
            )
        active = np.flatnonzero(tasks.active)
        plans = np.zeros((len(tasks), horizon, config.action_dim), np.float32)
        if len(active):
            proprio = list(tasks.proprio_states[active]) if config.proprio_dim else None
            observations, goals = list(tasks.render(active)), list(tasks.goal_images[active])
            started = time.perf_counter()
            found = self.planner(
                observations,
                goals,
                proprio_state=proprio,
                seed=self.seed * 1000 + self.calls,
                warm_start=self._starts(observations, goals, active),
                budget_ms=self.budget_ms,
            )
            self.call_seconds.append(time.perf_counter() - started)
            self.plans += len(active)
            plans[active] = np.stack([plan["actions"] for plan in found])
            self.last_starts = {episode: one["warm_start"] for episode, one in zip(active, found, strict=True)}
        self.calls += 1
        self.progress.set_postfix(reached=int(tasks.reached.sum()))
        self.progress.update()
        return plans.reshape(len(tasks), -1, tasks.action_dim)  # k environment actions a model step

    def _starts(self, observations: list, goals: list, active: np.ndarray) -> list[np.ndarray] | None:
        """Where the search starts, (P, A) or (E, P, A) for each active episode."""
        if self.proposal is not None:
            return list(self._propose(observations, goals, self.planner.solver.horizon))
        if not self.moved_on or not self.last_starts:
            return None
        steps = self.moved_on - 1  # a plan's own warm start is one step on already
        return [shift_plan(torch.from_numpy(self.last_starts[episode]), steps).numpy() for episode in active]

    @torch.no_grad()
    def _propose(self, observations: list, goals: list, horizon: int) -> np.ndarray:
        """What the policy would do in the world model: (n, P, A)."""
        model, processor = self.planner.model, self.planner.video_processor
        seen, goal = (
            encode_frames(model, processor, np.stack(pictures), targets)
            for pictures, targets in ((observations, False), (goals, True))
        )
        return imagine(self.proposal, model, seen, goal, horizon)[0].cpu().numpy()

    def timings(self) -> dict[str, Any]:
        """`plan_milliseconds`, the mean of an episode's plan; of calls, which plan many, the median and the 95th
        percentile; and with a budget the share of calls within it."""
        milliseconds = 1000 * np.array(self.call_seconds)
        median, high = np.percentile(milliseconds, [50, 95])
        found = {"plan_milliseconds": float(milliseconds.sum() / self.plans)}
        found |= {"call_milliseconds": {"median": float(median), "95 %": float(high)}}
        if self.budget_ms is not None:
            found["within_budget"] = float((milliseconds <= self.budget_ms).mean())
        return found
