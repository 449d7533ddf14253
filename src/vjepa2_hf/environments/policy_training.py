"""Training of goal-conditioned policies on hindsight goals: data, settings and the run.

Letters: B batch, F frames of all episodes, N tokens, D width of a latent, A action of a model step.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import set_seed
from tqdm import tqdm

from ..data.episodes import episode_ids, held_out_of, read_episodes
from ..data.files import write_json
from ..modeling_world_model import VJepa2WorldModel
from ..planning import Cost
from ..planning.problem_costs import ProblemCosts
from ..training.config import TrainingConfig
from ..training.episode_latents import find_cameras
from ..training.loop import TrainingLoop
from ..training.schedules import LearningRateSchedule
from ..video_io import ReadLimits
from ..video_processing_vjepa2 import VJepa2VideoProcessor
from ..visualization.rollout_windows import encode_frames
from .goal_policies import GoalPolicy, load_policy


HELD_OUT_PAIRS = 512


@dataclass
class HindsightPairs:
    """Frames of all episodes; any later frame of an episode is a goal that its actions reached (hindsight)."""

    latents: torch.Tensor  # (F, N, D), encoded as observations
    goals: torch.Tensor  # (F, N, D), encoded as goals
    actions: torch.Tensor  # (F, A); the last frame of an episode has none, its row is not used
    remaining: torch.Tensor  # (F,) int64, model steps that follow in the same episode

    def sample(
        self, count: int, longest: int, generator: torch.Generator, candidates: int = 1
    ) -> dict[str, torch.Tensor]:
        """B = `count` random pairs of a frame and a later frame of the same episode as its goal; each is the one of
        `candidates` pairs whose latents are farthest apart.

        Returns:
            `latents` and `goal` (B, N, D), `actions` (B, A) of the first step, `steps` (B,) between them, uniform from
            1 to `longest` or to the end of the episode, and `seeds` (B,) for what is random about a pair.
        """
        frames = torch.nonzero(self.remaining).flatten()
        start = frames[torch.randint(len(frames), (count * candidates,), generator=generator)]
        room = self.remaining[start].clamp(max=longest)
        steps = 1 + (torch.rand(len(start), generator=generator) * room).long().clamp(max=room - 1)
        if candidates > 1:
            apart = (self.latents[start] - self.goals[start + steps]).square().mean(dim=(1, 2))
            kept = candidates * torch.arange(count) + apart.view(count, candidates).argmax(dim=1)
            start, steps = start[kept], steps[kept]
        pairs = {"latents": self.latents[start], "goal": self.goals[start + steps]}
        seeds = torch.randint(2**62, (count,), generator=generator)
        return {**pairs, "actions": self.actions[start], "steps": steps, "seeds": seeds}


@torch.no_grad()
def planned_actions(model: VJepa2WorldModel, batch: dict[str, torch.Tensor], solver: Any, cost: Cost) -> torch.Tensor:
    """First actions (B, A) of plans for the pairs of `HindsightPairs.sample`, each with noise of its own seed."""

    def score(actions: torch.Tensor, **given: torch.Tensor) -> torch.Tensor:
        return model.score(actions=actions.to(model.device), cost=cost, **given)

    found = solver(
        ProblemCosts(score, observation=batch["latents"].unsqueeze(1), goal=batch["goal"].unsqueeze(1)),
        batch_size=len(batch["latents"]),
        action_dim=model.config.action_dim,
        action_low=model.config.action_low,
        action_high=model.config.action_high,
        generator=[torch.Generator().manual_seed(seed) for seed in batch["seeds"].tolist()],
    )
    return found.actions[:, 0].to(model.device)


def read_pairs(config: "PolicyTrainingConfig", model: VJepa2WorldModel) -> tuple[HindsightPairs, HindsightPairs]:
    """Training and held-out episodes, each frame encoded once."""
    processor = VJepa2VideoProcessor.from_pretrained(config.world_model)
    camera = find_cameras(config.data, config.camera, model.config)
    sides: tuple[list, list] = ([], [])
    names = itertools.islice(episode_ids(config.data, camera), config.max_episodes)
    is_held_out = held_out_of(names, config.validation_fraction)
    how = {"camera": camera, "limits": config.limits}
    episodes = read_episodes(config.data, model.config.frame_skip, config.max_episodes, **how)
    for episode in tqdm(episodes, desc="encode"):
        if episode["actions"].shape[1] != model.config.action_dim:
            raise ValueError(
                f"Episode {episode['episode_id']} has actions of {episode['actions'].shape[1]} numbers per model "
                f"step, but the world model's have {model.config.action_dim}: use the data it was trained on."
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


@dataclass(kw_only=True)
class PolicyTrainingConfig(TrainingConfig):
    """Settings of one run."""

    data: str
    """Folder, glob or file of episode shards, a LeRobot folder, or a dataset on the Hub."""
    world_model: str
    """Folder or Hub id of the trained world model, with its video processor. It does not change."""
    camera: str | list[str] | None = None
    """Camera of episodes with several; null for a world model of several views: their names."""
    limits: ReadLimits = field(default_factory=ReadLimits)
    """What rows may cost and reach: SECURITY.md."""
    policy: dict[str, Any] = field(default_factory=dict)
    """`hidden_size`, `num_hidden_layers` and `steps_left` of the policy; the last one is the largest number of model
    steps to the goal that it takes as an input (0: none)."""
    start: str | None = None
    """Folder of a policy on the same world model that training starts from; null: new weights."""
    goal_steps: int = 10
    """Largest number of model steps between an observation and its goal in the same episode."""
    goal_candidates: int = 1
    """Pairs sampled for each pair that is kept, the one whose latents are farthest apart: between most frames little
    happens."""
    max_episodes: int | None = None
    """Number of episodes, the first of the data; null: all. Their latents are held in memory."""
    validation_fraction: float = 0.07
    """Fraction of the episodes held out, by a hash of their ids."""

    # Optimizer: AdamW
    max_steps: int = 3000
    batch_size: int = 128
    log_every: int = 50
    save_every: int = 1000
    learning_rate: LearningRateSchedule = field(default_factory=LearningRateSchedule)
    weight_decay: float = 0.01
    gradient_clipping: float | None = 1.0

    result_files = ("held_out.json",)
    renamed_settings = {"goal_draws": "goal_candidates"}

    def __post_init__(self):
        super().__post_init__()
        self.require_positive("goal_steps", "goal_candidates", "max_episodes")
        if self.start is not None and self.policy:
            raise ValueError(
                f"start={self.start!r} determines the sizes, but policy is {self.policy}: leave out one of the two."
            )


def first_policy(config: PolicyTrainingConfig, model: VJepa2WorldModel) -> GoalPolicy:
    """The policy that training begins with."""
    if config.start is None:
        return GoalPolicy.from_world_model(model, config.world_model, **config.policy)
    policy = load_policy(config.start, model, world_model=config.world_model).train()
    if len(policy.reach) != model.config.action_dim:
        raise ValueError(
            f"the policy {config.start!r} has actions of {len(policy.reach)} numbers, the world model's have "
            f"{model.config.action_dim}: use a policy that was trained on it."
        )
    return policy


def sample_batches(
    pairs: HindsightPairs, config: PolicyTrainingConfig, count: int, rank: int, first: int
) -> Iterator[tuple[list[str], dict[str, torch.Tensor]]]:
    """Random pairs. The same in a resumed run: they depend on seed, micro-batch and process."""
    for number in itertools.count(first):
        generator = torch.Generator().manual_seed(hash((config.seed, number, rank)) % 2**63)
        yield [], pairs.sample(count, config.goal_steps, generator, config.goal_candidates)


def train_policy(config: PolicyTrainingConfig, loss_of: Callable[..., torch.Tensor]) -> None:
    """The whole run of a policy, from an empty or interrupted `output_dir` to `final/`.

    `loss_of` maps policy, world model and a batch of `HindsightPairs.sample` to a scalar. `held_out.json` has it for
    held-out episodes, `before` and `after` training.
    """
    loop = TrainingLoop(config, "policy")
    accelerator, rank = loop.accelerator, loop.accelerator.process_index
    world_model = VJepa2WorldModel.from_pretrained(config.world_model, dtype=torch.float32)
    world_model = world_model.to(accelerator.device).eval()
    world_model.requires_grad_(False)  # gradients pass through it to the policy
    training, held_out = read_pairs(config, world_model)

    set_seed(config.seed)
    policy = first_policy(config, world_model).to(accelerator.device)
    optimizer = torch.optim.AdamW(policy.parameters(), config.learning_rate.peak, weight_decay=config.weight_decay)

    def loss_on(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return loss_of(policy, world_model, {name: values.to(accelerator.device) for name, values in batch.items()})

    @torch.no_grad()
    def held_out_loss() -> float:
        _, batch = next(sample_batches(held_out, config, HELD_OUT_PAIRS, rank, 0))
        with accelerator.autocast():
            return loss_on(batch).item()

    def forward_backward(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        loss = loss_on(batch)
        accelerator.backward(loss)
        return {"loss": loss}

    before = held_out_loss()  # of the initial weights, also in a resumed run
    policy, optimizer = loop.prepare(policy, optimizer)
    batches = sample_batches(training, config, config.batch_size, rank, loop.first_micro_batch + 1)
    loop.run_steps(batches, forward_backward)

    if accelerator.is_main_process:
        write_json(loop.run.output_dir / "held_out.json", {"before": before, "after": held_out_loss()}, indent=None)
    loop.finish(policy)
