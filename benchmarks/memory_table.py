"""Memory of the released models by clip length and resolution: estimates by formula, and their check.

    python benchmarks/memory_table.py                 # docs/memory.md; a few minutes on one core
    python benchmarks/memory_table.py --estimates     # the estimates alone, printed; seconds

The estimates are `vjepa2_hf.training.capacity`'s, for one GPU. The check runs small cases on
this machine, each in a process of its own: the highest resident memory above that of the imports, next to
the estimate for the same case in float32.
Results go to `results/memory.json`, and into docs/memory.md between its markers.
"""

import argparse
import json
import os
import subprocess
import sys
import vjepa2_cli  # noqa: F401 (a quick --help)
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from memory import peak_bytes

from vjepa2_hf import (
    VJepa2Encoder,
    VJepa2ForMaskedLatentPrediction,
    VJepa2ForVideoClassification,
    VJepa2MaskedLatentPredictionConfig,
    VJepa2VideoClassificationConfig,
)
from vjepa2_hf.masking import PUBLISHED_MASKS, build_mask_samplers
from vjepa2_hf.training import capacity, memory


ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- memory:begin -->", "<!-- memory:end -->"
NAMES = {"base": "ViT-B", "large": "ViT-L", "huge": "ViT-H", "giant": "ViT-g", "small": "ViT-S"}
WAYS = {
    "inference": "features",
    "probe": "attentive probe, encoder frozen",
    "checkpointed": "pretraining, with checkpointing",
    "pretraining": "pretraining, without checkpointing",
}
# Big tensors go back to the system at once: resident memory is then what is in use
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144", "OMP_NUM_THREADS": "1"}
LANES = 3  # cases measured at the same time


@dataclass(frozen=True)
class Case:
    """A model on a batch of clips: preset, frames, pixels a side, clips, and one of WAYS."""

    size: str
    frames: int
    side: int
    clips: int
    way: str

    @property
    def config(self) -> VJepa2MaskedLatentPredictionConfig:
        clip = {"frames_per_clip": self.frames, "crop_size": self.side}
        return VJepa2MaskedLatentPredictionConfig.from_preset(self.size, encoder_config=clip)

    @property
    def grid(self) -> tuple[int, int, int]:
        encoder = self.config.encoder_config
        side = self.side // encoder.patch_size
        return self.frames // encoder.tubelet_size, side, side

    @property
    def classifier_config(self) -> VJepa2VideoClassificationConfig:
        return VJepa2VideoClassificationConfig(encoder_config=self.config.encoder_config.to_dict(), num_labels=100)


SIZES = ("base", "large", "huge", "giant")
CLIPS = tuple((frames, side) for frames in (16, 32, 64) for side in (256, 384))
CHECKED = tuple(Case("small", 16, 128, clips, way) for way in ("inference", "probe") for clips in (1, 4))
CHECKED += tuple(Case("small", 16, 128, 2, way) for way in ("checkpointed", "pretraining"))


def estimate(case: Case, mixed_precision: str, mask_samples: int = 32) -> dict[str, float]:
    """Bytes on one device: `state`, and `clips`, of all clips together.

    Args:
        case: features are computed by a bfloat16 model where training has bf16.
        mixed_precision: "no" or "bf16".
        mask_samples: of the published masks; pretraining takes their mean.
    """
    config, grid = case.config, case.grid
    if case.way == "inference":
        precision = "no" if mixed_precision == "no" else "bfloat16"
        state = (4 if precision == "no" else 2) * memory.count_parameters(config)["encoder"]
        return {"state": state, "clips": case.clips * memory.forward_bytes(config.encoder_config, grid, precision)}
    if case.way == "probe":
        found = memory.probe_bytes(case.classifier_config, grid, mixed_precision)
        return {"state": found["state"], "clips": case.clips * found["clip"]}
    sizes = {"batch_size": case.clips, "frames_per_clip": case.frames, "crop_size": case.side}
    run = capacity.PretrainConfig(output_dir="", data="", **sizes)
    masks = capacity.sample_masks(run, grid, mask_samples)
    checkpointed = case.way == "checkpointed"
    kept = [memory.activation_bytes(config, grid, sizes, mixed_precision, checkpointed) for sizes in masks]
    state = sum(memory.state_bytes(memory.count_parameters(config), mixed_precision).values())
    return {"state": state, "clips": case.clips * sum(kept) / len(kept)}


# ---------------------------------------------------------------------------------------------------------------------
# The check
# ---------------------------------------------------------------------------------------------------------------------
def run_case(case: Case) -> None:
    """What is measured: two steps, the second of which has the optimizer's state."""
    clips = torch.randn(case.clips, case.frames, 3, case.side, case.side)
    if case.way == "inference":
        encoder = VJepa2Encoder(case.config.encoder_config).eval()
        encoder.encode(clips)
        return
    if case.way == "probe":
        model = VJepa2ForVideoClassification(case.classifier_config)
        model.encoder.requires_grad_(False)
        optimizer = build_optimizer(model)
        for _ in range(2):
            model(clips, labels=torch.zeros(case.clips, dtype=torch.int64)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return
    model = VJepa2ForMaskedLatentPrediction(case.config).train()
    if case.way == "checkpointed":
        model.activation_checkpointing_enable()
    optimizer, generator = build_optimizer(model), torch.Generator().manual_seed(0)
    masks = [sampler(case.clips, case.grid, generator) for sampler in build_mask_samplers(PUBLISHED_MASKS)]
    for _ in range(2):
        pretrain_step(model, clips, masks)
        optimizer.step()
        optimizer.zero_grad()
        model.update_target_encoder(0.999)


def build_optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)


