"""Actions of videos, inferred by an inverse model that a few episodes with actions have trained.

infer_actions(EpisodeSource("episodes"), "videos", "out", InverseSettings(), Accelerator())  # episode shards

The idea is that of VPT (arXiv 2206.11795): what an agent did is easier to see in two consecutive frames than what it
will do, so a few episodes label the videos, and the labeled videos train everything else.

Letters: B pairs of frames, T frames, C channels, H W pixels, A action.
"""

import dataclasses
import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Features, List, Value, Video
from sklearn.metrics import r2_score
from torch import nn
from tqdm.auto import tqdm

from ..data.cameras import process_frames, video_columns
from ..data.episodes import TWO_EPISODES, EpisodeSource, EpisodeStream, named_rows, split_episodes, video_column
from ..data.lerobot import BAD_EPISODE, check_fps, describe, find_info
from ..data.shard_rows import is_empty
from ..data.shards import ShardSource, write_shards
from ..data.typed_fields import check_fields
from ..modeling_learned_state import TOKEN_SIZE, conv_stem
from ..specs import check_at_least, check_count, check_fraction, check_number
from ..video_io import ReadLimits, VideoReader, resolve_source
from ..video_processing_vjepa2 import VJepa2VideoProcessor
from .augmentation import augment, check_symmetries


logger = logging.getLogger(__name__)

HIDDEN = 256
LABELED_AT_ONCE = 256  # pairs
DECODED_AT_ONCE = 32  # frames
WARMUP = 0.05  # fraction of the steps
FEATURES = Features(
    {
        "video": Video(decode=False),
        "actions": List(List(Value("float32"))),
        "fps": Value("float32"),
        "episode_id": Value("string"),
    }
)


@dataclass(kw_only=True)
class InverseSettings:
    """Training of an inverse model."""

    steps: int = 2000
    batch_size: int = 64
    learning_rate: float = 2e-3
    """The highest one of AdamW; it warms up and falls to 0."""
    size: int = 64
    """Height and width that frames are resized and cropped to, in pixels: a multiple of 16."""
    symmetries: dict[str, list[list[float]]] = dataclasses.field(default_factory=dict)
    """Turns of the image that the physics keeps, see `augment`."""
    validation_fraction: float = 0.07
    """Fraction of the episodes on which R² is measured."""
    seed: int = 0

    def __post_init__(self):
        check_fields(self, "")
        check_at_least(self, "", steps=1, batch_size=1, size=16)
        check_count("seed", self.seed, 0, 2**64 - 1)
        check_number("learning_rate", self.learning_rate, above=0)
        check_fraction("validation_fraction", self.validation_fraction)
        if self.size % 16:
            raise ValueError(f"size={self.size} is not a multiple of 16 pixels.")


