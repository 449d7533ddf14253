"""The search loop of all solvers: bounds, constraints, noise, costs, time budget and settings.

Letters: B batch (problems planned in one call), J candidates, P planning horizon, A action size, E plans to start
from, F dimensions that are searched, I iterations, M elites.
"""

import dataclasses
import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from ..specs import (
    check_count,
    check_flag,
    check_generator,
    check_number,
    describe,
    is_integer,
    refuse,
)
from .constraints import finish, fixed_dims


CostFunction = Callable[[torch.Tensor], torch.Tensor]
Generators = torch.Generator | Sequence[torch.Generator] | None
PerDimension = float | Sequence[float] | torch.Tensor
TraceRow = dict[str, torch.Tensor]  # one iteration's entries of the trace, (B,) each

MAX_NUMBERS = 2**30  # of the candidates of one iteration


@dataclass
class SolverResult:
    """The result of a search.

    actions: (B, P, A) float32, the plan, within the bounds and the constraints.
    cost: (B,) float32, the cost of the plan, infinite where the cost function returned no finite number.
    trace: the course of the search, float32 (I, B) each: "cost" is the mean cost of the elites (without elites, of
        all restarts, or weighted), "best_cost" the lowest cost of the iteration, "std" the mean over P and A of
        the standard deviation after the refit. NaN in the rows after a problem's search has ended.
    warm_start: (B, E, P, A), plans to start the next search from, the mean first; see `shift_plan`. `None`: the
        plan.
    iterations: (B,) int64, the iterations of each problem. `None`: all rows of the trace.
    """

    actions: torch.Tensor
    cost: torch.Tensor
    trace: dict[str, torch.Tensor] = field(default_factory=dict)
    warm_start: torch.Tensor | None = None
    iterations: torch.Tensor | None = None


def shift_plan(actions: torch.Tensor, steps: int = 1) -> torch.Tensor:
    """Plans (..., P, A) without their first `steps` actions; the last action is repeated."""
    if not isinstance(actions, torch.Tensor) or actions.ndim < 2 or not actions.shape[-2]:
        refuse("actions", actions, "a tensor (..., P, A) of at least one step")
    index = torch.arange(actions.shape[-2]) + check_count("steps", steps, lowest=0)
    return actions[..., index.clamp(max=actions.shape[-2] - 1), :]


