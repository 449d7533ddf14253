"""A cost function that can score some problems of a batch alone.

Letters: B batch (problems planned in one call), n some of them, J candidates, P planning horizon, A action size.
"""

from collections.abc import Callable

import torch


class ProblemCosts:
    """Costs of candidates, from tensors with one row per problem.

        cost = ProblemCosts(lambda candidates, targets: (candidates - targets).abs().mean((2, 3)), targets=targets)
        cost(candidates)                                   # (B, J, P, A) -> (B, J)
        cost.of(torch.tensor([0, 2]))(candidates[[0, 2]])  # (n, J, P, A) -> (n, J)

    Solvers call `of` when the search of some problems has ended; without it, they score every problem until the last
    search ends, and the plans are the same.

    Args:
        function: of the candidates and, by name, the tensors.
        problems: tensors (B, ...), or `None`, which stays `None`.
    """

    def __init__(self, function: Callable[..., torch.Tensor], **problems: torch.Tensor | None):
        self.function, self.problems = function, problems

    def __call__(self, candidates: torch.Tensor) -> torch.Tensor:
        return self.function(candidates, **self.problems)

    def of(self, rows: torch.Tensor) -> "ProblemCosts":
        """The same of n problems, from their indices (n,)."""
        some = {name: None if part is None else part[rows.to(part.device)] for name, part in self.problems.items()}
        return ProblemCosts(self.function, **some)
