"""Solvers: how candidates are drawn, what the cheap ones teach, and which plan is returned.

Letters: B batch (problems planned in one call), J candidates, P planning horizon, A action size, I iterations, M
elites.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..specs import from_spec
from .search import (
    PerDimension,
    Row,
    Search,
    Solver,
    SolverResult,
    check_counts,
    check_elites,
    check_number,
    check_share,
    check_std,
    coloured,
    fit,
    select_elites,
)


@dataclass
class Gaussian:
    """What CEM, ICEM and MPPI search with: mean and standard deviation (B, P, A), elites (B, M, P, A) if kept."""

    mean: torch.Tensor
    std: torch.Tensor
    elites: torch.Tensor | None = None


class GaussianSolver(Solver):
    """Solvers that draw around a mean and refit."""

    takes_noise = True

    def _begin(self, search: Search) -> Gaussian:
        mean = search.start()  # Algorithm 3, line 2
        return Gaussian(mean, search.std(self.init_std).expand_as(mean))

    def _candidates(self, search: Search, state: Gaussian, iteration: int) -> torch.Tensor:
        noise = search.normal(self.num_candidates, iteration, getattr(self, "draw_noise_per_step", False))
        return around(state.mean, state.std, noise)

    def _found(self, state: Gaussian) -> torch.Tensor:
        return state.mean

    def _moved(self, state: Gaussian, mean: torch.Tensor, std: torch.Tensor) -> Gaussian:
        """The refit, with a share `momentum` of the old."""
        keep = self.momentum
        return Gaussian(keep * state.mean + (1 - keep) * mean, keep * state.std + (1 - keep) * std)


@dataclass
class CEM(GaussianSolver):
    """Cross-entropy method: sample around a mean, keep the cheapest, refit; seed 003, Algorithm 3.

    Published V-JEPA 2-AC setting: `horizon=2, num_candidates=400, num_iterations=10, num_elites=10, momentum=0.15,
    draw_noise_per_step=True`, with `init_std` and the bounds per dimension. Seed 003: 500 to 1000 candidates, 3 to 5
    iterations, a tenth of the candidates as elites, `init_std=1.0`, `momentum=0.0`.

    Args:
        horizon: P, the number of actions planned.
        num_candidates: J, action sequences sampled in an iteration.
        num_iterations: I, rounds of sampling and refitting.
        num_elites: M <= J, the cheapest candidates that mean and standard deviation are refitted to. None: a tenth of
            the candidates, at least 2, which is 26 of 256.
        momentum: share of the old mean and standard deviation that a refit keeps, in [0, 1).
        init_std: first standard deviation in action units, a number or one a dimension; a dimension with 0 stays at
            the initial mean. None: half the action range.
        draw_noise_per_step: draw the noise as P tensors (J, F), the order of the published code, instead of one.

    Raises:
        ValueError: a setting is out of its range.
    """

    horizon: int = 5
    num_candidates: int = 256
    num_iterations: int = 4
    num_elites: int | None = None
    momentum: float = 0.0
    init_std: PerDimension | None = None
    draw_noise_per_step: bool = False
    name = "cem"

    def __post_init__(self) -> None:
        check_counts(self, "horizon", "num_candidates", "num_iterations")
        check_elites(self)
        check_share("momentum", self.momentum)
        self.init_std = check_std(self.init_std)

    def _refit(
        self, search: Search, state: Gaussian, candidates: torch.Tensor, costs: torch.Tensor
    ) -> tuple[Gaussian, Row]:
        elites, elite_costs, is_elite = select_elites(candidates, costs, self.num_elites)
        state = self._moved(state, *fit(elites, is_elite))
        return state, {"cost": mean_cost(elite_costs, is_elite), "std": state.std.mean(dim=(1, 2))}


@dataclass
class ICEM(GaussianSolver):
    """Improved cross-entropy method (Pinneri et al. 2020, arXiv 2008.06389): fewer candidates for the same plan.

    Noise is correlated over the steps, some elites are tried again in the next iteration and, over `warm_start`, in
    the next plan; candidates become fewer with the iterations, the last iteration tries the mean too, and the best
    candidate ever seen is returned.

    Args:
        horizon, num_candidates, num_elites, init_std: as in `CEM`; the candidates are those of the first iteration.
        num_iterations: I, rounds of sampling and refitting.
        momentum: share of the old mean and standard deviation that a refit keeps (published 0.1).
        noise_exponent: β, the power of the noise falls with frequency as 1 / f^β along the horizon; 0 is white noise,
            larger ones are smoother (published 0.25 to 4, by task).
        candidate_decay: γ >= 1, iteration i samples J · γ^-i candidates, and no fewer than 2 M (published 1.25).
        kept_elites: share of the elites that are tried again, in [0, 1] (published 0.3).

    Raises:
        ValueError: a setting is out of its range.
    """

    horizon: int = 5
    num_candidates: int = 256
    num_iterations: int = 4
    num_elites: int | None = None
    momentum: float = 0.1
    init_std: PerDimension | None = None
    noise_exponent: float = 2.0
    candidate_decay: float = 1.25
    kept_elites: float = 0.3
    name = "icem"
    returns_best = True

    def __post_init__(self) -> None:
        check_counts(self, "horizon", "num_candidates", "num_iterations")
        check_elites(self)
        check_share("momentum", self.momentum)
        self.init_std = check_std(self.init_std)
        check_number("noise_exponent", self.noise_exponent, above=False)
        check_number("candidate_decay", self.candidate_decay, 1.0, above=False)
        if not isinstance(self.kept_elites, (int, float)) or not 0 <= self.kept_elites <= 1:
            raise ValueError(f"kept_elites is {self.kept_elites!r}, expected a share in [0, 1], for example 0.3.")

    def _begin(self, search: Search) -> Gaussian:
        state = super()._begin(search)
        state.elites = search.warm_start
        return state

    def _candidates(self, search: Search, state: Gaussian, iteration: int) -> torch.Tensor:
        decayed = math.ceil(self.num_candidates * self.candidate_decay**-iteration)
        count = min(self.num_candidates, max(decayed, 2 * self.num_elites))
        noise = coloured(search.normal(count, iteration), self.noise_exponent)
        parts = [around(state.mean, state.std, noise)]
        if state.elites is not None:
            parts.append(state.elites)
        if iteration == self.num_iterations - 1:
            parts.append(state.mean.unsqueeze(1))
        return torch.cat(parts, dim=1)

    def _refit(
        self, search: Search, state: Gaussian, candidates: torch.Tensor, costs: torch.Tensor
    ) -> tuple[Gaussian, Row]:
        elites, elite_costs, is_elite = select_elites(candidates, costs, self.num_elites)
        state = self._moved(state, *fit(elites, is_elite))
        # places of candidates without a finite cost hold the best one
        elites = torch.where(is_elite[:, :, None, None], elites, elites[:, :1])
        kept = math.ceil(self.kept_elites * self.num_elites)
        state.elites = elites[:, :kept] if kept else None
        return state, {"cost": mean_cost(elite_costs, is_elite), "std": state.std.mean(dim=(1, 2))}

    def _warm_start(self, state: Gaussian, plan: torch.Tensor) -> torch.Tensor:
        starts = [search_start.unsqueeze(1) for search_start in (state.mean, plan)]
        return torch.cat([*starts, state.elites] if state.elites is not None else starts, dim=1)


@dataclass
class MPPI(GaussianSolver):
    """Model-predictive path integral control (Williams et al. 2017, arXiv 1707.02342): every candidate counts, with
    the weight exp(−cost / temperature).

    Args:
        horizon, num_candidates, init_std: as in `CEM`; noise is clipped where a candidate would leave the bounds.
        num_iterations: I, rounds of sampling and weighting (published 1, replanned at every step).
        temperature: λ, smaller ones let the cheapest candidates decide. In units of the deviation of an iteration's
            costs, so that it fits costs of any size, and gets finer as the search narrows.
        relative_temperature: `False`: λ is in units of the cost, as published.
        refit_std: the standard deviation becomes that of the weighted candidates (as in TD-MPC, arXiv 2203.04955);
            `False`: it stays (published).
        momentum: share of the old mean and standard deviation that a refit keeps, in [0, 1).

    Raises:
        ValueError: a setting is out of its range.
    """

    horizon: int = 5
    num_candidates: int = 256
    num_iterations: int = 4
    temperature: float = 0.2
    relative_temperature: bool = True
    refit_std: bool = True
    momentum: float = 0.0
    init_std: PerDimension | None = None
    name = "mppi"

    def __post_init__(self) -> None:
        check_counts(self, "horizon", "num_candidates", "num_iterations")
        check_number("temperature", self.temperature)
        check_share("momentum", self.momentum)
        self.init_std = check_std(self.init_std)

    def _refit(
        self, search: Search, state: Gaussian, candidates: torch.Tensor, costs: torch.Tensor
    ) -> tuple[Gaussian, Row]:
        finite = torch.isfinite(costs)
        known = costs.masked_fill(~finite, 0.0)
        scale = torch.full_like(costs[:, :1], self.temperature)
        if self.relative_temperature:
            count = finite.sum(dim=1, keepdim=True)
            centred = (known - known.sum(dim=1, keepdim=True) / count) * finite
            deviation = (centred.square().sum(dim=1, keepdim=True) / count).sqrt()
            scale = (scale * deviation).clamp_min(torch.finfo(costs.dtype).tiny)
        best = costs.min(dim=1, keepdim=True).values  # subtracted, so that no weight overflows
        weight = torch.softmax(-(costs - best) / scale, dim=1)
        each = weight[:, :, None, None]
        mean = (each * candidates).sum(dim=1)
        std = state.std
        if self.refit_std:
            std = (each * (candidates - mean.unsqueeze(1)).square()).sum(dim=1).sqrt()
        state = self._moved(state, mean, std)
        return state, {"cost": (weight * known).sum(dim=1), "std": state.std.mean(dim=(1, 2))}


@dataclass
class RandomShooting(Solver):
    """The baseline: samples uniformly within the bounds and returns the cheapest sequence seen.

    `num_candidates * num_iterations` sequences are tried, so that the same two numbers cost as much as in `CEM`. Warm
    starts are among the first.

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
    name = "random"
    returns_best = True

    def __post_init__(self) -> None:
        check_counts(self, "horizon", "num_candidates", "num_iterations")

    def _begin(self, search: Search) -> None:
        if not torch.isfinite(search.high - search.low).all():
            raise ValueError("RandomShooting samples uniformly and needs finite action bounds; give finite bounds.")

    def _candidates(self, search: Search, state: None, iteration: int) -> torch.Tensor:
        batch_size, *steps = search.shape
        unit = search.draw(torch.rand, (self.num_candidates, *steps)).to(search.device)
        candidates = (search.low + (search.high - search.low) * unit).expand(batch_size, -1, -1, -1)
        if iteration or search.warm_start is None:
            return candidates
        starts = search.warm_start[:, : self.num_candidates]
        return torch.cat([starts, candidates[:, starts.shape[1] :]], dim=1)

    def _refit(self, search: Search, state: None, candidates: torch.Tensor, costs: torch.Tensor) -> tuple[None, Row]:
        return None, {"cost": costs.min(dim=1).values}


