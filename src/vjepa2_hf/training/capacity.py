"""What a pretraining run needs, by formula: arithmetic, memory and time on a number of GPUs.

    python -m vjepa2_hf.training.capacity --config examples/configs/published/pretrain_vitl.yaml --device h100 \
        --num_devices 8 64 [--global_batch 3072] [--utilization 0.4] [key=value ...]

Letters: B clips, N tokens of a clip, K of a context, M of a target, D width, F channels inside an MLP. A
multiplication and an addition are two operations. `step_flops` counts the matrix products, as PyTorch's
FlopCounterMode does; it also gives `model_flops_utilization` in a run's metrics. Memory is an estimate: the
allocator's gaps, NCCL's buffers and the CUDA context (together some GB) are not in it. Neither is the network in the
time: what a slow one costs lowers the utilization.
"""

import argparse
import logging
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from ..configuration_classification import VJepa2VideoClassificationConfig
from ..configuration_vjepa2 import VJepa2MaskedLatentPredictionConfig
from ..masking import PUBLISHED_MASKS, build_mask_samplers
from .settings import exit_on_user_error, load_config


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Device:
    """A GPU's data sheet: operations a second without sparsity, and memory.

    Attributes:
        name: as `torch.cuda.get_device_name` says it, or its first words.
        half: of the tensor cores in bf16 and fp16.
        single: of float32 outside the tensor cores, which is PyTorch's default.
        memory: in GB (10^9 bytes).
        source: where the numbers are from.
    """

    name: str
    half: float
    single: float
    memory: float
    source: str


# Sheets that give bf16 "with sparsity" give twice the number here
DEVICES = {
    "a100": Device("NVIDIA A100", 312e12, 19.5e12, 80, "NVIDIA A100 datasheet (80 GB)"),
    "h100_pcie": Device("NVIDIA H100 PCIe", 756e12, 51e12, 80, "NVIDIA H100 datasheet, PCIe"),
    "h100": Device("NVIDIA H100 80GB HBM3", 989e12, 67e12, 80, "NVIDIA H100 datasheet, SXM"),
    "h200": Device("NVIDIA H200", 989e12, 67e12, 141, "NVIDIA H200 datasheet, SXM"),
    "l40s": Device("NVIDIA L40S", 362e12, 91.6e12, 48, "NVIDIA L40S datasheet"),
    "l4": Device("NVIDIA L4", 121e12, 30.3e12, 24, "NVIDIA L4 datasheet"),
}

# Bytes that a block keeps of a token for its backward pass, per channel of width D and of its MLP's inside F. float32:
# the inputs of both norms and of three linear layers, rotated queries and keys, values, and the inside's two. bf16
# under autocast: the same in 2 bytes, but norms, which work on copies of 4. A test measures both.
KEPT_BYTES = {"no": (32, 8), "bf16": (20, 4), "fp16": (20, 4)}
# Bytes that a block without a backward pass holds of a token at most: in its attention per channel of width D (states,
# norm, q, k and v, turned q and k, result); in its MLP per channel of width D (states, norm, result) and of its inside
# F. "bf16" is autocast, "bfloat16" a model in that dtype.
HELD_BYTES = {"no": (32, 12, 4), "bf16": (20, 10, 2), "fp16": (20, 10, 2), "bfloat16": (16, 6, 2)}
# float32 weights, gradients, and two moments of AdamW
STATE_BYTES = {"weights": 4, "gradients": 4, "AdamW": 8}


# ---------------------------------------------------------------------------------------------------------------------
# Arithmetic
# ---------------------------------------------------------------------------------------------------------------------
def block_flops(tokens: int, width: int, inside: int, attended: Sequence[int]) -> int:
    """Forward operations of a block on one clip's tokens.

    Args:
        tokens: L.
        width, inside: D and F.
        attended: for each attention of the block, how many tokens a token attends to.
    """
    attention = sum(8 * width**2 + 4 * width * keys for keys in attended)  # q, k, v, output; QKᵀ and AV
    return tokens * (attention + 4 * width * inside)


