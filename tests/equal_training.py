"""20 steps of pretraining on fixed clips and masks, by one process or as one of several that share them.

    torchrun --nproc_per_node 2 tests/equal_training.py OUT_DIR ddp|fsdp

The script's own objective, optimizer and EMA. The main process writes OUT_DIR/result.pt: the losses, the gradients'
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
from pretrain import Objective, PretrainConfig, build_model

from vjepa2_hf.training import run as training
from vjepa2_hf.training.loop import TrainingLoop
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
    "learning_rate={schedule: constant, peak: 1e-3}",
]


def shares(
    rank: int, processes: int, micro_batches: int, first_step: int = 0
) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """This process's micro-batches of every step; all shares of a step together are the same clips and masks."""
    for step in range(first_step, STEPS):
        generator = torch.Generator().manual_seed(step)
        clips = torch.randn(CLIPS, 4, 3, 16, 16, generator=generator)
        ids = torch.rand(2, CLIPS, 8, generator=generator).argsort(-1)
        parts = torch.arange(CLIPS).chunk(processes * micro_batches)
        for rows in parts[rank * micro_batches : (rank + 1) * micro_batches]:
            names = [f"step {step}, row {row}" for row in rows.tolist()]
            inputs = {
                "pixel_values_videos": clips[rows],
                "context_mask": [ids[0, rows, :3], ids[1, rows, :5]],
                "target_mask": [ids[0, rows, 3:], ids[1, rows, 5:]],
            }
            yield names, {"video": inputs}


def prepare(output_dir: Path, accelerator: Accelerator, micro_batches: int, resume: str | None = None) -> TrainingLoop:
    settings = [*SETTINGS, f"output_dir={output_dir}", f"gradient_accumulation_steps={micro_batches}"]
    config = load_config(PretrainConfig, None, [*settings, f"max_steps={STEPS}", f"save_every={STEPS // 2}"])
    config.resume = resume
    loop = TrainingLoop(config, "pretrain", accelerator)
    set_seed(0)
    model = build_model(config).train()
    loop.prepare(model, torch.optim.AdamW(parameter_groups(model, config.weight_decay), fused=True))
    return loop


def train(output_dir: Path, accelerator: Accelerator, micro_batches: int = 1, stop_at: int | None = None) -> dict:
    """All steps; with `stop_at` everything is built anew from the checkpoint of that step."""
    found = {"loss": [], "gradient_norm": []}
    ways = accelerator.process_index, accelerator.num_processes, micro_batches
    loop = prepare(output_dir, accelerator, micro_batches)
    steps(loop, shares(*ways), found, stop_at)
    if stop_at is not None:
        accelerator.free_memory()
        loop = prepare(output_dir, accelerator, micro_batches, resume="latest")
        assert loop.start == stop_at
        steps(loop, shares(*ways, first_step=stop_at), found)
    loop.run.save_final(loop.model)
    found["weights"] = {
        name: parameter.detach().clone() for name, parameter in accelerator.get_state_dict(loop.model).items()
    }
    return found


def steps(loop: TrainingLoop, batches: Iterator, found: dict[str, list], stop_at: int | None = None) -> None:
    """The steps that are left, until `stop_at`, at a constant learning rate."""
    objective = Objective(loop)
    for step in loop.steps():
        numbers = loop.update(batches, objective)
        loop.accelerator.unwrap_model(loop.model).update_target_encoder(0.9)
        for name, values in found.items():
            values.append(numbers[name])
        loop.save_checkpoint()
        if step == stop_at:
            return


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
