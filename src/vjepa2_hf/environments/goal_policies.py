"""Goal-conditioned policies a = π(s, s_goal) on the latents of a frozen world model.

    policy = GoalPolicy.from_pretrained("runs/demo/cloning/final")
    actions = policy(latents, goal)     # (B, N, D), (B, N, D) -> (B, A)

Letters: B batch, N tokens, D width of a latent, A action of a model step, P model steps.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import nn

from ..data.files import loading
from ..modeling_world_model import VJepa2WorldModel
from ..pipelines.latent_planning import VJepa2Planner
from ..specs import check_count
from ..video_processing_vjepa2 import VJepa2VideoProcessor
from ..visualization.rollout_windows import encode_frames
from .kept_goals import KeptGoals
from .tasks import TaskBatch
from .views import select_views


TRAIN_ONE = "train one with examples/train_cloning.py or examples/train_actor.py"


class GoalPolicy(nn.Module, PyTorchModelHubMixin):
    """An MLP over the latents of the observation and of the goal; both pass the same first layer.

    Args:
        tokens, latent_size: N and D.
        action_low, action_high: bounds (A,) of the actions in environment units.
        world_model: folder or Hub id of the world model that encodes the latents.
        hidden_size, num_hidden_layers: of the MLP.
        steps_left: largest number of model steps to the goal that the MLP takes as a further input (as GC-IDM, arXiv
            2605.08732); 0: it takes none. Train with `goal_steps` equal to it.
    """

    def __init__(
        self,
        tokens: int,
        latent_size: int,
        action_low: list[float],
        action_high: list[float],
        world_model: str,
        hidden_size: int = 256,
        num_hidden_layers: int = 2,
        steps_left: int = 0,
    ):
        super().__init__()
        self.steps_left = check_count("steps_left", steps_left, lowest=0)
        self.tokens, self.latent_size, self.world_model = tokens, latent_size, world_model
        low, high = torch.tensor(action_low), torch.tensor(action_high)
        self.register_buffer("middle", (low + high) / 2, persistent=False)
        self.register_buffer("reach", (high - low) / 2, persistent=False)
        self.state = nn.Sequential(nn.Linear(tokens * latent_size, hidden_size), nn.GELU())
        layers: list[nn.Module] = []
        for number in range(num_hidden_layers):
            width = hidden_size if number else 2 * hidden_size + bool(steps_left)
            layers += [nn.Linear(width, hidden_size), nn.GELU()]
        self.action = nn.Sequential(*layers, nn.Linear(hidden_size, len(action_low)))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> "GoalPolicy":
        """Loads a policy; `options` are those of `huggingface_hub`, and settings that replace the saved ones. A
        missing folder is a FileNotFoundError, a damaged one a ValueError."""
        with loading(pretrained_model_name_or_path, "policy", TRAIN_ONE):
            return super().from_pretrained(pretrained_model_name_or_path, **{"strict": True, **options})

    @classmethod
    def from_world_model(cls, model: VJepa2WorldModel, path: str, **settings: Any) -> "GoalPolicy":
        """A new policy for the latents and actions of a world model with continuous actions and their bounds."""
        config = model.config
        if config.action_type == "discrete" or config.action_low is None or config.action_high is None:
            raise ValueError(
                f"The world model {path!r} has {config.action_type} actions with bounds from {config.action_low} to "
                f"{config.action_high}; a policy needs continuous actions with bounds."
            )
        low, high = list(config.action_low), list(config.action_high)
        return cls(model.tokens_per_frame, model.latent_size, low, high, path, **settings)

    def forward(self, latents: torch.Tensor, goal: torch.Tensor, left: torch.Tensor | None = None) -> torch.Tensor:
        """(B, N, D), (B, N, D) -> actions (B, A) in environment units, of the policy's own dtype; `left` (B,) are the
        model steps to the goal, by default `steps_left`."""
        latents, goal = (part.to(self.middle.dtype) for part in (latents, goal))  # a world model may be in bfloat16
        parts = [self.state(part.flatten(1)) for part in (latents, goal)]
        if self.steps_left:
            left = latents.new_full((len(latents),), self.steps_left) if left is None else left.to(latents)
            parts.append((left / self.steps_left).clamp(max=1).unsqueeze(-1))
        joined = torch.cat(parts, dim=-1)
        return self.middle + self.reach * torch.tanh(self.action(joined))


def load_policy(path: str, model: VJepa2WorldModel | None = None, **settings: Any) -> GoalPolicy:
    """Loads a trained policy; `settings` override the saved ones.

    Raises:
        FileNotFoundError: the folder has none.
        ValueError: it was trained on latents of another size than those of `model`.
    """
    if not (Path(path) / "config.json").is_file():
        raise FileNotFoundError(f"There is no policy in {path!r}; {TRAIN_ONE}.")
    policy = GoalPolicy.from_pretrained(path, **settings).eval()
    if model is not None and (policy.tokens, policy.latent_size) != (model.tokens_per_frame, model.latent_size):
        raise ValueError(
            f"The policy {path!r} takes {policy.tokens} tokens of size {policy.latent_size}, but the world model has "
            f"{model.tokens_per_frame} of size {model.latent_size}: give a policy that was trained on this model."
        )
    return policy


def count_left(policy: GoalPolicy, taken: int, latents: torch.Tensor) -> torch.Tensor:
    """The model steps to the goal that a policy receives after `taken` of them, for latents (B, N, D): (B,), counted
    down from its `steps_left` to 1."""
    return latents.new_full((len(latents),), max(1, policy.steps_left - taken))


def imagine(
    policy: GoalPolicy,
    model: VJepa2WorldModel,
    latents: torch.Tensor,
    goal: torch.Tensor,
    steps: int,
    left: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rolls out the policy in the world model, with gradient.

    Args:
        latents, goal: (B, N, D).
        left: (B,), model steps to the goal from the present, by default the policy's `steps_left`; one less in every
            step, but at least 1.

    Returns:
        actions (B, P, A) and the predicted latents (B, P, N, D).
    """
    config = model.config
    if config.proprio_dim or config.extrinsics_dim:
        raise ValueError(
            "The world model has proprio states or extrinsics, but policies act on latents alone: train one without."
        )
    seen, actions = [latents], []
    left = count_left(policy, 0, latents) if left is None else left
    for number in range(steps):
        actions.append(policy(seen[-1], goal, (left - number).clamp(min=1)))
        window = seen[-config.context_frames :]
        earlier = actions[-len(window) : -1]
        context = {"context_actions": torch.stack(earlier, dim=1)} if earlier else {}
        following = model.rollout(torch.stack(window, dim=1), actions[-1].unsqueeze(1), **context)
        seen.append(following[:, 0])
    return torch.stack(actions, dim=1), torch.stack(seen[1:], dim=1)