def pretrain_step(model: VJepa2ForMaskedLatentPrediction, clips: torch.Tensor, mask_sets: list) -> None:
    """Backward after each mask set, as examples/pretrain.py does."""
    targets = None
    for masks in mask_sets:
        output = model(clips, *masks, 0, output_targets=True, targets=targets)
        (output.loss / len(mask_sets)).backward()
        targets = output.targets


def measure(case: Case) -> int:
    """Peak bytes of a case, above those of the imports, in a process of its own."""
    command = [sys.executable, __file__, "--case", json.dumps(asdict(case))]
    done = subprocess.run(command, env={**os.environ, **ALLOCATOR}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{case} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout)["bytes"]


def measure_here(case: Case) -> dict[str, int]:
    torch.set_num_threads(1)
    before = peak_bytes()
    run_case(case)
    return {"bytes": peak_bytes() - before}


# ---------------------------------------------------------------------------------------------------------------------
# The tables
# ---------------------------------------------------------------------------------------------------------------------
def collect_estimates(sizes, clips) -> list[dict[str, Any]]:
    """One row per model and clip size, with the estimate of every use, for one clip in bf16."""
    rows = []
    for size in sizes:
        for frames, side in clips:
            cases = {way: Case(size, frames, side, 1, way) for way in WAYS}
            found = {way: estimate(case, "bf16") for way, case in cases.items()}
            rows.append({"size": size, "frames": frames, "side": side, **found})
    return rows


def check(cases) -> list[dict[str, Any]]:
    """One row per case: measured and estimated bytes. Cases run side by side in their own processes."""

    def row(case: Case) -> dict[str, Any]:
        measured = measure(case)
        print(f"{case}: {measured} bytes", file=sys.stderr, flush=True)
        return {**asdict(case), "measured": measured, "estimated": sum(estimate(case, "no", mask_samples=1).values())}

    with ThreadPoolExecutor(LANES) as lanes:
        return list(lanes.map(row, cases))


def format_tables(results: dict[str, Any]) -> str:
    """Both tables as Markdown."""
    lines = ["GB on one GPU, bf16: bytes that do not depend on the batch + bytes per clip. By formula."]
    lines += ["", f"| encoder | clip | {' | '.join(WAYS.values())} |", "|---" * (len(WAYS) + 2) + "|"]
    for row in results["estimates"]:
        cells = [f"{row[way]['state'] / 1e9:.1f} + {digits(row[way]['clips'] / 1e9)}" for way in WAYS]
        lines.append(f"| {NAMES[row['size']]} | {row['frames']} × {row['side']}² | {' | '.join(cells)} |")
    if results["check"]:
        ratios = [row["measured"] / row["estimated"] for row in results["check"]]
        lines += [
            "",
            f"The check, in float32 on a CPU: measured over estimated lies between {min(ratios):.2f} and "
            f"{max(ratios):.2f}.",
            "",
            "| case | way | measured, MB | estimated, MB | ratio |",
            "|---|---|---|---|---|",
        ]
    for row in results["check"]:
        case = f"{NAMES[row['size']]}, {row['clips']} × {row['frames']} × {row['side']}²"
        numbers = [f"{row[name] / 1e6:.0f}" for name in ("measured", "estimated")]
        ratio = f"{row['measured'] / row['estimated']:.2f}"
        lines.append(f"| {' | '.join([case, WAYS[row['way']], *numbers, ratio])} |")
    return "\n".join(lines)


def digits(gigabytes: float) -> str:
    return f"{gigabytes:.2f}" if gigabytes < 1 else f"{gigabytes:.1f}"


def publish(results: dict[str, Any], path: Path, document: Path) -> None:
    """Writes the results, and the tables between the page's markers."""
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    before, rest = document.read_text(encoding="utf-8").split(BEGIN)
    text = f"{before}{BEGIN}\n{format_tables(results)}\n{END}{rest.split(END)[1]}"
    document.write_text(text, encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--estimates", action="store_true", help="measure and write nothing")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "memory.json")
    parser.add_argument("--document", type=Path, default=ROOT / "docs" / "memory.md", help="page with markers")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.case:
        print(json.dumps(measure_here(Case(**options.case))))
        return
    results = {"estimates": collect_estimates(SIZES, CLIPS), "check": [] if options.estimates else check(CHECKED)}
    if not options.estimates:
        publish(results, options.results, options.document)
    print(format_tables(results))


if __name__ == "__main__":
    main()
