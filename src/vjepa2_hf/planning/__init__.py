"""Search for the cheapest action sequence: solvers, costs and constraints, written without knowing a model.

Letters: B batch (problems planned in one call), J candidates, P planning horizon, A action size.

A solver is any object with this call:

    result = solver(cost, batch_size=B, action_dim=A, action_low=-1.0, action_high=1.0,
                    generator=None, warm_start=None)

where `cost` maps candidates (B, J, P, A) to costs (B, J), lower being better, and `result` is a `SolverResult`. The
solvers live in `planning_solvers`, their loop in `planning_search`, the terms of a world model's planning cost in
`planning_costs`, and what actions must obey in `planning_constraints`; all of it is imported from here.
"""

from ..modeling_costs import (
    COSTS,
    DISTANCES,
    ActionPenalty,
    Cost,
    ImaginedStep,
    LatentDistance,
    ProprioDistance,
    Reward,
    Uncertainty,
    WeightedSum,
    build_cost,
)
from .constraints import (
    CONSTRAINTS,
    ClosedGripper,
    Constraint,
    DeadZone,
    Fixed,
    StepBounds,
    build_constraints,
)
from .search import CostFunction, Generators, PerDimension, Solver, SolverResult, shift_plan
from .solvers import (
    CEM,
    ICEM,
    MPPI,
    SOLVERS,
    CategoricalCEM,
    GradientDescent,
    RandomShooting,
    build_solver,
)


__all__ = [
    "CEM",
    "ICEM",
    "MPPI",
    "GradientDescent",
    "RandomShooting",
    "CategoricalCEM",
    "SOLVERS",
    "Solver",
    "SolverResult",
    "build_solver",
    "shift_plan",
    "COSTS",
    "DISTANCES",
    "Cost",
    "ImaginedStep",
    "LatentDistance",
    "ProprioDistance",
    "ActionPenalty",
    "Uncertainty",
    "Reward",
    "WeightedSum",
    "build_cost",
    "CONSTRAINTS",
    "Constraint",
    "Fixed",
    "ClosedGripper",
    "StepBounds",
    "DeadZone",
    "build_constraints",
    "CostFunction",
    "Generators",
    "PerDimension",
]
