"""CPU time and results in bfloat16 next to float32: encoder, steps of pretraining and of a world model, CEM plan.

    python benchmarks/bfloat16.py --publish                        # minutes on 2 idle cores
    python benchmarks/bfloat16.py --pushing runs/demo --publish    # after `make demo`: also the success of plans
    python benchmarks/bfloat16.py --table --publish                # measures nothing: the tables of the JSON again
    python benchmarks/bfloat16.py --tiny                           # seconds; the numbers mean nothing

Both types run in turn in one process, on one thread, next to the product of two matrices of 1024 x 1024 in each.
Training keeps float32 weights and computes under autocast, as `mixed_precision=bf16` does; the encoder and the plan
have bfloat16 weights, as `dtype="bfloat16"` loads them. Results are compared with float32: outputs, the loss after
some steps on the same data and weights for three random seeds, and the costs of candidates. A profile shows the
operators. Writes `bfloat16.json` and, with `--publish`, a section of docs/costs.md.
"""

import argparse
import copy
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench import (
    describe_machine,
    measure_tables,
    parse_table_options,
    restart_with_fixed_allocator,
    run_with_errors,
)


ROOT = Path(__file__).resolve().parents[1]
DTYPES = ("float32", "bfloat16")
SEEDS = (0, 1, 2)
LAST = 10  # steps whose mean loss is compared
ACTIONS = 7
SHOWN = 0.03  # of the time in either type; other operators are summed up


@dataclass(frozen=True)
class Sizes:
    """Of the models that are timed (`size`, a name in comparisons.py) and of those that are trained (`trained`)."""

    size: str = "VIT_S"
    side: int = 128
    frames: int = 16
    clips: int = 2
    windows: int = 8
    horizon: int = 5
    candidates: int = 16
    compared: int = 64  # candidates whose costs are compared
    rounds: int = 7
    steps: int = 100
    tasks: int = 100

    @property
    def model(self) -> Any:
        import comparisons

        return getattr(comparisons, self.size)

    @property
    def trained(self) -> Any:
        from comparisons import ModelSize

        return ModelSize(encoder=(96, 4, 4), predictor=(48, 2, 4), dynamics=(96, 2, 4), patch_size=8)


TINY = Sizes("TINY", 64, 4, 2, 2, 2, 4, 8, 2, 12, 2)


# ---------------------------------------------------------------------------------------------- what is run


def autocast(dtype: str) -> Any:
    """The context of a forward of a model that is trained."""
    import torch

    return torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")


def moving_squares(clips: int, frames: int, side: int) -> Any:
    """Clips (B, T, 3, H, W) of a bright square that moves over noise."""
    import torch

    starts, speed = side * torch.rand(clips, 1, 2) / 2, side * torch.rand(clips, 1, 2) / (2 * frames)
    corners = starts + speed * torch.arange(frames).unsqueeze(-1)  # (B, T, 2)
    axis = torch.arange(side)
    inside = (axis >= corners.unsqueeze(-1)) & (axis < corners.unsqueeze(-1) + side / 4)  # (B, T, 2, side)
    square = inside[:, :, 0, :, None] & inside[:, :, 1, None, :]
    return 0.3 * torch.randn(clips, frames, 3, side, side) + 2.0 * square.unsqueeze(2)


def pretraining(size: Any, clips: int, frames: int, side: int, seed: int, rate: float, dtype: str) -> Callable:
    """A step of masked latent prediction on one batch, as in examples/pretrain.py; it returns the loss."""
    import torch
    from comparisons import MASK_TOKEN

    from vjepa2_hf import VJepa2ForMaskedLatentPrediction
    from vjepa2_hf.masking import PUBLISHED_MASKS, build_mask_samplers

    torch.manual_seed(seed)
    model = VJepa2ForMaskedLatentPrediction(size.pretraining_config(frames, side)).train()
    pixels, generator = moving_squares(clips, frames, side), torch.Generator().manual_seed(seed)
    masks = [sampler(clips, size.grid(frames, side), generator) for sampler in build_mask_samplers(PUBLISHED_MASKS)]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.04, fused=True)

    def step() -> float:
        targets, total = None, 0.0
        for context, target in masks:
            with autocast(dtype):
                output = model(pixels, context, target, MASK_TOKEN, output_targets=True, targets=targets)
            (output.loss / len(masks)).backward()
            targets, total = output.targets, total + output.loss.item() / len(masks)
        optimizer.step()
        optimizer.zero_grad()
        model.update_target_encoder(0.998)
        return total

    return step


