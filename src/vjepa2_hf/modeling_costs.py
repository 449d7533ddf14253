"""Planning costs: weighted sums of terms, computed one predicted step at a time.

    cost = LatentDistance("l1") + 0.1 * ActionPenalty() + 2.0 * Uncertainty()

A term is a `Cost` with `step(imagined) -> (B, J)`, which is called for every predicted step in order; the results are
summed. A term of the last step thus never holds the latents of the others.

Letters: B problems, J candidates, K samples of a candidate, P planning horizon, N tokens of a frame, D width of a
latent, A action, S proprio state.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from .specs import (
    check_choice,
    check_count,
    check_flag,
    check_known,
    check_number,
    check_tensor,
    from_spec,
    refuse,
    to_spec,
)


DISTANCES = ("l1", "l2", "cosine", "whitened")
WHITENING_FLOOR = 0.03  # added variance, as a fraction of the largest
WIDEST_WHITENED = 2048  # channels of a latent whose covariance is still decomposed
NO_WHITENING = (
    "the model has no whitened distance, which `fit_state` fits from episodes: train one with fit_state=true, of "
    f"latents of at most {WIDEST_WHITENED} channels, or use the distance 'l2'."
)


@dataclass
class ImaginedStep:
    """The inputs of a term."""

    index: int  # from 0
    is_last: bool
    latents: torch.Tensor  # (B, J, K, N, D) after the step; K is 1 for a deterministic model
    actions: torch.Tensor  # (B, J, A) of the step, environment units
    goal: torch.Tensor | None = None  # (B, 1, 1, N, D)
    # (B, J, S) after the step, environment units; None unless a term has `needs_proprio`
    proprio_states: torch.Tensor | None = None
    goal_proprio_states: torch.Tensor | None = None  # (B, 1, S)
    rewards: Callable[[], torch.Tensor] | None = None  # predicts the rewards (B, J, K) of the step
    temporal_distance: torch.Tensor | None = None  # (B, J, K) frames to the goal; None unless a term needs the head
    goal_tokens: torch.Tensor | None = None  # ids among N of the tokens that the goal has; None: all
    whitening: torch.Tensor | None = None  # (D, D) of the model, if it has one


class Cost:
    """Base of the terms."""

    needs_goal = False  # compares with a goal's latents
    needs_proprio = False  # compares with a goal's proprio states
    needs_samples = False  # needs several samples of every candidate
    needs_distance_head = False  # needs a model with a distance head
    needs_whitening = False  # needs a model whose states are whitened

    def step(self, imagined: ImaginedStep) -> torch.Tensor | None:
        """The contribution (B, J) of the step to the cost, lower is better, or `None`."""
        raise NotImplementedError

    def terms(self) -> "list[tuple[float, Cost]]":
        """The weights and terms that this cost sums."""
        return [(1.0, self)]

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, with the name under "cost", for `build_cost`."""
        return to_spec(self, COSTS, "cost")

    def __add__(self, other: "Cost") -> "WeightedSum":
        return WeightedSum([*self.terms(), *other.terms()]) if isinstance(other, Cost) else NotImplemented

    def __mul__(self, weight: float) -> "WeightedSum":
        weight = check_number("the weight of a cost", weight)
        return WeightedSum([(weight * own, term) for own, term in self.terms()])

    __rmul__ = __mul__


@dataclass
class WeightedSum(Cost):
    """The weighted sum that `+` and `*` make: (weight, term) pairs, where terms may be names or dicts."""

    parts: list[tuple[float, Cost]]

    def __post_init__(self) -> None:
        if not isinstance(self.parts, (list, tuple)) or not all(map(_is_pair, self.parts)):
            refuse("parts", self.parts, "a list of pairs (weight, term)")
        weights = [check_number("the weight of a cost", weight) for weight, _ in self.parts]
        self.parts = [(float(weight), build_cost(term)) for weight, (_, term) in zip(weights, self.parts)]
        if not self.parts:
            raise ValueError("a weighted sum has no terms; expected at least one.")
        # A sum within the sum becomes terms of this one
        self.parts = [(weight * own, each) for weight, term in self.parts for own, each in term.terms()]

    needs_goal = property(lambda self: any(term.needs_goal for _, term in self.parts))
    needs_proprio = property(lambda self: any(term.needs_proprio for _, term in self.parts))
    needs_samples = property(lambda self: any(term.needs_samples for _, term in self.parts))
    needs_distance_head = property(lambda self: any(term.needs_distance_head for _, term in self.parts))
    needs_whitening = property(lambda self: any(term.needs_whitening for _, term in self.parts))

    def terms(self) -> list[tuple[float, Cost]]:
        return self.parts

    def step(self, imagined: ImaginedStep) -> torch.Tensor | None:
        values = [(weight, term.step(imagined)) for weight, term in self.parts]
        values = [weight * value for weight, value in values if value is not None]
        return sum(values) if values else None

    def to_dict(self) -> dict[str, Any]:
        return {"cost": "sum", "parts": [[weight, term.to_dict()] for weight, term in self.parts]}


