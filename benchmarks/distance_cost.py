"""CPU time of a plan with a learned temporal distance, as a ratio to a plan with latent distance alone.

    python benchmarks/distance_cost.py                                         # the demo's sizes, random weights
    python benchmarks/distance_cost.py --model runs/demo/world_model_distance/final

Plans in turn with `LatentDistance()` and with the default of `Closest()`, which adds the temporal distance, on one
thread: CEM with 128 candidates, 3 iterations and 3 steps, and both images encoded. Prints the median ratio
of paired rounds and its quartiles, and writes the section `distance_cost` of `results.json`.
"""

import argparse
import json
import statistics
import sys
import time
import vjepa2_cli  # noqa: F401 (a quick --help)
from pathlib import Path
from typing import Any

from bench import describe_machine, restart_with_fixed_allocator, write_json


COST = {"cost": "closest"}
SOLVER = {"solver": "cem", "horizon": 3, "num_candidates": 128, "num_iterations": 3, "num_elites": 12}
# The demo's world model
ENCODER = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "crop_size": 64, "patch_size": 16}
WORLD_MODEL = {
    "action_dim": 4,
    "frame_skip": 2,
    "actions_per_step": 2,
    "context_frames": 1,
    "residual": True,
    "action_encoder_num_layers": 2,
    "predictor_hidden_size": 64,
    "predictor_num_hidden_layers": 2,
    "predictor_num_attention_heads": 4,
    "predictor_position_embedding_type": "learned",
}


def build_planner(model: Path | None):
    from vjepa2_hf import (
        VJepa2Encoder,
        VJepa2EncoderConfig,
        VJepa2Planner,
        VJepa2VideoProcessor,
        VJepa2WorldModel,
    )

    if model is not None:
        planner = VJepa2Planner.from_pretrained(model, device="cpu", **SOLVER)
    else:
        encoder = VJepa2Encoder(VJepa2EncoderConfig(**ENCODER))
        built = VJepa2WorldModel.from_encoder(encoder, **WORLD_MODEL).eval()
        planner = VJepa2Planner(built, VJepa2VideoProcessor(size=64, crop_size=64), device="cpu", **SOLVER)
    if not planner.model.config.distance_head:
        planner.model.add_distance_head()
    return planner


def measure(planner: Any, rounds: int) -> dict[str, Any]:
    """CPU milliseconds of a plan of both costs, medians, and the ratio of paired rounds."""
    import numpy as np

    size = planner.model.config.encoder_config.crop_size
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    times: dict[str, list[float]] = {"latent": [], "learned": []}
    for number in range(rounds + 2):
        names = list(times) if number % 2 else list(times)[::-1]  # neither is always first
        for name in names:
            started = time.process_time()
            planner(*images, cost=COST if name == "learned" else "l2", seed=number)
            if number >= 2:  # the first ones fill caches
                times[name].append(1000 * (time.process_time() - started))
    ratios = [learned / latent for learned, latent in zip(times["learned"], times["latent"], strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    milliseconds = {name: statistics.median(values) for name, values in times.items()}
    return {"rounds": rounds, "milliseconds": milliseconds, "ratio": {"median": median, "quartiles": [low, high]}}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measures, prints the ratio and writes it into the JSON; returns what it wrote."""
    import torch

    arguments = parse_arguments(arguments)
    torch.set_num_threads(1)
    section = {"machine": describe_machine(), **measure(build_planner(arguments.model), arguments.rounds)}
    times, ratio = section["milliseconds"], section["ratio"]
    print(
        f"CPU ms of a plan: {times['latent']:.1f} latent distance, {times['learned']:.1f} with the learned distance; "
        f"ratio {ratio['median']:.3f} (quartiles {ratio['quartiles'][0]:.3f} to {ratio['quartiles'][1]:.3f}, "
        f"{section['rounds']} paired rounds)"
    )
    results = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    write_json({**results, "distance_cost": section}, arguments.output)
    print(f"written to {arguments.output}", file=sys.stderr)
    return section


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a world model; without a distance head it gets one")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results.json"), help="JSON file")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    parse_arguments()  # wrong arguments are reported before the restart
    restart_with_fixed_allocator()
    main()
