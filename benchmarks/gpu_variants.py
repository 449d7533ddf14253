"""The variants that `gpu.py` measures. Each builds its models on the device and returns a JSON-ready dict.

Letters: B clips, J candidates, P horizon, A action.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from comparisons import (
    ACTION_DIM,
    TINY,
    TOLERANCE,
    VIT_G,
    VIT_L,
    EncoderPair,
    ModelSize,
    PlanningPair,
    PretrainingPair,
    rollout_operations,
)
from gpu_measure import (
    alternate,
    attention_backends,
    float32_check,
    free_memory,
    graphed,
    peak_memory,
    precision_check,
    synchronize,
    timed,
    with_checks,
)
from measure import check_agreement

from vjepa2_hf.planning import CEM


# Of 24 to 40 layers of width 1024 and more, whose sums run in another order on a GPU
LOOSE, LOOSE_GRADIENT = 10 * TOLERANCE, 2e-2


@dataclass(frozen=True)
class Settings:
    """Sizes of the run; the default is that of the GPU."""

    device: torch.device
    encoders: tuple[tuple[str, ModelSize, int, int], ...] = (  # name, size, frames, clips
        ("ViT-L, 16 frames", VIT_L, 16, 32),
        ("ViT-g, 16 frames", VIT_G, 16, 32),
        ("ViT-L, 64 frames", VIT_L, 64, 8),
        ("ViT-g, 64 frames", VIT_G, 64, 8),
    )
    side: int = 256
    pretraining: ModelSize = VIT_L
    frames: int = 16
    pretraining_clips: int = 8
    most_clips: int = 512
    planning: ModelSize = VIT_G
    candidates: int = 400
    few_candidates: int = 16
    iterations: int = 10
    compile_backend: str = "inductor"
    seconds: float = 6.0  # of the timed rounds of a variant
    rates: dict[str, float] = field(default_factory=dict)  # operations per second: "matmul", "datasheet"


def tiny_settings() -> Settings:
    return Settings(
        torch.device("cpu"),
        encoders=(("tiny, 4 frames", TINY, 4, 1),),
        side=64,
        pretraining=TINY,
        frames=4,
        pretraining_clips=2,
        most_clips=4,
        planning=TINY,
        candidates=16,
        few_candidates=4,
        iterations=2,
        compile_backend="eager",
        seconds=0.0,
    )


def fractions(settings: Settings, operations: float, seconds: dict[str, Any]) -> dict[str, Any]:
    """Needed operations over time, as fractions of the measured and of the datasheet's rate."""
    sides = {name: operations / values["median"] for name, values in seconds.items()}
    return {
        "operations": operations,
        "fraction_of": {
            kind: {name: rate / limit for name, rate in sides.items()} for kind, limit in settings.rates.items()
        },
    }


# ---------------------------------------------------------------------------------------------- encoder


def encoder_pair(
    settings: Settings, size: ModelSize, frames: int, clips: int
) -> tuple[EncoderPair, list, torch.Tensor]:
    """Both encoders in bf16, the checks (in float32 against each other, in bf16 against float32), and the float32
    tokens of the first clip."""
    with settings.device:
        pair = EncoderPair(size, clips, frames, settings.side)
    batch, pair.clips = pair.clips, pair.clips[:1]
    reference = pair.baseline()
    checks = [float32_check(check_agreement("tokens, float32", pair.ours(), reference, LOOSE))]
    pair.encoder.to(torch.bfloat16)
    pair.other.to(torch.bfloat16)
    pair.clips = pair.clips.to(torch.bfloat16)
    checks.append(precision_check("tokens, bfloat16", pair.ours(), pair.baseline(), reference))
    pair.clips = batch.to(torch.bfloat16)
    return pair, checks, reference


def encoder(settings: Settings, size: ModelSize, frames: int, clips: int) -> dict[str, Any]:
    """bf16 forward with sdpa attention against transformers' with sdpa attention."""
    pair, checks, _ = encoder_pair(settings, size, frames, clips)
    found = alternate(
        {"ours": pair.ours, "transformers": pair.baseline}, settings.device, settings.seconds, warm_ups=2
    )
    found["clips"] = clips
    found["clips_per_second"] = {name: clips / values["median"] for name, values in found["seconds"].items()}
    found["attention"] = {"ours": attention_backends(pair.ours), "transformers": attention_backends(pair.baseline)}
    return with_checks({**found, **fractions(settings, pair.operations, found["seconds"])}, checks)


