"""Many heads of a probe trained at once on the same features, and rates by depth for fine-tuning.

    sweep = ProbeSweep(model, [(lr, wd), ...])     # model: VJepa2ForVideoClassification, whose head all heads begin as
    losses = sweep(features, labels, steps)        # (H,), one a head: their sum trains each by itself
    model.load_state_dict(sweep.head_weights(best), strict=False)

Shapes: H heads, B clips, N tokens, D width, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..modeling_classification import VJepa2ForVideoClassification, VJepa2ProbeHead
from ..training.schedules import parameter_groups


class ProbeSweep(nn.Module):
    """Heads that differ in learning rate and weight decay alone: they begin with the same weights and see the same
    batches. Linear heads are one batched product; attentive heads run one after the other on the shared batch.

    Args:
        model: what each head is a copy of.
        settings: (peak learning rate, weight decay) of each head.
        features: mean and deviation (D,) of the features, by which linear heads standardise them; None: as they are.
        labels: mean and deviation (C,) of the labels of a regression, which heads predict standardised.
        gradient_checkpointing: attentive heads keep no activations; memory is that of one head.
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
        self.config, self.settings = model.config, list(settings)
        self.heads = nn.ModuleList(VJepa2ProbeHead(model) for _ in settings)
        self.gradient_checkpointing = gradient_checkpointing
        size = model.classifier.in_features
        self._standardised = features is not None
        for name, value in (("feature", features or _unit(size)), ("label", labels or _unit(model.config.num_labels))):
            self.register_buffer(f"{name}_mean", value[0].clone())
            self.register_buffer(f"{name}_std", value[1].clone())

    def logits(self, features: torch.Tensor, steps: int | None = None) -> torch.Tensor:
        """Features -> (H, B, C), or (H, B, T', C) with labels per frame; of a regression standardised as its labels.

        Args:
            features: of attentive heads tokens (B, N, D); of linear ones `model.pool` of them, (B, D) or (B, T', D).
            steps: T', needed by attentive heads with labels per frame or positions in time.
        """
        if self.config.pooler_type == "attentive":
            return torch.stack([self._one(head, features, steps) for head in self.heads])
        weight = torch.stack([head.classifier.weight for head in self.heads])  # (H, C, D)
        bias = torch.stack([head.classifier.bias for head in self.heads])
        features = (features - self.feature_mean) / self.feature_std
        product = torch.einsum("bd,hcd->hbc", features.flatten(0, -2), weight) + bias.unsqueeze(1)
        return product.unflatten(1, features.shape[:-1])

    def _one(self, head: VJepa2ProbeHead, features: torch.Tensor, steps: int | None) -> torch.Tensor:
        if self.gradient_checkpointing and self.training:
            return checkpoint(head, features, steps, use_reentrant=False)
        return head(features, steps)

    def forward(self, features: torch.Tensor, labels: torch.Tensor, steps: int | None = None) -> torch.Tensor:
        """The loss of each head, (H,)."""
        return self.losses(self.logits(features, steps), labels)

    def losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean losses (H,) of logits (H, B, ..., C) on labels as `forward` of the classifier takes them."""
        logits = logits.float().flatten(1, -2)
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
        """Logits (..., C) in the units of the labels, where they are a regression's."""
        return logits * self.label_std + self.label_mean if self.config.problem_type == "regression" else logits

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """AdamW groups, `peak` the learning rate of each; biases and norms do not decay."""
        return [
            {**group, "peak": rate}
            for head, (rate, decay) in zip(self.heads, self.settings, strict=True)
            for group in parameter_groups(head, decay)
        ]

    def head_weights(self, head: int) -> dict[str, torch.Tensor]:
        """The weights of one head by the classifier's names, on features and labels as they are: standardising is
        folded into its linear layer."""
        state = {name: value.detach().clone() for name, value in self.heads[head].state_dict().items()}
        weight, bias = state["classifier.weight"], state["classifier.bias"]
        if self._standardised:
            weight = weight / self.feature_std
            bias = bias - weight @ self.feature_mean
        state["classifier.weight"] = weight * self.label_std.unsqueeze(1)
        state["classifier.bias"] = bias * self.label_std + self.label_mean
        return state


def _unit(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(size), torch.ones(size)


class FineTuning(ProbeSweep):
    """The whole classifier, encoder and all, as a sweep of one head that takes pixels.

    Args:
        model: it learns itself; no copy.
        settings: one (learning rate of the head, weight decay).
        layer_decay: each block learns so many times slower than the one above it, the patches slowest (BEiT, arXiv
            2106.08254); 1: all alike.
        labels: as of `ProbeSweep`.
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
        """As of `ProbeSweep`, a pair of groups for each depth."""
        (rate, decay), depth = self.settings[0], self.config.encoder_config.num_hidden_layers
        by_depth: dict[int, dict[str, nn.Parameter]] = {}
        for name, parameter in self.heads[0].named_parameters():
            by_depth.setdefault(depth_of(name, depth), {})[name] = parameter
        groups = []
        for level, parameters in sorted(by_depth.items()):
            decayed = [p for name, p in parameters.items() if p.ndim > 1 and not name.endswith(".bias")]
            kept = [p for name, p in parameters.items() if p.ndim <= 1 or name.endswith(".bias")]
            peak = rate * self.layer_decay ** (depth + 1 - level)
            groups.append({"params": decayed, "weight_decay": decay, "peak": peak})
            groups.append({"params": kept, "weight_decay": 0.0, "peak": peak})
        return [group for group in groups if group["params"]]


def depth_of(name: str, num_layers: int) -> int:
    """How deep a classifier's parameter lies: 0 patches and positions, i + 1 block i, then final norm and head."""
    if not name.startswith("encoder."):
        return num_layers + 1
    parts = name.split(".")
    if "layer" in parts:
        return int(parts[parts.index("layer") + 1]) + 1
    return num_layers + 1 if "layernorm" in parts else 0


__all__ = ["FineTuning", "ProbeSweep", "depth_of"]
