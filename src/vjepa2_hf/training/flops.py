"""Floating-point operations of a training step, and the peak of known GPUs.

A multiplication and an addition are two operations. Only matrix products count, as in PyTorch's FlopCounterMode.

Letters: N tokens of a clip, K of a context, M of a target, D width, F inner width of an MLP.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..configuration_vjepa2 import VJepa2MaskedLatentPredictionConfig


@dataclass(frozen=True)
class Device:
    """Data sheet of a GPU."""

    name: str  # `torch.cuda.get_device_name`, or its first words
    half: float  # operations per second of the tensor cores in bf16 and fp16, without sparsity
    single: float  # operations per second in float32 outside the tensor cores, PyTorch's default
    memory: float  # GB (10^9 bytes)
    source: str


# Data sheets that give bf16 "with sparsity" state twice these numbers
DEVICES = {
    "a100": Device("NVIDIA A100", 312e12, 19.5e12, 80, "NVIDIA A100 datasheet (80 GB)"),
    "h100_pcie": Device("NVIDIA H100 PCIe", 756e12, 51e12, 80, "NVIDIA H100 datasheet, PCIe"),
    "h100": Device("NVIDIA H100 80GB HBM3", 989e12, 67e12, 80, "NVIDIA H100 datasheet, SXM"),
    "h200": Device("NVIDIA H200", 989e12, 67e12, 141, "NVIDIA H200 datasheet, SXM"),
    "l40s": Device("NVIDIA L40S", 362e12, 91.6e12, 48, "NVIDIA L40S datasheet"),
    "l4": Device("NVIDIA L4", 121e12, 30.3e12, 24, "NVIDIA L4 datasheet"),
}


def block_flops(tokens: int, width: int, inner: int, attended: Sequence[int]) -> int:
    """Forward operations of a block of widths D and F on the tokens of one clip. Each attends to `attended` tokens, in
    each attention of the block."""
    attention = sum(8 * width**2 + 4 * width * keys for keys in attended)  # q, k, v, output; QKᵀ and AV
    return tokens * (attention + 4 * width * inner)


def embedding_flops(config: Any, tokens: int) -> tuple[int, int]:
    """Forward operations of the patch embedding of `tokens`: (of the first map, which reads pixels, of the rest)."""
    products, channels, side = [], config.in_chans, config.patch_size
    for size in config.stem_sizes:
        side //= 2
        products.append(side**2 * 4 * channels * size)
        channels = size
    products.append(side**2 * channels * config.hidden_size)
    first, *rest = (2 * tokens * config.tubelet_size * product for product in products)
    return first, sum(rest)


def encoder_flops(config: Any, tokens: int, grid: tuple[int, int, int], masked: bool) -> tuple[int, int, int]:
    """Forward operations of the encoder on `tokens` (N or K) of one clip of `grid` (T', H', W'): (both parts of the
    patch embedding, blocks). If it is `masked`, factorized attention computes all pairs and masks them."""
    width, inner = config.hidden_size, int(config.hidden_size * config.mlp_ratio)
    attended = [tokens]
    if config.attention_type == "factorized":
        attended = [tokens, tokens] if masked else [grid[1] * grid[2], grid[0]]
    blocks = config.num_hidden_layers * block_flops(tokens, width, inner, attended)
    return *embedding_flops(config, tokens), blocks


def predictor_flops(config: VJepa2MaskedLatentPredictionConfig, context: int, target: int) -> int:
    """Forward operations of the predictor on K context and M target tokens of one clip."""
    width, encoder = config.predictor_hidden_size, config.encoder_config
    inner, tokens = int(width * config.predictor_mlp_ratio), context + target
    embedding = encoder.hidden_size * width
    if config.num_levels > 1:
        embedding += config.num_levels * encoder.hidden_size**2
    predicted = target + context * config.predict_context
    blocks = config.predictor_num_hidden_layers * block_flops(tokens, width, inner, [tokens])
    return 2 * context * embedding + blocks + 2 * predicted * width * config.prediction_size


def step_flops(
    config: VJepa2MaskedLatentPredictionConfig, grid: tuple[int, int, int], masks: Sequence[tuple[int, int]]
) -> dict[str, int]:
    """Operations per clip of a training step, without the optimizer and without the repeats of checkpointing.

    A backward pass is twice its forward, except for the first map of the pixels, which need no gradient.

    Args:
        grid: (T', H', W') of the clip.
        masks: (K, M) of each mask set.

    Returns:
        `target_encoder`, `encoder`, `predictor`, and `repeated`: what activation checkpointing adds, the forward of
        each block except its last product, which no gradient needs.
    """
    encoder, width = config.encoder_config, config.predictor_hidden_size
    inner, predictor_inner = int(encoder.hidden_size * encoder.mlp_ratio), int(width * config.predictor_mlp_ratio)
    whole = online = predictor = repeated = 0
    if config.target_type not in ("pixels", "teacher"):  # a teacher's size is not in the config
        whole = sum(encoder_flops(encoder, math.prod(grid), grid, masked=False))
    for context, target in masks:
        of_pixels, stem, blocks = encoder_flops(encoder, context, grid, masked=True)
        online += 2 * of_pixels + 3 * (stem + blocks)
        predictor += 3 * predictor_flops(config, context, target)
        tokens = context + target
        block = block_flops(tokens, width, predictor_inner, [tokens]) - 2 * tokens * predictor_inner * width
        repeated += config.predictor_num_hidden_layers * block
        repeated += blocks - encoder.num_hidden_layers * 2 * context * inner * encoder.hidden_size
    return {"target_encoder": whole, "encoder": online, "predictor": predictor, "repeated": repeated}


def batch_flops(config: VJepa2MaskedLatentPredictionConfig, batch: dict[str, Any]) -> int:
    """Operations of a training step on a batch of the model's inputs."""
    clips, frames, _, height, width = batch["pixel_values_videos"].shape
    encoder = config.encoder_config
    grid = max(frames // encoder.tubelet_size, 1), height // encoder.patch_size, width // encoder.patch_size
    masks = [(c.shape[1], t.shape[1]) for c, t in zip(batch["context_mask"], batch["target_mask"], strict=True)]
    flops = step_flops(config, grid, masks)
    return clips * (flops["target_encoder"] + flops["encoder"] + flops["predictor"])


def peak_flops(device: torch.device, mixed_precision: str) -> float | None:
    """Peak operations per second of the device in this precision; `None` for devices without a data sheet here."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    known = next((known for known in DEVICES.values() if re.match(rf"{known.name}(\W|$)", name)), None)
    if known is None or (mixed_precision == "no" and torch.get_float32_matmul_precision() != "highest"):
        return None
    return {"no": known.single, "bf16": known.half, "fp16": known.half}.get(mixed_precision)