def compiled_encoder(settings: Settings, size: ModelSize, frames: int, clips: int) -> dict[str, Any]:
    """Our forward with every layer compiled (one compilation serves all layers), against the same without."""
    import torch._dynamo

    pair, checks, reference = encoder_pair(settings, size, frames, clips)
    eager = pair.ours()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = [torch.compile(layer, backend=settings.compile_backend) for layer in pair.encoder.layer]
    plain = pair.encoder.layer

    def ours() -> torch.Tensor:
        pair.encoder.layer = torch.nn.ModuleList(compiled)
        try:
            return pair.ours()
        finally:
            pair.encoder.layer = plain

    started = time.monotonic()
    output = ours()
    synchronize(settings.device)
    seconds = time.monotonic() - started
    checks.append(precision_check("tokens, compiled", output[:1], eager[:1], reference))
    found = alternate({"compiled": ours, "eager": pair.ours}, settings.device, settings.seconds, warm_ups=2)
    found |= {"compile_seconds": seconds, "clips": clips, "backend": settings.compile_backend}
    found["graphs"] = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    found["clips_per_second"] = {name: clips / values["median"] for name, values in found["seconds"].items()}
    return with_checks({**found, **fractions(settings, pair.operations, found["seconds"])}, checks)


# ---------------------------------------------------------------------------------------------- pretraining


def pretraining_pair(settings: Settings, clips: int) -> PretrainingPair:
    """float32 weights; forwards under bf16 autocast, as Accelerate trains."""
    autocast = partial(torch.autocast, settings.device.type, torch.bfloat16)
    with settings.device:
        return PretrainingPair(settings.pretraining, clips, settings.frames, settings.side, autocast)


def pretraining_agreement(settings: Settings) -> dict[str, Any]:
    """Predictions, loss, gradients and EMA of both ways in float32."""
    with settings.device:
        pair = PretrainingPair(settings.pretraining, 2, settings.frames, settings.side)
    return {"checks": [float32_check(check) for check in pair.check(LOOSE, LOOSE_GRADIENT)]}


def pretraining_step(settings: Settings) -> dict[str, Any]:
    """A step of both ways, in turn."""
    pair = pretraining_pair(settings, settings.pretraining_clips)
    sides = {"ours": pair.our_step(), "transformers": pair.other_step()}
    found = alternate(sides, settings.device, settings.seconds, warm_ups=2)
    found["memory_bytes"] = None  # both ways' weights are there; see the variants of one way each
    found["clips"], found["masks"] = settings.pretraining_clips, pair.mask_sizes
    per_clip = {name: 1000 * values["median"] / found["clips"] for name, values in found["seconds"].items()}
    return {**found, "ms_per_clip": per_clip, **fractions(settings, pair.operations, found["seconds"])}


def pretraining_memory(settings: Settings, side: str, seconds: float = 25.0) -> dict[str, Any]:
    """Peak memory of a step of one way alone, and the largest batch that fits: doubled, then one bisection.

    Args:
        side: "ours", "checkpointed" (ours with gradient checkpointing) or "transformers".
    """
    pair = pretraining_pair(settings, settings.pretraining_clips)
    if side == "transformers":
        step, pair.model = pair.other_step(), None
    else:
        if side == "checkpointed":
            pair.model.activation_checkpointing_enable()
        step = pair.our_step()
        pair.other = pair.other_target = None
    step()  # the optimizer's state
    memory = peak_memory(step, settings.device)
    taken = min(timed(step, settings.device) for _ in range(3))
    found = {"clips": settings.pretraining_clips, "memory_bytes": memory}
    found["ms_per_clip"] = 1000 * taken / settings.pretraining_clips
    return {**found, **largest_batch(settings, pair, step, seconds)}


def largest_batch(settings: Settings, pair: PretrainingPair, step: Callable, seconds: float) -> dict[str, Any]:
    started, fits, too_large, tried = time.monotonic(), settings.pretraining_clips, None, {}

    def runs(clips: int) -> bool:
        try:
            pair.sample_batch(clips)
            step()
            tried[clips] = 1000 * timed(step, settings.device) / clips
        except torch.cuda.OutOfMemoryError:
            tried[clips] = None
        # outside the handler: until it ends, the error keeps the tensors of its frames
        for model in (pair.model, pair.other):
            if model is not None:
                model.zero_grad()
        free_memory()
        return tried[clips] is not None

    while too_large is None and 2 * fits <= settings.most_clips and time.monotonic() - started < seconds:
        if runs(2 * fits):
            fits *= 2
        else:
            too_large = 2 * fits
    middle = None if too_large is None else (fits + too_large) // 2
    if middle not in (None, fits) and time.monotonic() - started < seconds and runs(middle):
        fits = middle
    return {"largest_batch": fits, "out_of_memory": too_large, "ms_per_clip_by_batch": tried}


# ---------------------------------------------------------------------------------------------- planning


def planning_pair(settings: Settings, candidates: int, dtype: torch.dtype) -> tuple[PlanningPair, list[dict]]:
    """Both ways to score candidates, and the checks of their costs. Latents are given: no encoder runs in a plan."""
    horizon = 2
    with settings.device:
        pair = PlanningPair(settings.planning, settings.side, horizon, candidates)
    elites = min(10, candidates)
    pair.solver = CEM(
        horizon,
        num_candidates=candidates,
        num_iterations=settings.iterations,
        num_elites=elites,
        momentum=0.15,
        sample_noise_per_step=True,
    )
    del pair.world_model.encoder  # as large as all the rest, and not used
    few = actions_of(settings, min(candidates, 16))
    with torch.no_grad():
        reference = pair.other_cost(few)
        checks = [float32_check(check_agreement("costs, float32", pair.our_cost(few), reference, LOOSE))]
        if dtype != torch.float32:
            pair.world_model.to(dtype)
            pair.latents, pair.goal = pair.latents.to(dtype), pair.goal.to(dtype)
            checks.append(precision_check("costs, bfloat16", pair.our_cost(few), pair.other_cost(few), reference))
    checks[0]["spread"] = (reference.std() / reference.mean()).item()  # far above the difference, or it means nothing
    return pair, checks


