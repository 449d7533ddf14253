"""What a world model thinks of actions: planning costs, and rewards.

Shapes: B problems, T frames, N tokens of a frame, D width of a latent, A action, S proprio state, Z numbers that
chance decides, J candidates, j those of a chunk, K samples, P steps of a rollout.
"""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from .configuration_world_model import VJepa2WorldModelConfig
from .modeling_costs import Cost, ImaginedStep, LatentDistance, Reward, Uncertainty, build_cost
from .modeling_inputs import check_chunk_size


class WorldModelScoresMixin:
    """Scores of a model that encodes and imagines (`encode`, `_rollout_chunks`)."""

    config: VJepa2WorldModelConfig

    def score(
        self,
        observation: torch.Tensor,
        goal: torch.Tensor | None,
        actions: torch.Tensor,
        context_actions: torch.Tensor | None = None,
        proprio_states: torch.Tensor | None = None,
        extrinsics: torch.Tensor | None = None,
        distance: str | None = None,
        candidate_chunk_size: int | None = None,
        num_samples: int = 1,
        uncertainty_weight: float = 0.0,
        generator: torch.Generator | None = None,
        cost: Any = None,
        goal_proprio_states: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Planning cost of given actions: the distance of the last imagined latents to the goal's, or without a goal
        minus the imagined rewards, or another `cost`.

        A cost of the last step holds no other step's latents. It saves no projection of them: every step's latents are
        what the next step is computed from. Gradient flows to actions that require it; of several chunks each is then
        computed again on the way back, so that memory stays bounded by one.

        Args:
            observation: frames (B, T0, C, H, W) or latents (B, T0, N, D); the last is the present.
            goal: a frame (B, 1, C, H, W) or latents (B, 1, N, D) or (B, N, D); `None` for a cost that needs none.
            actions: (B, J, P, A) in environment units.
            context_actions, proprio_states, extrinsics, candidate_chunk_size: as in `rollout`.
            distance: "l2", "l1" or "cosine", short for `cost=LatentDistance(distance)`.
            num_samples: K futures over which the cost is averaged, for a model with a stochastic latent; with 1 it is
                that of the middle one.
            uncertainty_weight: w, short for adding `w * Uncertainty()` to the cost.
            generator: where the samples' chance comes from; `None`: the same draws in every call. All candidates share
                the draws, so that costs compare actions and not luck.
            cost: terms of `vjepa2_hf.planning`, such as `LatentDistance("l1") + 0.1 * ActionPenalty()`, or a name.
                `None`: `LatentDistance("l2")`, and `Reward()` without a goal.
            goal_proprio_states: (B, S) or (B, 1, S), what `ProprioDistance` compares with.

        Returns:
            (B, J), lower is better.
        """
        check_chunk_size(candidate_chunk_size)
        terms = self._cost_terms(cost, distance, uncertainty_weight, goal)
        latents = self.encode(observation) if observation.ndim == 5 else observation
        goal = self._goal_latents(goal, latents)
        goal_proprio_states = self._goal_proprio(terms, proprio_states, goal_proprio_states, latents)
        actions, noise = self._action_vectors("actions", actions), None
        self._check_candidates(latents, actions)
        chunk_size = candidate_chunk_size or self._default_chunk_size(len(latents), latents)
        if num_samples != 1 or terms.needs_samples:
            noise = self._shared_noise(actions, latents.shape[2], num_samples, generator)
            chunk_size = max(1, chunk_size // num_samples)  # samples of a candidate stay together
        context = (context_actions, proprio_states, extrinsics)
        goal = None if goal is None else goal.unsqueeze(1)  # (B, 1, 1, N, D)
        arguments = (terms, latents, (goal, goal_proprio_states), context, chunk_size, noise)
        with torch.set_grad_enabled(torch.is_grad_enabled() and actions.requires_grad):
            if not torch.is_grad_enabled() or actions.shape[1] <= chunk_size:
                return self._costs(*arguments, actions)
            chunks = actions.split(chunk_size, dim=1)
            return torch.cat([checkpoint(self._costs, *arguments, c, use_reentrant=False) for c in chunks], dim=1)

    def _costs(self, terms, latents, goals, context, chunk_size, noise, actions: torch.Tensor) -> torch.Tensor:
        """Costs (B, J) of actions (B, J, P, A), with noise (B, K, P, Z + N · D) that candidates share."""
        samples, (context_actions, proprio_states, extrinsics) = 1 if noise is None else noise.shape[1], context
        repeated = actions.repeat_interleave(samples, dim=1)
        chunks = self._rollout_chunks(
            latents, repeated, context_actions, proprio_states, extrinsics, chunk_size * samples, True, noise
        )
        costs = []
        for steps, chunk in zip(chunks, actions.split(chunk_size, dim=1), strict=True):
            imagined = self._imagined_steps(steps, chunk, latents[:, -1:], samples)
            states = self._imagined_proprio(proprio_states, chunk, latents) if terms.needs_proprio else None
            cost = torch.zeros(chunk.shape[:2], device=latents.device)
            for step in imagined:
                step.goal, step.goal_proprio_states = goals
                step.proprio_states = None if states is None else next(states)
                added = terms.step(step)
                cost = cost if added is None else cost + added
            costs.append(cost)
        return torch.cat(costs, dim=1)

    def _imagined_steps(
        self, steps: Iterator[torch.Tensor], actions: torch.Tensor, present: torch.Tensor, samples: int
    ) -> Iterator[ImaginedStep]:
        """What terms see of steps (B, j·K, N, D) from the present (B, 1, N, D), with actions (B, j, P, A)."""
        before, horizon = present.unsqueeze(2), actions.shape[2]
        for index, latents in enumerate(steps):
            latents = latents.unflatten(1, (-1, samples))
            action = actions[:, :, index].to(latents.device)
            rewards = functools.partial(self._step_rewards, before, latents, action)
            yield ImaginedStep(index, index + 1 == horizon, latents, action, rewards=rewards)
            before = latents

    def _step_rewards(self, before: torch.Tensor, after: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Rewards (B, j, K) between latents (B, j, K, N, D) under actions (B, j, A)."""
        pairs = torch.stack([before.expand_as(after), after], dim=3)
        actions = actions[:, :, None, None].expand(-1, -1, after.shape[2], -1, -1)
        return self.predict_rewards(pairs, actions).squeeze(-1)

    def _imagined_proprio(
        self, states: torch.Tensor, actions: torch.Tensor, latents: torch.Tensor
    ) -> Iterator[torch.Tensor]:
        """Proprio states (B, j, S) after each of actions (B, j, P, A), in float32 whatever the model's precision."""
        frames, batch = latents.shape[1], actions.shape[:2]
        states, actions = (part.to(latents.device, torch.float32) for part in (states, actions))
        states = states.repeat_interleave(batch[1], dim=0)
        for step in range(actions.shape[2]):
            states = self._next_proprio(states, actions[:, :, step].flatten(0, 1), frames + step)
            yield states[:, frames + step].unflatten(0, batch)

    def _cost_terms(self, cost: Any, distance: str | None, uncertainty_weight: float, goal) -> Cost:
        """The cost that arguments of `score` ask for."""
        if cost is not None and distance is not None:
            raise ValueError(f"both cost and distance={distance!r} were given; the distance is a part of the cost.")
        if cost is None:
            cost = Reward() if goal is None and distance is None else LatentDistance(distance or "l2")
        cost = build_cost(cost)
        cost = cost + uncertainty_weight * Uncertainty() if uncertainty_weight else cost
        if goal is None and (cost.needs_goal or not self.config.reward_head and type(cost) is Reward):
            raise ValueError("goal is missing: only a model with a reward head (reward_head=True) plans without.")
        return cost

    def _goal_proprio(self, terms: Cost, states, goal_states, latents: torch.Tensor) -> torch.Tensor | None:
        """The goal's proprio states (B, 1, S), where a term compares with them."""
        if not terms.needs_proprio:
            return None
        size = self.config.proprio_dim
        if not size or states is None:
            raise ValueError(
                "the cost compares proprio states, but the model has none, or proprio_states are missing."
            )
        if goal_states is None or goal_states.reshape(len(goal_states), -1).shape != (len(latents), size):
            found = "missing" if goal_states is None else f"of shape {tuple(goal_states.shape)}"
            raise ValueError(f"the goal's proprio states are {found}; the cost needs ({len(latents)}, {size}).")
        return goal_states.reshape(-1, 1, size).to(latents.device)

    def _goal_latents(self, goal: torch.Tensor | None, latents: torch.Tensor) -> torch.Tensor | None:
        """The goal's latents (B, 1, N, D), one for all candidates."""
        if goal is None:
            return None
        goal = self.encode_targets(goal) if goal.ndim == 5 else goal
        goal = goal.unsqueeze(1) if goal.ndim == 3 else goal
        if goal.shape[:2] != (len(latents), 1):
            raise ValueError(
                f"the goal's latents have shape {tuple(goal.shape)}; expected one frame for each of the "
                f"{len(latents)} observations."
            )
        if goal.shape[-2:] != latents.shape[-2:]:
            raise ValueError(
                f"the goal's latents have {goal.shape[-2]} tokens of size {goal.shape[-1]}, the observation's "
                f"{latents.shape[-2]} of {latents.shape[-1]}: bring both pictures to one size."
            )
        return goal

    def predict_rewards(self, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Rewards of the steps between latents, true or imagined ones; with gradient, like `rollout`.

        Args:
            latents: (..., T, N, D): a present and what `rollout` makes follow it, joined.
            actions: (..., T-1, A) in environment units.

        Returns:
            float32 (..., T-1), in environment units.
        """
        if not self.config.reward_head:
            raise ValueError("the model has no reward head: train one with reward_head=True and rewards in the data.")
        actions = self._normalized_actions(latents, self._action_vectors("actions", actions))
        expected = (*latents.shape[:-3], latents.shape[-3] - 1, self.config.action_dim)
        if tuple(actions.shape) != expected:
            raise ValueError(f"actions have shape {tuple(actions.shape)}; expected {expected}, as latents say.")
        rewards = self.reward_head(actions, latents[..., :-1, :, :], latents[..., 1:, :, :])
        std, mean = self.config.reward_std, self.config.reward_mean
        return rewards * (1 if std is None else std) + (mean or 0)