class Search:
    """One call of a solver: problems, limits, noise, and the best candidate seen. Arguments as in `Solver.__call__`;
    `shape` is (B, P, A)."""

    def __init__(
        self,
        cost: CostFunction,
        shape: tuple[int, int, int],
        low: PerDimension,
        high: PerDimension,
        constraints: Sequence[Any] = (),
        generator: Generators = None,
        warm_start: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        device: torch.device | str | None = None,
    ):
        self.cost, self.shape, self.constraints, self.generator = cost, shape, list(constraints), generator
        batch_size, _, action_dim = shape
        if isinstance(generator, (list, tuple)) and len(generator) != batch_size:
            raise ValueError(f"{len(generator)} generators were given for a batch of {batch_size}; give one for each.")
        for each in generator if isinstance(generator, (list, tuple)) else [generator]:
            check_generator("generator", each)
        if device is None:
            device = getattr(warm_start, "device", None) if isinstance(warm_start, torch.Tensor) else None
            device = device or "cpu"
        self.device = torch.device(device)
        bounds = {"action_low": low, "action_high": high}
        self.low, self.high = (self._per_dimension(name, value) for name, value in bounds.items())
        if not (self.low <= self.high).all():  # NaN is refused too
            low, high = self.low.tolist(), self.high.tolist()
            raise ValueError(f"action_low {low} must not exceed action_high {high} in any dimension.")
        fixed = {dim for each in self.constraints for dim in fixed_dims(each, action_dim)}
        self.free = [dim for dim in range(action_dim) if dim not in fixed]
        self.warm_start, self.noise = self._check_warm_start(warm_start), noise
        self.best_actions = self.best_cost = None
        self.going: torch.Tensor | None = None  # bool (B,), problems whose search has not ended; None: all

    def project(self, actions: torch.Tensor) -> torch.Tensor:
        """Actions (..., P, A) within the bounds, then under the constraints."""
        actions = actions.clamp(self.low, self.high)
        for constraint in self.constraints:
            actions = constraint.apply(actions)
        return actions

    def finish(self, mean: torch.Tensor) -> torch.Tensor:
        """The plan (B, P, A) that is returned, from the one that was found."""
        plan = mean.clamp(self.low, self.high)
        for constraint in self.constraints:
            plan = finish(constraint, plan, mean)
        return plan

    def start(self) -> torch.Tensor:
        """The first mean (B, P, A): the (first) warm start, else the middle of the bounds (where they are infinite, 0
        clipped to them). Constraints do not apply, as in the published code."""
        if self.warm_start is not None:
            return self.warm_start[:, 0]
        middle = (self.low + self.high) / 2
        zero = torch.zeros_like(middle).clamp(self.low, self.high)
        return torch.where(torch.isfinite(middle), middle, zero).expand(self.shape).clone()

    def evaluate(self, candidates: torch.Tensor) -> torch.Tensor:
        """Costs (B, J) of candidates (B, J, P, A), infinite where they are not finite, NaN where the search has ended;
        keeps the best candidate."""
        costs = self.costs_of(candidates) if self.going is None else self._costs_of_going(candidates, self.going)
        with torch.no_grad():
            lowest, index = costs.min(dim=1)
            wrong = ~torch.isfinite(lowest) if self.going is None else torch.isinf(lowest)
            if wrong.any():
                row = int(wrong.nonzero()[0])
                raise ValueError(
                    f"no candidate of batch row {row} has a finite cost; "
                    "check the observation, the goal and the model for non-finite numbers."
                )
            best = candidates.detach()[torch.arange(len(costs), device=costs.device), index]
            if self.best_cost is None:
                self.best_actions, self.best_cost = best, lowest.detach()
            improved = lowest < self.best_cost
            self.best_actions = torch.where(improved[:, None, None], best, self.best_actions)
            self.best_cost = torch.where(improved, lowest, self.best_cost)
        return costs

    def _costs_of_going(self, candidates: torch.Tensor, going: torch.Tensor) -> torch.Tensor:
        """Costs (B, J), NaN for problems whose search has ended; a cost with `of` does not score these."""
        if not hasattr(self.cost, "of"):
            return self.costs_of(candidates).masked_fill(~going.unsqueeze(1), torch.nan)
        rows = going.nonzero().flatten()
        costs = candidates.new_full(candidates.shape[:2], torch.nan)
        return costs.index_copy(0, rows, self.costs_of(candidates[rows], self.cost.of(rows)))

    def costs_of(self, candidates: torch.Tensor, cost: CostFunction | None = None) -> torch.Tensor:
        """As `evaluate`, without keeping the best candidate or refusing costs; `cost` is of some problems."""
        costs = (cost or self.cost)(candidates)
        if not isinstance(costs, torch.Tensor):
            costs = numbers_of("the result of the cost function", costs)
        costs = costs.to(candidates)
        if costs.shape != candidates.shape[:2]:
            raise ValueError(
                f"the cost function returned shape {tuple(costs.shape)} for candidates of shape "
                f"{tuple(candidates.shape)}; expected {tuple(candidates.shape[:2])}, one number per candidate."
            )
        return costs.masked_fill(~torch.isfinite(costs), float("inf"))

    def normal(self, count: int, iteration: int, per_step: bool = False) -> torch.Tensor:
        """Standard normal noise (1 or B, count, P, A), given or sampled; 0 in fixed dimensions."""
        horizon, size = self.shape[1], len(self.free)
        if self.noise is not None:
            noise = self.noise[iteration][..., :count, :, :]
            noise = noise.unsqueeze(0) if noise.dim() == 3 else noise
        elif per_step:
            # as the published code; one call for all steps gives other numbers
            noise = torch.stack([self.sample(torch.randn, (count, size)) for _ in range(horizon)], dim=-2)
        else:
            noise = self.sample(torch.randn, (count, horizon, size))
        noise = noise.to(self.device, torch.float32)
        if size == self.shape[2]:
            return noise
        padded = noise.new_zeros(*noise.shape[:-1], self.shape[2])
        padded[..., self.free] = noise
        return padded

    def sample(self, distribution: Callable, shape: tuple[int, ...]) -> torch.Tensor:
        """Random numbers (1, *shape) that all problems share, or (B, *shape) from a list of B generators;
        `distribution` is `torch.randn` or `torch.rand`."""
        generators = self.generator if isinstance(self.generator, Sequence) else [self.generator]
        devices = [None if each is None else each.device for each in generators]
        return torch.cat([distribution(1, *shape, generator=g, device=at) for g, at in zip(generators, devices)])

    def std(self, init_std: PerDimension | None) -> torch.Tensor:
        """The first standard deviation (A,): as given, or half the action range."""
        if init_std is not None:
            return self._per_dimension("init_std", init_std)
        std = (self.high - self.low) / 2
        if not torch.isfinite(std).all():
            raise ValueError("init_std is None but the action bounds are not finite; give init_std or finite bounds.")
        return std

    def _per_dimension(self, name: str, value: PerDimension) -> torch.Tensor:
        """A number, or one per dimension, as float32 (A,)."""
        tensor, size = numbers_of(name, value).to(self.device), self.shape[2]
        if tensor.dim() > 1 or tensor.numel() not in (1, size):
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, expected a number or {size}, one per dimension."
            )
        return tensor.reshape(-1).expand(size)

    def _check_warm_start(self, warm_start: torch.Tensor | None) -> torch.Tensor | None:
        """(B, E, P, A) within the bounds."""
        if warm_start is None:
            return None
        warm_start = numbers_of("warm_start", warm_start)
        starts = warm_start.unsqueeze(1) if warm_start.dim() == 3 else warm_start
        if starts.dim() != 4 or (starts.shape[0], *starts.shape[2:]) != self.shape or not starts.shape[1]:
            raise ValueError(
                f"warm_start has shape {tuple(warm_start.shape)}, expected (B, P, A) = {self.shape}, or (B, E, P, A) "
                "for E plans to start from."
            )
        if not torch.isfinite(starts).all():
            raise ValueError("warm_start holds numbers that are not finite; give a finite plan or None.")
        return starts.to(self.low).clamp(self.low, self.high)