def encoder_flops(config: Any, tokens: int, grid: tuple[int, int, int], masked: bool) -> tuple[int, int]:
    """Forward operations of the encoder on `tokens` of one clip: (patch embedding, blocks).

    Args:
        config: [`VJepa2EncoderConfig`].
        tokens: N, or K with tokens dropped.
        grid: (T', H', W') of the clip.
        masked: tokens are dropped; factorized attention then computes all pairs and masks them.
    """
    width, inside = config.hidden_size, int(config.hidden_size * config.mlp_ratio)
    attended = [tokens]
    if config.attention_type == "factorized":
        attended = [tokens, tokens] if masked else [grid[1] * grid[2], grid[0]]
    embedding = 2 * tokens * width * config.in_chans * config.tubelet_size * config.patch_size**2
    return embedding, config.num_hidden_layers * block_flops(tokens, width, inside, attended)


def predictor_flops(config: VJepa2MaskedLatentPredictionConfig, context: int, target: int) -> int:
    """Forward operations of the predictor on one clip's K context and M target tokens."""
    width, encoder = config.predictor_hidden_size, config.encoder_config
    inside, tokens = int(width * config.predictor_mlp_ratio), context + target
    output = encoder.hidden_size
    if config.target_type == "pixels":
        output = encoder.in_chans * encoder.tubelet_size * encoder.patch_size**2
    blocks = config.predictor_num_hidden_layers * block_flops(tokens, width, inside, [tokens])
    return 2 * context * encoder.hidden_size * width + blocks + 2 * target * width * output


def step_flops(
    config: VJepa2MaskedLatentPredictionConfig, grid: tuple[int, int, int], masks: Sequence[tuple[int, int]]
) -> dict[str, int]:
    """Operations that one clip of a training step takes, without the optimiser and without what checkpointing repeats.

    A backward pass is twice its forward, but for the patch embedding, whose pixels need no gradient.

    Args:
        config: of the model.
        grid: (T', H', W') of the clip.
        masks: (K, M) of each mask set.

    Returns:
        `target_encoder`, `encoder`, `predictor`, and `repeated`: what activation checkpointing would add, all of a
        block's forward but its last product, which no gradient needs.
    """
    encoder, whole = config.encoder_config, 0
    inside = int(encoder.hidden_size * encoder.mlp_ratio)
    width, predictor_inside = (
        config.predictor_hidden_size,
        int(config.predictor_hidden_size * config.predictor_mlp_ratio),
    )
    if config.target_type != "pixels":
        whole = sum(encoder_flops(encoder, math.prod(grid), grid, masked=False))
    online = predictor = repeated = 0
    for context, target in masks:
        embedding, blocks = encoder_flops(encoder, context, grid, masked=True)
        online += 2 * embedding + 3 * blocks
        predictor += 3 * predictor_flops(config, context, target)
        tokens = context + target
        repeated += blocks - encoder.num_hidden_layers * 2 * context * inside * encoder.hidden_size
        predictor_block = (
            block_flops(tokens, width, predictor_inside, [tokens]) - 2 * tokens * predictor_inside * width
        )
        repeated += config.predictor_num_hidden_layers * predictor_block
    return {"target_encoder": whole, "encoder": online, "predictor": predictor, "repeated": repeated}


