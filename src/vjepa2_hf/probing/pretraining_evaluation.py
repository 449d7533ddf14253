"""Evaluation during pretraining: the loss on held-out clips, and a nearest-neighbor probe on labeled ones.

    evaluation = PretrainingEvaluation(loop, processor)
    metrics |= evaluation(model)                          # {} unless the step is one of `eval_every`

It draws no random numbers of the training and leaves the model's modes as they were: weights are equal to the bit with
and without it.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object, send_to_device
from torch.utils.data import DataLoader

from ..data.clips import ClipStream, MaskCollator
from ..data.sampling import FrameSampler
from ..data.shards import ShardSource
from ..masking import build_mask_samplers
from ..modeling_masked_latent import VJepa2ForMaskedLatentPrediction
from ..training.loop import TrainingLoop
from ..training.settings import one_sentence
from ..training.signals import ignore_stop_signals
from ..video_processing_vjepa2 import RandomResizedClip
from .labeled_clips import ClipViews, LabeledClips


logger = logging.getLogger(__name__)

NEIGHBORS = 10
TEMPERATURE = 0.07  # of the votes of neighbors (DINO, arXiv 2104.14294)


class PretrainingEvaluation:
    """Measures a model every `config.eval_every` steps; every process calls it, each reads its own part of the data.

    `eval_loss`: mean over the clips of `config.eval_data`, at most `config.eval_clips`, without augmentation. Clips
    and masks are the same each time; with another number of processes or workers they are batched, and so masked, in
    another way. `eval_probe_accuracy`: fraction of the clips of `config.eval_probe_data` whose label their nearest
    neighbors vote for, on the mean token of the target encoder; each clip is left out of its own neighbors.

    If the data cannot be read, the value is None and a warning says why; training continues.
    """

    def __init__(self, loop: TrainingLoop, processor: Any):
        self.loop, self.config, self.accelerator, self.processor = loop, loop.config, loop.accelerator, processor
        for data in (self.config.eval_data, self.config.eval_probe_data):
            if data is not None:
                ShardSource(data, self.config.limits)  # raises before hours of training

    def __call__(self, model: VJepa2ForMaskedLatentPrediction) -> dict[str, float | None]:
        """The measures of the current step by name."""
        config, step = self.config, self.loop.step
        if config.eval_every is None or (step % config.eval_every and step != config.max_steps):
            return {}
        found = {}
        with self.loop.throughput.paused(), kept_random_state(), evaluation_mode(model), torch.no_grad():
            if config.eval_data is not None:
                found["eval_loss"] = self._loss(model)
            if config.eval_probe_data is not None:
                found["eval_probe_accuracy"] = self._probe(model)
        return found

    def _share(self) -> dict[str, int]:
        return {"rank": self.accelerator.process_index, "world_size": self.accelerator.num_processes}

    def _loader(self, data: torch.utils.data.IterableDataset, **options: Any) -> DataLoader:
        generator = torch.Generator().manual_seed(self.config.seed)
        options |= {"num_workers": self.config.num_workers, "worker_init_fn": ignore_stop_signals}
        return DataLoader(data, generator=generator, **options)

    def _loss(self, model: VJepa2ForMaskedLatentPrediction) -> float | None:
        config, encoder = self.config, model.config.encoder_config
        whole = RandomResizedClip(config.crop_size, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip_probability=0.0)
        sampler = FrameSampler(fps=config.fps, short_videos=config.short_videos, min_frames=encoder.tubelet_size)
        stream = ClipStream(
            config.eval_data,
            config.frames_per_clip,
            frame_sampler=sampler,
            transform=whole,
            seed=config.seed,
            epochs=1,
            limits=config.limits,
            **self._share(),
        )
        masks = build_mask_samplers(config.masks)
        collator = MaskCollator(masks, encoder.patch_size, encoder.tubelet_size, seed=config.seed)
        size = (config.frames_per_clip, encoder.in_chans, config.crop_size, config.crop_size)
        nothing = collator([{"pixel_values_videos": torch.zeros(size), "seed": 0}])
        count = math.ceil(config.eval_clips / self.accelerator.num_processes)
        loader = self._loader(stream, batch_size=min(config.batch_size, count), collate_fn=collator)
        total, seen = 0.0, 0
        for batch in self._in_step(itertools.islice(loader, math.ceil(count / loader.batch_size)), "eval_data"):
            inputs = send_to_device(batch or nothing, self.accelerator.device)
            with self.accelerator.autocast():
                loss = model(**inputs, mask_token_index=config.mask_token_index).loss.item()
            if batch is not None:
                clips = len(batch["pixel_values_videos"])
                total, seen = total + loss * clips, seen + clips
        totals = gather_object([(total, seen)])
        clips = sum(seen for _, seen in totals)
        return sum(total for total, _ in totals) / clips if clips and not self._failed else None

    def _probe(self, model: VJepa2ForMaskedLatentPrediction) -> float | None:
        config = self.config
        fps = config.fps[0] if isinstance(config.fps, list) else config.fps
        views = ClipViews(frames_per_clip=config.frames_per_clip, fps=fps)
        data = LabeledClips(config.eval_probe_data, views, self.processor, limits=config.limits, **self._share())
        items = (item for item in self._loader(data, batch_size=None) if "row" in item)
        batches = iter(lambda: list(itertools.islice(items, config.batch_size)), [])
        found = []
        nothing = torch.zeros((1, config.frames_per_clip, 3, config.crop_size, config.crop_size), dtype=torch.uint8)
        for batch in self._in_step(batches, "eval_probe_data"):
            frames = nothing if batch is None else torch.cat([item["frames"] for item in batch])
            pixels = self.processor.normalize_cropped(frames.to(self.accelerator.device))
            with self.accelerator.autocast():
                features = model.target_encoder.encode(pixels, pool="clip").float().cpu()
            for item, feature in zip(batch or [], features):
                found.append((item["name"], item["row"].get("label"), feature))
        everyones = sorted(gather_object(found), key=lambda item: item[0])
        if self._failed:
            return None
        labels = [label for _, label, _ in everyones]
        if None in labels or len(set(map(str, labels))) < 2:
            self._warn(f"eval_probe_data={config.eval_probe_data!r} needs at least two classes in a column `label`")
            return None
        return neighbor_accuracy(torch.stack([feature for _, _, feature in everyones]), labels)

    def _in_step(self, batches: Iterator[Any], name: str) -> Iterator[Any]:
        """The batches of this process, and None while others have more: sharded models need all processes. An error in
        the data of one ends them in all, and is `_failed`."""
        self._failed = False
        while True:
            batch, problem = None, None
            try:
                batch = next(batches, None)
            except (ValueError, OSError) as error:
                problem = f"{name}={getattr(self.config, name)!r} could not be read ({one_sentence(error)})"
            states = gather_object([(batch is not None, problem)])
            problems = [problem for _, problem in states if problem]
            if problems:
                self._failed = True
                self._warn(problems[0])
            if problems or not any(has_batch for has_batch, _ in states):
                return
            yield batch

    def _warn(self, problem: str) -> None:
        if self.accelerator.is_main_process:
            logger.warning("no evaluation at step %d: %s; training continues", self.loop.step, problem)


def neighbor_accuracy(features: torch.Tensor, labels: list[Any]) -> float:
    """Fraction of the rows of features (E, D) whose label the nearest other rows vote for.

    Features are standardized; similarities are cosines, and votes have the weights exp(similarity / temperature).
    """
    classes = {label: number for number, label in enumerate(sorted(set(labels), key=str))}
    targets = torch.tensor([classes[label] for label in labels])
    features = (features - features.mean(0)) / features.std(0).clamp(min=1e-6)
    features = torch.nn.functional.normalize(features, dim=1)
    similarities = features @ features.T
    similarities.fill_diagonal_(-math.inf)
    nearest = similarities.topk(min(NEIGHBORS, len(labels) - 1), dim=1)
    votes = torch.zeros(len(labels), len(classes))
    votes.scatter_add_(1, targets[nearest.indices], (nearest.values / TEMPERATURE).softmax(dim=1))
    return (votes.argmax(1) == targets).float().mean().item()


@contextlib.contextmanager
def kept_random_state() -> Iterator[None]:
    """Restores the random states of Python, NumPy and torch (of all devices) after the block."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextlib.contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Sets all modules to evaluation, and each back to its mode after the block."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