@dataclass
class LatentDistance(Cost):
    """Distance of predicted latents from the goal's, averaged over samples.

    Args:
        distance: "l2": mean squared error (the two-phase recipe, Algorithm 3 line 10, up to a constant factor); "l1":
            mean absolute error (published); "cosine": 1 − cosine of each token, averaged over tokens; "whitened":
            ‖M(ẑ − z)‖² of each token, averaged over tokens, where M makes all directions in which states vary within
            an episode count alike ([`fit_whitening`]).
        summed: sum over all steps, which rewards reaching the goal early; `False`: only the last step.
    """

    distance: str = "l2"
    summed: bool = False
    needs_goal = True
    needs_whitening = property(lambda self: self.distance == "whitened")

    def __post_init__(self) -> None:
        check_choice("distance", self.distance, DISTANCES)
        self.summed = check_flag("summed", self.summed)

    def step(self, imagined: ImaginedStep) -> torch.Tensor | None:
        if not (imagined.is_last or self.summed):
            return None
        tokens = imagined.goal_tokens
        latents = imagined.latents if tokens is None else imagined.latents[..., tokens, :]
        return self.between(latents, imagined.goal, imagined.whitening).mean(dim=2)

    def between(
        self, latents: torch.Tensor, goal: torch.Tensor, whitening: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Distance (...) of latents (..., N, D) to a goal's, which broadcast; "whitened" with the model's matrix
        (D, D), `model.state_whitening`."""
        latents, goal = latents.float(), goal.float()
        if self.distance == "whitened":
            if whitening is None:
                raise ValueError(NO_WHITENING)
            return ((latents - goal) @ whitening.float()).square().sum(dim=-1).mean(dim=-1)
        if self.distance == "cosine":
            return 1 - torch.nn.functional.cosine_similarity(latents, goal, dim=-1).mean(dim=-1)
        difference = latents - goal
        difference = difference.abs() if self.distance == "l1" else difference.square()
        return difference.mean(dim=(-2, -1))


@dataclass
class TemporalDistance(Cost):
    """Frames of video that it takes from predicted latents to the goal's, averaged over samples. For a model with a
    distance head.

    Args:
        summed: sum over all steps; `False`: only the last step.
    """

    summed: bool = False
    needs_goal = True
    needs_distance_head = True

    def __post_init__(self) -> None:
        self.summed = check_flag("summed", self.summed)

    def step(self, imagined: ImaginedStep) -> torch.Tensor | None:
        return imagined.temporal_distance.mean(dim=2) if imagined.is_last or self.summed else None


@dataclass
class Closest(Cost):
    """The smallest value over the predicted steps of another cost, which is computed at every step as if it were the
    last. A plan that passes the goal early then costs no more than one that ends there.

    Args:
        of: a term or a weighted sum of terms, also as a name or dict. Default: the squared distance of latents plus a
            tenth of the temporal distance, for a model with a distance head.
    """

    of: Cost = field(default_factory=lambda: LatentDistance("l2") + 0.1 * TemporalDistance())

    def __post_init__(self) -> None:
        self.of = build_cost(self.of)
        if any(isinstance(term, Closest) for _, term in self.of.terms()):
            raise ValueError(
                "closest holds another closest; expected terms such as a distance: leave out the inner one."
            )

    needs_goal = property(lambda self: self.of.needs_goal)
    needs_proprio = property(lambda self: self.of.needs_proprio)
    needs_samples = property(lambda self: self.of.needs_samples)
    needs_distance_head = property(lambda self: self.of.needs_distance_head)
    needs_whitening = property(lambda self: self.of.needs_whitening)

    def step(self, imagined: ImaginedStep) -> torch.Tensor | None:
        """`None` instead of costs (B, J): `sum_over_steps` keeps the smallest, which is known after the last step."""
        return None

    def at(self, imagined: ImaginedStep) -> torch.Tensor:
        """The value (B, J) of a step, of which the smallest counts."""
        value = self.of.step(replace(imagined, is_last=True))
        if value is None:
            raise ValueError(f"closest needs a value of every step, but {self.of!r} has none; leave out closest.")
        return value

    def to_dict(self) -> dict[str, Any]:
        return {"cost": "closest", "of": self.of.to_dict()}


@dataclass
class ProprioDistance(Cost):
    """Mean squared difference of predicted proprio states from the goal's, in environment units.

    The model's `proprio_transition` predicts the states ("hold" keeps them constant).

    Args:
        dims: dimensions of the state that count; `None`: all. Leave out angles that wrap around.
        summed: sum over all steps; `False`: only the last step.
    """

    dims: list[int] | None = None
    summed: bool = False
    needs_proprio = True

    def __post_init__(self) -> None:
        if self.dims is not None and not isinstance(self.dims, (list, tuple)):
            refuse("dims", self.dims, "a list of dimensions of the state, or None for all")
        if self.dims is not None and not len(self.dims):
            raise ValueError("dims is empty; expected at least one dimension of the state, or None for all.")
        if self.dims is not None:
            self.dims = [check_count("a dimension in dims", dim, lowest=-(2**31)) for dim in self.dims]
        self.summed = check_flag("summed", self.summed)

    def step(self, imagined: ImaginedStep) -> torch.Tensor | None:
        if not (imagined.is_last or self.summed):
            return None
        difference = imagined.proprio_states.float() - imagined.goal_proprio_states.float()
        size = difference.shape[-1]
        if self.dims is not None and not all(-size <= dim < size for dim in self.dims):
            raise ValueError(f"dims are {self.dims}, but a proprio state has {size} numbers.")
        return (difference if self.dims is None else difference[..., self.dims]).square().mean(dim=-1)


@dataclass
class ActionPenalty(Cost):
    """Mean squared action, in environment units, summed over the steps."""

    def step(self, imagined: ImaginedStep) -> torch.Tensor:
        return imagined.actions.float().square().mean(dim=-1)


@dataclass
class Uncertainty(Cost):
    """Standard deviation of the last latents over a candidate's samples: the root of the mean variance over tokens and
    channels. For a model with a stochastic latent."""

    needs_samples = True

    def step(self, imagined: ImaginedStep) -> torch.Tensor | None:
        if not imagined.is_last:
            return None
        return imagined.latents.float().var(dim=2).flatten(2).mean(dim=-1).sqrt()


@dataclass
class Reward(Cost):
    """The negative sum of the predicted rewards, in environment units. For a model with a reward head."""

    def step(self, imagined: ImaginedStep) -> torch.Tensor:
        return -imagined.rewards().mean(dim=2)


COSTS: dict[str, type[Cost]] = {
    "latent": LatentDistance,
    "temporal": TemporalDistance,
    "closest": Closest,
    "proprio": ProprioDistance,
    "action": ActionPenalty,
    "uncertainty": Uncertainty,
    "reward": Reward,
    "sum": WeightedSum,
}


def build_cost(cost: Any) -> Cost:
    """A cost from a cost, a dict as of `to_dict`, or the name of a term or of a latent distance."""
    if isinstance(cost, Cost):
        return cost
    if isinstance(cost, str):
        check_known(cost, [*DISTANCES, *COSTS], "cost")
        cost = {"cost": "latent", "distance": cost} if cost in DISTANCES else {"cost": cost}
    return from_spec(cost, COSTS, "cost")


def cost_of_arguments(
    cost: Any, distance: str | None, uncertainty_weight: float, has_goal: bool, has_rewards: bool
) -> Cost:
    """The cost that the arguments of [`VJepa2WorldModel.score`] describe."""
    if cost is not None and distance is not None:
        raise ValueError(f"both cost and distance={distance!r} were given; the distance is a part of the cost.")
    check_number("uncertainty_weight", uncertainty_weight)
    if cost is None:
        cost = LatentDistance("l2" if distance is None else distance) if has_goal or distance is not None else Reward()
    cost = build_cost(cost)
    cost = cost + uncertainty_weight * Uncertainty() if uncertainty_weight else cost
    if not has_goal and (cost.needs_goal or not has_rewards and type(cost) is Reward):
        raise ValueError("goal is missing: only a model with a reward head (reward_head=True) plans without one.")
    return cost


def check_distance_head(config: Any, cost: Cost | None = None) -> None:
    """Refuses a temporal distance, or a cost that needs one, of a model without a distance head."""
    if not config.distance_head and (cost is None or cost.needs_distance_head):
        raise ValueError(
            "the model has no distance head, which estimates the time between frames: train one with "
            "examples/train_distance_head.py, or train the model with world_model.distance_head=true."
        )


def check_cost(config: Any, cost: Cost) -> None:
    """Refuses a cost that needs a distance head or a whitening of a model that does not have it."""
    check_distance_head(config, cost)
    if cost.needs_whitening and not config.state_whitened:
        raise ValueError(NO_WHITENING)


def fit_whitening(episodes: Iterable[torch.Tensor]) -> torch.Tensor | None:
    """The matrix M = (C + 0.03 λ I)^(−1/2) of `LatentDistance("whitened")`, (D, D), from states (T, N, D) of episodes.

    C is the covariance of the D channels within an episode, around the episode's mean at each of the N positions, and
    λ its largest variance: what differs between episodes but never changes within one, such as an appearance, gives no
    direction, and one that hardly moves is not amplified to noise. `None` without episodes, for states that never
    change, and for more than 2048 channels.
    """
    total, squares, count, episode = None, 0, 0, None
    for episode in episodes:
        if episode.shape[-1] > WIDEST_WHITENED:
            return None
        rows = (episode - episode.mean(dim=0)).flatten(0, 1)
        products = (rows.T @ rows).double()
        total, count = products if total is None else total + products, count + len(rows)
        squares = squares + episode.flatten(0, 1).square().sum(dim=0).double()
    if total is None or total.diagonal().max() <= 1e-10 * squares.max():  # rounding errors
        return None
    variances, directions = torch.linalg.eigh(total / count)
    scales = (variances.clamp(min=0) + WHITENING_FLOOR * variances[-1]).rsqrt()
    return ((directions * scales) @ directions.T).to(episode)


def keep_whitening(model: nn.Module, state_dict: dict[str, torch.Tensor], prefix: str, *unused: Any) -> None:
    """A hook before weights are loaded: those of a checkpoint of version 0.1 have no M, and the run that resumes has
    fitted it on the same episodes, as its mean shows."""
    mean, name = state_dict.get(f"{prefix}state_mean"), f"{prefix}state_whitening"
    if model.state_whitening is None or name in state_dict or mean is None or mean.shape != model.state_mean.shape:
        return
    if torch.allclose(mean.to(model.state_mean), model.state_mean, atol=1e-5, rtol=1e-4):
        state_dict[name] = model.state_whitening


def distance_between(
    cost: Cost,
    start: torch.Tensor,
    end: torch.Tensor,
    temporal_distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    whitening: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """The distance (...) from latents (..., N, D) to others, which broadcast: the weighted sum of the latent and
    temporal distances of a cost, also of those in `Closest`. `None` if it has none."""
    total = None
    for weight, term in cost.terms():
        if isinstance(term, Closest):
            value = distance_between(term.of, start, end, temporal_distance, whitening)
        elif isinstance(term, (LatentDistance, TemporalDistance)):
            is_latent = isinstance(term, LatentDistance)
            value = term.between(start, end, whitening) if is_latent else temporal_distance(start, end)
        else:
            continue
        if value is not None:
            total = weight * value if total is None else total + weight * value
    return total


def _is_pair(part: Any) -> bool:
    return isinstance(part, (list, tuple)) and len(part) == 2


def goal_latents(goal: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Goals (B, 1, N, D) or (B, N, D) of observations (B, T0, N, D) -> (B, 1, 1, N, D), one for all candidates."""
    goal = goal.unsqueeze(1) if goal.ndim == 3 else goal
    if goal.shape[:2] != (len(latents), 1):
        raise ValueError(
            f"the goal's latents have shape {tuple(goal.shape)}; expected one frame for each of the {len(latents)} "
            "observations."
        )
    if goal.shape[-2:] != latents.shape[-2:]:
        raise ValueError(
            f"the goal's latents have {goal.shape[-2]} tokens of size {goal.shape[-1]}, the observation's "
            f"{latents.shape[-2]} of {latents.shape[-1]}: bring both images to one size."
        )
    return goal.unsqueeze(1)


def goal_proprio(cost: Cost, size: int, states, goal_states, latents: torch.Tensor) -> torch.Tensor | None:
    """Proprio states of the goals (B, 1, S), where the cost compares with them; S = `size`."""
    if goal_states is not None and not size:
        raise ValueError("goal_proprio_states were given, but the model has no proprio states (proprio_dim is 0).")
    if not cost.needs_proprio:
        return None
    if not size or states is None:
        raise ValueError("the cost compares proprio states, but the model has none, or proprio_states are missing.")
    goal_states = (
        None if goal_states is None else check_tensor("goal_proprio_states", goal_states, "(B, S)", "(B, 1, S)")
    )
    if goal_states is None or goal_states.reshape(len(goal_states), -1).shape != (len(latents), size):
        found = "missing" if goal_states is None else f"of shape {tuple(goal_states.shape)}"
        raise ValueError(f"the goal's proprio states are {found}; the cost needs ({len(latents)}, {size}).")
    return goal_states.reshape(-1, 1, size).to(latents.device)


def sum_over_steps(
    cost: Cost,
    steps: Iterable[torch.Tensor],
    actions: torch.Tensor,
    present: torch.Tensor,
    samples: int,
    predict_rewards: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    proprio_states: Iterator[torch.Tensor] | None,
    goal: torch.Tensor | None,
    goal_proprio_states: torch.Tensor | None,
    temporal_distance: Callable[[torch.Tensor], torch.Tensor],
    goal_tokens: torch.Tensor | None = None,
    whitening: torch.Tensor | None = None,
) -> torch.Tensor:
    """The cost (B, J) of a rollout, latents (B, J·K, N, D) a step, from the present (B, 1, N, D) with actions
    (B, J, P, A). Steps are consumed one at a time: memory does not grow with the horizon.

    `predict_rewards`, of latents (..., 2, N, D) and actions (..., 1, A), is only called by costs that need rewards;
    `temporal_distance`, of latents (B, J, K, P, N, D), only by those that need it. Those that need it at every step
    keep all steps, which one call then compares faster than one call per step. `whitening` is the model's
    `state_whitening`, if it has one.
    """
    closest = [[weight, term, None] for weight, term in cost.terms() if isinstance(term, Closest)]

    def rewards(before: torch.Tensor, after: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        pairs = torch.stack([before.expand_as(after), after], dim=3)
        action = action[:, :, None, None].expand(-1, -1, samples, -1, -1)
        return predict_rewards(pairs, action).squeeze(-1)

    before, total = present.unsqueeze(2), torch.zeros(actions.shape[:2], device=present.device)
    distances: Sequence[torch.Tensor | None] = [None] * actions.shape[2]
    if any(getattr(term, "summed", True) for _, term in cost.terms() if term.needs_distance_head):
        steps = list(steps)
        distances = temporal_distance(torch.stack(steps, dim=2).unflatten(1, (-1, samples))).unbind(dim=3)
    for index, latents in enumerate(steps):
        latents = latents.unflatten(1, (-1, samples))
        action = actions[:, :, index].to(latents.device)
        states = None if proprio_states is None else next(proprio_states)
        goals = (goal, states, goal_proprio_states)
        step_rewards = functools.partial(rewards, before, latents, action)
        is_last = index + 1 == actions.shape[2]
        if is_last and cost.needs_distance_head and distances[index] is None:
            distances[index] = temporal_distance(latents.unsqueeze(3)).squeeze(3)
        found = (step_rewards, distances[index], goal_tokens, whitening)
        imagined = ImaginedStep(index, is_last, latents, action, *goals, *found)
        added = cost.step(imagined)
        total = total if added is None else total + added
        for kept in closest:
            value = kept[1].at(imagined)
            kept[2] = value if kept[2] is None else torch.minimum(kept[2], value)
        before = latents
    return sum((weight * value for weight, _, value in closest), total)