class Clock:
    """Decides whether another iteration fits into a time budget, in milliseconds from now, from the duration of the
    last one."""

    def __init__(self, budget_ms: float | None):
        self.now = time.perf_counter()
        self.end = None if budget_ms is None else self.now + check_budget(budget_ms) / 1000
        self.last = self.reserve = 0.0

    def lap(self) -> float:
        """Seconds since the last lap."""
        before, self.now = self.now, time.perf_counter()
        return self.now - before

    def fits(self) -> bool:
        """Whether an iteration as long as the last one would end in time."""
        return self.end is None or self.now + self.last + self.reserve <= self.end


@dataclass
class Solver:
    """The search loop of all solvers.

    A subclass is a dataclass of its settings. It implements `_begin` (the first state), `_candidates` (of an
    iteration), `_refit` (the next state and a row of the trace) and, unless `returns_best`, `_found` (the plan).
    """

    horizon: int = 5
    num_candidates: int = 256
    num_iterations: int = 4
    name: ClassVar[str]
    takes_noise: ClassVar[bool] = False  # the noise may be given
    returns_best: ClassVar[bool] = False  # the plan is the best candidate seen, not `_found`
    needs_gradient: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            if check := CHECKS.get(entry.name):
                setattr(self, entry.name, check(self, entry.name, getattr(self, entry.name)))

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
        constraints: Sequence[Any] = (),
    ) -> SolverResult:
        """Plans for B problems at once.

        With one generator (or `None`) all problems share the noise, so that a plan depends on the seed and not on the
        batch.

        Args:
            cost: candidates (B, J, P, A) in action units -> costs (B, J). Called once per iteration, and with J=1 for
                the plan of a solver that returns a mean.
            batch_size: B.
            action_dim: A.
            action_low, action_high: bounds, a number or one per dimension (A,).
            generator: a `torch.Generator`, a list of B of them, or `None` for torch's global one.
            warm_start: (B, P, A), the first mean, clipped to the bounds; or (B, E, P, A), the mean first and further
                plans for ICEM, RandomShooting and GradientDescent. `None`: the middle of the bounds.
            noise: standard normal numbers to use instead of sampling, (I, J, P, F) or (I, B, J, P, F), where F counts
                the dimensions that no constraint fixes; for CEM, ICEM and MPPI.
            device: of the candidates. `None`: the warm start's, else the CPU.
            budget_ms: milliseconds from now. No iteration starts that would end later if it took as long as the last
                one; one iteration always runs.
            constraints: of `vjepa2_hf.planning.constraints`, applied after the bounds.

        Raises:
            ValueError: an argument has a wrong shape, or an iteration has no candidate with a finite cost.
        """
        self._check_call(cost, batch_size, action_dim, constraints, noise)
        clock, shape = Clock(budget_ms), (int(batch_size), self.horizon, int(action_dim))
        if noise is not None and not self.takes_noise:
            raise ValueError(f"solver {self.name!r} takes no noise; CEM, ICEM and MPPI do.")
        with torch.set_grad_enabled(self.needs_gradient):
            search = Search(cost, shape, action_low, action_high, constraints, generator, warm_start, noise, device)
            shared = (self.num_iterations, self.num_candidates, self.horizon, len(search.free))
            own = (self.num_iterations, batch_size, *shared[1:])
            if noise is not None and tuple(noise.shape) not in (shared, own):
                raise ValueError(f"noise has shape {tuple(noise.shape)}, expected {shared} or {own}.")
            return self._search(search, clock)

    def _check_call(self, cost: Any, batch_size: Any, action_dim: Any, constraints: Any, noise: Any) -> None:
        if noise is not None and not (isinstance(noise, torch.Tensor) and noise.isfinite().all()):
            refuse("noise", noise, "a tensor of finite numbers (I, J, P, F) or (I, B, J, P, F)")
        if not callable(cost):
            refuse("cost", cost, "a function of candidates (B, J, P, A) that returns costs (B, J)")
        rows = check_count("batch_size", batch_size) * self.num_candidates * self.horizon
        if rows * check_count("action_dim", action_dim) > MAX_NUMBERS:
            raise ValueError(
                f"batch_size={batch_size} × num_candidates={self.num_candidates} × horizon={self.horizon} × "
                f"action_dim={action_dim} are more than {MAX_NUMBERS} numbers in an iteration; lower one of them."
            )
        if not isinstance(constraints, (list, tuple)) or not all(hasattr(each, "apply") for each in constraints):
            refuse("constraints", constraints, "a list of objects with `apply`, of vjepa2_hf.planning.constraints")

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, `"solver"` among them; `build_solver(**settings)` makes the same solver."""
        settings = {"solver": self.name, **dataclasses.asdict(self)}
        if settings.get("num_elites") == default_elites(self.num_candidates):
            settings["num_elites"] = None  # so that it follows a change of the candidates
        return settings

    def _has_ended(self, search: Search, state: Any) -> torch.Tensor | None:
        """Problems whose search ends before the last iteration, bool (B,); `None`: of none."""
        return None

    def _search(self, search: Search, clock: Clock) -> SolverResult:
        trace: dict[str, list[torch.Tensor]] = defaultdict(list)
        state, result = self._begin(search), None
        clock.lap()
        for iteration in range(self.num_iterations):
            if iteration and not (clock.fits() and (search.going is None or search.going.any())):
                break
            candidates = search.project(self._candidates(search, state, iteration))
            candidates = candidates.detach().requires_grad_(self.needs_gradient)
            costs = search.evaluate(candidates)
            state, row = self._refit(state, candidates, costs)
            row["best_cost"] = costs.detach().min(dim=1).values
            for name, value in row.items():
                trace[name].append(value)
            if (ended := self._has_ended(search, state)) is not None:
                search.going = ~ended if search.going is None else search.going & ~ended
            clock.last = clock.lap()
            result = None
            if clock.end is not None and iteration == 0:  # the plan so far, and how long it takes to evaluate
                result = self._result(search, state)
                clock.reserve = clock.lap()
        result = self._result(search, state) if result is None else result
        result.trace = {name: torch.stack(values) for name, values in trace.items()}
        result.iterations = (~result.trace["best_cost"].isnan()).sum(dim=0)
        return result

    def _result(self, search: Search, state: Any) -> SolverResult:
        found, cost = search.best_actions if self.returns_best else self._found(state), search.best_cost
        plan = search.finish(found)
        if not self.returns_best or not torch.equal(plan, found):
            with torch.no_grad():
                cost = search.costs_of(plan.unsqueeze(1))[:, 0]
        return SolverResult(plan, cost, warm_start=self._warm_start(state, plan))

    def _warm_start(self, state: Any, plan: torch.Tensor) -> torch.Tensor:
        return plan.unsqueeze(1)


def select_elites(
    candidates: torch.Tensor, costs: torch.Tensor, num_elites: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Elites (Algorithm 3, line 12): candidates (B, M, P, A) in ascending order of costs, which of them have a finite
    cost (B, M), and the mean (B,) of these costs."""
    elite_costs, index = costs.topk(num_elites, dim=1, largest=False, sorted=True)
    is_elite = torch.isfinite(elite_costs)
    elites = candidates[torch.arange(len(candidates), device=candidates.device).unsqueeze(1), index]
    return elites, is_elite, elite_costs.masked_fill(~is_elite, 0.0).sum(dim=1) / is_elite.sum(dim=1)


