# /// script
# requires-python = ">=3.11"
# dependencies = ["vjepa2-hf[demo]"]
# ///
"""Trains an actor in imagination: a = π(s, s_goal), by gradient through rollouts of a frozen world model.

    python examples/train_actor.py --config examples/configs/demo/actor.yaml [key=value ...]

Run it after the demo's world model and `train_cloning.py`, whose policy it starts from (`start`; with new weights it
did not learn to push, docs/planning_evaluation.md). Episodes only provide the start and the goal of a rollout
(hindsight); the world model predicts the effect of the actions. `OUTPUT_DIR/held_out.json` has the cost before and
after training. The result is `OUTPUT_DIR/final`, a policy for `examples/plan.py` and a proposal for its planners:

    python examples/plan.py --config examples/configs/demo/plan.yaml "policies={actor: runs/demo/actor/final}" \\
        "proposals={CEM, pretrained encoder: runs/demo/actor/final}"
"""

import vjepa2_cli  # noqa: F401 (a quick --help)
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from vjepa2_hf import VJepa2WorldModel
from vjepa2_hf.environments.goal_policies import GoalPolicy, imagine
from vjepa2_hf.environments.policy_training import PolicyTrainingConfig, train_policy
from vjepa2_hf.modeling_costs import check_cost, sum_over_steps
from vjepa2_hf.planning import Cost, build_cost
from vjepa2_hf.training.settings import exit_on_user_error, parse_arguments


@dataclass(kw_only=True)
class ActorConfig(PolicyTrainingConfig):
    """Settings of one run."""

    horizon: int = 5
    """Model steps of a rollout."""
    objective: Literal["goal", "reward"] = "goal"
    """goal: minimize the latent distance to the goal; reward: maximize the predictions of the model's reward head."""
    cost: str | dict[str, Any] = "summed"
    """For the goal: summed (mean squared distance of latents over all steps, which rewards early arrival), final (that
    of the last one), or a planner's cost, such as {cost: temporal, summed: true} for a model with a distance head."""

    def __post_init__(self):
        super().__post_init__()
        self.require_positive("horizon")
        if self.cost not in ("summed", "final"):
            cost = build_cost(self.cost)
            if cost.needs_proprio or cost.needs_samples:
                raise ValueError(
                    f"cost is {self.cost!r}; expected terms of latents, goals, actions and rewards alone."
                )


def imagined_cost(
    policy: GoalPolicy, model: VJepa2WorldModel, batch: dict[str, torch.Tensor], config: ActorConfig
) -> torch.Tensor:
    """The cost of rollouts from the first frames of a batch: a scalar, lower is better."""
    actions, future = imagine(policy, model, batch["latents"], batch["goal"], config.horizon, batch.get("steps"))
    if config.objective == "reward":
        steps = torch.cat([batch["latents"].unsqueeze(1), future], dim=1)
        return -model.predict_rewards(steps, actions).mean()
    if config.cost not in ("summed", "final"):
        return planning_cost(build_cost(config.cost), model, batch, actions, future)
    if config.cost == "final":
        future = future[:, -1:]
    return (future - batch["goal"].unsqueeze(1)).square().mean()


def planning_cost(
    cost: Cost, model: VJepa2WorldModel, batch: dict[str, torch.Tensor], actions: torch.Tensor, future: torch.Tensor
) -> torch.Tensor:
    """The mean of a planner's cost over rollouts (B, P, N, D) with actions (B, P, A)."""
    check_cost(model.config, cost)
    present, goal = batch["latents"].unsqueeze(1), batch["goal"][:, None, None]
    steps = iter(future.split(1, dim=1))  # one candidate of one sample: (B, 1, N, D) each
    to_goal = partial(model.temporal_distance, goal=goal.unsqueeze(3))
    rollout = (steps, actions.unsqueeze(1), present, 1, model.predict_rewards, None)
    return sum_over_steps(cost, *rollout, goal, None, to_goal, whitening=model.state_whitening).mean()


@exit_on_user_error
def main() -> None:
    config = parse_arguments(ActorConfig, __doc__)
    train_policy(config, partial(imagined_cost, config=config))


if __name__ == "__main__":
    main()
