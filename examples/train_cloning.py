# /// script
# requires-python = ">=3.11"
# dependencies = ["vjepa2-hf[demo]"]
# ///
"""Trains goal-conditioned behavior cloning on episodes, the baseline of planning on the same data.

    python examples/train_cloning.py --config examples/configs/demo/cloning.yaml [key=value ...]

Run it after the demo's world model, whose frozen latents of observation and goal the network takes (raw patches with
`encoder=pixels`). Any later frame of an episode is a goal that its actions reached (hindsight). The result is
`OUTPUT_DIR/final`, a policy for `examples/plan.py`:

    python examples/plan.py --config examples/configs/demo/plan.yaml "policies={cloning: runs/demo/cloning/final}"

With `planner` it clones a planner instead (distillation): for the same frames and goals the planner searches in the
latents of the world model, and the first action of its plan is the target.

    python examples/train_cloning.py --config examples/configs/demo/cloning.yaml output_dir=runs/demo/distilled \\
        start=runs/demo/cloning/final policy={} max_steps=300 \\
        "planner={name: cem, horizon: 3, num_candidates: 32, num_iterations: 2, cost: closest}"
"""

import vjepa2_cli  # noqa: F401 (a quick --help)
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from vjepa2_hf import VJepa2WorldModel
from vjepa2_hf.environments.goal_policies import GoalPolicy
from vjepa2_hf.environments.policy_training import PolicyTrainingConfig, planned_actions, train_policy
from vjepa2_hf.planning import build_cost, build_solver
from vjepa2_hf.training.settings import exit_on_user_error, parse_arguments


@dataclass(kw_only=True)
class CloningConfig(PolicyTrainingConfig):
    """Settings of one run."""

    planner: dict[str, Any] | None = None
    """`name` and settings of a solver, and a `cost` (default: l2): the actions of this planner are cloned. null: those
    of the data."""

    def __post_init__(self):
        super().__post_init__()
        if self.planner is not None:
            self.build_planner()  # what is wrong shows before training

    def build_planner(self) -> tuple[Any, Any]:
        """Solver and cost of `planner`."""
        settings = {"name": "cem", "cost": "l2", **self.planner}
        if "solver" in settings:
            raise ValueError(f"planner.solver is {settings['solver']!r}: give the solver's name as planner.name.")
        cost = build_cost(settings.pop("cost"))
        if cost.needs_proprio or cost.needs_samples:
            raise ValueError(f"planner.cost is {self.planner['cost']!r}; expected terms of latents and actions alone.")
        if settings["name"] == "categorical_cem":
            raise ValueError(
                "planner.name is 'categorical_cem', for discrete actions; expected a continuous solver: cem."
            )
        return build_solver(settings.pop("name"), **settings), cost


def cloning_loss(
    policy: GoalPolicy, model: VJepa2WorldModel, batch: dict[str, torch.Tensor], planner: tuple[Any, Any] | None = None
) -> torch.Tensor:
    """Mean squared error of the actions in the data, or of a planner's (its solver and cost), in units of half the
    range of each dimension."""
    low, high = (torch.tensor(getattr(model.config, name)) for name in ("action_low", "action_high"))
    reach = ((high - low) / 2).clamp(min=1e-6).to(model.device)  # a constant dimension has no error
    target = batch["actions"] if planner is None else planned_actions(model, batch, *planner)
    error = policy(batch["latents"], batch["goal"], batch["steps"]) - target
    return (error / reach).square().mean()


@exit_on_user_error
def main() -> None:
    config = parse_arguments(CloningConfig, __doc__)
    planner = None if config.planner is None else config.build_planner()
    train_policy(config, partial(cloning_loss, planner=planner))


if __name__ == "__main__":
    main()
