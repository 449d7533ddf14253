"""Estimates of device memory: weights and optimizer, activations of a training step, a forward pass.

The gaps of the allocator, NCCL's buffers and the CUDA context (some GB together) are not included.

Letters: K tokens of a context, M of a target, D width, F inner width of an MLP.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..configuration_classification import VJepa2VideoClassificationConfig
from ..configuration_vjepa2 import VJepa2MaskedLatentPredictionConfig


# Bytes per token that a block keeps for its backward pass, per channel of D and of F. float32: the inputs of both
# norms and of three linear layers, rotated queries and keys, values, and two tensors inside the MLP. bf16 under
# autocast: the same in 2 bytes, but the norms' inputs are copies in 4. A test measures both.
KEPT_BYTES = {"no": (32, 8), "bf16": (20, 4), "fp16": (20, 4)}
# Bytes per token that a block holds at most without a backward pass: in attention per channel of D (states, norm, q,
# k, v, rotated q and k, result); in the MLP per channel of D (states, norm, result) and of F. "bf16" is autocast,
# "bfloat16" a model in that dtype.
HELD_BYTES = {"no": (32, 12, 4), "bf16": (20, 10, 2), "fp16": (20, 10, 2), "bfloat16": (16, 6, 2)}
# float32 weights and gradients, and the two moments of AdamW
STATE_BYTES = {"weights": 4, "gradients": 4, "AdamW": 8}


def count(module: torch.nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_parameters(config: VJepa2MaskedLatentPredictionConfig) -> dict[str, int]:
    """Parameters of the `encoder`, the `predictor`, and the largest `block` of either."""
    from ..modeling_masked_latent import VJepa2ForMaskedLatentPrediction

    with torch.device("meta"):
        model = VJepa2ForMaskedLatentPrediction(config)
    block = max(map(count, [*model.encoder.layer, *model.predictor.layer]), default=0)
    return {"encoder": count(model.encoder), "predictor": count(model.predictor), "block": block}


def state_bytes(
    parameters: dict[str, int], mixed_precision: str, shards: int = 1, accumulates: bool = False
) -> dict[str, float]:
    """Bytes on one device that do not grow with the batch.

    Args:
        parameters: of `count_parameters`.
        shards: devices that share weights, gradients, moments and the target encoder (FSDP); 1 is DDP or one device.
        accumulates: whether gradients accumulate over micro-batches; FSDP then keeps them unsharded.
    """
    trained = parameters["encoder"] + parameters["predictor"]
    parts = {name: size * trained / shards for name, size in STATE_BYTES.items()}
    parts["EMA"] = 4 * parameters["encoder"] / shards
    half = 4 if mixed_precision == "no" else 2
    if shards > 1:  # weights and gradients of two unsharded blocks, the current one and the next
        parts["copies"] = 2 * 2 * half * parameters["block"] + accumulates * half * trained
    else:  # autocast copies the weights; DDP's buckets are the gradients themselves (gradient_as_bucket_view)
        parts["copies"] = 0 if mixed_precision == "no" else half * trained
    return parts


def activation_bytes(
    config: VJepa2MaskedLatentPredictionConfig,
    grid: tuple[int, int, int],
    masks: Sequence[tuple[int, int]],
    mixed_precision: str,
    checkpointing: bool,
) -> float:
    """Peak bytes that one clip keeps on the device: its targets, and the activations of one mask set at a time.

    With checkpointing a block keeps its input, and one block at a time is recomputed.
    """
    per_width, per_inner = KEPT_BYTES[mixed_precision]
    size = 4 if mixed_precision == "no" else 2
    encoder, width, tokens = config.encoder_config, config.predictor_hidden_size, math.prod(grid)
    attentions = 2 if encoder.attention_type == "factorized" else 1
    in_encoder = per_inner * int(encoder.hidden_size * encoder.mlp_ratio)
    # A quarter of the bytes per width belongs to the MLP: a norm and the input of a linear layer
    in_encoder += per_width * encoder.hidden_size * (1 + 0.75 * (attentions - 1))
    in_predictor = per_inner * int(width * config.predictor_mlp_ratio) + per_width * width
    patch = encoder.in_chans * encoder.tubelet_size * encoder.patch_size**2
    common = 4 * tokens * patch  # pixels
    latent = encoder.hidden_size if config.target_type == "pixels" else config.prediction_size
    if config.target_type != "pixels":
        common += 2 * 4 * tokens * config.prediction_size  # targets, raw and normalized

    def of_set(context: int, target: int) -> float:
        kept = size * context * patch  # visible pixels, for the gradient of the embedding
        kept += 12 * context * sum(stem_values(encoder))  # a stem's convolutions, norms and activations
        kept += 4 * context * config.num_levels * encoder.hidden_size  # norms of the levels
        predicted = target + context * config.predict_context
        kept += 4 * 4 * predicted * latent  # predictions, targets, differences
        blocks = encoder.num_hidden_layers, config.predictor_num_hidden_layers
        if not checkpointing:
            return kept + blocks[0] * context * in_encoder + blocks[1] * (context + target) * in_predictor
        kept += size * blocks[0] * context * encoder.hidden_size
        kept += 4 * blocks[1] * (context + target) * width  # float32, the type of the mask tokens
        return kept + max(context * in_encoder, (context + target) * in_predictor)

    return common + max(of_set(context, target) for context, target in masks)


def forward_bytes(config: Any, grid: tuple[int, int, int], precision: str) -> float:
    """Peak bytes of one clip in an encoder without a backward pass: float32 pixels and the states of one block.

    Args:
        config: [`VJepa2EncoderConfig`] with joint attention.
        precision: "no", "bf16" or "fp16" (autocast), or "bfloat16", the model's dtype.
    """
    attention, per_width, per_inner = HELD_BYTES[precision]
    width, inner = config.hidden_size, int(config.hidden_size * config.mlp_ratio)
    pixels = 4 * config.in_chans * config.tubelet_size * config.patch_size**2
    stem = 8 * max(stem_values(config), default=0)  # a convolution and its norm
    return math.prod(grid) * (pixels + max(attention * width, per_width * width + per_inner * inner, stem))


def stem_values(config: Any) -> list[int]:
    """Values per token after each convolution of the encoder's stem; none without one."""
    sides = (config.patch_size >> step for step in range(1, len(config.stem_sizes) + 1))
    return [config.tubelet_size * side**2 * size for side, size in zip(sides, config.stem_sizes, strict=True)]