@dataclass
class Descent:
    """Where gradient descent is: restarts (B, J, P, A) in units of `scale` (A,), and their optimizer."""

    places: torch.nn.Parameter
    scale: torch.Tensor
    moves: torch.Tensor  # (A,), whether a dimension does
    optimizer: torch.optim.Optimizer


@dataclass
class GradientDescent(Solver):
    """Adam on the actions, through the cost's gradient, from several starts; the best sequence seen is returned.

    For costs that are smooth in the actions: an iteration is a rollout and its gradient, and there are as many as
    iterations. It looks downhill only, so that the starts matter where there are several valleys.

    Args:
        horizon: P, the number of actions planned.
        num_candidates: J, restarts: the warm starts, or the first mean, then others at normal distance from the first.
        num_iterations: I, steps of Adam.
        learning_rate: in units of the start's standard deviation (half the action range).
        init_std: of the other starts, in action units, a number or one a dimension; a dimension with 0 stays where
            it starts. None: half the action range.

    Raises:
        ValueError: a setting is out of its range; at a call also a cost function that has no gradient.
    """

    horizon: int = 5
    num_candidates: int = 8
    num_iterations: int = 30
    learning_rate: float = 0.1
    init_std: PerDimension | None = None
    name = "gradient"
    returns_best = True
    needs_gradient = True

    def __post_init__(self) -> None:
        check_counts(self, "horizon", "num_candidates", "num_iterations")
        check_number("learning_rate", self.learning_rate)
        self.init_std = check_std(self.init_std)

    def _begin(self, search: Search) -> Descent:
        std = search.std(self.init_std)
        starts = search.start().unsqueeze(1) if search.warm_start is None else search.warm_start
        starts = starts[:, : self.num_candidates]
        others = self.num_candidates - starts.shape[1]
        if others:
            starts = torch.cat([starts, around(starts[:, 0], std, search.normal(others, 0))], dim=1)
        scale = torch.where(std > 0, std, 1.0)
        places = torch.nn.Parameter(search.project(starts) / scale)
        return Descent(places, scale, std > 0, torch.optim.Adam([places], lr=self.learning_rate))

    def _candidates(self, search: Search, state: Descent, iteration: int) -> torch.Tensor:
        return state.places.detach() * state.scale

    def _refit(
        self, search: Search, state: Descent, candidates: torch.Tensor, costs: torch.Tensor
    ) -> tuple[Descent, Row]:
        if not costs.requires_grad:
            raise ValueError(
                "the cost function returns costs without gradient, which GradientDescent needs: compute them with "
                "torch operations on the candidates, and not under torch.no_grad, or take another solver."
            )
        finite = torch.isfinite(costs)
        total = costs.masked_fill(~finite, 0.0).sum()
        (gradient,) = torch.autograd.grad(total, candidates)
        with torch.no_grad():
            state.places.copy_(candidates / state.scale)  # as projected
            state.places.grad = torch.nan_to_num(gradient * state.scale * state.moves, 0.0, 0.0, 0.0)
            state.optimizer.step()
            return state, {"cost": mean_cost(costs.masked_fill(~finite, 0.0), finite)}


