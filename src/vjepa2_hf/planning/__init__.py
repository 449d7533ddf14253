"""Search for the cheapest action sequence: solvers, costs and constraints, independent of a model.

Letters: B batch (problems planned in one call), J candidates, P planning horizon, A action size.

A solver is any object with this call:

    result = solver(cost, batch_size=B, action_dim=A, action_low=-1.0, action_high=1.0,
                    generator=None, warm_start=None)

where `cost` maps candidates (B, J, P, A) to costs (B, J), lower is better, and `result` is a `SolverResult`.
"""

from ..modeling_costs import (
    COSTS,
    DISTANCES,
    ActionPenalty,
    Closest,
    Cost,
    ImaginedStep,
    LatentDistance,
    ProprioDistance,
    Reward,
    TemporalDistance,
    Uncertainty,
    WeightedSum,
    build_cost,
)
from .constraints import CONSTRAINTS, ClosedGripper, Constraint, DeadZone, Fixed, StepBounds, build_constraints
from .search import CostFunction, Generators, PerDimension, Solver, SolverResult, shift_plan
from .solvers import CEM, ICEM, MPPI, SOLVERS, CategoricalCEM, GradientDescent, RandomShooting, build_solver
