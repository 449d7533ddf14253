"""Training of goal-conditioned policies on hindsight goals: data, settings and the training loop.

Letters: B batch, F frames of all episodes, N tokens, D width of a latent, A action of a model step.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from tqdm import tqdm

from ..data.episodes import episode_ids, held_out_of, read_episodes
from ..data.files import write_json
from ..modeling_world_model import VJepa2WorldModel
from ..training.monitor import gradient_norm
from ..training.run import Run, check_run_settings
from ..training.schedules import LearningRateSchedule, set_learning_rate
from ..video_processing_vjepa2 import VJepa2VideoProcessor
from ..visualization.rollout_windows import encode_frames
from .goal_policies import GoalPolicy, check_latents, load_policy


RATE_SETTINGS = ("max_steps", "learning_rate")
HELD_OUT_PAIRS = 512


# ---------------------------------------------------------------------------------------------------------------------
# Data: hindsight goals
# ---------------------------------------------------------------------------------------------------------------------
@dataclass
class HindsightPairs:
    """Frames of episodes, of which any later one is a goal that was reached (hindsight).

    Attributes:
        latents, goals: (F, N, D), of all episodes one after the other: as seen, and as goals are encoded.
        actions: (F, A); those of an episode's last frame are not used.
        remaining: (F,) int64, model steps that follow in the same episode.
    """

    latents: torch.Tensor
    goals: torch.Tensor
    actions: torch.Tensor
    remaining: torch.Tensor

    def sample(self, count: int, longest: int, generator: torch.Generator, draws: int = 1) -> dict[str, torch.Tensor]:
        """`latents` and `goal` (B, N, D), `actions` (B, A) of the first step, and `steps` (B,) between them, drawn
        uniformly from 1 to `longest` or to the episode's end. Of `draws` such pairs the one is kept whose latents are
        farthest apart."""
        places = torch.nonzero(self.remaining).flatten()
        start = places[torch.randint(len(places), (count * draws,), generator=generator)]
        room = self.remaining[start].clamp(max=longest)
        steps = 1 + (torch.rand(len(start), generator=generator) * room).long().clamp(max=room - 1)
        if draws > 1:
            apart = (self.latents[start] - self.goals[start + steps]).square().mean(dim=(1, 2))
            kept = draws * torch.arange(count) + apart.view(count, draws).argmax(dim=1)
            start, steps = start[kept], steps[kept]
        return {
            "latents": self.latents[start],
            "goal": self.goals[start + steps],
            "actions": self.actions[start],
            "steps": steps,
        }


def read_pairs(config: "PolicyTrainingConfig", model: VJepa2WorldModel) -> tuple[HindsightPairs, HindsightPairs]:
    """Training and held-out episodes, each frame encoded once.

    Raises:
        ValueError: no episode on one of the two sides.
    """
    processor = VJepa2VideoProcessor.from_pretrained(config.world_model)
    sides: tuple[list, list] = ([], [])
    names = itertools.islice(episode_ids(config.data, config.camera), config.max_episodes)
    is_held_out = held_out_of(names, config.validation_fraction)
    for episode in tqdm(
        read_episodes(config.data, model.config.frame_skip, config.max_episodes, config.camera), desc="encode"
    ):
        if episode["actions"].shape[1] != model.config.action_dim:
            raise ValueError(
                f"Episode {episode['episode_id']} has actions of {episode['actions'].shape[1]} numbers a model step, "
                f"but the world model's have {model.config.action_dim}: take the data it was trained on."
            )
        seen = encode_frames(model, processor, episode["frames"], targets=False).cpu()
        goals = seen if model.config.freeze_encoder else encode_frames(model, processor, episode["frames"]).cpu()
        actions = torch.nn.functional.pad(torch.from_numpy(episode["actions"]), (0, 0, 0, 1))
        sides[is_held_out(episode["episode_id"])].append((seen, goals, actions, torch.arange(len(seen) - 1, -1, -1)))
    if not all(sides):
        raise ValueError(
            f"{config.data} gave {len(sides[0])} training episodes and {len(sides[1])} held-out ones: record more, or "
            f"change validation_fraction={config.validation_fraction}."
        )
    return tuple(HindsightPairs(*map(torch.cat, zip(*side, strict=True))) for side in sides)


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------
@dataclass
class PolicyTrainingConfig:
    """Settings of one run."""

    output_dir: str
    data: str
    """Folder, glob or file of episode shards, a LeRobot folder, or a dataset on the Hub."""
    world_model: str
    """Folder or Hub id of the trained world model, with its video processor. It stays as it is."""
    camera: str | None = None
    """Of a LeRobot dataset with several."""
    policy: dict[str, Any] = field(default_factory=dict)
    """`hidden_size` and `num_hidden_layers` of the policy."""
    start: str | None = None
    """Folder of a policy on the same world model that training starts from; null: new weights."""
    goal_steps: int = 10
    """Goals lie up to so many model steps after what is seen, in the same episode."""
    goal_draws: int = 1
    """Of so many pairs drawn the one is kept whose goal is farthest in latents: between most frames little happens."""
    max_episodes: int | None = None
    """The first of the data; null: all. Their latents are held in memory."""
    validation_fraction: float = 0.07
    """Share of the episodes held out, by a hash of their ids."""

    max_steps: int = 3000
    batch_size: int = 128
    """Pairs a process."""
    seed: int = 0
    num_threads: int | None = None
    log_every: int = 50
    save_every: int = 1000
    keep_last: int | None = 2
    resume: str | None = None

    learning_rate: LearningRateSchedule = field(default_factory=LearningRateSchedule)
    weight_decay: float = 0.01
    gradient_clipping: float | None = 1.0

    def __post_init__(self):
        check_run_settings(self)
        for name in ("goal_steps", "goal_draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.start is not None and self.policy:
            raise ValueError(f"start={self.start!r} brings its own sizes, but policy is {self.policy}: leave out one.")


Loss = Callable[[nn.Module, VJepa2WorldModel, dict[str, torch.Tensor]], torch.Tensor]


def rates(config: PolicyTrainingConfig, step: int) -> dict[str, float]:
    """What the number of a step decides, from RATE_SETTINGS."""
    return {"learning_rate": config.learning_rate.at(step, config.max_steps)}


def first_policy(config: PolicyTrainingConfig, model: VJepa2WorldModel) -> GoalPolicy:
    """The policy that training begins with.

    Raises:
        FileNotFoundError: there is none at `start`.
        ValueError: the one at `start` has other latents or actions than the model.
    """
    if config.start is None:
        return GoalPolicy.from_world_model(model, config.world_model, **config.policy)
    policy = load_policy(config.start, world_model=config.world_model).train()
    check_latents(policy, config.start, model)
    if len(policy.reach) != model.config.action_dim:
        raise ValueError(
            f"the policy {config.start!r} has actions of {len(policy.reach)} numbers, the world model's have "
            f"{model.config.action_dim}: take one that was trained on it."
        )
    return policy


def train_policy(config: PolicyTrainingConfig, loss_of: Loss) -> None:
    """The whole run of a policy, from an empty or interrupted `output_dir` to `final/`.

    Besides, `held_out.json` has the loss on held-out episodes `before` and `after` training.

    Args:
        loss_of: (policy, world model, batch of `HindsightPairs.sample`) -> a number.
    """
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    accelerator = Accelerator()
    run = Run(config.output_dir, config, accelerator, config.keep_last)
    run.check(config.resume, rates, RATE_SETTINGS)
    world_model = VJepa2WorldModel.from_pretrained(config.world_model).to(accelerator.device).eval()
    world_model.requires_grad_(False)  # gradient goes through it, not into it
    training, held_out = read_pairs(config, world_model)

    set_seed(config.seed)
    policy = first_policy(config, world_model)
    optimizer = torch.optim.AdamW(policy.parameters(), config.learning_rate.peak, weight_decay=config.weight_decay)
    policy, optimizer = accelerator.prepare(policy, optimizer)

    def held_out_loss() -> float:
        batch = _batch(held_out, config, HELD_OUT_PAIRS, 0, accelerator)
        with torch.no_grad():
            return loss_of(policy, world_model, batch).item()

    before = held_out_loss()  # weights that a seed begins with, also in a run that goes on
    start, _ = run.resume(config.resume, rates, RATE_SETTINGS)
    steps = range(start + 1, config.max_steps + 1)
    for step in tqdm(steps, initial=start, total=config.max_steps, disable=not accelerator.is_main_process):
        learning_rate = rates(config, step)["learning_rate"]
        set_learning_rate(optimizer, learning_rate)
        loss = loss_of(policy, world_model, _batch(training, config, config.batch_size, step, accelerator))
        accelerator.backward(loss)
        mean = accelerator.reduce(loss.detach(), "mean").item()
        norm = gradient_norm(accelerator, policy.parameters(), config.gradient_clipping)
        run.check_finite(step, mean, norm)
        optimizer.step()
        optimizer.zero_grad()
        if step % config.log_every == 0 or step == config.max_steps:
            run.log({"step": step, "loss": mean, "gradient_norm": norm, "learning_rate": learning_rate})
        if step % config.save_every == 0 or step == config.max_steps:
            run.save_checkpoint(step)

    if accelerator.is_main_process:
        write_json(run.output_dir / "held_out.json", {"before": before, "after": held_out_loss()}, indent=None)
    run.save_final(policy)


def _batch(
    pairs: HindsightPairs, config: PolicyTrainingConfig, count: int, step: int, accelerator: Accelerator
) -> dict[str, torch.Tensor]:
    """Pairs that depend on the seed, the step and the process alone, so that a resumed run draws the same."""
    seed = hash((config.seed, step, accelerator.process_index)) % 2**63
    batch = pairs.sample(count, config.goal_steps, torch.Generator().manual_seed(seed), config.goal_draws)
    return {name: values.to(accelerator.device) for name, values in batch.items()}
