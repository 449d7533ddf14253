"""20 steps of pretraining on fixed clips and masks, by one process or as one of several that share them.

    torchrun --nproc_per_node 2 tests/equal_training.py OUT_DIR ddp|fsdp

The script's own train_step, optimiser and EMA. The main process writes OUT_DIR/result.pt: the losses, the gradients'
norms, and all weights, whole. "fsdp" is Accelerate's way on a mesh of CPUs, with the settings of the shipped config;
it also goes through a checkpoint half way.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pretrain
import torch
import yaml
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType, set_seed
from pretrain import Clock, PretrainConfig, build_model, train_step

from vjepa2_hf.training import run as training
from vjepa2_hf.training.schedules import parameter_groups
from vjepa2_hf.training.settings import load_config


STEPS, CLIPS = 20, 4
FSDP_CONFIG = Path(pretrain.__file__).parent / "configs" / "accelerate" / "fsdp.yaml"
SETTINGS = [
    "data=none",
    "frames_per_clip=4",
    "crop_size=16",
    "encoder={hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, patch_size: 8, initializer_range: 0.2}",
    "predictor={hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2}",
    "gradient_clipping=0.5",
]


def shares(rank: int, processes: int, micro_batches: int, first_step: int = 0) -> Iterator[dict[str, Any]]:
    """This process's micro-batches of every step; all shares of a step together are the same clips and masks."""
    for step in range(first_step, STEPS):
        generator = torch.Generator().manual_seed(step)
        clips = torch.randn(CLIPS, 4, 3, 16, 16, generator=generator)
        ids = torch.rand(2, CLIPS, 8, generator=generator).argsort(-1)
        parts = torch.arange(CLIPS).chunk(processes * micro_batches)
        for rows in parts[rank * micro_batches : (rank + 1) * micro_batches]:
            yield {
                "pixel_values_videos": clips[rows],
                "context_mask": [ids[0, rows, :3], ids[1, rows, :5]],
                "target_mask": [ids[0, rows, 3:], ids[1, rows, 5:]],
                "clip_names": [f"step {step}, row {row}" for row in rows.tolist()],
            }


def prepare(output_dir: Path, accelerator: Accelerator, micro_batches: int):
    settings = [*SETTINGS, f"output_dir={output_dir}", f"gradient_accumulation_steps={micro_batches}"]
    config = load_config(PretrainConfig, None, settings)
    set_seed(0)
    model = build_model(config).train()
    groups = parameter_groups(model, config.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=1e-3, fused=True)
    return training.Run(output_dir, config, accelerator), *accelerator.prepare(model, optimizer)


def train(output_dir: Path, accelerator: Accelerator, micro_batches: int = 1, stop_at: int | None = None) -> dict:
    """All steps; with `stop_at` a checkpoint is written there and everything is built anew from it."""
    run, model, optimizer = prepare(output_dir, accelerator, micro_batches)
    found, step = {"loss": [], "gradient_norm": []}, 0
    ways = accelerator.process_index, accelerator.num_processes, micro_batches
    batches = shares(*ways)
    while step < STEPS:
        step += 1
        numbers, _ = train_step(run, model, optimizer, batches, Clock(), step)
        accelerator.unwrap_model(model).update_target_encoder(0.9)
        for name, values in found.items():
            values.append(numbers[name])
        if step == stop_at:
            run.save_checkpoint(step)
            accelerator.free_memory()
            run, model, optimizer = prepare(output_dir, accelerator, micro_batches)
            assert run.resume("latest")[0] == step
            batches = shares(*ways, first_step=step)
    run.save_final(model)
    found["weights"] = {
        name: parameter.detach().clone() for name, parameter in accelerator.get_state_dict(model).items()
    }
    return found


def sharding_accelerator() -> Accelerator:
    """Accelerate's FSDP as the shipped config sets it. On a CPU Accelerate would leave it out in silence, and our
    scripts refuse it; here it is made to shard, so that what GPUs do is tested."""
    settings = yaml.safe_load(FSDP_CONFIG.read_text())["fsdp_config"]
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=settings["fsdp_version"],
        auto_wrap_policy=settings["fsdp_auto_wrap_policy"].lower(),
        transformer_cls_names_to_wrap=settings["fsdp_transformer_layer_cls_to_wrap"].split(","),
        reshard_after_forward=settings["fsdp_reshard_after_forward"],
        state_dict_type=settings["fsdp_state_dict_type"],
        cpu_ram_efficient_loading=settings["fsdp_cpu_ram_efficient_loading"],
    )
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
    # every AcceleratorState() that Accelerate makes later reads the process's state again
    PartialState._shared_state["distributed_type"] = accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin
    training.check_sharding = lambda accelerator: None
    return accelerator


def main(output_dir: Path, way: str) -> None:
    accelerator = sharding_accelerator() if way == "fsdp" else Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    found = train(output_dir, accelerator, stop_at=STEPS // 2 if way == "fsdp" else None)
    if accelerator.is_main_process:
        torch.save(found, output_dir / "result.pt")
    accelerator.wait_for_everyone()  # a rank that leaves while another still works can abort it at its exit
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
