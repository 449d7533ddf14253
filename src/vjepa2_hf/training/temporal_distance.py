"""Training of a world model's distance head on the cached latents of its training episodes.

losses = train_distance_head(model, training, DistanceSettings(), seed=0, accelerator=accelerator)
calibration = measure_distance_head(model, held_out, seed=0)

Letters: B episodes of a step, F frames of each, N tokens of a frame, D width of a latent, E embedding.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from scipy.stats import spearmanr
from tqdm import tqdm

from ..data.typed_fields import check_fields
from ..data.windows import WindowMixture
from ..modeling_world_model import VJepa2WorldModel
from ..specs import check_at_least, check_number
from .schedules import LearningRateSchedule, set_learning_rate


FRAMES_PER_EPISODE = 8
EXPECTILE = 0.1
WARMUP_STEPS = 50
WEIGHT_DECAY = 0.01
LOG_EVERY = 50
MEASURED_EPISODES = 256  # draws of held-out episodes


@dataclass(kw_only=True)
class DistanceSettings:
    """Training of a distance head."""

    max_steps: int = 600
    batch_size: int = 48
    """Episodes per step, of which 8 random frames each are compared."""
    learning_rate: float = 1e-3

    def __post_init__(self):
        check_fields(self, "distance.")
        check_at_least(self, "distance.", max_steps=1, batch_size=2)
        check_number("distance.learning_rate", self.learning_rate, above=0)


def train_distance_head(
    model: VJepa2WorldModel,
    training: WindowMixture,
    settings: DistanceSettings,
    seed: int,
    accelerator: Accelerator | None = None,
) -> list[dict[str, float]]:
    """Adds a new distance head to a model and trains it. Nothing else of the model changes.

    The main process trains; all processes end with its weights.

    Args:
        training: windows with the column `latents`; only the episodes of it are used.

    Returns:
        The loss every 50 steps, `{"step": …, "loss": …}`; empty in processes that do not train.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model.add_distance_head()
    head, dtype = model.distance_head.float().requires_grad_(True), model.dtype
    is_main, rows = accelerator is None or accelerator.is_main_process, []
    if is_main:
        rows = _train(model, training, settings, seed)
    if accelerator is not None and accelerator.num_processes > 1:
        for parameter in head.parameters():
            parameter.data.copy_(broadcast(parameter.data.clone()))
    head.to(dtype)
    return rows


