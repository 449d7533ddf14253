"""Solvers: sampling candidates, refitting to the cheap ones, and the plan.

Letters: B batch (problems planned in one call), A action size, M elites. All solvers have the settings `horizon` (P),
`num_candidates` (J) and `num_iterations` (I). A setting that is out of its range is a ValueError.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..specs import from_spec, read_old_names
from .search import PerDimension, Search, Solver, SolverResult, TraceRow, colored_noise, fit, select_elites


@dataclass
class Gaussian:
    """The state of CEM, ICEM and MPPI: mean and standard deviation (B, P, A), elites (B, M, P, A) if kept."""

    mean: torch.Tensor
    std: torch.Tensor
    elites: torch.Tensor | None = None


@dataclass
class GaussianSolver(Solver):
    """Solvers that sample around a mean and refit mean and standard deviation."""

    takes_noise = True

    def _begin(self, search: Search) -> Gaussian:
        mean = search.start()  # Algorithm 3, line 2
        return Gaussian(mean, search.std(self.init_std).expand_as(mean))

    def _candidates(self, search: Search, state: Gaussian, iteration: int) -> torch.Tensor:
        noise = search.normal(self.num_candidates, iteration, getattr(self, "sample_noise_per_step", False))
        return around(state.mean, state.std, noise)

    def _found(self, state: Gaussian) -> torch.Tensor:
        return state.mean

    def _moved(
        self, state: Gaussian, mean: torch.Tensor, std: torch.Tensor, cost: torch.Tensor
    ) -> tuple[Gaussian, TraceRow]:
        """The refit, mixed with the fraction `momentum` of the old state, and the row of the trace."""
        keep = self.momentum
        state = Gaussian(keep * state.mean + (1 - keep) * mean, keep * state.std + (1 - keep) * std)
        return state, {"cost": cost, "std": state.std.mean(dim=(1, 2))}


@dataclass
class CEM(GaussianSolver):
    """Cross-entropy method: sample around a mean, keep the cheapest, refit (Algorithm 3 of the two-phase recipe).

    Published V-JEPA 2-AC setting: `horizon=2, num_candidates=400, num_iterations=10, num_elites=10, momentum=0.15,
    sample_noise_per_step=True`, with `init_std` and bounds per dimension. The two-phase recipe: 500 to 1000
    candidates, 3 to 5 iterations, a tenth of the candidates as elites, `init_std=1.0`, `momentum=0.0`.

    Args:
        num_elites: M <= J, the cheapest candidates, to which mean and standard deviation are refitted. `None`: a tenth
            of the candidates, at least 2.
        momentum: fraction of the old mean and standard deviation that a refit keeps, in [0, 1).
        init_std: first standard deviation in action units, a number or one per dimension; a dimension with 0 stays at
            the first mean. `None`: half the action range.
        sample_noise_per_step: sample the noise as P tensors (J, F), in the order of the published code.
        stop_std: the search of a problem ends, before `num_iterations`, when its elites agree: when the standard
            deviation after a refit, averaged over steps and searched dimensions, is below this fraction of the action
            range (`action_high` − `action_low`). With the default `init_std` a search starts at 0.5. `None`: never.
    """

    num_elites: int | None = None
    momentum: float = 0.0
    init_std: PerDimension | None = None
    sample_noise_per_step: bool = False
    stop_std: float | None = None
    name = "cem"

    def _refit(self, state: Gaussian, candidates: torch.Tensor, costs: torch.Tensor) -> tuple[Gaussian, TraceRow]:
        elites, is_elite, cost = select_elites(candidates, costs, self.num_elites)
        moved, row = self._moved(state, *fit(elites, is_elite), cost)
        if self.stop_std is not None:  # problems whose search has ended have no elites
            goes_on = is_elite.any(dim=1)[:, None, None]
            moved = Gaussian(*(torch.where(goes_on, getattr(moved, x), getattr(state, x)) for x in ("mean", "std")))
        return moved, row

    def _has_ended(self, search: Search, state: Gaussian) -> torch.Tensor | None:
        if self.stop_std is None:
            return None
        searched = [dim for dim in search.free if search.low[dim] < search.high[dim]]
        reach = (search.high - search.low)[searched]
        if not torch.isfinite(reach).all():
            raise ValueError("stop_std is in units of the action range: give finite bounds, or stop_std=None.")
        spread = (state.std[..., searched] / reach).mean(dim=(1, 2))
        return spread.nan_to_num() < self.stop_std  # 0 where nothing is searched


@dataclass
class ICEM(GaussianSolver):
    """Improved cross-entropy method (Pinneri et al. 2020, arXiv 2008.06389): fewer candidates for the same plan.

    Noise is correlated over the steps. Some elites are tried again in the next iteration and, with `warm_start`, in
    the next plan. The number of candidates decays, the last iteration tries the mean too, and the plan is the best
    candidate seen.

    Args:
        num_candidates: J, of the first iteration.
        num_elites, init_std: as in `CEM`.
        momentum: as in `CEM` (published 0.1).
        noise_exponent: β, the noise has power 1 / f^β along the horizon: 0 is white noise, larger is smoother
            (published 0.25 to 4, by task).
        candidate_decay: γ >= 1, iteration i samples J · γ^-i candidates, but at least 2 M (published 1.25).
        kept_elites: fraction of the elites that are tried again, in [0, 1] (published 0.3).
    """

    num_elites: int | None = None
    momentum: float = 0.1
    init_std: PerDimension | None = None
    noise_exponent: float = 2.0
    candidate_decay: float = 1.25
    kept_elites: float = 0.3
    name = "icem"
    returns_best = True

    def _begin(self, search: Search) -> Gaussian:
        state = super()._begin(search)
        state.elites = search.warm_start
        return state

    def count_samples(self, iteration: int) -> int:
        """Candidates that an iteration samples."""
        decayed = math.ceil(self.num_candidates * self.candidate_decay**-iteration)
        return min(self.num_candidates, max(decayed, 2 * self.num_elites))

    def _candidates(self, search: Search, state: Gaussian, iteration: int) -> torch.Tensor:
        noise = colored_noise(search.normal(self.count_samples(iteration), iteration), self.noise_exponent)
        kept = [] if state.elites is None else [state.elites]
        last = [state.mean.unsqueeze(1)] if iteration == self.num_iterations - 1 else []
        return torch.cat([around(state.mean, state.std, noise), *kept, *last], dim=1)

    def _refit(self, state: Gaussian, candidates: torch.Tensor, costs: torch.Tensor) -> tuple[Gaussian, TraceRow]:
        elites, is_elite, cost = select_elites(candidates, costs, self.num_elites)
        state, row = self._moved(state, *fit(elites, is_elite), cost)
        # candidates without a finite cost are replaced by the best one
        elites = torch.where(is_elite[:, :, None, None], elites, elites[:, :1])
        kept = math.ceil(self.kept_elites * self.num_elites)
        state.elites = elites[:, :kept] if kept else None
        return state, row

    def _warm_start(self, state: Gaussian, plan: torch.Tensor) -> torch.Tensor:
        kept = [] if state.elites is None else [state.elites]
        return torch.cat([state.mean.unsqueeze(1), plan.unsqueeze(1), *kept], dim=1)


@dataclass
class MPPI(GaussianSolver):
    """Model-predictive path integral control (Williams et al. 2017, arXiv 1707.02342): all candidates count, with
    weights exp(−cost / temperature).

    Args:
        temperature: λ, in standard deviations of the costs of an iteration; a smaller value favors the cheapest.
        relative_temperature: `False`: λ is in units of the cost, as published.
        refit_std: refit the standard deviation to the weighted candidates (as in TD-MPC, arXiv 2203.04955); `False`:
            it stays (published).
        momentum, init_std: as in `CEM`.
    """

    temperature: float = 0.2
    relative_temperature: bool = True
    refit_std: bool = True
    momentum: float = 0.0
    init_std: PerDimension | None = None
    name = "mppi"

    def _refit(self, state: Gaussian, candidates: torch.Tensor, costs: torch.Tensor) -> tuple[Gaussian, TraceRow]:
        finite = torch.isfinite(costs)
        known = costs.masked_fill(~finite, 0.0)
        scale = torch.full_like(costs[:, :1], self.temperature)
        if self.relative_temperature:
            count = finite.sum(dim=1, keepdim=True)
            centered = (known - known.sum(dim=1, keepdim=True) / count) * finite
            deviation = (centered.square().sum(dim=1, keepdim=True) / count).sqrt()
            scale = (scale * deviation).clamp_min(torch.finfo(costs.dtype).tiny)
        best = costs.min(dim=1, keepdim=True).values  # subtracted, so that no weight overflows
        weight = torch.softmax(-(costs - best) / scale, dim=1)
        each = weight[:, :, None, None]
        mean = (each * candidates).sum(dim=1)
        std = state.std
        if self.refit_std:
            std = (each * (candidates - mean.unsqueeze(1)).square()).sum(dim=1).sqrt()
        return self._moved(state, mean, std, (weight * known).sum(dim=1))


@dataclass
class RandomShooting(Solver):
    """The baseline: samples `num_candidates * num_iterations` sequences uniformly within the bounds, with warm starts
    among the first, and returns the cheapest one."""

    num_iterations: int = 1
    name = "random"
    returns_best = True

    def _begin(self, search: Search) -> None:
        if not torch.isfinite(search.high - search.low).all():
            raise ValueError("RandomShooting samples uniformly and needs finite action bounds; give finite bounds.")

    def _candidates(self, search: Search, state: None, iteration: int) -> torch.Tensor:
        batch_size, *steps = search.shape
        unit = search.sample(torch.rand, (self.num_candidates, *steps)).to(search.device)
        candidates = (search.low + (search.high - search.low) * unit).expand(batch_size, -1, -1, -1)
        if iteration or search.warm_start is None:
            return candidates
        starts = search.warm_start[:, : self.num_candidates]
        return torch.cat([starts, candidates[:, starts.shape[1] :]], dim=1)

    def _refit(self, state: None, candidates: torch.Tensor, costs: torch.Tensor) -> tuple[None, TraceRow]:
        return None, {"cost": costs.min(dim=1).values}


@dataclass
class Descent:
    """The state of gradient descent: restarts (B, J, P, A) in units of `scale` (A,), and their optimizer."""

    restarts: torch.nn.Parameter
    scale: torch.Tensor
    moves: torch.Tensor  # (A,) bool, whether a dimension is optimized
    optimizer: torch.optim.Optimizer


@dataclass
class GradientDescent(Solver):
    """Adam on the actions, from several starts; the plan is the best sequence seen.

    For costs that are smooth in the actions. It only goes downhill, so that the starts matter for costs with several
    minima. A cost function without gradient is a ValueError.

    Args:
        num_candidates: J, restarts: the warm starts, or the first mean, then samples around the first of them.
        num_iterations: I, steps of Adam.
        learning_rate: in units of `init_std`.
        init_std: of the restarts, in action units, a number or one per dimension; a dimension with 0 stays at its
            start. `None`: half the action range.
    """

    num_candidates: int = 8
    num_iterations: int = 30
    learning_rate: float = 0.1
    init_std: PerDimension | None = None
    name = "gradient"
    returns_best = True
    needs_gradient = True

    def _begin(self, search: Search) -> Descent:
        std = search.std(self.init_std)
        starts = search.start().unsqueeze(1) if search.warm_start is None else search.warm_start
        starts = starts[:, : self.num_candidates]
        others = self.num_candidates - starts.shape[1]
        if others:
            starts = torch.cat([starts, around(starts[:, 0], std, search.normal(others, 0))], dim=1)
        scale = torch.where(std > 0, std, 1.0)
        restarts = torch.nn.Parameter(search.project(starts) / scale)
        return Descent(restarts, scale, std > 0, torch.optim.Adam([restarts], lr=self.learning_rate))

    def _candidates(self, search: Search, state: Descent, iteration: int) -> torch.Tensor:
        return state.restarts.detach() * state.scale

    def _refit(self, state: Descent, candidates: torch.Tensor, costs: torch.Tensor) -> tuple[Descent, TraceRow]:
        if not costs.requires_grad:
            raise ValueError(
                "the cost function returns costs without gradient, which GradientDescent needs: compute them with "
                "torch operations on the candidates, outside torch.no_grad, or take another solver."
            )
        finite = torch.isfinite(costs)
        known = costs.masked_fill(~finite, 0.0)
        (gradient,) = torch.autograd.grad(known.sum(), candidates)
        with torch.no_grad():
            state.restarts.copy_(candidates / state.scale)  # as projected
            state.restarts.grad = torch.nan_to_num(gradient * state.scale * state.moves, 0.0, 0.0, 0.0)
            state.optimizer.step()
            return state, {"cost": known.sum(dim=1) / finite.sum(dim=1)}


# The probabilities of the categories (B, P, k, A / k), and equal probabilities (k, A / k) of those that are allowed
Categories = tuple[torch.Tensor, torch.Tensor]


@dataclass
class CategoricalCEM(Solver):
    """Cross-entropy method for discrete actions: sample categories, keep the cheapest, refit their probabilities.

    Candidates are one-hot vectors. The probabilities of every step start equal and become the fractions of the
    categories among the elites (Rubinstein & Kroese 2004, The Cross-Entropy Method, sec. 4). The plan is the most
    likely category of every step. An upper bound of 0 rules a category out; other bounds are ignored. A warm start has
    half of the probability of every step. Constraints are refused.

    Args:
        num_elites, momentum: as in `CEM`.
        min_probability: fraction of the refitted probabilities that is spread over all categories, in [0, 1), so that
            no category is lost.
        actions_per_step: k environment actions of A / k categories each, one after the other in a vector of A.
    """

    num_elites: int | None = None
    momentum: float = 0.0
    min_probability: float = 0.05
    actions_per_step: int = 1
    name = "categorical_cem"

    def _begin(self, search: Search) -> Categories:
        if search.constraints:
            raise ValueError("constraints are for continuous actions; an upper bound of 0 rules a category out.")
        if search.shape[2] % self.actions_per_step:
            raise ValueError(
                f"action_dim={search.shape[2]} is not a multiple of actions_per_step={self.actions_per_step}; "
                "expected that many groups of categories."
            )
        allowed = self._grouped((search.high > 0).float())
        if not allowed.any(dim=-1).all():
            raise ValueError(
                f"action_high is {search.high.tolist()}; expected at least one category above 0 in every group."
            )
        uniform = allowed / allowed.sum(dim=-1, keepdim=True)
        probability = uniform.expand(*search.shape[:2], *uniform.shape)
        if search.warm_start is not None:
            probability = (probability + self._one_hot(self._grouped(search.start()))) / 2 * (uniform > 0)
        return probability, uniform

    def _candidates(self, search: Search, state: Categories, iteration: int) -> torch.Tensor:
        """One-hot candidates (B, J, P, A): the largest of log p + Gumbel noise."""
        probability, _ = state
        uniform = search.sample(torch.rand, (self.num_candidates, *probability.shape[1:]))
        gumbel = -(-uniform.to(probability).clamp_min(torch.finfo(torch.float32).tiny).log()).log()
        return self._one_hot(probability.log().unsqueeze(1) + gumbel).flatten(-2)

    def _refit(self, state: Categories, candidates: torch.Tensor, costs: torch.Tensor) -> tuple[Categories, TraceRow]:
        probability, uniform = state
        elites, is_elite, cost = select_elites(candidates, costs, self.num_elites)
        refitted = self._grouped(fit(elites, is_elite)[0])
        refitted = (1 - self.min_probability) * refitted + self.min_probability * uniform
        probability = self.momentum * probability + (1 - self.momentum) * refitted
        deviation = (probability * (1 - probability)).sqrt().mean(dim=(1, 2, 3))
        return (probability, uniform), {"cost": cost, "std": deviation}

    def _found(self, state: Categories) -> torch.Tensor:
        return self._one_hot(state[0]).flatten(-2)

    def _grouped(self, vectors: torch.Tensor) -> torch.Tensor:
        """(..., A) -> (..., k, A / k)."""
        return vectors.unflatten(-1, (self.actions_per_step, -1))

    def _one_hot(self, scores: torch.Tensor) -> torch.Tensor:
        """1 at the largest score of every group (..., k, A / k), 0 elsewhere."""
        return torch.zeros_like(scores).scatter_(-1, scores.argmax(dim=-1, keepdim=True), 1.0)


OLD_SETTINGS = {"draw_noise_per_step": "sample_noise_per_step"}  # names in planners saved by 0.1.0
SOLVERS: dict[str, type[Solver]] = {
    solver.name: solver for solver in (CEM, ICEM, MPPI, GradientDescent, RandomShooting, CategoricalCEM)
}


def build_solver(solver: str | Callable[..., SolverResult], **settings: Any) -> Callable[..., SolverResult]:
    """A solver from a name of `SOLVERS` and its settings; a solver object is returned as it is."""
    if not isinstance(solver, str):
        if not callable(solver) or isinstance(solver, type):
            raise ValueError(f"solver is {solver!r}, expected one of {sorted(SOLVERS)} or a solver object.")
        if settings:
            raise ValueError(f"settings {sorted(settings)} were given beside a solver object; set them on the object.")
        return solver
    settings = read_old_names(settings, OLD_SETTINGS, f"solver {solver!r}")
    return from_spec({"solver": solver, **settings}, SOLVERS, "solver")


def around(mean: torch.Tensor, std: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Candidates (B, J, P, A) around a mean (B, P, A); Algorithm 3, line 4."""
    std = std.unsqueeze(1) if std.dim() == 3 else std
    return mean.unsqueeze(1) + std * noise
