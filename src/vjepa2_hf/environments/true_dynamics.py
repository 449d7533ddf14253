"""Planning with the true dynamics of the package's environments.

Letters: N tasks, n of them active, S state size, J candidates, P planning horizon, A action size.
"""

import functools
from collections.abc import Callable, Iterator

import numpy as np
import torch

from ..planning import CEM
from .plane import PlaneEnv
from .tasks import Tasks


def true_states(env: PlaneEnv, states: np.ndarray, actions: np.ndarray) -> Iterator[np.ndarray]:
    """The states (n, J, S) after every step of actions (n, J, P, 2) from states (n, S)."""
    reached = np.broadcast_to(states[:, None], (*actions.shape[:2], states.shape[-1]))
    for step in range(actions.shape[2]):
        reached = env.dynamics(reached, actions[:, :, step])
        yield reached


def oracle_plan(seed: int = 0, whole_state: bool = False) -> Callable[[Tasks], np.ndarray]:
    """CEM on the true states and the true dynamics as a `plan` for `run_closed_loop`, 6 environment steps ahead.

    Its cost is the smallest `cost_to_go` over the steps: of what success needs, or of the whole state. A cost of the
    last step alone would postpone its goal again and again.
    """
    solver = CEM(horizon=6, num_candidates=128, num_iterations=3, num_elites=12)
    generator = torch.Generator().manual_seed(seed)

    def plan(tasks: Tasks) -> np.ndarray:
        active = np.flatnonzero(tasks.active)
        states, goals = tasks.states[active], tasks.goals[active, None]

        def cost(actions: torch.Tensor) -> torch.Tensor:  # (n, J, P, 2) -> (n, J)
            steps = true_states(tasks.env, states, actions.numpy())
            left = functools.reduce(np.minimum, (tasks.env.cost_to_go(step, goals, whole_state) for step in steps))
            return torch.from_numpy(left.astype(np.float32))

        plans = np.zeros((len(tasks), solver.horizon, 2), np.float32)
        if len(active):
            plans[active] = solver(cost, batch_size=len(active), action_dim=2, generator=generator).actions.numpy()
        return plans

    return plan
