"""Estimates of memory, operations and time of a pretraining run on a number of GPUs.

    python -m vjepa2_hf.training.capacity --config examples/configs/published/pretrain_vitl.yaml --device h100 \\
        --num_devices 8 64 [--global_batch 3072] [--utilization 0.4] [key=value ...]

Operations and memory follow formulas, see `training.flops` and `training.memory`. Time does not include the network: a
slow one lowers the utilization.

Letters: K tokens of a context, M of a target.
"""

import argparse
import math
import os
from collections.abc import Sequence
from typing import Any

import torch

from ..configuration_vjepa2 import VJepa2MaskedLatentPredictionConfig
from ..masking import build_mask_samplers
from .flops import DEVICES, Device, step_flops
from .memory import activation_bytes, count_parameters, state_bytes
from .pretraining import PretrainConfig, build_model_config, check_model
from .settings import exit_on_user_error, load_config


IMAGES = "Images are not counted: the numbers are of devices that train on clips alone."


def model_config(run: PretrainConfig) -> VJepa2MaskedLatentPredictionConfig:
    """The config of the run's model."""
    if run.init_from is None:
        config = build_model_config(run)
    elif os.path.isdir(run.init_from):
        config = VJepa2MaskedLatentPredictionConfig.from_pretrained(run.init_from)
    else:
        raise ValueError(
            f"init_from={run.init_from} does not exist, so the model's sizes are unknown; give "
            "init_from=null encoder='{hidden_size: ...}' predictor='{...}'."
        )
    check_model(run, config)
    return config


def sample_masks(run: PretrainConfig, grid: tuple[int, int, int], samples: int = 32) -> list[list[tuple[int, int]]]:
    """(K, M) of every mask set in each of several batches; attention is quadratic, so a mean would not be enough."""
    samplers, generator = build_mask_samplers(run.masks), torch.Generator().manual_seed(0)
    batches = [[sampler(run.batch_size, grid, generator) for sampler in samplers] for _ in range(samples)]
    return [[(context.shape[1], target.shape[1]) for context, target in batch] for batch in batches]


def plan(
    run: PretrainConfig, device: Device, num_devices: int, global_batch: int, utilization: float
) -> dict[str, Any]:
    """The cost of a run in bytes, operations and seconds.

    Args:
        num_devices: they share the batch; FSDP shards over all of them.
        global_batch: clips per step, accumulated over micro-batches of `batch_size` per device.
        utilization: assumed fraction of the device's peak, counting the repeats of checkpointing as done.
    """
    if global_batch % (num_devices * run.batch_size):
        raise ValueError(
            f"global_batch={global_batch} must be a multiple of num_devices={num_devices} times "
            f"batch_size={run.batch_size}; choose another batch_size."
        )
    config, precision = model_config(run), run.mixed_precision or "no"
    encoder, side = config.encoder_config, run.crop_size // config.encoder_config.patch_size
    grid = (run.frames_per_clip // encoder.tubelet_size, side, side)
    masks = sample_masks(run, grid)
    flops = [step_flops(config, grid, sizes) for sizes in masks]
    clip = {name: sum(each[name] for each in flops) / len(flops) for name in flops[0]}
    model = clip["target_encoder"] + clip["encoder"] + clip["predictor"]
    done = model + (clip["repeated"] if run.gradient_checkpointing else 0)
    peak = device.single if precision == "no" else device.half
    step_seconds = done * global_batch / num_devices / (peak * utilization)
    parameters, accumulation = count_parameters(config), global_batch // (num_devices * run.batch_size)
    activations = {}
    for checkpointing in (True, False):
        clips = [activation_bytes(config, grid, sizes, precision, checkpointing) for sizes in masks]
        activations[checkpointing] = run.batch_size * sum(clips) / len(clips)
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
        "activations": activations,
        "state": {
            name: state_bytes(parameters, precision, shards, accumulation > 1)
            for name, shards in {"DDP": 1, "FSDP": num_devices}.items()
        },
    }


