"""Solvers that search for the cheapest action sequence, written against a cost function and not against a model.

Letters: B batch (problems planned in one call), J candidates, P planning horizon, A action size, I iterations,
M elites.

A solver is any object with this call:

    result = solver(cost, batch_size=B, action_dim=A, action_low=-1.0, action_high=1.0,
                    generator=None, warm_start=None)

where `cost` maps candidates (B, J, P, A) to costs (B, J), lower being better, and `result` is a `SolverResult`.
"""

import dataclasses
import difflib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch


CostFunction = Callable[[torch.Tensor], torch.Tensor]
Generators = torch.Generator | Sequence[torch.Generator] | None
PerDimension = float | Sequence[float] | torch.Tensor


@dataclass
class SolverResult:
    """What a solver returns.

    Attributes:
        actions: (B, P, A) float32, the plan, within the bounds.
        cost: (B,) float32, the cost of that plan itself, infinite where the cost function gave no finite number.
        trace: how the search went, each entry a float32 tensor (I, B) with one row an iteration: "cost" is the mean
            cost of the elites, "best_cost" the lowest cost seen in that iteration, "std" the mean over P and A of
            the standard deviation after the refit.
    """

    actions: torch.Tensor
    cost: torch.Tensor
    trace: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass
class CEM:
    """Cross-entropy method: sample around a mean, keep the cheapest, refit; seed 003, Algorithm 3.

    Published V-JEPA 2-AC setting: `horizon=2, num_candidates=400, num_iterations=10, num_elites=10, momentum=0.15,
    draw_noise_per_step=True`, with `init_std` and the bounds per dimension. Seed 003: 500 to 1000 candidates, 3 to 5
    iterations, a tenth of the candidates as elites, `init_std=1.0`, `momentum=0.0`.

    Args:
        horizon: P, the number of actions planned.
        num_candidates: J, action sequences sampled in an iteration.
        num_iterations: I, rounds of sampling and refitting.
        num_elites: M <= J, the cheapest candidates that mean and standard deviation are refitted to.
        momentum: share of the old mean and standard deviation that a refit keeps, in [0, 1).
        init_std: first standard deviation in action units, a number or one a dimension; a dimension with 0 stays at
            the initial mean. None: half the action range.
        draw_noise_per_step: draw the noise as P tensors (J, A), the order of the published code, instead of one.

    Raises:
        ValueError: a setting is out of its range.
    """

    horizon: int = 5
    num_candidates: int = 256
    num_iterations: int = 4
    num_elites: int = 26
    momentum: float = 0.0
    init_std: PerDimension | None = None
    draw_noise_per_step: bool = False

    def __post_init__(self) -> None:
        _check_counts(self, "horizon", "num_candidates", "num_iterations", "num_elites")
        _check_elites(self)
        _check_share("momentum", self.momentum)
        if self.init_std is not None:
            self.init_std = _plain_numbers("init_std", self.init_std)
            values = torch.tensor(self.init_std)
            if not (torch.isfinite(values).all() and (values >= 0).all()):
                raise ValueError(f"init_std is {self.init_std}, expected finite numbers that are not negative.")

    @torch.no_grad()
    def __call__(
        self,
        cost: CostFunction,
        batch_size: int,
        action_dim: int,
        action_low: PerDimension = -1.0,
        action_high: PerDimension = 1.0,
        generator: Generators = None,
        warm_start: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        device: torch.device | str | None = None,
        budget_ms: float | None = None,
    ) -> SolverResult:
        """Plans for B problems at once.

        With one generator (or none) every problem sees the same noise, so that a problem's plan depends on the seed
        and not on the batch it is planned in; with a list of B generators each has its own.

        Args:
            cost: candidates (B, J, P, A) in action units -> costs (B, J). Called once an iteration, and once with J=1.
            batch_size: B.
            action_dim: A.
            action_low: lower bound, a number or one a dimension (A,).
            action_high: upper bound, likewise.
            generator: source of the noise: a `torch.Generator`, a list of B of them, or None for the global one.
            warm_start: (B, P, A) initial mean, clipped to the bounds. None: zero, clipped.
            noise: standard normal numbers to use in place of drawn ones, (I, J, P, A) or (I, B, J, P, A).
            device: where candidates live when the cost sees them. None: the warm start's device, else the CPU.
            budget_ms: no iteration begins after so many milliseconds (one is always done). None: all iterations.

        Returns:
            The final mean, its cost, and the trace.

        Raises:
            ValueError: an argument has a wrong shape, or an iteration has no candidate with a finite cost.
        """
        device = _device(device, warm_start)
        low, high = _bounds(action_low, action_high, action_dim, device)
        # Algorithm 3, line 2
        mean = _initial_mean(warm_start, (batch_size, self.horizon, action_dim), low, high)
        std = self._initial_std(low, high).expand_as(mean)
        noise = self._check_noise(noise, batch_size, action_dim)
        trace: dict[str, list[torch.Tensor]] = {"cost": [], "best_cost": [], "std": []}
        for iteration in _within_budget(self.num_iterations, budget_ms):
            step_noise = self._draw_noise(generator, batch_size, action_dim) if noise is None else noise[iteration]
            # line 4; unsqueeze makes room for the candidates
            candidates = (mean.unsqueeze(1) + std.unsqueeze(1) * step_noise.to(device)).clamp(low, high)
            costs = _evaluate(cost, candidates)
            elites, elite_costs, is_elite = _select_elites(candidates, costs, self.num_elites)
            new_mean, new_std = _fit(elites, is_elite)
            mean = self.momentum * mean + (1 - self.momentum) * new_mean
            std = self.momentum * std + (1 - self.momentum) * new_std
            trace["cost"].append((elite_costs * is_elite).sum(1) / is_elite.sum(1))
            trace["best_cost"].append(elite_costs[:, 0])
            trace["std"].append(std.mean(dim=(1, 2)))
        actions = mean.clamp(low, high)
        return SolverResult(actions, _evaluate(cost, actions.unsqueeze(1))[:, 0], _stack(trace))

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, `"solver"` among them; `build_solver(**settings)` makes the same solver."""
        return _settings("cem", self)

    def _initial_std(self, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        if self.init_std is not None:
            return _per_dimension("init_std", self.init_std, len(low), low.device)
        std = (high - low) / 2
        if not torch.isfinite(std).all():
            raise ValueError("init_std is None but the action bounds are not finite; give init_std or finite bounds.")
        return std

    def _draw_noise(self, generator: Generators, batch_size: int, action_dim: int) -> torch.Tensor:
        """Standard normal (1, J, P, A), or (B, J, P, A) from a list of generators."""
        if not self.draw_noise_per_step:
            return _draw(torch.randn, (self.num_candidates, self.horizon, action_dim), generator, batch_size)
        # one call for all steps would give other numbers: torch fills a tensor in blocks of 16
        steps = [
            _draw(torch.randn, (self.num_candidates, action_dim), generator, batch_size) for _ in range(self.horizon)
        ]
        return torch.stack(steps, dim=-2)

    def _check_noise(self, noise: torch.Tensor | None, batch_size: int, action_dim: int) -> torch.Tensor | None:
        if noise is None:
            return None
        shared = (self.num_iterations, self.num_candidates, self.horizon, action_dim)
        own = (self.num_iterations, batch_size, *shared[1:])
        if tuple(noise.shape) not in (shared, own):
            raise ValueError(f"noise has shape {tuple(noise.shape)}, expected {shared} or {own}.")
        return noise.unsqueeze(1) if noise.dim() == 4 else noise


@dataclass
class RandomShooting:
    """The baseline: samples uniformly within the bounds and returns the cheapest sequence seen.

    `num_candidates * num_iterations` sequences are tried, so that the same two numbers cost as much as in `CEM`.

    Args:
        horizon: P, the number of actions planned.
        num_candidates: J, action sequences sampled in an iteration.
        num_iterations: I, rounds of sampling.

    Raises:
        ValueError: a setting is not a positive integer.
    """

    horizon: int = 5
    num_candidates: int = 256
    num_iterations: int = 1

    def __post_init__(self) -> None:
        _check_counts(self, "horizon", "num_candidates", "num_iterations")

    @torch.no_grad()
    def __call__(
        self,
        cost: CostFunction,
        batch_size: int,
        action_dim: int,
        action_low: PerDimension = -1.0,
        action_high: PerDimension = 1.0,
        generator: Generators = None,
        warm_start: torch.Tensor | None = None,
        device: torch.device | str | None = None,
        budget_ms: float | None = None,
    ) -> SolverResult:
        """Plans for B problems at once; arguments as in `CEM`, but the warm start is one of the first candidates.

        Raises:
            ValueError: an argument has a wrong shape, a bound is not finite, or no candidate has a finite cost.
        """
        device = _device(device, warm_start)
        low, high = _bounds(action_low, action_high, action_dim, device)
        if not torch.isfinite(high - low).all():
            raise ValueError("RandomShooting samples uniformly and needs finite action bounds; give finite bounds.")
        shape = (self.num_candidates, self.horizon, action_dim)
        best_actions, best_cost = None, None
        trace: dict[str, list[torch.Tensor]] = {"cost": [], "best_cost": []}
        for iteration in _within_budget(self.num_iterations, budget_ms):
            unit = _draw(torch.rand, shape, generator, batch_size).to(device).expand(batch_size, *shape)
            candidates = (low + (high - low) * unit).clamp(low, high)
            if iteration == 0 and warm_start is not None:
                candidates[:, 0] = _initial_mean(warm_start, (batch_size, *shape[1:]), low, high)
            costs = _evaluate(cost, candidates)
            actions, lowest, _ = _select_elites(candidates, costs, 1)
            actions, lowest = actions[:, 0], lowest[:, 0]
            if best_cost is None:
                best_actions, best_cost = actions, lowest
            improved = lowest < best_cost
            best_actions = torch.where(improved[:, None, None], actions, best_actions)
            best_cost = torch.where(improved, lowest, best_cost)
            trace["cost"].append(lowest)
            trace["best_cost"].append(lowest)
        return SolverResult(best_actions, best_cost, _stack(trace))

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, `"solver"` among them; `build_solver(**settings)` makes the same solver."""
        return _settings("random", self)