def probe_bytes(
    config: VJepa2VideoClassificationConfig, grid: tuple[int, int, int], mixed_precision: str
) -> dict[str, float]:
    """Bytes of training an attentive probe on a frozen encoder: `state`, and `clip`, per clip.

    The encoder runs in every step. `examples/train_probe.py` runs it once, before training, and needs less.
    """
    from ..modeling_classification import VJepa2ForVideoClassification

    encoder, (per_width, per_inner) = config.encoder_config, KEPT_BYTES[mixed_precision]
    with torch.device("meta"):
        model = VJepa2ForVideoClassification(config)
    frozen = count(model.encoder)
    trained = count(model) - frozen
    half = 0 if mixed_precision == "no" else 2
    width, size = encoder.hidden_size, half or 4
    block = per_width * width + per_inner * int(width * config.pooler_mlp_ratio)
    query = (4 + 3 * size) * width  # norm of the tokens, keys and values
    pixels = 4 * encoder.in_chans * encoder.tubelet_size * encoder.patch_size**2
    kept = math.prod(grid) * (pixels + 4 * width + config.num_pooler_layers * block + query)
    state = 4 * frozen + (sum(STATE_BYTES.values()) + half) * trained
    return {"state": state, "clip": max(kept, forward_bytes(encoder, grid, mixed_precision))}
