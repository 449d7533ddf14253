"""A pretraining step of one process of a group, for `growth.py`: CPU time per clip, and peak memory.

    torchrun --nproc_per_node 2 benchmarks/growth_processes.py FOLDER STEPS

Every process measures steps that exchange gradients, and in turn steps that do not: processes share caches and memory
bandwidth, so two may take longer than one without any exchange. Each writes a JSON file into the folder.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import vjepa2_cli  # noqa: F401 (a quick --help)
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import DistributedDataParallelKwargs
from bench import ENVIRONMENT
from comparisons import MASK_TOKEN, TINY, PretrainingPair
from growth_cases import RETURNING, SMALL
from measure import timed
from memory import peak_bytes, reset_peak
from shard_memory import resident

from vjepa2_hf.data.files import write_json
from vjepa2_hf.training.processes import build_accelerator


CLIPS = 2  # of a process


class Step:
    """A pretraining step of this process: gradients of both mask sets, AdamW, EMA, as in examples/pretrain.py."""

    def __init__(self, tiny: bool):
        options = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
        self.accelerator = build_accelerator(kwargs_handlers=[options])
        self.pair = PretrainingPair(TINY, CLIPS, 4, 64) if tiny else PretrainingPair(SMALL, CLIPS, 16, 128)
        del self.pair.other, self.pair.other_target
        self.model = self.accelerator.prepare(self.pair.model)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def __call__(self, exchanges: bool) -> None:
        masks, targets = list(zip(self.pair.context_masks, self.pair.target_masks, strict=True)), None
        for number, (context, target) in enumerate(masks):
            waits = not exchanges or number + 1 < len(masks)  # gradients are exchanged after the last set
            with self.accelerator.no_sync(self.model) if waits else contextlib.nullcontext():
                options = {"output_targets": True, "targets": targets}
                output = self.model(self.pair.clips, context, target, MASK_TOKEN, **options)
                self.accelerator.backward(output.loss / len(masks))
            targets = output.targets
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.pair.model.update_target_encoder(momentum=0.998)


def measure_time(step: Step, steps: int) -> dict[str, float]:
    """CPU seconds per clip of this process, with and without an exchange: medians of steps in turn."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for exchanges in (True, True, False):  # DDP arranges its buckets anew in the second step
        step(exchanges)
    for number in range(steps):
        for exchanges in seconds if number % 2 == 0 else reversed(seconds):
            step.accelerator.wait_for_everyone()  # all processes compute at the same time
            seconds[exchanges].append(timed(partial(step, exchanges))[0] / CLIPS)
    return {"exchanging": statistics.median(seconds[True]), "apart": statistics.median(seconds[False])}


def measure_memory(step: Step) -> dict[str, float]:
    """Peak bytes of a step of this process, beyond weights and the optimizer's state."""
    for _ in range(3):
        step(True)
    reset_peak()
    before = resident()
    step(True)
    return {"bytes": peak_bytes() - before}


def launch(processes: int, steps: int, tiny: bool) -> dict[str, float]:
    """`measure_time`, or with 0 steps `measure_memory`, in a group of processes: means over them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "localhost:0", "--nproc_per_node", str(processes), __file__]
    environment = {**os.environ, **(ENVIRONMENT if steps else RETURNING)}
    with tempfile.TemporaryDirectory() as folder:
        command += [folder, str(steps), *(["--tiny"] if tiny else [])]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        found = [json.loads(path.read_text(encoding="utf-8")) for path in Path(folder).glob("*.json")]
    if done.returncode or len(found) != processes:
        raise RuntimeError(f"torchrun failed: {done.stderr[-2000:]}")
    return {name: statistics.mean(one[name] for one in found) for name in found[0]}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for the results")
    parser.add_argument("steps", type=int, help="to time; 0: memory is measured, and no time")
    parser.add_argument("--tiny", action="store_true", help="as small as it goes")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    step = Step(options.tiny)
    found = measure_time(step, options.steps) if options.steps else measure_memory(step)
    write_json(options.folder / f"{step.accelerator.process_index}.json", found)
    step.accelerator.end_training()


if __name__ == "__main__":
    main()