def build_world_model(size: Any, side: int, horizon: int) -> Any:
    from vjepa2_hf import VJepa2WorldModel, VJepa2WorldModelConfig

    width, layers, heads = size.dynamics
    return VJepa2WorldModel(
        VJepa2WorldModelConfig(
            encoder_config=size.encoder_config(2, side),
            action_dim=ACTIONS,
            predictor_hidden_size=width,
            predictor_num_hidden_layers=layers,
            predictor_num_attention_heads=heads,
            context_frames=max(4, horizon),
            rollout_steps=2,
            residual=True,
        )
    )


def world_model_training(size: Any, windows: int, side: int, seed: int, rate: float, dtype: str) -> Callable:
    """A step of a world model on cached latents that actions move; it returns the loss."""
    import torch

    torch.manual_seed(seed)
    model = build_world_model(size, side, 4).train()
    shape = model.tokens_per_frame, model.latent_size
    actions = torch.randn(windows, 3, ACTIONS)
    moves = torch.einsum("bta,and->btnd", actions, torch.randn(ACTIONS, *shape)) / ACTIONS**0.5
    latents = torch.randn(windows, 1, *shape) + torch.cat([torch.zeros(windows, 1, *shape), moves.cumsum(1)], dim=1)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.04, fused=True)

    def step() -> float:
        with autocast(dtype):
            loss = model(latents=latents, actions=actions).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def build_encoders(sizes: Sizes) -> tuple[dict[str, Callable], dict[str, float]]:
    """The forward of a clip in both types, and how near its tokens are."""
    import torch
    from baselines import disturb_weights

    from vjepa2_hf import VJepa2Encoder

    torch.manual_seed(0)
    config = sizes.model.pretraining_config(sizes.frames, sizes.side).encoder_config
    with torch.no_grad():
        models = {"float32": disturb_weights(VJepa2Encoder(config).eval())}
    models["bfloat16"] = copy.deepcopy(models["float32"]).to(torch.bfloat16)
    clip = moving_squares(1, sizes.frames, sizes.side)
    runs = {dtype: partial(models[dtype].encode, clip.to(getattr(torch, dtype))) for dtype in DTYPES}
    return runs, {"tokens": relative_error(runs["bfloat16"](), runs["float32"]())}