def _train(
    model: VJepa2WorldModel, training: WindowMixture, settings: DistanceSettings, seed: int
) -> list[dict[str, float]]:
    head, rows = model.distance_head, []
    longest = max(int(cache.lengths[chosen].max()) for cache, chosen in zip(training.caches, training.episodes)) - 1
    if longest < 1:
        raise ValueError("the training episodes have one frame each; a distance head needs episodes of 2 or more.")
    optimizer = torch.optim.AdamW(head.parameters(), lr=settings.learning_rate, weight_decay=WEIGHT_DECAY)
    warmup = min(WARMUP_STEPS, settings.max_steps // 2)
    schedule = LearningRateSchedule("warmup_cosine", peak=settings.learning_rate, warmup_steps=warmup)
    for step in tqdm(range(1, settings.max_steps + 1), desc="distance head"):
        set_learning_rate(optimizer, schedule.at(step, settings.max_steps))
        rng = np.random.default_rng((seed, step))
        windows, frames = sample_frames(training, settings.batch_size, rng)
        embedded = head(read_latents(model, training, windows).unflatten(0, frames.shape))
        names = windows.unflatten(0, frames.shape)[:, 0, :2].to(model.device)
        loss = distance_loss(head.between, embedded, frames.to(model.device), names, longest)
        if not torch.isfinite(loss):
            raise ValueError(
                f"the loss of the distance head is {loss.item()} in step {step}: lower its learning rate, or "
                "encode the episodes again if their latents are not finite."
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % LOG_EVERY == 0 or step in (1, settings.max_steps):
            rows.append({"step": step, "loss": loss.item()})
    return rows


def sample_frames(mixture: WindowMixture, count: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Random frames of B = `count` random episodes: windows of one frame (B · F, 3), and frame numbers (B, F)."""
    chosen = rng.multinomial(count, mixture.weights)
    windows = []
    for number, (cache, episodes) in enumerate(zip(mixture.caches, mixture.episodes, strict=True)):
        picked = episodes[rng.integers(len(episodes), size=chosen[number])]
        starts = torch.from_numpy(rng.random((len(picked), FRAMES_PER_EPISODE))) * cache.lengths[picked, None]
        starts = starts.long()
        columns = [torch.full_like(starts, number), picked[:, None].expand_as(starts), starts]
        windows.append(torch.stack(columns, dim=-1))
    windows = torch.cat(windows)[torch.from_numpy(rng.permutation(count))]
    return windows.flatten(0, 1), windows[..., 2]


def read_latents(model: VJepa2WorldModel, mixture: WindowMixture, windows: torch.Tensor) -> torch.Tensor:
    """Latents (B, N, D) of windows of one frame."""
    latents = mixture.read(windows, frames=1, skip=1)["latents"][:, 0]
    return model.standardize(latents.to(model.device).float())


def distance_loss(
    between: Any, embedded: torch.Tensor, frames: torch.Tensor, names: torch.Tensor, longest: int
) -> torch.Tensor:
    """Squared errors of log(1 + d), with 9 times the weight where d is too large: the expectile 0.1, near the shortest
    time that was seen between such frames.

    Within an episode the target of a frame and a later one is the time between them, with weight 1 / time, because
    there are more short times than long ones to choose from. Between different episodes it is `longest`.

    Args:
        between: maps embeddings that broadcast to distances.
        embedded: (B, F, E).
        frames: (B, F) frame numbers.
        names: (B, n) integers that identify the episode.
        longest: frames between the first and the last frame of the longest episode.
    """
    times = frames.unsqueeze(1) - frames.unsqueeze(2)  # (B, F, F): from row to column
    later = times > 0
    weights = later / times.clamp(min=1)
    within = expectile_error(between(embedded.unsqueeze(2), embedded.unsqueeze(1)), times.clamp(min=1))
    loss = (weights * within).sum() / weights.sum().clamp(min=1e-6)
    others = embedded.roll(1, dims=0)
    different = (names != names.roll(1, dims=0)).any(dim=-1)
    if different.any():
        apart = between(embedded[different].unsqueeze(2), others[different].unsqueeze(1))
        loss = loss + expectile_error(apart, torch.full_like(apart, longest)).mean()
    return loss


def expectile_error(distances: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """The squared error of log(1 + d), weighted for the expectile 0.1, of distances and times of the same shape."""
    error = torch.log1p(distances) - torch.log1p(times.to(distances.dtype))
    return torch.where(error > 0, 1 - EXPECTILE, EXPECTILE) * error.square()


@torch.no_grad()
def measure_distance_head(model: VJepa2WorldModel, held_out: WindowMixture, seed: int) -> dict[str, Any]:
    """Calibration on random pairs of frames of held-out episodes.

    Returns:
        `rank_correlation` (Spearman) of predicted and true frames between a frame and a later one, `pairs`, and `rows`
        by true frames, doubling: `from`, `to`, the median `predicted`, `pairs`.
    """
    windows, frames = sample_frames(held_out, MEASURED_EPISODES, np.random.default_rng(seed))
    parts = [model.distance_embedding(read_latents(model, held_out, part)) for part in windows.split(256)]
    embedded = torch.cat(parts).unflatten(0, frames.shape)
    predicted = model.embedded_distance(embedded.unsqueeze(2), embedded.unsqueeze(1)).cpu()
    times = frames.unsqueeze(1) - frames.unsqueeze(2)
    later = times > 0
    times, predicted = times[later].numpy(), predicted[later].numpy()
    rows, first = [], 1
    while len(times) and first <= times.max():
        inside = (times >= first) & (times < 2 * first)
        if inside.any():
            median = float(np.median(predicted[inside]))
            rows.append({"from": first, "to": 2 * first - 1, "predicted": median, "pairs": int(inside.sum())})
        first *= 2
    varied = len(times) > 1 and np.ptp(times) > 0 and np.ptp(predicted) > 0
    correlation = float(spearmanr(predicted, times).statistic) if varied else None
    return {"rank_correlation": correlation, "pairs": len(times), "rows": rows}