@dataclass
class CategoricalCEM(Solver):
    """Cross-entropy method for discrete actions: sample categories, keep the cheapest, refit their probabilities.

    Candidates are one-hot vectors. The probabilities of every step start equal and become the shares of the
    categories among the elites (Rubinstein & Kroese 2004, The Cross-Entropy Method, sec. 4); the plan is the
    likeliest category of every step. Of bounds only an upper one of 0 counts: a category that is never tried. A warm
    start has half of the probability of every step. Constraints are refused.

    Args:
        horizon: P, the number of actions planned.
        num_candidates: J, action sequences sampled in an iteration.
        num_iterations: I, rounds of sampling and refitting.
        num_elites: M <= J, the cheapest candidates that the probabilities are refitted to. None: as in `CEM`.
        momentum: share of the old probabilities that a refit keeps, in [0, 1).
        min_probability: share of the refitted probabilities that is spread over all categories, in [0, 1), so that
            none is lost for good while few elites speak.
        actions_per_step: k environment actions of A / k categories each, one after the other in a vector of A.

    Raises:
        ValueError: a setting is out of its range; at a call also a size that k does not divide, or nothing to try.
    """

    horizon: int = 5
    num_candidates: int = 256
    num_iterations: int = 4
    num_elites: int | None = None
    momentum: float = 0.0
    min_probability: float = 0.05
    actions_per_step: int = 1
    name = "categorical_cem"

    def __post_init__(self) -> None:
        check_counts(self, "horizon", "num_candidates", "num_iterations", "actions_per_step")
        check_elites(self)
        check_share("momentum", self.momentum)
        check_share("min_probability", self.min_probability)

    def _begin(self, search: Search) -> torch.Tensor:
        """Probabilities (B, P, k, A / k)."""
        if search.constraints:
            raise ValueError("constraints are for continuous actions; give a category the upper bound 0 to bar it.")
        if search.shape[2] % self.actions_per_step:
            raise ValueError(
                f"action_dim={search.shape[2]} is no multiple of actions_per_step={self.actions_per_step}; expected "
                "that many groups of categories."
            )
        uniform = self._uniform(search)
        probability = uniform.expand(*search.shape[:2], *uniform.shape)
        if search.warm_start is None:
            return probability
        return (probability + self._one_hot(self._grouped(search.start()))) / 2 * (uniform > 0)

    def _uniform(self, search: Search) -> torch.Tensor:
        """Equal probabilities (k, A / k) of the categories that may be tried."""
        allowed = self._grouped((search.high > 0).float())
        if not allowed.any(dim=-1).all():
            raise ValueError(
                f"action_high is {search.high.tolist()}; expected at least one category above 0 in every group."
            )
        return allowed / allowed.sum(dim=-1, keepdim=True)

    def _candidates(self, search: Search, probability: torch.Tensor, iteration: int) -> torch.Tensor:
        """One-hot candidates (B, J, P, A): the largest of log p + Gumbel noise."""
        uniform = search.draw(torch.rand, (self.num_candidates, *probability.shape[1:]))
        gumbel = -(-uniform.to(probability).clamp_min(torch.finfo(torch.float32).tiny).log()).log()
        return self._one_hot(probability.log().unsqueeze(1) + gumbel).flatten(-2)

    def _refit(
        self, search: Search, probability: torch.Tensor, candidates: torch.Tensor, costs: torch.Tensor
    ) -> tuple[torch.Tensor, Row]:
        elites, elite_costs, is_elite = select_elites(candidates, costs, self.num_elites)
        share = self._grouped(fit(elites, is_elite)[0])
        share = (1 - self.min_probability) * share + self.min_probability * self._uniform(search)
        probability = self.momentum * probability + (1 - self.momentum) * share
        deviation = (probability * (1 - probability)).sqrt().mean(dim=(1, 2, 3))
        return probability, {"cost": mean_cost(elite_costs, is_elite), "std": deviation}

    def _found(self, probability: torch.Tensor) -> torch.Tensor:
        return self._one_hot(probability).flatten(-2)

    def _grouped(self, vectors: torch.Tensor) -> torch.Tensor:
        """(..., A) -> (..., k, A / k)."""
        return vectors.unflatten(-1, (self.actions_per_step, -1))

    def _one_hot(self, scores: torch.Tensor) -> torch.Tensor:
        """1 at the largest score of every group (..., k, A / k), 0 elsewhere."""
        return torch.zeros_like(scores).scatter_(-1, scores.argmax(dim=-1, keepdim=True), 1.0)


SOLVERS: dict[str, type[Solver]] = {
    solver.name: solver for solver in (CEM, ICEM, MPPI, GradientDescent, RandomShooting, CategoricalCEM)
}


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
    return from_spec({"solver": solver, **settings}, SOLVERS, "solver")


def around(mean: torch.Tensor, std: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Candidates (B, J, P, A) around a mean (B, P, A); Algorithm 3, line 4."""
    std = std.unsqueeze(1) if std.dim() == 3 else std
    return mean.unsqueeze(1) + std * noise


def mean_cost(costs: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Mean (B,) over those of the costs (B, M) that count."""
    return (costs * counts).sum(dim=1) / counts.sum(dim=1)
