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
"""

import torch

from vjepa2_hf import VJepa2WorldModel
from vjepa2_hf.environments.goal_policies import GoalPolicy
from vjepa2_hf.environments.policy_training import PolicyTrainingConfig, train_policy
from vjepa2_hf.training.settings import exit_on_user_error, parse_arguments


def cloning_loss(policy: GoalPolicy, model: VJepa2WorldModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean squared error of the actions in the data, in units of half the range of each dimension."""
    low, high = (torch.tensor(getattr(model.config, name)) for name in ("action_low", "action_high"))
    reach = ((high - low) / 2).clamp(min=1e-6).to(model.device)  # a constant dimension has no error
    error = policy(batch["latents"], batch["goal"], batch["steps"]) - batch["actions"]
    return (error / reach).square().mean()


@exit_on_user_error
def main() -> None:
    train_policy(parse_arguments(PolicyTrainingConfig, __doc__), cloning_loss)


if __name__ == "__main__":
    main()
