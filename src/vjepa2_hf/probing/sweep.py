"""Sweeps: many probe heads trained at once on the same features, and fine-tuning with learning rates by depth.

    sweep = ProbeSweep(model, [(lr, wd), ...])     # copies of the head of `model`
    losses = sweep(features, labels, steps)        # (H,), one per head; their sum trains each alone
    model.load_state_dict(sweep.head_weights(best), strict=False)

Shapes: H heads, B clips, N tokens, D width, C labels.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..configuration_classification import VJepa2VideoClassificationConfig
from ..data.files import weights_fingerprint, write_json
from ..modeling_classification import VJepa2ForVideoClassification, VJepa2ProbeHead, checked_labels
from ..modeling_encoder import VJepa2Encoder
from ..modeling_masked_latent import VJepa2ForMaskedLatentPrediction
from ..specs import check_number, check_tensor, refuse
from ..training.schedules import parameter_groups
from ..training.settings import read_yaml


PROBE = "probe.json"  # in checkpoints


class ProbeSweep(nn.Module):
    """Heads that differ only in learning rate and weight decay. They share initial weights and all batches.

    Linear heads are one batched product; attentive heads run one after the other.

    Args:
        model: each head is a copy of its head.
        settings: (peak learning rate, weight decay) of each head.
        features: mean and standard deviation (D,), to standardize features of linear heads; None: not at all.
        labels: mean and standard deviation (C,) of regression labels, which heads predict standardized.
        gradient_checkpointing: attentive heads recompute activations; memory is that of one head.
    """

    def __init__(
        self,
        model: VJepa2ForVideoClassification,
        settings: Sequence[tuple[float, float]],
        features: tuple[torch.Tensor, torch.Tensor] | None = None,
        labels: tuple[torch.Tensor, torch.Tensor] | None = None,
        gradient_checkpointing: bool = False,
    ):
        super().__init__()
        are_pairs = isinstance(settings, (list, tuple)) and all(
            isinstance(each, (list, tuple)) and len(each) == 2 for each in settings
        )
        if not are_pairs or not settings:
            refuse("settings", settings, "pairs (peak learning rate, weight decay), at least one")
        for rate, decay in settings:
            check_number("the learning rate of a head in settings", rate, at_least=0)
            check_number("the weight decay of a head in settings", decay, at_least=0)
        self.config, self.settings = model.config, list(settings)
        self.heads = nn.ModuleList(VJepa2ProbeHead(model) for _ in settings)
        self.gradient_checkpointing = gradient_checkpointing
        self.latest_losses: torch.Tensor | None = None  # (H,)
        self._encoder = weights_fingerprint(model.encoder)
        self._standardized = features is not None
        sizes = model.classifier.in_features, model.config.num_labels
        for name, value, size in zip(("feature", "label"), (features, labels), sizes, strict=True):
            mean, std = value or (torch.zeros(size), torch.ones(size))
            self.register_buffer(f"{name}_mean", mean.clone())
            self.register_buffer(f"{name}_std", std.clone())

    def logits(self, features: torch.Tensor, steps: int | None = None) -> torch.Tensor:
        """Features -> (H, B, C), or (H, B, T', C) with labels per frame; standardized for a regression.

        Args:
            features: tokens (B, N, D) for attentive heads, `model.pool` of them for linear ones: (B, D) or (B, T', D).
            steps: T', needed by attentive heads with labels per frame or positions in time.
        """
        size = self.heads[0].classifier.in_features
        features = check_tensor("features", features)
        features = features.float() if features.dtype == torch.float64 else features
        if features.ndim < 2 or features.shape[-1] != size:
            raise ValueError(f"features have shape {tuple(features.shape)}; expected (B, N, {size}) or (B, {size}).")
        if self.config.pooler_type == "attentive":
            if self.gradient_checkpointing and self.training:
                return torch.stack([checkpoint(head, features, steps, use_reentrant=False) for head in self.heads])
            return torch.stack([head(features, steps) for head in self.heads])
        weight = torch.stack([head.classifier.weight for head in self.heads])  # (H, C, D)
        bias = torch.stack([head.classifier.bias for head in self.heads])
        features = (features - self.feature_mean) / self.feature_std
        product = torch.einsum("bd,hcd->hbc", features.flatten(0, -2), weight) + bias.unsqueeze(1)
        return product.unflatten(1, features.shape[:-1])

    def forward(self, features: torch.Tensor, labels: torch.Tensor, steps: int | None = None) -> torch.Tensor:
        """See `losses`."""
        losses = self.losses(features, labels, steps)
        self.latest_losses = losses.detach()
        return losses

    def losses(self, features: torch.Tensor, labels: torch.Tensor, steps: int | None = None) -> torch.Tensor:
        """The mean loss of each head, (H,), on labels in the format of the classifier."""
        logits = self.logits(features, steps).float()
        labels = checked_labels(self.config, logits.shape[1:-1], labels)
        logits = logits.flatten(1, -2)
        kind, functional = self.config.problem_type, nn.functional
        if kind == "single_label_classification":
            labels = labels.flatten().expand(len(logits), -1)
            return functional.cross_entropy(logits.movedim(-1, 1), labels, reduction="none").mean(dim=1)
        labels = labels.float().flatten(0, -2).expand_as(logits)
        if kind == "regression":
            labels = (labels - self.label_mean) / self.label_std
            return functional.mse_loss(logits, labels, reduction="none").mean(dim=(1, 2))
        return functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=(1, 2))

    def predictions(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (..., C), for a regression in the units of the labels."""
        return logits * self.label_std + self.label_mean if self.config.problem_type == "regression" else logits

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """AdamW groups with `peak`, the learning rate of each; biases and norms have no weight decay."""
        return [
            {**group, "peak": rate}
            for head, (rate, decay) in zip(self.heads, self.settings, strict=True)
            for group in parameter_groups(head, decay)
        ]

    def head_weights(self, head: int) -> dict[str, torch.Tensor]:
        """The weights of one head by the classifier's names, with standardization folded into its linear layer."""
        state = {name: value.detach().clone() for name, value in self.heads[head].state_dict().items()}
        weight, bias = state["classifier.weight"], state["classifier.bias"]
        if self._standardized:
            weight = weight / self.feature_std
            bias = bias - weight @ self.feature_mean
        state["classifier.weight"] = weight * self.label_std.unsqueeze(1)
        state["classifier.bias"] = bias * self.label_std + self.label_mean
        return state

    def write_model_files(self, folder: Path) -> None:
        """Writes into a checkpoint what `load_probe` needs besides the weights; the best head is that of the lowest
        loss of the last batch."""
        config = copy.deepcopy(self.config)
        config.architectures = [VJepa2ForVideoClassification.__name__]
        config.save_pretrained(folder)
        losses = [0.0] if self.latest_losses is None else self.latest_losses.tolist()
        probe = {"num_heads": len(self.heads), "best_head": losses.index(min(losses)), "encoder": self._encoder}
        probe |= {"standardized": self._standardized, "finetune": isinstance(self, FineTuning)}
        write_json(folder / PROBE, probe)


class FineTuning(ProbeSweep):
    """The whole classifier with its encoder, itself and not a copy, as a sweep of one head that takes pixels.

    Args:
        settings: (learning rate of the head, weight decay).
        layer_decay: ratio of the learning rates of a block and the block above it (BEiT, arXiv 2106.08254).
    """

    def __init__(
        self,
        model: VJepa2ForVideoClassification,
        settings: tuple[float, float],
        layer_decay: float = 0.75,
        labels: tuple[torch.Tensor, torch.Tensor] | None = None,
    ):
        super().__init__(model, [settings], labels=labels)
        self.heads = nn.ModuleList([model])
        self.layer_decay = layer_decay

    def logits(self, features: torch.Tensor, steps: int | None = None) -> torch.Tensor:
        """Pixels (B, T, C, H, W) -> (1, B, C); T' comes from them."""
        return self.heads[0](features).logits.unsqueeze(0)

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """As for `ProbeSweep`, a pair of groups for each depth."""
        (rate, decay), depth = self.settings[0], self.config.encoder_config.num_hidden_layers
        groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
        for name, parameter in self.heads[0].named_parameters():
            kept = parameter.ndim <= 1 or name.endswith(".bias")
            groups.setdefault((depth_of(name, depth), kept), []).append(parameter)
        return [
            {
                "params": parameters,
                "weight_decay": 0.0 if kept else decay,
                "peak": rate * self.layer_decay ** (depth + 1 - level),
            }
            for (level, kept), parameters in sorted(groups.items(), key=lambda item: item[0])
        ]


def depth_of(name: str, num_layers: int) -> int:
    """Depth of a classifier's parameter: 0 for patches and positions, i + 1 for block i, then norm and head."""
    if not name.startswith("encoder."):
        return num_layers + 1
    parts = name.split(".")
    if "layer" in parts:
        return int(parts[parts.index("layer") + 1]) + 1
    return num_layers + 1 if "layernorm" in parts else 0


def load_probe(checkpoint: str | os.PathLike) -> VJepa2ForVideoClassification | None:
    """The classifier in a checkpoint of `train_probe.py`, with the best of its heads; None for any other folder. The
    frozen encoder comes from the `encoder` in the run's `config.yaml`.

    Raises:
        ValueError: that encoder is not the one that the heads were trained on.
    """
    folder = Path(checkpoint)
    if not (folder / PROBE).is_file():
        return None
    probe = json.loads((folder / PROBE).read_text(encoding="utf-8"))
    model = VJepa2ForVideoClassification(VJepa2VideoClassificationConfig.from_pretrained(folder)).eval()
    state = load_file(folder / "model.safetensors")
    statistics = [(state[f"{name}_mean"], state[f"{name}_std"]) for name in ("feature", "label")]
    if probe["finetune"]:
        sweep = FineTuning(model, (0.0, 0.0), labels=statistics[1])
    else:
        _load_encoder(model, folder, probe["encoder"])
        features = statistics[0] if probe["standardized"] else None
        sweep = ProbeSweep(model, [(0.0, 0.0)] * probe["num_heads"], features, statistics[1])
    sweep.load_state_dict(state)
    model.load_state_dict(sweep.head_weights(probe["best_head"]), strict=False)
    return model


def _load_encoder(model: VJepa2ForVideoClassification, folder: Path, fingerprint: str) -> None:
    """Loads the frozen parts of a classifier from the folder that the run's config names."""
    path = read_yaml(folder.absolute().parent / "config.yaml")["encoder"]
    if model.config.predicted_frames:
        whole = VJepa2ForMaskedLatentPrediction.from_pretrained(path)
        model.encoder.load_state_dict(whole.target_encoder.state_dict())
        model.predictor.load_state_dict(whole.predictor.state_dict())
    else:
        model.encoder.load_state_dict(VJepa2Encoder.from_pretrained(path).state_dict())
    if weights_fingerprint(model.encoder) != fingerprint:
        raise ValueError(
            f"the heads in {folder} were trained on other weights than those of the encoder {path}; load the run's "
            "final/, or put the encoder back."
        )