def build_plans(sizes: Sizes) -> tuple[dict[str, Callable], dict[str, float]]:
    """A plan in both types from the same latents and noise, and how near the costs of candidates and the plans are."""
    import torch
    from comparisons import PlanningPair

    with torch.no_grad():
        pair = PlanningPair(sizes.model, sizes.side, sizes.horizon, sizes.candidates)
    half = copy.deepcopy(pair)
    half.world_model.to(torch.bfloat16)
    half.latents, half.goal = half.latents.bfloat16(), half.goal.bfloat16()
    pairs = dict(zip(DTYPES, (pair, half), strict=True))
    runs = {dtype: torch.no_grad()(partial(one.plan, one.our_cost)) for dtype, one in pairs.items()}
    actions = torch.rand(1, sizes.compared, sizes.horizon, ACTIONS, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        costs = {dtype: one.our_cost(actions)[0] for dtype, one in pairs.items()}
    found = {"costs": relative_error(costs["bfloat16"], costs["float32"])}
    found["rank_correlation"] = rank_correlation(costs["bfloat16"], costs["float32"])
    found["actions"] = relative_error(*(runs[dtype]().actions for dtype in reversed(DTYPES)))
    return runs, found


def relative_error(found: Any, expected: Any) -> float:
    """Norm of the difference over the norm of what was expected."""
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def rank_correlation(found: Any, expected: Any) -> float:
    """Spearman's, of two vectors."""
    import torch

    ranks = [values.argsort().argsort().double() for values in (found, expected)]
    return torch.corrcoef(torch.stack(ranks))[0, 1].item()


def build_works(sizes: Sizes) -> dict[str, Callable[[], tuple[dict[str, Callable], dict[str, float]]]]:
    """What is timed, by name: each builds the calls of both types and facts on their agreement."""

    def steps(build: Callable, *given: Any) -> tuple[dict[str, Callable], dict[str, float]]:
        return {dtype: build(sizes.model, *given, 0, 1e-4, dtype) for dtype in DTYPES}, {}

    clip = sizes.clips, sizes.frames, sizes.side
    return {
        "encoder forward": partial(build_encoders, sizes),
        "pretraining step": partial(steps, pretraining, *clip),
        "world-model step": partial(steps, world_model_training, sizes.windows, sizes.side),
        "CEM plan": partial(build_plans, sizes),
    }


# ---------------------------------------------------------------------------------------------- measuring


def measure_work(build: Callable, rounds: int) -> dict[str, Any]:
    """Times of paired rounds, their ratios next to those of a matrix product, and the operators in both types."""
    import torch
    from measure import Sgemm, summary, timed
    from operators import profile_operators

    runs, agreement = build()
    products = {dtype: Sgemm(dtype=getattr(torch, dtype)) for dtype in DTYPES}
    for run in runs.values():  # fills caches
        run()
    times, rates = ({dtype: [] for dtype in DTYPES} for _ in range(2))
    for number in range(rounds):
        for dtype in DTYPES if number % 2 else DTYPES[::-1]:  # neither is always first
            rates[dtype].append(products[dtype].rate())
            times[dtype].append(timed(runs[dtype])[0])
    ratios = [single / half for single, half in zip(times["float32"], times["bfloat16"], strict=True)]
    of_products = [half / single for single, half in zip(rates["float32"], rates["bfloat16"], strict=True)]
    median = {dtype: statistics.median(times[dtype]) for dtype in DTYPES}
    return {
        "rounds": rounds,
        "seconds": median,
        "ratio": summary(ratios),
        "ratio_of_products": summary(of_products),
        "agreement": agreement,
        "profile": {
            dtype: profile_operators(runs[dtype], median[dtype], statistics.median(rates[dtype])) for dtype in DTYPES
        },
    }


def measure_losses(build: Callable[..., Callable[[], float]], steps: int) -> list[dict[str, float]]:
    """For each random seed the mean loss of the last steps in both types."""
    rows = []
    for seed in SEEDS:
        row = {}
        for dtype in DTYPES:
            step = build(seed=seed, dtype=dtype)
            losses = [step() for _ in range(steps)]
            row |= {dtype: statistics.mean(losses[-LAST:]), f"{dtype}_first": losses[0]}
        rows.append(row)
    return rows


def measure_success(runs: Path, tasks: int) -> dict[str, Any]:
    """Success and CPU time of plans with the world model of `make demo` in both types, on the same tasks."""
    sys.path.insert(0, str(ROOT / "examples"))
    import planning

    variant = planning.Variant("bfloat16", {"planner": {"dtype": "bfloat16"}})
    planning.VARIANTS.setdefault("bfloat16", variant)
    names = [planning.DEFAULT, "bfloat16"]
    return planning.measure(planning.build_config("pushing", runs, names), names, planning.FIRST_TASK, tasks)


def measure(sizes: Sizes, pushing: Path | None) -> dict[str, Any]:
    """All of it; `pushing` is the folder of runs of the demo."""
    from vjepa2_hf.modeling_layers import bfloat16_instructions

    machine = describe_machine() | {"bfloat16": sorted(bfloat16_instructions() or [])}
    results: dict[str, Any] = {"machine": machine, "works": {}, "steps": sizes.steps}
    for name, build in build_works(sizes).items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        results["works"][name] = measure_work(build, sizes.rounds)
    print("losses ...", file=sys.stderr, flush=True)
    side, trained = 32, sizes.trained
    results["losses"] = {
        "pretraining": measure_losses(partial(pretraining, trained, 4, 8, side, rate=1e-3), sizes.steps),
        "world model": measure_losses(partial(world_model_training, trained, 8, side, rate=1e-3), sizes.steps),
    }
    if pushing is not None:
        results["success"] = measure_success(pushing, sizes.tasks)
    return results


# ---------------------------------------------------------------------------------------------- tables


def format_tables(results: dict[str, Any]) -> str:
    """Markdown of all results."""
    from vjepa2_hf.visualization.tables import format_table

    machine, works = results["machine"], results["works"]
    instructions = ", ".join(machine["bfloat16"]) or "no bfloat16 instructions"
    times, agreement = [], []
    for name, one in works.items():
        ratio, product = one["ratio"], one["ratio_of_products"]["median"]
        milliseconds = [f"{1000 * one['seconds'][dtype]:.3g}" for dtype in DTYPES]
        shown = f"{ratio['median']:.2f} ({ratio['minimum']:.2f} to {ratio['maximum']:.2f})"
        times.append([name, *milliseconds, shown, f"{product:.2f}", f"{ratio['median'] / product:.2f}"])
        agreement += [[name, fact.replace("_", " "), f"{value:.3g}"] for fact, value in one["agreement"].items()]
    for name, rows in results["losses"].items():
        apart = [abs(row["bfloat16"] - row["float32"]) / row["float32"] for row in rows]
        means = " and ".join(f"{statistics.mean(row[dtype] for row in rows):.4f}" for dtype in DTYPES)
        between = statistics.stdev(row["float32"] for row in rows) / statistics.mean(row["float32"] for row in rows)
        text = f"{means}; at most {100 * max(apart):.2g} % apart, random seeds deviate by {100 * between:.2g} %"
        agreement.append([name, f"loss after {results['steps']} steps, float32 and bfloat16", text])
    for one in results.get("success", {}).get("rows", {}).values():
        text = (
            f"{one['success']:.3f} ({one['low']:.3f} to {one['high']:.3f}), {one['cpu_milliseconds']:.1f} ms per plan"
        )
        title = "bfloat16" if one["title"] == "bfloat16" else "float32"
        agreement.append(
            ["plans with the demo's model", f"success in {title}, {results['success']['tasks']} tasks", text]
        )
    titles = ["work", "float32, ms", "bfloat16, ms", "float32 / bfloat16", "of a product", "fraction of that"]
    blocks = [
        f"{machine['processor']} ({instructions}), one thread, torch {machine['torch']}. CPU time, medians of "
        f"{next(iter(works.values()))['rounds']} paired rounds (minimum to maximum). A product: `torch.mm` of 1024².",
        "\n".join(format_table(titles, times)),
        "Results against float32. Errors: norm of the difference over the norm.",
        "\n".join(format_table(["work", "what", "value"], agreement)),
        "Where the CPU time goes: percent in float32 and in bfloat16, and how many times faster an operator is.",
        "\n".join(format_table(["work", "operator", "float32", "bfloat16", "faster"], profile_rows(works))),
    ]
    return "\n\n".join(blocks)


def profile_rows(works: dict[str, Any]) -> list[list[str]]:
    """Operators that matter in either type. The products and the softmax of attention, which may be one operator in
    float32 and several in bfloat16, count together."""
    lines = []
    for name, one in works.items():
        seconds: dict[str, dict[str, float]] = {}
        for dtype, rows in one["profile"].items():
            for row in rows:
                operator = group_of(row["operator"])
                own = seconds.setdefault(operator, dict.fromkeys(DTYPES, 0.0))
                own[dtype] += row["share"] * one["seconds"][dtype]
        small = [
            operator
            for operator, own in seconds.items()
            if operator != "others" and all(own[dtype] < SHOWN * one["seconds"][dtype] for dtype in DTYPES)
        ]
        others = seconds.setdefault("others", dict.fromkeys(DTYPES, 0.0))
        for operator in small:
            for dtype, value in seconds.pop(operator).items():
                others[dtype] += value
        for operator, own in sorted(seconds.items(), key=lambda each: -each[1]["bfloat16"]):
            parts = [f"{100 * own[dtype] / one['seconds'][dtype]:.0f} %" for dtype in DTYPES]
            faster = f"{own['float32'] / own['bfloat16']:.2f}" if min(own.values()) > 0 else ""
            lines.append([name, operator, *parts, faster])
    return lines


GROUPS = {
    "attention": ("attention,", "aten::bmm", "aten::_softmax", "aten::baddbmm"),
    "linear layers": ("linear layers",),
    "conversion and copies": ("aten::_to_copy", "aten::copy_", "aten::clone", "aten::cat"),
    "GELU": ("aten::gelu",),
    "norms": ("aten::native_layer_norm",),
    "sums and products by element": ("aten::add", "aten::mul", "aten::sub", "aten::div"),
    "AdamW and EMA": ("aten::_fused_adamw", "aten::_foreach_lerp"),
}


def group_of(operator: str) -> str:
    """The group of operators that is shown for one; what is not in one counts among the others."""
    return next((name for name, starts in GROUPS.items() if operator.startswith(starts)), "others")


# ---------------------------------------------------------------------------------------------- command


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pushing", type=Path, help="folder of the runs of `make demo`, with whose model plans are tried"
    )
    return parse_table_options(parser, __file__, arguments)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measures, writes the JSON, prints the tables and publishes them; returns the results."""
    options = parse_arguments(arguments)
    if options.pushing is not None and not options.table:
        import planning

        planning.find_model(options.pushing)  # before anything is measured
    sizes = TINY if options.tiny else Sizes()
    return measure_tables(options, "bfloat16", partial(measure, sizes, options.pushing), format_tables)


if __name__ == "__main__":
    parse_arguments()  # wrong arguments are reported before the restart
    restart_with_fixed_allocator()
    run_with_errors(main)