@dataclass
class CategoricalCEM:
    """Cross-entropy method for discrete actions: sample categories, keep the cheapest, refit their probabilities.

    Candidates are one-hot vectors. The probabilities of every step start equal and become the shares of the
    categories among the elites (Rubinstein & Kroese 2004, The Cross-Entropy Method, sec. 4); the plan is the
    likeliest category of every step.

    Args:
        horizon: P, the number of actions planned.
        num_candidates: J, action sequences sampled in an iteration.
        num_iterations: I, rounds of sampling and refitting.
        num_elites: M <= J, the cheapest candidates that the probabilities are refitted to.
        momentum: share of the old probabilities that a refit keeps, in [0, 1).
        min_probability: share of the refitted probabilities that is spread over all categories, in [0, 1), so that
            none is lost for good while few elites speak.
        actions_per_step: k environment actions of A / k categories each, one after the other in a vector of A.

    Raises:
        ValueError: a setting is out of its range.
    """

    horizon: int = 5
    num_candidates: int = 256
    num_iterations: int = 4
    num_elites: int = 26
    momentum: float = 0.0
    min_probability: float = 0.05
    actions_per_step: int = 1

    def __post_init__(self) -> None:
        _check_counts(self, "horizon", "num_candidates", "num_iterations", "num_elites", "actions_per_step")
        _check_elites(self)
        _check_share("momentum", self.momentum)
        _check_share("min_probability", self.min_probability)

    @torch.no_grad()
    def __call__(
        self,
        cost: CostFunction,
        batch_size: int,
        action_dim: int,
        action_low: PerDimension = 0.0,
        action_high: PerDimension = 1.0,
        generator: Generators = None,
        warm_start: torch.Tensor | None = None,
        device: torch.device | str | None = None,
        budget_ms: float | None = None,
    ) -> SolverResult:
        """Plans for B problems at once; arguments as in `CEM`.

        Args:
            action_low, action_high: a category whose upper bound is 0 is never tried; one-hot vectors have no other
                bounds than 0 and 1.
            warm_start: (B, P, A) a plan that starts with half of the probability of every step.

        Raises:
            ValueError: an argument has a wrong shape, nothing may be tried, or no candidate has a finite cost.
        """
        device = _device(device, warm_start)
        _, high = _bounds(action_low, action_high, action_dim, device)
        if action_dim % self.actions_per_step:
            raise ValueError(
                f"action_dim={action_dim} is no multiple of actions_per_step={self.actions_per_step}; expected that "
                "many groups of categories."
            )
        allowed = self._grouped((high > 0).float())  # (k, A / k)
        if not allowed.any(dim=-1).all():
            raise ValueError(f"action_high is {high.tolist()}; expected at least one category above 0 in every group.")
        uniform = allowed / allowed.sum(dim=-1, keepdim=True)
        shape = (batch_size, self.horizon, action_dim)
        probability = uniform.expand(*shape[:2], *uniform.shape)  # (B, P, k, A / k)
        if warm_start is not None:
            start = self._grouped(_initial_mean(warm_start, shape, high * 0, high))
            probability = (probability + self._one_hot(start)) / 2 * allowed
        trace: dict[str, list[torch.Tensor]] = {"cost": [], "best_cost": [], "std": []}
        for _ in _within_budget(self.num_iterations, budget_ms):
            candidates = self._sample(probability, generator, batch_size)
            costs = _evaluate(cost, candidates)
            elites, elite_costs, is_elite = _select_elites(candidates, costs, self.num_elites)
            share = self._grouped(_fit(elites, is_elite)[0])
            share = (1 - self.min_probability) * share + self.min_probability * uniform
            probability = self.momentum * probability + (1 - self.momentum) * share
            trace["cost"].append((elite_costs * is_elite).sum(1) / is_elite.sum(1))
            trace["best_cost"].append(elite_costs[:, 0])
            trace["std"].append((probability * (1 - probability)).sqrt().mean(dim=(1, 2, 3)))
        actions = self._one_hot(probability).flatten(-2)
        return SolverResult(actions, _evaluate(cost, actions.unsqueeze(1))[:, 0], _stack(trace))

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, `"solver"` among them; `build_solver(**settings)` makes the same solver."""
        return _settings("categorical_cem", self)

    def _sample(self, probability: torch.Tensor, generator: Generators, batch_size: int) -> torch.Tensor:
        """One-hot candidates (B, J, P, A) by probabilities (B, P, k, A / k): the largest of log p + Gumbel noise."""
        uniform = _draw(torch.rand, (self.num_candidates, *probability.shape[1:]), generator, batch_size)
        gumbel = -(-uniform.to(probability).clamp_min(torch.finfo(torch.float32).tiny).log()).log()
        return self._one_hot(probability.log().unsqueeze(1) + gumbel).flatten(-2)

    def _grouped(self, vectors: torch.Tensor) -> torch.Tensor:
        """(..., A) -> (..., k, A / k)."""
        return vectors.unflatten(-1, (self.actions_per_step, -1))

    def _one_hot(self, scores: torch.Tensor) -> torch.Tensor:
        """1 at the largest score of every group (..., k, A / k), 0 elsewhere."""
        return torch.zeros_like(scores).scatter_(-1, scores.argmax(dim=-1, keepdim=True), 1.0)


SOLVERS: dict[str, type] = {"cem": CEM, "random": RandomShooting, "categorical_cem": CategoricalCEM}


def build_solver(solver: str | Callable[..., SolverResult], **settings: Any) -> Callable[..., SolverResult]:
    """Makes a solver from a name of `SOLVERS` and its settings; an object that is a solver already is returned.

    Raises:
        ValueError: the name or a setting is unknown, a setting is out of range, or settings come with an object.
    """
    if not isinstance(solver, str):
        if not callable(solver) or isinstance(solver, type):
            raise ValueError(f"solver is {solver!r}, expected one of {sorted(SOLVERS)} or a solver object.")
        if settings:
            raise ValueError(f"settings {sorted(settings)} were given beside a solver object; set them on the object.")
        return solver
    if solver not in SOLVERS:
        raise ValueError(f"solver {solver!r} is unknown{_nearest(solver, SOLVERS)}; known: {', '.join(SOLVERS)}.")
    known = [entry.name for entry in dataclasses.fields(SOLVERS[solver])]
    for name in settings:
        if name not in known:
            raise ValueError(
                f"solver {solver!r} has no setting {name!r}{_nearest(name, known)}; it has: {', '.join(known)}."
            )
    return SOLVERS[solver](**settings)


def _within_budget(num_iterations: int, budget_ms: float | None) -> Iterator[int]:
    """The iterations that begin within the budget; the first always does."""
    started = time.perf_counter()
    for iteration in range(num_iterations):
        if iteration and budget_ms is not None and 1000 * (time.perf_counter() - started) >= budget_ms:
            return
        yield iteration


def _evaluate(cost: CostFunction, candidates: torch.Tensor) -> torch.Tensor:
    """Costs (B, J) float32 of candidates (B, J, P, A), with everything that is not finite made infinite."""
    costs = torch.as_tensor(cost(candidates)).to(candidates)
    if costs.shape != candidates.shape[:2]:
        raise ValueError(
            f"the cost function returned shape {tuple(costs.shape)} for candidates of shape "
            f"{tuple(candidates.shape)}; expected {tuple(candidates.shape[:2])}, one number a candidate."
        )
    return costs.masked_fill(~torch.isfinite(costs), float("inf"))


def _select_elites(
    candidates: torch.Tensor, costs: torch.Tensor, num_elites: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The cheapest candidates, Algorithm 3, line 12: (B, M, P, A), costs (B, M) ascending, and which count (B, M).

    Only finite costs count; the others' costs are returned as 0.
    """
    elite_costs, index = costs.topk(num_elites, dim=1, largest=False, sorted=True)
    is_elite = torch.isfinite(elite_costs)
    if not is_elite[:, 0].all():
        rows = (~is_elite[:, 0]).nonzero().flatten().tolist()
        raise ValueError(
            f"no candidate of batch row {rows[0]} has a finite cost; "
            "check the observation, the goal and the model for non-finite numbers."
        )
    elites = candidates[torch.arange(len(candidates), device=candidates.device).unsqueeze(1), index]
    return elites, elite_costs.masked_fill(~is_elite, 0.0), is_elite


