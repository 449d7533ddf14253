"""Trains an actor in imagination: a = π(s, s_goal), by gradient through rollouts of a frozen world model.

    python examples/train_actor.py --config examples/configs/demo/actor.yaml [key=value ...]

after the demo's world model and `train_cloning.py`, whose policy it starts from (`start`; null: new weights, with
which it did not learn to push, docs/planning_evaluation.md). Episodes give only where a rollout starts and what its
goal is (hindsight); what the actor's actions lead to is imagined. `objective: goal` lowers the latent distance to the
goal, `objective: reward` minus the rewards that the model's reward head reads off imagined steps (seed 000, "world
model for RL"). A run that was stopped goes on with `resume=latest`; `OUTPUT_DIR/held_out.json` has the imagined cost
before and after. The result is `OUTPUT_DIR/final`, a row of `examples/plan.py`, and what a planner may start from:

    python examples/plan.py --config examples/configs/demo/plan.yaml "policies={actor: runs/demo/actor/final}"
        "proposals={CEM, pretrained encoder: runs/demo/actor/final}"
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from vjepa2_hf import VJepa2WorldModel
from vjepa2_hf.environments.goal_policies import GoalPolicy, imagine
from vjepa2_hf.environments.policy_training import PolicyTrainingConfig, train_policy
from vjepa2_hf.training.settings import exit_on_user_error, parse_arguments


@dataclass
class ActorConfig(PolicyTrainingConfig):
    """Settings of one run."""

    horizon: int = 5
    """Model steps imagined."""
    objective: Literal["goal", "reward"] = "goal"
    cost: Literal["summed", "final"] = "summed"
    """Of the goal: the mean distance of all imagined steps, which asks for getting there early, or the last one's."""

    def __post_init__(self):
        super().__post_init__()
        if self.horizon < 1:
            raise ValueError(f"horizon must be at least 1, got {self.horizon}.")


def imagined_cost(
    policy: GoalPolicy, model: VJepa2WorldModel, batch: dict[str, torch.Tensor], config: ActorConfig
) -> torch.Tensor:
    """The objective of imagined steps from a batch's starts: a number, lower is better."""
    actions, future = imagine(policy, model, batch["latents"], batch["goal"], config.horizon)
    if config.objective == "reward":
        steps = torch.cat([batch["latents"].unsqueeze(1), future], dim=1)
        return -model.predict_rewards(steps, actions).mean()
    if config.cost == "final":
        future = future[:, -1:]
    return (future - batch["goal"].unsqueeze(1)).square().mean()


@exit_on_user_error
def main() -> None:
    config = parse_arguments(ActorConfig, __doc__)
    train_policy(config, partial(imagined_cost, config=config))


if __name__ == "__main__":
    main()