def fit(elites: torch.Tensor, is_elite: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and unbiased standard deviation (0 for one elite), each (B, P, A); Algorithm 3, line 13."""
    weight = is_elite[:, :, None, None].to(elites)
    count = weight.sum(1)
    mean = (elites * weight).sum(1) / count
    squares = (elites - mean.unsqueeze(1)).square() * weight
    return mean, (squares.sum(1) / (count - 1).clamp(min=1)).sqrt()


def colored_noise(noise: torch.Tensor, exponent: float) -> torch.Tensor:
    """White standard normal noise (..., P, A) -> noise of unit variance with power 1 / f^exponent along P
    (Timmer & König 1995; Pinneri et al. 2020, sec. 3.1). Frequency 0 counts as 1 / P."""
    steps = noise.shape[-2]
    frequencies = torch.fft.rfftfreq(steps, device=noise.device).clamp(min=1 / steps)
    scale = frequencies.pow(-exponent / 2)
    every = torch.fft.fftfreq(steps, device=noise.device).abs().clamp(min=1 / steps).pow(-exponent)
    spectrum = torch.fft.rfft(noise, dim=-2) * scale.unsqueeze(-1)
    return torch.fft.irfft(spectrum, n=steps, dim=-2) / every.mean().sqrt()


def default_elites(num_candidates: int) -> int:
    """A tenth of the candidates, but at least 2 if there are 2."""
    return min(num_candidates, max(2, round(num_candidates / 10)))


def check_budget(budget_ms: Any) -> float:
    """Milliseconds, 0 or more; infinity is no limit."""
    return check_number("budget_ms", budget_ms, at_least=0, finite=False)


def numbers_of(name: str, value: Any) -> torch.Tensor:
    """Numbers, an array or a tensor of any shape as float32; a numpy array is copied, since it may be read-only."""
    try:
        tensor = value if isinstance(value, torch.Tensor) else torch.tensor(value)
        return tensor.to(torch.float32) if not tensor.is_complex() else refuse(name, value, "real numbers")
    except (TypeError, ValueError, RuntimeError, OverflowError):
        refuse(name, value, "numbers: a list, an array or a tensor")


def _check_count(solver: Solver, name: str, value: Any) -> int:
    if not is_integer(value) or not 1 <= value <= MAX_NUMBERS:
        bound = "at least 1" if not is_integer(value) or value < 1 else f"at most {MAX_NUMBERS}"
        raise ValueError(f"{name} is {describe(value)}, expected an integer of {bound}.")
    return int(value)


def _check_flag(solver: Solver, name: str, value: Any) -> bool:
    return check_flag(name, value)


def _check_elites(solver: Solver, name: str, value: Any) -> int:
    value = _check_count(solver, name, default_elites(solver.num_candidates) if value is None else value)
    if value > solver.num_candidates:
        raise ValueError(
            f"num_elites is {value} but there are only {solver.num_candidates} candidates; "
            "lower num_elites or raise num_candidates."
        )
    return value


def _check_std(solver: Solver, name: str, value: PerDimension | None) -> float | list[float] | None:
    """`init_std` as a float or a list of floats, so that it can be compared and written to JSON."""
    if value is None:
        return None
    try:
        tensor = value.double() if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        found = f"{name} is {describe(value)}"
        raise ValueError(f"{found}, expected a number or a list of numbers, one per dimension.") from None
    if tensor.dim() > 1 or tensor.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected a number or one per dimension.")
    if not (torch.isfinite(tensor).all() and (tensor >= 0).all()):
        raise ValueError(f"{name} is {tensor.tolist()}, expected finite numbers that are not negative.")
    return tensor.tolist()


def _number(fits: Callable[[float], bool], expected: str) -> Callable[[Solver, str, Any], Any]:
    def check(solver: Solver, name: str, value: Any) -> Any:
        try:
            number = check_number(name, value, finite=False)
        except ValueError:
            number = math.nan
        if not fits(number):
            raise ValueError(f"{name} is {describe(value)}, expected {expected}.")
        return number

    return check


_positive = _number(lambda value: 0 < value < math.inf, "a finite number above 0")
_fraction = _number(lambda value: 0 <= value < 1, "a number in [0, 1), for example 0.15")
# One check for each setting of the solvers; it returns the value to store
CHECKS: dict[str, Callable[[Solver, str, Any], Any]] = {
    **dict.fromkeys(("horizon", "num_candidates", "num_iterations", "actions_per_step"), _check_count),
    **dict.fromkeys(("momentum", "min_probability"), _fraction),
    **dict.fromkeys(("temperature", "learning_rate"), _positive),
    "num_elites": _check_elites,
    "init_std": _check_std,
    "stop_std": lambda solver, name, value: None if value is None else _positive(solver, name, value),
    "noise_exponent": _number(lambda value: 0 <= value <= 20, "a finite number of at least 0 and at most 20"),
    "candidate_decay": _number(lambda value: 1 <= value < 1e6, "a finite number of at least 1 and below 1e6"),
    **dict.fromkeys(("sample_noise_per_step", "relative_temperature", "refit_std"), _check_flag),
    "kept_elites": _number(lambda value: 0 <= value <= 1, "a fraction in [0, 1], for example 0.3"),
}