def _fit(elites: torch.Tensor, is_elite: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and unbiased standard deviation (0 for one elite), each (B, P, A); Algorithm 3, line 13."""
    weight = is_elite[:, :, None, None].to(elites)
    count = weight.sum(1)
    mean = (elites * weight).sum(1) / count
    squares = (elites - mean.unsqueeze(1)).square() * weight
    return mean, (squares.sum(1) / (count - 1).clamp(min=1)).sqrt()


def _draw(sample: Callable, shape: tuple[int, ...], generator: Generators, batch_size: int) -> torch.Tensor:
    """Random numbers (1, *shape) that all problems share, or (B, *shape) from a list of B generators."""
    if generator is None or isinstance(generator, torch.Generator):
        return sample(1, *shape, generator=generator, device=None if generator is None else generator.device)
    if len(generator) != batch_size:
        raise ValueError(f"{len(generator)} generators were given for a batch of {batch_size}; give one for each.")
    return torch.cat([sample(1, *shape, generator=each, device=each.device) for each in generator])


def _device(device: torch.device | str | None, warm_start: torch.Tensor | None) -> torch.device:
    if device is None:
        return torch.device("cpu") if warm_start is None else warm_start.device
    return torch.device(device)


def _initial_mean(
    warm_start: torch.Tensor | None, shape: tuple[int, int, int], low: torch.Tensor, high: torch.Tensor
) -> torch.Tensor:
    if warm_start is None:
        warm_start = torch.zeros(shape)
    if tuple(warm_start.shape) != shape:
        raise ValueError(f"warm_start has shape {tuple(warm_start.shape)}, expected (B, P, A) = {shape}.")
    if not torch.isfinite(warm_start).all():
        raise ValueError("warm_start holds numbers that are not finite; give a finite plan or None.")
    return warm_start.to(low).clamp(low, high)


def _bounds(
    action_low: PerDimension, action_high: PerDimension, action_dim: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    low = _per_dimension("action_low", action_low, action_dim, device)
    high = _per_dimension("action_high", action_high, action_dim, device)
    # written so that NaN is refused too
    if not (low <= high).all():
        raise ValueError(f"action_low {low.tolist()} must not exceed action_high {high.tolist()} in any dimension.")
    return low, high


def _per_dimension(name: str, value: PerDimension, action_dim: int, device: torch.device) -> torch.Tensor:
    """A number, or one a dimension, as float32 (A,)."""
    # numpy bounds may be read-only, which as_tensor warns about: copy them
    tensor = value if isinstance(value, torch.Tensor) else torch.tensor(value)
    tensor = tensor.to(device=device, dtype=torch.float32)
    if tensor.dim() > 1 or tensor.numel() not in (1, action_dim):
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}, expected a number or {action_dim}, one a dimension."
        )
    return tensor.reshape(-1).expand(action_dim)


def _plain_numbers(name: str, value: PerDimension) -> float | list[float]:
    """A setting as a float or a list of floats, so that it can be compared and written to JSON."""
    try:
        tensor = value.double() if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name} is {value!r}, expected a number or a list of numbers, one a dimension.") from None
    if tensor.dim() > 1 or tensor.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected a number or one a dimension.")
    return tensor.tolist()


def _check_counts(solver: Any, *names: str) -> None:
    for name in names:
        value = getattr(solver, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} is {value!r}, expected an integer of at least 1.")


def _check_elites(solver: Any) -> None:
    if solver.num_elites > solver.num_candidates:
        raise ValueError(
            f"num_elites is {solver.num_elites} but there are only {solver.num_candidates} candidates; "
            "lower num_elites or raise num_candidates."
        )


def _check_share(name: str, value: Any) -> None:
    if not isinstance(value, (int, float)) or not 0.0 <= value < 1.0:
        raise ValueError(f"{name} is {value!r}, expected a number in [0, 1), for example 0.15.")


def _settings(solver_name: str, solver: Any) -> dict[str, Any]:
    return {"solver": solver_name, **dataclasses.asdict(solver)}


def _stack(trace: dict[str, list[torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack(values) for name, values in trace.items()}


def _nearest(name: str, known: Sequence[str] | dict[str, Any]) -> str:
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {matches[0]!r}?)" if matches else ""
