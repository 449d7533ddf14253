"""Dense probes: a linear head at each position of the grid, for segmentation and for regression.

    heads = train_dense_heads(cache, training, [DenseHead(...), ...], settings)
    scores = score_dense_head(heads[0], cache, held_out)      # mIoU or RMSE, by the `evaluate` modules

Shapes: E clips of a cache, B of a batch, (T', H', W') grid of tokens, D width of features, C outputs, H W size of
label images.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import evaluate
import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import nn
from tqdm.auto import tqdm

from .. import metrics
from ..data.feature_cache import FeatureCache
from ..data.files import loading
from ..metrics.mean_iou.mean_iou import IGNORED
from ..specs import as_settings, check_choice, check_count, check_number, check_tensor, refuse


Task = Literal["segmentation", "regression"]
METRICS = {"segmentation": "mean_iou", "regression": "root_mean_squared_error"}
MAIN_SCORE = {"segmentation": ("mean_iou", 1), "regression": ("rmse", -1)}  # name, and 1 if higher is better
STATISTICS_BATCHES = 32  # of clips, to standardize features and labels


class DenseHead(nn.Module, PyTorchModelHubMixin, library_name="vjepa2_hf"):
    """A linear layer on the standardized features of each position; its outputs are upsampled bilinearly to the size
    of the labels, as for linear segmentation in DINOv2 (arXiv 2304.07193).

    `save_pretrained` and `push_to_hub` are those of `huggingface_hub`.

    Args:
        feature_size: D.
        task: "segmentation" (cross-entropy over labels), or "regression" (squared error of one number per pixel).
        num_labels: of a segmentation.
        label_names: of a segmentation, for people to read.
        levels: of the features, see `vjepa2_hf.visualization.measures.grid_features`.
    """

    def __init__(
        self,
        feature_size: int,
        task: Task,
        num_labels: int = 1,
        label_names: list[str] | None = None,
        levels: str = "last",
    ):
        super().__init__()
        check_choice("task", task, METRICS)
        check_choice("levels", levels, ("last", "all"))
        size, num_labels = check_count("feature_size", feature_size), check_count("num_labels", num_labels)
        if task == "segmentation" and num_labels < 2:
            refuse("num_labels", num_labels, "at least 2 for a segmentation")
        if label_names is not None and len(label_names) != num_labels:
            refuse("label_names", label_names, f"{num_labels} names, num_labels")
        self.task, self.num_labels, self.label_names, self.levels = task, num_labels, label_names, levels
        self.linear = nn.Linear(size, num_labels if task == "segmentation" else 1)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)
        for name, length in (("feature", size), ("label", 1)):
            self.register_buffer(f"{name}_mean", torch.zeros(length))
            self.register_buffer(f"{name}_std", torch.ones(length))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> "DenseHead":
        """Loads a head; `options` are those of `huggingface_hub`. A missing folder is a FileNotFoundError, a damaged
        one a ValueError."""
        with loading(pretrained_model_name_or_path, "dense head", "train one with examples/dense_probe.py"):
            return super().from_pretrained(pretrained_model_name_or_path, **{"strict": True, **options})

    def forward(self, features: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Features (B, T', H', W', D) -> logits or standardized numbers (B, T', C, H, W), for `size` = (H, W)."""
        check_tensor("features", features, "(B, T', H', W', D)")
        if features.shape[-1] != len(self.feature_mean):
            expected = f"features of {len(self.feature_mean)} channels last"
            refuse("features", features, expected)
        features = (features.float() - self.feature_mean) / self.feature_std
        outputs = self.linear(features).movedim(-1, 2)
        scaled = nn.functional.interpolate(outputs.flatten(0, 1), size, mode="bilinear", align_corners=False)
        return scaled.unflatten(0, outputs.shape[:2])

    def loss(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The mean loss over pixels with a label.

        Args:
            features: (B, T', H', W', D).
            labels: (B, T', H, W), integers (255: no label), or numbers (NaN: none).
        """
        outputs = self(features, tuple(labels.shape[-2:]))
        if self.task == "segmentation":
            labels = labels.long().flatten(0, 1)
            known = labels != IGNORED
            if labels.device.type == "cpu" and not ((labels >= 0) & (labels < self.num_labels))[known].all():
                refuse(
                    "labels", labels, f"integers from 0 to {self.num_labels - 1} (num_labels), or {IGNORED}: no label"
                )
            errors = nn.functional.cross_entropy(outputs.flatten(0, 1), labels, ignore_index=IGNORED, reduction="sum")
            return errors / known.sum().clamp(min=1)
        labels = (labels.float() - self.label_mean) / self.label_std
        known = labels.isfinite()
        errors = outputs.squeeze(2)[known] - labels[known]
        return errors.square().sum() / known.sum().clamp(min=1)

    @torch.no_grad()
    def predict(self, features: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Label images int64, or numbers in the unit of the labels, (B, T', H, W)."""
        outputs = self(features, size)
        if self.task == "segmentation":
            return outputs.argmax(dim=2)
        return outputs.squeeze(2) * self.label_std + self.label_mean


@dataclasses.dataclass(frozen=True)
class DenseTraining:
    """How dense heads are trained."""

    steps: int = 1000
    batch_size: int = 16
    """Clips."""
    weight_decay: float = 1e-4
    seed: int = 0

    def __post_init__(self):
        check_count("steps", self.steps)
        check_count("batch_size", self.batch_size)
        check_number("weight_decay", self.weight_decay, at_least=0)
        check_count("seed", self.seed, 0)


def read_dense_batches(
    cache: FeatureCache, clips: torch.Tensor, batch_size: int, seed: int | None = None, device: Any = "cpu"
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Features (B, T', H', W', D) and labels (B, T', H, W) of clips (indices), once each in their order; with a seed
    again and again, in another order each time. Clips of a batch have one length."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    while True:
        order = clips if generator is None else clips[torch.randperm(len(clips), generator=generator)]
        for length in cache.lengths[clips].unique().tolist():
            same = order[cache.lengths[order] == length]
            for chosen in same.split(batch_size):
                batch = cache.windows(chosen, torch.zeros_like(chosen), length)
                yield batch["features"].float().to(device), batch["labels"].to(device)
        if generator is None:
            return


def train_dense_heads(
    cache: FeatureCache,
    clips: torch.Tensor,
    heads: Sequence[DenseHead],
    learning_rates: Sequence[float],
    settings: DenseTraining,
) -> list[float]:
    """Trains heads side by side on the same batches, each with its own learning rate (AdamW, cosine to 0).

    Args:
        cache: with the columns `features` and `labels`, of `dense_clips.fill_dense_cache`.
        clips: indices of the training clips, int64 (E,).
        heads: changed in place; statistics of features and labels are measured first.

    Returns:
        The mean loss of each head over the last tenth of the steps.
    """
    settings = as_settings("settings", settings, DenseTraining)
    if not len(clips):
        raise ValueError("There is no training clip: give more data, or hold out less.")
    device = next(heads[0].parameters()).device
    _measure_statistics(cache, clips, heads, settings)
    groups = [
        {"params": [*head.linear.parameters()], "lr": rate} for head, rate in zip(heads, learning_rates, strict=True)
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    batches = read_dense_batches(cache, clips, settings.batch_size, settings.seed, device)
    last, kept = max(1, settings.steps // 10), []
    for features, labels in tqdm(itertools.islice(batches, settings.steps), total=settings.steps, desc="train"):
        losses = torch.stack([head.loss(features, labels) for head in heads])
        optimizer.zero_grad()
        losses.sum().backward()  # the gradient of each head is that of its own loss
        optimizer.step()
        schedule.step()
        kept = [*kept[1 - last :], losses.detach()] if last > 1 else [losses.detach()]
    return torch.stack(kept).mean(dim=0).tolist()


def _measure_statistics(
    cache: FeatureCache, clips: torch.Tensor, heads: Sequence[DenseHead], settings: DenseTraining
) -> None:
    """Sets mean and deviation of features, and of the labels of a regression, from some training clips."""
    generator = torch.Generator().manual_seed(settings.seed)
    some = clips[torch.randperm(len(clips), generator=generator)[: STATISTICS_BATCHES * settings.batch_size]]
    sums: dict[str, torch.Tensor] = {}
    for features, labels in read_dense_batches(cache, some, settings.batch_size):
        values = {"feature": features.flatten(0, -2)}
        if heads[0].task == "regression":
            values["label"] = labels.flatten()[labels.flatten().isfinite()].unsqueeze(1)
        for name, rows in values.items():
            rows = rows.double()
            moments = torch.stack(
                [
                    torch.full_like(rows[0], len(rows)) if len(rows) else torch.zeros(1),
                    rows.sum(0),
                    rows.square().sum(0),
                ]
            )
            sums[name] = sums.get(name, 0) + moments
    for name, (count, total, squares) in sums.items():
        mean = total / count.clamp(min=1)
        deviation = (squares / count.clamp(min=1) - mean.square()).clamp(min=1e-12).sqrt()
        for head in heads:
            getattr(head, f"{name}_mean").copy_(mean)
            getattr(head, f"{name}_std").copy_(deviation)


def score_dense_head(
    head: DenseHead, cache: FeatureCache, clips: torch.Tensor, batch_size: int = 16, cache_dir: str | None = None
) -> dict[str, Any]:
    """Scores of a head on clips (indices, int64 (E,)), from `mean_iou` or `root_mean_squared_error` of `metrics`."""
    if not len(clips):
        raise ValueError("There is no clip to score: give more data, or hold out more.")
    settings = {"num_labels": head.num_labels} if head.task == "segmentation" else {}
    module = Path(metrics.__file__).parent / METRICS[head.task]
    metric = evaluate.load(str(module), cache_dir=cache_dir, **settings)
    device = next(head.parameters()).device
    for features, labels in read_dense_batches(cache, clips, batch_size, device=device):
        metric.add_batch(predictions=head.predict(features, tuple(labels.shape[-2:])), references=labels)
    return metric.compute()