def actions_of(settings: Settings, candidates: int) -> torch.Tensor:
    """Random actions (1, J, P, A)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, candidates, 2, ACTION_DIM, generator=generator).clamp(-1, 1).to(settings.device)


def time_plans(settings: Settings, pair: PlanningPair, checks: list[dict], costs: dict[str, Callable]) -> dict:
    """A plan with each cost function, in turn."""
    sides = {name: partial(pair.plan, cost) for name, cost in costs.items()}
    found = alternate(sides, settings.device, settings.seconds, min_rounds=2, max_rounds=9)
    solver = pair.solver
    operations = rollout_operations(settings.planning, pair.latents.shape[2], solver.horizon)
    operations *= solver.num_candidates * solver.num_iterations + 1  # and the plan itself
    milliseconds = {name: 1000 * values["median"] for name, values in found["seconds"].items()}
    found |= {"ms_per_plan": milliseconds, "candidates": solver.num_candidates, "horizon": solver.horizon}
    return with_checks({**found, **fractions(settings, operations, found["seconds"])}, checks)


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def plan(settings: Settings, dtype: torch.dtype, precision: str = "highest") -> dict[str, Any]:
    """Our plan with the key/value cache against recomputing every sequence at every step (the published loop)."""
    pair, checks = planning_pair(settings, settings.candidates, dtype)
    with matmul_precision(precision):
        costs = {"ours": pair.our_cost, "recompute all": pair.other_cost}
        return time_plans(settings, pair, checks, costs)


def chunked_plan(settings: Settings) -> dict[str, Any]:
    """Ours in bf16, all candidates in one forward, against the default chunks and against no cache."""
    pair, checks = planning_pair(settings, settings.candidates, torch.bfloat16)
    score = partial(pair.world_model.score, pair.latents, pair.goal)
    chunk = settings.candidates
    costs = {"ours": pair.our_cost, "one chunk": lambda actions: score(actions, candidate_chunk_size=chunk)}
    return time_plans(settings, pair, checks, costs)


def graphed_plan(settings: Settings, candidates: int) -> dict[str, Any]:
    """Ours in bf16 with the scoring call as one CUDA graph, against ours without."""
    if settings.device.type != "cuda":
        return {"skipped": "CUDA graphs need a GPU"}
    pair, checks = planning_pair(settings, candidates, torch.bfloat16)
    actions = actions_of(settings, candidates)
    cost = graphed(pair.our_cost, actions)
    with torch.no_grad():
        checks.append(precision_check("costs, graph", cost(actions), pair.our_cost(actions), pair.our_cost(actions)))
    return time_plans(settings, pair, checks, {"graph": cost, "ours": pair.our_cost})


# ---------------------------------------------------------------------------------------------- all


def variants(settings: Settings) -> list[tuple[str, str, Callable[[], dict[str, Any]]]]:
    """(section, name, function), the most valuable first."""
    first, *others = settings.encoders
    bf16 = torch.bfloat16
    pretraining = partial(pretraining_memory, settings)

    def shape(function: Callable, each: tuple[str, ModelSize, int, int]) -> Callable:
        return partial(function, settings, *each[1:])

    return [
        ("encoder", first[0], shape(encoder, first)),
        ("pretraining", "agreement", partial(pretraining_agreement, settings)),
        ("pretraining", "step", partial(pretraining_step, settings)),
        ("plan", "bf16", partial(plan, settings, bf16)),
        *(("encoder", each[0], shape(encoder, each)) for each in others),
        ("encoder", f"{first[0]}, compiled", shape(compiled_encoder, first)),
        ("pretraining", "ours alone", partial(pretraining, "ours")),
        ("pretraining", "transformers alone", partial(pretraining, "transformers")),
        ("plan", "bf16, graph, few candidates", partial(graphed_plan, settings, settings.few_candidates)),
        ("pretraining", "ours alone, checkpointing", partial(pretraining, "checkpointed")),
        ("plan", "bf16, one chunk", partial(chunked_plan, settings)),
        ("plan", "bf16, graph", partial(graphed_plan, settings, settings.candidates)),
        *((("encoder", f"{others[0][0]}, compiled", shape(compiled_encoder, others[0])),) if others else ()),
        ("plan", "tf32", partial(plan, settings, torch.float32, "high")),
        ("decoding", "torchcodec", decoding),
    ]


def decoding() -> dict[str, Any]:
    return {"skipped": "no FFmpeg shared libraries for torchcodec can be carried to the measured machine"}