def format_plan(title: str, run: PretrainConfig, device: Device, plans: dict[int, dict[str, Any]]) -> str:
    """The plans of one config for several numbers of devices, as Markdown."""
    first = next(iter(plans.values()))
    tera = {name: f"{flops / 1e12:.2f}" for name, flops in first["flops_per_clip"].items()}
    kept = ", ".join(f"{fraction:.2f}" for fraction in first["kept"])
    with_or_without = "with" if run.gradient_checkpointing else "without"
    plain, checkpointed = (first["activations"][kept] / 1e9 for kept in (False, True))
    columns = [
        "devices", "micro-batches per step", "clips/s", "s per step", f"days for {run.max_steps} steps", "sharding",
        "weights", "gradients", "AdamW", "EMA", "copies", "activations", "activations with checkpointing",
        f"GB in all, {with_or_without} checkpointing (of {device.memory:g})",
    ]  # fmt: skip
    lines = [
        f"### {title}",
        "",
        f"{first['parameters']['encoder'] / 1e6:.0f} M parameters in the encoder, "
        f"{first['parameters']['predictor'] / 1e6:.0f} M in the predictor; {math.prod(first['grid'])} tokens per "
        f"clip, of which the mask sets keep {kept}; {run.batch_size} clips per micro-batch, "
        f"{run.mixed_precision or 'float32'}.",
        f"{tera['model']} TFLOP per clip: target encoder {tera['target_encoder']}, encoder {tera['encoder']}, "
        f"predictor {tera['predictor']}; checkpointing repeats {tera['repeated']}"
        + ("." if run.gradient_checkpointing else " (off)."),
        *(["", IMAGES] if run.images is not None else []),
        "",
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
    ]
    for number, found in plans.items():
        speed = f"{found['clips_per_second']:.0f} | {found['step_seconds']:.2f} | {found['days']:.1f}"
        for sharding, state in found["state"].items():
            total = sum(state.values()) / 1e9 + (checkpointed if run.gradient_checkpointing else plain)
            sizes = " | ".join(
                f"{size:.1f}" for size in [*(s / 1e9 for s in state.values()), plain, checkpointed, total]
            )
            fits = "" if total < 0.9 * device.memory else ", does not fit"
            lines.append(f"| {number} | {found['accumulation']} | {speed} | {sharding} | {sizes}{fits} |")
    return "\n".join(lines)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of the command; a wrong one ends it with a usage message."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", required=True, metavar="FILE", help="configs of examples/pretrain.py")
    parser.add_argument("--device", required=True, choices=sorted(DEVICES), help="GPU")
    parser.add_argument("--num_devices", nargs="+", default=["8"], metavar="N", help="numbers of GPUs (default 8)")
    parser.add_argument("--global_batch", type=int, help="clips per step (default: batch_size times the most devices)")
    parser.add_argument("--utilization", type=float, default=0.4, help="fraction of the peak reached (default 0.4)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the files'")
    arguments = parser.parse_intermixed_args(argv)
    for name in ("config", "num_devices"):  # argparse takes the key=value after `--config FILE` for another file
        words = getattr(arguments, name)
        arguments.overrides += [word for word in words if "=" in word]
        setattr(arguments, name, [word for word in words if "=" not in word])
    for word in arguments.num_devices:
        if not word.isdecimal() or int(word) < 1:
            raise ValueError(f"num_devices are whole numbers of at least 1, got {word!r}.")
    arguments.num_devices = [int(word) for word in arguments.num_devices]
    if not 0 < arguments.utilization <= 1:
        raise ValueError(f"utilization must be above 0 and at most 1, got {arguments.utilization}.")
    return arguments


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Prints the plan of every config as Markdown."""
    arguments = parse_arguments(argv)
    device = DEVICES[arguments.device]
    texts = [
        f"{device.name}: {device.half / 1e12:.0f} TFLOP/s in bf16, {device.memory:g} GB ({device.source}); assumed "
        f"utilization {arguments.utilization:.0%}. These are estimates by formula, not measurements."
    ]
    for path in arguments.config:
        run = load_config(PretrainConfig, path, ["output_dir=none", *arguments.overrides])
        batch = arguments.global_batch or run.batch_size * max(arguments.num_devices)
        plans = {n: plan(run, device, n, batch, arguments.utilization) for n in arguments.num_devices}
        texts.append(format_plan(f"{path}, {batch} clips per step", run, device, plans))
    print("\n\n".join(texts))  # noqa: T201 (a command's result)


if __name__ == "__main__":
    main()