class InverseModel(nn.Module):
    """Two consecutive frames -> the action between them, within the range of the actions that it was trained on.

    Each pair is standardized by its own mean and deviation, and its difference, in which whatever is at rest cancels,
    goes in as well.
    """

    def __init__(self, actions: torch.Tensor, size: int):
        super().__init__()
        tokens = TOKEN_SIZE * (size // 16) ** 2
        head = (nn.Linear(tokens, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, actions.shape[1]))
        self.network = nn.Sequential(conv_stem(9), nn.Flatten(), *head)
        deviation = actions.std(dim=0)
        known = {"mean": actions.mean(dim=0), "std": torch.where(deviation > 0, deviation, torch.ones_like(deviation))}
        known |= {"low": actions.amin(dim=0), "high": actions.amax(dim=0)}
        for name, values in known.items():
            self.register_buffer(name, values)

    def forward(self, pairs: torch.Tensor) -> torch.Tensor:
        """uint8 frames (B, 2, C, H, W) -> standardized actions (B, A)."""
        frames = pairs.flatten(1, 2).float()
        frames = nn.functional.layer_norm(frames, frames.shape[1:])  # over a pair's own deviation
        now, following = frames.chunk(2, dim=1)
        return self.network(torch.cat([now, following, 4 * (following - now)], dim=1))

    @torch.no_grad()
    def infer(self, frames: Iterable[torch.Tensor]) -> torch.Tensor:
        """uint8 frames (C, H, W) of a video, in order -> actions (T-1, A), float32 on the CPU. LABELED_AT_ONCE + 1
        frames are in memory at a time."""
        frames, parts = iter(frames), []
        last = next(frames)
        while following := list(itertools.islice(frames, LABELED_AT_ONCE)):
            some = torch.stack([last, *following]).to(self.mean.device)
            actions = self(torch.stack([some[:-1], some[1:]], dim=1)) * self.std + self.mean
            parts.append(actions.clamp(self.low, self.high).cpu())
            last = following[-1]
        if not parts:
            raise ValueError("it has one frame, and an action leads from a frame to the next")
        return torch.cat(parts)


def _processor_of(size: int) -> VJepa2VideoProcessor:
    return VJepa2VideoProcessor(size=size, crop_size=size)


def train_inverse_model(
    source: EpisodeSource,
    settings: InverseSettings,
    accelerator: Accelerator,
    max_episodes: int | None = None,
    limits: ReadLimits | None = None,
) -> tuple[InverseModel, dict[str, Any]]:
    """An inverse model of episodes, which are held in memory, and what is known of it: the number of `episodes`, of
    those `held_out`, `r_squared` on these, averaged over the actions that vary (None without one), and their `fps`.

    Raises:
        ValueError: the actions are categories, or `settings.symmetries` do not turn them.
    """
    stream = EpisodeStream(source, _processor_of(settings.size), max_episodes, limits=limits)
    found = [episode for episode in stream if "skipped" not in episode]
    if not found:
        raise ValueError(f"No episode could be read from {source.path!r}: its reasons are in the log.")
    out = split_episodes([episode["episode_id"] for episode in found], settings.validation_fraction)
    training = [episode for episode, is_out in zip(found, out) if not is_out]
    held_out = [episode for episode, is_out in zip(found, out) if is_out]
    if not training:
        share = f"validation_fraction={settings.validation_fraction} holds out every episode ({len(found)} in all)"
        raise ValueError(f"{share}: lower it, or record more.")
    actions = torch.cat([episode["actions"] for episode in training])
    if ((actions == 0) | (actions == 1)).all() and (actions.sum(dim=1) == 1).all():
        raise ValueError(f"The actions of {source.path!r} are one-hot categories; only continuous ones are inferred.")
    check_symmetries(settings.symmetries, actions.shape[1])
    torch.manual_seed(settings.seed)
    model = InverseModel(actions, settings.size).to(accelerator.device)
    _fit(model, training, settings)
    known = {"episodes": len(training), "held_out": len(held_out), "r_squared": None, "fps": found[0]["fps"]}
    if held_out:
        predicted = torch.cat([model.infer(episode["frames"]) for episode in held_out])
        true = torch.cat([episode["actions"] for episode in held_out])
        varies = true.amax(dim=0) > true.amin(dim=0)
        known["r_squared"] = float(r2_score(true[:, varies], predicted[:, varies])) if varies.any() else None
    return model.eval(), known


def _fit(model: InverseModel, episodes: Sequence[dict[str, Any]], settings: InverseSettings) -> None:
    """AdamW on the mean squared error of standardized actions."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=settings.steps + 1, pct_start=WARMUP
    )
    rng = np.random.default_rng(settings.seed)
    ends = np.cumsum([len(episode["actions"]) for episode in episodes])
    progress = tqdm(range(settings.steps), desc="inverse model")
    for _ in progress:
        steps = rng.integers(ends[-1], size=settings.batch_size)
        chosen = np.searchsorted(ends, steps, side="right")
        starts = steps - np.concatenate([[0], ends])[chosen]
        frames = torch.stack([episodes[i]["frames"][t : t + 2] for i, t in zip(chosen, starts)])
        actions = torch.stack([episodes[i]["actions"][t : t + 1] for i, t in zip(chosen, starts)]).unsqueeze(2)
        frames, actions = augment(frames, actions, settings.symmetries, rng)
        target = (actions.flatten(1).to(model.mean) - model.mean) / model.std
        loss = nn.functional.mse_loss(model(frames.to(model.mean.device)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    if not np.isfinite(loss.item()):
        raise ValueError(f"The loss became {loss.item()}: lower learning_rate={settings.learning_rate}.")


def infer_actions(
    source: EpisodeSource,
    videos: str,
    out_dir: str | Path,
    settings: InverseSettings,
    accelerator: Accelerator,
    max_episodes: int | None = None,
    num_shards: int = 8,
    limits: ReadLimits | None = None,
) -> dict[str, Any]:
    """Trains an inverse model and writes the videos of shards, as they are, with inferred actions as episode shards.

    The folder appears complete; unreadable videos are listed in its `skipped.txt`, and what is known of the model (see
    `train_inverse_model`) is in its `inferred_actions.json`, and returned. Of videos with several cameras, the one of
    `source` is labeled, by default the first.

    Raises:
        FileExistsError: `out_dir` is not empty. This and missing data are found before the training.
        ValueError: there are several processes, `out_dir` lies inside the data, or the videos are a LeRobot dataset,
            unreadable, or share a name.
    """
    if accelerator.num_processes > 1:
        raise ValueError(f"Actions are inferred by one process, got {accelerator.num_processes}: use no launcher.")
    if find_info(videos):
        raise ValueError(f"{videos!r} is a LeRobot dataset, whose files hold several episodes; give shards of videos.")
    _check_outside(out_dir, videos, source.path)
    shards, skipped, known = ShardSource(videos, limits), {}, {}
    processor = _processor_of(settings.size)

    def rows() -> Iterator[dict[str, Any]]:
        model, found = train_inverse_model(source, settings, accelerator, max_episodes, limits)
        known.update(found)
        names, other_fps = set(), set()
        for name, row in tqdm(named_rows(shards), desc="infer actions"):
            if name in names:
                raise ValueError(TWO_EPISODES.format(name))
            names.add(name)
            video = row.get(video_column(row, source.camera if video_columns(row) else None, name))
            try:
                labeled = _labeled(name, video, row.get("fps"), shards, model, processor)
            except BAD_EPISODE as error:
                skipped[name] = describe(error)
                continue
            if abs(labeled["fps"] - found["fps"]) > 0.01 * found["fps"]:
                other_fps.add(labeled["fps"])
            yield labeled
        skipped.update(shards.skipped)
        if not names and not skipped:
            raise ValueError(f"There is no video in {videos!r}.")
        if other_fps:
            logger.warning(
                "the episodes have %g frames per second, but videos have %g to %g: their actions last another time",
                found["fps"], min(other_fps), max(other_fps),
            )  # fmt: skip

    write_shards(rows(), out_dir, FEATURES, num_shards, skipped, {"inferred_actions.json": known})
    return known


def _labeled(
    name: str, video: Any, fps: float | None, source: ShardSource, model: InverseModel, processor: Any
) -> dict[str, Any]:
    """The row of an episode with inferred actions; one of `BAD_EPISODE` if the video cannot be read."""
    if fps is not None:
        check_fps(fps)
    if is_empty(video):
        raise ValueError("it has no video")
    with VideoReader(video, source.limits) as reader:
        actions = model.infer(_processed(reader, processor)).numpy()
        fps = float(reader.fps if fps is None else fps)
    file, _ = resolve_source(video, limits=source.limits)  # a URL is read once more
    content = Path(file).read_bytes() if isinstance(file, str) else file.getvalue()
    return {"video": {"bytes": content, "path": None}, "actions": actions, "fps": fps, "episode_id": name}


def _processed(reader: VideoReader, processor: Any) -> Iterator[torch.Tensor]:
    """The resized and cropped uint8 frames (C, H, W) of a video in order, of which DECODED_AT_ONCE are decoded at a
    time."""
    images = (reader.to_rgb(frame) for _, frame in reader.iterate())
    while some := list(itertools.islice(images, DECODED_AT_ONCE)):
        yield from process_frames(processor, np.stack(some), normalize=False)


def _check_outside(out_dir: str | Path, *data: str) -> None:
    """Refuses an output folder inside a folder of data, which the next run would read with it."""
    for folder in filter(os.path.isdir, data):
        if Path(os.path.realpath(folder)) in Path(os.path.realpath(out_dir)).parents:
            found = f"The output folder {str(out_dir)!r} lies inside {folder!r}"
            raise ValueError(f"{found}, so that the next run would read it as data: choose a folder outside.")