class PolicyPlan:
    """A policy as a `plan` for `closed_loop.run_closed_loop`: one model step (N, k, A) from the current images. Goals
    are encoded once per episode.

    Args:
        path: folder of the policy; its world model is loaded from the path that the policy was trained on.
        device: None is the CPU.
        planner: whose world model and video processor are used instead, as they are.
    """

    def __init__(self, path: str, device: str | None = None, planner: VJepa2Planner | None = None):
        if planner is not None:
            self.model, self.processor = planner.model, planner.video_processor
            self.policy = load_policy(path, self.model).to(self.model.device)
        else:
            self.policy = load_policy(path).to(device or "cpu")
            world_model = self.policy.world_model
            self.model = VJepa2WorldModel.from_pretrained(world_model).to(device or "cpu").eval()
            self.processor = VJepa2VideoProcessor.from_pretrained(world_model)
        self.kept_goals = KeptGoals(lambda images: encode_frames(self.model, self.processor, images))
        self.plans, self.seconds, self.cpu_seconds = 0, 0.0, 0.0

    @torch.no_grad()
    def __call__(self, tasks: TaskBatch) -> np.ndarray:
        active, steps = np.flatnonzero(tasks.active), self.model.config.actions_per_step
        actions = np.zeros((len(tasks), steps, tasks.action_dim), np.float32)
        if len(active):
            config = self.model.config
            images, goals = (select_views(config, tasks.observe(active, goals)) for goals in (False, True))
            started, cpu_started = time.perf_counter(), time.process_time()
            seen = encode_frames(self.model, self.processor, images, targets=False)
            left = count_left(self.policy, tasks.steps_taken // steps, seen)
            found = self.policy(seen, self.kept_goals(tasks, active, goals), left)
            actions[active] = found.cpu().numpy().reshape(len(active), steps, -1)
            self.seconds += time.perf_counter() - started
            self.cpu_seconds += time.process_time() - cpu_started
            self.plans += len(active)
        return actions