def batch_flops(config: VJepa2MaskedLatentPredictionConfig, batch: dict[str, Any]) -> int:
    """Operations of a training step on a batch: what the model's forward takes, as a dict."""
    clips, frames, _, height, width = batch["pixel_values_videos"].shape
    encoder = config.encoder_config
    grid = (
        max(frames // encoder.tubelet_size, 1),
        height // encoder.patch_size,
        width // encoder.patch_size,
    )
    masks = [(c.shape[1], t.shape[1]) for c, t in zip(batch["context_mask"], batch["target_mask"], strict=True)]
    flops = step_flops(config, grid, masks)
    return clips * (flops["target_encoder"] + flops["encoder"] + flops["predictor"])


def peak_flops(device: torch.device, mixed_precision: str) -> float | None:
    """Operations a second that the device can do in this precision, or `None` where no data sheet is at hand."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    known = next((known for known in DEVICES.values() if re.match(rf"{known.name}(\W|$)", name)), None)
    if known is None or (mixed_precision == "no" and torch.get_float32_matmul_precision() != "highest"):
        return None
    return {"no": known.single, "bf16": known.half, "fp16": known.half}.get(mixed_precision)


# ---------------------------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------------------------
def count_parameters(config: VJepa2MaskedLatentPredictionConfig) -> dict[str, int]:
    """Parameters of the `encoder`, the `predictor`, and the largest `block` of either."""
    from ..modeling_masked_latent import VJepa2ForMaskedLatentPrediction

    with torch.device("meta"):
        model = VJepa2ForMaskedLatentPrediction(config)

    def count(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    blocks = [*model.encoder.layer, *model.predictor.layer]
    return {
        "encoder": count(model.encoder),
        "predictor": count(model.predictor),
        "block": max(map(count, blocks), default=0),
    }


def state_bytes(
    parameters: dict[str, int], mixed_precision: str, shards: int = 1, accumulates: bool = False
) -> dict[str, float]:
    """Bytes on one device of what does not grow with the batch.

    Args:
        parameters: of `count_parameters`.
        mixed_precision: "no", "bf16" or "fp16".
        shards: devices that share weights, gradients, moments and the target encoder (FSDP); 1 is DDP or one device.
        accumulates: gradients of several micro-batches; under FSDP they are kept whole until they are reduced.
    """
    trained = parameters["encoder"] + parameters["predictor"]
    parts = {name: size * trained / shards for name, size in STATE_BYTES.items()}
    parts["EMA"] = 4 * parameters["encoder"] / shards
    half = 4 if mixed_precision == "no" else 2
    if shards > 1:  # the block at work and the next one, whole: weights and gradients
        parts["copies"] = 2 * 2 * half * parameters["block"] + accumulates * half * trained
    else:  # of the weights, by autocast; DDP's buckets are the gradients themselves (gradient_as_bucket_view)
        parts["copies"] = 0 if mixed_precision == "no" else half * trained
    return parts


def activation_bytes(
    config: VJepa2MaskedLatentPredictionConfig,
    grid: tuple[int, int, int],
    masks: Sequence[tuple[int, int]],
    mixed_precision: str,
    checkpointing: bool,
) -> float:
    """Bytes that one clip keeps on the device at most: targets, and what one mask set keeps for its backward pass,
    which comes before the next set's forward.

    With checkpointing a block keeps its input, and one block at a time is computed again.
    """
    per_width, per_inside = KEPT_BYTES[mixed_precision]
    size = 4 if mixed_precision == "no" else 2
    encoder, width = config.encoder_config, config.predictor_hidden_size
    attentions = 2 if encoder.attention_type == "factorized" else 1
    in_encoder = per_inside * int(encoder.hidden_size * encoder.mlp_ratio)
    # of the bytes per width, a norm and a linear layer's input (a quarter) belong to the MLP
    in_encoder += per_width * encoder.hidden_size * (1 + 0.75 * (attentions - 1))
    in_predictor = per_inside * int(width * config.predictor_mlp_ratio) + per_width * width
    patch = encoder.in_chans * encoder.tubelet_size * encoder.patch_size**2
    common = 4 * math.prod(grid) * patch  # pixels
    if config.target_type != "pixels":
        common += 2 * 4 * math.prod(grid) * encoder.hidden_size  # targets, raw and normalised
    by_set = []
    for context, target in masks:
        tokens = context + target
        total = size * context * patch  # kept pixels, for the gradient of the embedding
        total += 4 * (context + 4 * target) * encoder.hidden_size  # last norm; predictions, targets, differences
        if checkpointing:
            total += size * encoder.num_hidden_layers * context * encoder.hidden_size
            total += 4 * config.predictor_num_hidden_layers * tokens * width  # float32: mask tokens are
            total += max(context * in_encoder, tokens * in_predictor)
        else:
            total += encoder.num_hidden_layers * context * in_encoder
            total += config.predictor_num_hidden_layers * tokens * in_predictor
        by_set.append(total)
    return common + max(by_set)


def forward_bytes(config: Any, grid: tuple[int, int, int], precision: str) -> float:
    """Bytes that one clip takes at most in an encoder that keeps nothing for a backward pass: pixels in float32 and
    the states of the block at work.

    Args:
        config: [`VJepa2EncoderConfig`] with joint attention.
        grid: (T', H', W') of the clip.
        precision: "no", "bf16" or "fp16" (autocast), or "bfloat16", the model's dtype.
    """
    attention, per_width, per_inside = HELD_BYTES[precision]
    width, inside = config.hidden_size, int(config.hidden_size * config.mlp_ratio)
    pixels = 4 * config.in_chans * config.tubelet_size * config.patch_size**2
    return math.prod(grid) * (pixels + max(attention * width, per_width * width + per_inside * inside))


def probe_bytes(
    config: VJepa2VideoClassificationConfig, grid: tuple[int, int, int], mixed_precision: str
) -> dict[str, float]:
    """Bytes of training an attentive probe on an encoder that is frozen: `state`, and `clip`, of each clip.

    The encoder runs in every step; `examples/train_probe.py` runs it once, before the probe learns, and needs less.

    Args:
        config: of the classifier.
        grid: (T', H', W') of the clip.
        mixed_precision: "no", "bf16" or "fp16"; weights are float32.
    """
    from ..modeling_classification import VJepa2ForVideoClassification

    encoder, (per_width, per_inside) = config.encoder_config, KEPT_BYTES[mixed_precision]
    with torch.device("meta"):
        model = VJepa2ForVideoClassification(config)
    frozen = sum(parameter.numel() for parameter in model.encoder.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters()) - frozen
    half = 0 if mixed_precision == "no" else 2
    width, size = encoder.hidden_size, half or 4
    block = per_width * width + per_inside * int(width * config.pooler_mlp_ratio)
    query = (4 + 3 * size) * width  # the query's norm of the tokens, their keys and values
    pixels = 4 * encoder.in_chans * encoder.tubelet_size * encoder.patch_size**2
    kept = math.prod(grid) * (pixels + 4 * width + config.num_pooler_layers * block + query)
    state = 4 * frozen + (sum(STATE_BYTES.values()) + half) * trained
    return {"state": state, "clip": max(kept, forward_bytes(encoder, grid, mixed_precision))}


# ---------------------------------------------------------------------------------------------------------------------
# The plan of a config
# ---------------------------------------------------------------------------------------------------------------------
@dataclass
class PlannedRun:
    """The keys of a pretraining config that decide what it costs; defaults are the script's."""

    batch_size: int = 16
    max_steps: int = 1000
    frames_per_clip: int = 16
    crop_size: int = 256
    encoder: dict[str, Any] = field(default_factory=dict)
    predictor: dict[str, Any] = field(default_factory=dict)
    init_from: str | None = None
    masks: list[dict[str, Any]] = field(default_factory=lambda: [dict(spec) for spec in PUBLISHED_MASKS])
    target_type: Literal["ema", "online", "pixels"] = "ema"
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    gradient_checkpointing: bool = False

    def __post_init__(self):
        for name in ("batch_size", "max_steps", "frames_per_clip", "crop_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")

    def model_config(self) -> VJepa2MaskedLatentPredictionConfig:
        """The model's sizes; what does not change them is left at its default."""
        if self.init_from and not os.path.isdir(self.init_from):
            raise ValueError(
                f"init_from={self.init_from} is not there, so the model's sizes are not known; give "
                "init_from=null encoder='{hidden_size: ...}' predictor='{...}'."
            )
        if self.init_from:
            return VJepa2MaskedLatentPredictionConfig.from_pretrained(self.init_from)
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_ratio")
        clip = {"frames_per_clip": self.frames_per_clip, "crop_size": self.crop_size}
        return VJepa2MaskedLatentPredictionConfig(
            encoder_config={**clip, **self.encoder},
            **{f"predictor_{name}": self.predictor[name] for name in sizes if name in self.predictor},
            target_type=self.target_type,
        )


def draw_masks(run: PlannedRun, grid: tuple[int, int, int], draws: int = 32) -> list[list[tuple[int, int]]]:
    """(K, M) of every mask set in each of some batches: attention is quadratic, so a mean would not do."""
    samplers, generator = build_mask_samplers(run.masks), torch.Generator().manual_seed(0)
    sizes = []
    for _ in range(draws):
        drawn = [sampler(run.batch_size, grid, generator) for sampler in samplers]
        sizes.append([(context.shape[1], target.shape[1]) for context, target in drawn])
    return sizes


def plan(run: PlannedRun, device: Device, num_devices: int, global_batch: int, utilization: float) -> dict[str, Any]:
    """What a run costs on `num_devices` devices, in bytes, operations and seconds.

    Args:
        run: the config.
        device: each of them.
        num_devices: they share the batch; FSDP shards over all of them.
        global_batch: clips a step; micro-batches are accumulated where devices and `batch_size` fall short of it.
        utilization: share of the device's peak that the operations done reach, those that checkpointing repeats
            among them; an assumption.

    Raises:
        ValueError: a global batch that devices and micro-batches do not divide.
    """
    if global_batch % (num_devices * run.batch_size):
        raise ValueError(
            f"global_batch={global_batch} is no multiple of num_devices={num_devices} times "
            f"batch_size={run.batch_size}; choose another batch_size."
        )
    config, precision = run.model_config(), run.mixed_precision or "no"
    encoder = config.encoder_config
    side = run.crop_size // encoder.patch_size
    grid = (run.frames_per_clip // encoder.tubelet_size, side, side)
    masks = draw_masks(run, grid)
    flops = [step_flops(config, grid, sizes) for sizes in masks]
    clip = {name: sum(each[name] for each in flops) / len(flops) for name in flops[0]}
    model = clip["target_encoder"] + clip["encoder"] + clip["predictor"]
    done = model + (clip["repeated"] if run.gradient_checkpointing else 0)
    peak = device.single if precision == "no" else device.half
    step_seconds = done * global_batch / num_devices / (peak * utilization)
    parameters, accumulation = count_parameters(config), global_batch // (num_devices * run.batch_size)
    memory = {
        name: {
            "state": state_bytes(parameters, precision, shards, accumulation > 1),
            "activations": {
                kept: run.batch_size
                * sum(activation_bytes(config, grid, sizes, precision, kept) for sizes in masks)
                / len(masks)
                for kept in (True, False)
            },
        }
        for name, shards in {"DDP": 1, "FSDP": num_devices}.items()
    }
    return {
        "parameters": parameters,
        "grid": grid,
        "kept": [sum(sizes[i][0] for sizes in masks) / len(masks) / math.prod(grid) for i in range(len(run.masks))],
        "accumulation": accumulation,
        "flops_per_clip": {**clip, "model": model, "done": done},
        "step_seconds": step_seconds,
        "clips_per_second": global_batch / step_seconds,
        "model_flops_utilization": utilization * model / done,
        "days": run.max_steps * step_seconds / 86400,
        "memory": memory,
    }


def format_plan(title: str, run: PlannedRun, device: Device, plans: dict[int, dict[str, Any]]) -> str:
    """The plans of one config for several numbers of devices, as Markdown."""
    first = next(iter(plans.values()))
    flops, parameters = first["flops_per_clip"], first["parameters"]
    kept = ", ".join(f"{share:.2f}" for share in first["kept"])
    with_or_without = "with" if run.gradient_checkpointing else "without"
    lines = [
        f"### {title}",
        "",
        f"{parameters['encoder'] / 1e6:.0f} M parameters in the encoder, {parameters['predictor'] / 1e6:.0f} M in the "
        f"predictor; {math.prod(first['grid'])} tokens a clip, of which the mask sets keep {kept}; "
        f"{run.batch_size} clips a micro-batch, {run.mixed_precision or 'float32'}.",
        f"{flops['model'] / 1e12:.2f} TFLOP a clip: target encoder {flops['target_encoder'] / 1e12:.2f}, encoder "
        f"{flops['encoder'] / 1e12:.2f}, predictor {flops['predictor'] / 1e12:.2f}; checkpointing repeats "
        f"{flops['repeated'] / 1e12:.2f}" + ("." if run.gradient_checkpointing else " (off)."),
        "",
        "| devices | micro-batches a step | clips/s | s a step | days for "
        f"{run.max_steps} steps | way | weights | gradients | AdamW | EMA | copies | activations | of them with "
        f"checkpointing | GB in all, {with_or_without} checkpointing (of {device.memory:g}) |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for number, found in plans.items():
        speed = f"{found['clips_per_second']:.0f} | {found['step_seconds']:.2f} | {found['days']:.1f}"
        for way, memory in found["memory"].items():
            state = " | ".join(f"{size / 1e9:.1f}" for size in memory["state"].values())
            plain, checkpointed = memory["activations"][False], memory["activations"][True]
            total = sum(memory["state"].values()) + (checkpointed if run.gradient_checkpointing else plain)
            fits = "" if total / 1e9 < 0.9 * device.memory else ", does not fit"
            lines.append(
                f"| {number} | {found['accumulation']} | {speed} | {way} | {state} | {plain / 1e9:.1f} | "
                f"{checkpointed / 1e9:.1f} | {total / 1e9:.1f}{fits} |"
            )
    return "\n".join(lines)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", required=True, metavar="FILE", help="configs of examples/pretrain.py")
    parser.add_argument("--device", required=True, choices=sorted(DEVICES), help="GPU")
    parser.add_argument("--num_devices", nargs="+", default=["8"], metavar="N", help="numbers of GPUs (default 8)")
    parser.add_argument("--global_batch", type=int, help="clips a step (default: batch_size times the most devices)")
    parser.add_argument("--utilization", type=float, default=0.4, help="share of the peak reached (default 0.4)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the files'")
    arguments = parser.parse_intermixed_args(argv)
    for name in ("config", "num_devices"):  # `--config FILE key=value`: argparse counts the setting among the files
        words = getattr(arguments, name)
        arguments.overrides += [word for word in words if "=" in word]
        setattr(arguments, name, [word for word in words if "=" not in word])
    wrong = [word for word in arguments.num_devices if not word.isdecimal()]
    if wrong:
        raise ValueError(f"num_devices are whole numbers, got {wrong[0]!r}.")
    arguments.num_devices = [int(word) for word in arguments.num_devices]
    if not 0 < arguments.utilization <= 1:
        raise ValueError(f"utilization lies above 0 and at most 1, got {arguments.utilization}.")
    if min(arguments.num_devices) < 1:
        raise ValueError(f"num_devices must be at least 1, got {min(arguments.num_devices)}.")
    return arguments


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Prints the plan of every config as Markdown."""
    arguments = parse_arguments(argv)
    device = DEVICES[arguments.device]
    texts = [
        f"{device.name}: {device.half / 1e12:.0f} TFLOP/s in bf16, {device.memory:g} GB ({device.source}); "
        f"{arguments.utilization:.0%} of it assumed to be reached. An estimate by formula, not a measurement."
    ]
    for path in arguments.config:
        run = load_config(PlannedRun, path, arguments.overrides, part=True)
        batch = arguments.global_batch or run.batch_size * max(arguments.num_devices)
        plans = {n: plan(run, device, n, batch, arguments.utilization) for n in arguments.num_devices}
        texts.append(format_plan(f"{path}, {batch} clips a step", run, device, plans))
    print("\n\n".join(texts))  # noqa: T201 (a command's result)


if __name__ == "__main__":
    main()
