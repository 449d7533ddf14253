"""CPU time of the world model's block-causal attention in several ways, and of training steps and plans with them.

    python benchmarks/attention.py --publish            # a minute on an idle core
    python benchmarks/attention.py --flex --publish     # also compiled FlexAttention, which takes minutes to compile
    python benchmarks/attention.py --table --publish    # measures nothing: the tables of the JSON again
    python benchmarks/attention.py --tiny               # seconds; the numbers mean nothing

Single calls have the shapes of training (all frames of a window attend to their own and earlier frames) and of
rollouts (the newest frame of every candidate attends to all frames so far). All ways run in turn in one process, on
one thread, and must agree first. Ratios are medians of paired rounds of CPU time. Whole steps then show what a faster
call changes, and what it saves to compute each frame of a training rollout once. Writes `attention.json` and, with
`--publish`, a section of docs/costs.md.
"""

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench import (
    describe_machine,
    measure_tables,
    parse_table_options,
    restart_with_fixed_allocator,
    run_with_errors,
)


ACTIONS = 7
TOLERANCE = 1e-5
MASK, MODEL = "fused kernel with mask", "model"  # what is compared with


@dataclass(frozen=True)
class Sizes:
    """Shapes of calls, and of dynamics of `layers` blocks of width heads · channels, as wide as ViT-S."""

    side: int = 8  # of a frame, in patches
    heads: int = 6
    channels: int = 64
    layers: int = 1
    frames: tuple[int, ...] = (1, 2, 4, 8, 20)  # of a training window
    batch: int = 512  # about so many tokens in a call of training
    horizons: tuple[int, ...] = (2, 5, 10)
    contexts: tuple[int, ...] = (1, 2, 3)
    candidates: int = 2
    steps: tuple[tuple[int, int], ...] = ((4, 1), (16, 1))  # frames of an episode, and episodes
    rounds: int = 5
    step_rounds: int = 5

    @property
    def tokens(self) -> int:
        return self.side**2 + 1


TINY = Sizes(2, 2, 8, 1, (1, 2), 10, (2,), (1, 2), 2, ((4, 1),), 2, 2)


# ---------------------------------------------------------------------------------------------- ways to attend


def fused(query, key, value, mask=None):
    """PyTorch's fused kernel on (B, h, L, d)."""
    import torch

    return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def products(query, key, value, mask=None):
    """softmax(q kᵀ / √d) v by matrix products."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if mask is not None:
        scores.masked_fill_(~mask, -float("inf"))
    return scores.softmax(dim=-1) @ value


def split(attention: Callable, query, key, value, tokens: int):
    """Each frame of queries attends to its own and earlier frames, without a mask."""
    import torch

    first, parts = key.shape[2] - query.shape[2], []
    for start in range(0, query.shape[2], tokens):
        last = first + start + tokens
        parts.append(attention(query[:, :, start : start + tokens], key[:, :, :last], value[:, :, :last]))
    return torch.cat(parts, dim=2)


def split_in_place(query, key, value, tokens: int):
    """`split` of the fused kernel whose backward adds the gradients of keys and values in place."""
    import torch

    operators = torch.ops.aten
    forward = operators._scaled_dot_product_flash_attention_for_cpu
    backward = operators._scaled_dot_product_flash_attention_for_cpu_backward

    class Split(torch.autograd.Function):
        @staticmethod
        def forward(ctx, query, key, value):
            ctx.parts = []
            for start in range(0, query.shape[2], tokens):
                part = (query[:, :, start : start + tokens], *(each[:, :, : start + tokens] for each in (key, value)))
                ctx.parts.append((*part, *forward(*part)))
            return torch.cat([part[3] for part in ctx.parts], dim=2)

        @staticmethod
        def backward(ctx, gradient):
            _, key, value, *_ = ctx.parts[-1]
            of_query, of_key, of_value = [], torch.zeros_like(key), torch.zeros_like(value)
            for start, part in zip(range(0, gradient.shape[2], tokens), ctx.parts, strict=True):
                own = backward(gradient[:, :, start : start + tokens].contiguous(), *part, 0.0, False)
                of_query.append(own[0])
                of_key[:, :, : start + tokens] += own[1]
                of_value[:, :, : start + tokens] += own[2]
            return torch.cat(of_query, dim=2), of_key, of_value

    return Split.apply(query, key, value)


def block_causal_mask(frames: int, tokens: int):
    """(F · n, F · n), true where a token attends."""
    import torch

    frame = torch.arange(frames).repeat_interleave(tokens)
    return frame <= frame.unsqueeze(1)


def compiled_flex_attention(frames: int, tokens: int, keys: int) -> Callable:
    """FlexAttention with a block mask for the last F frames of n tokens; compiled once for all shapes of a run."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    first = keys // tokens - frames
    mask = create_block_mask(
        lambda clip, head, query, key: key // tokens <= query // tokens + first,
        None,
        None,
        frames * tokens,
        keys,
        "cpu",
    )
    return partial(torch.compile(flex_attention), block_mask=mask if frames > 1 else None)


# ---------------------------------------------------------------------------------------------- calls


def alternate(runs: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each run in every round; neither end of the list always runs first. All have run before."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds):
            for name in list(runs)[:: 1 if number % 2 else -1]:
                started = time.process_time()
                runs[name]()
                times[name].append(time.process_time() - started)
    finally:
        gc.enable()
    return times


def compare(runs: dict[str, Callable], rounds: int) -> dict[str, Any]:
    """Median seconds of the first run, and the ratios of its time to that of the others."""
    from measure import summary

    times = alternate(runs, rounds)
    first, *others = times
    ratios = {
        name: summary(one / other for one, other in zip(times[first], times[name], strict=True)) for name in others
    }
    return {"seconds": statistics.median(times[first]), "ratio": ratios}


def states(batch: int, tokens: int, sizes: Sizes):
    """(B, h, L, d), which lies in memory as (B, L, h, d), as in the models."""
    import torch

    return torch.randn(batch, tokens, sizes.heads, sizes.channels).transpose(1, 2)


def training_call(sizes: Sizes, frames: int, backward: bool, flex: bool) -> dict[str, Any]:
    """Attention within a window of F frames."""
    import torch
    from measure import check_agreement

    tokens, mask = sizes.tokens, block_causal_mask(frames, sizes.tokens)
    batch = max(1, round(sizes.batch / (frames * tokens)))
    inputs = [states(batch, frames * tokens, sizes).requires_grad_(backward) for _ in range(3)]
    gradient = states(batch, frames * tokens, sizes)
    ways = {
        MASK: partial(fused, mask=mask),
        "no mask": fused,
        "split": partial(split, fused, tokens=tokens),
        "split, gradients in place": partial(split_in_place, tokens=tokens),
        "products with mask": partial(products, mask=mask),
        "products, split": partial(split, products, tokens=tokens),
    }
    if flex and not backward:
        ways["FlexAttention"] = compiled_flex_attention(frames, tokens, frames * tokens)

    def run(way: Callable) -> Any:
        output = way(*inputs)
        return torch.cat([output, *torch.autograd.grad(output, inputs, gradient)]) if backward else output

    expected = run(ways[MASK])
    for name, way in ways.items():
        if name != "no mask" or frames == 1:
            check_agreement(f"{name}, {frames} frames", run(way), expected, TOLERANCE)
    runs = {name: partial(run, way) for name, way in ways.items()}
    shape = {"frames": frames, "keys": frames * tokens, "batch": batch, "backward": backward}
    return {**shape, **compare(runs, sizes.rounds)}


def rollout_call(sizes: Sizes, horizon: int, context: int, flex: bool) -> dict[str, Any]:
    """Attention of a rollout of H steps: at step k the newest frame of every candidate attends to c + k - 1 frames."""
    from measure import check_agreement

    keys = [sizes.tokens * (context + step) for step in range(horizon)]
    inputs = [
        (states(sizes.candidates, sizes.tokens, sizes), *(states(sizes.candidates, length, sizes) for _ in range(2)))
        for length in keys
    ]
    ways: dict[str, list[Callable]] = {"fused kernel": [fused] * horizon, "products": [products] * horizon}
    if flex:
        ways["FlexAttention"] = [compiled_flex_attention(1, sizes.tokens, length) for length in keys]

    def run(way: list[Callable]) -> list:
        return [attention(*each) for attention, each in zip(way, inputs, strict=True)]

    expected = run(ways["fused kernel"])
    for name, way in ways.items():
        for length, found, wanted in zip(keys, run(way), expected, strict=True):
            check_agreement(f"{name}, {length} keys", found, wanted, TOLERANCE)
    runs = {name: partial(run, way) for name, way in ways.items()}
    return {"horizon": horizon, "context": context, "keys": keys[-1], **compare(runs, sizes.rounds)}


# ---------------------------------------------------------------------------------------------- whole steps


def build_model(sizes: Sizes, window: int) -> Any:
    """A world model of latents with dynamics of h · d channels, its window as long as the episode."""
    import torch

    from vjepa2_hf import VJepa2WorldModel, VJepa2WorldModelConfig

    torch.manual_seed(0)
    width = sizes.heads * sizes.channels
    encoder = {"hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": sizes.heads}
    return VJepa2WorldModel(
        VJepa2WorldModelConfig(
            encoder_config={**encoder, "crop_size": 16 * sizes.side, "frames_per_clip": 2},
            action_dim=ACTIONS,
            predictor_hidden_size=width,
            predictor_num_hidden_layers=sizes.layers,
            predictor_num_attention_heads=sizes.heads,
            context_frames=window,
        )
    )


@contextmanager
def attention_by(model: Any, sizes: Sizes, way: str):
    """The model with another way to attend, through transformers' interface."""
    from transformers import AttentionInterface

    def attend(module, query, key, value, mask, **options) -> tuple:
        if way == "products":
            return products(query, key, value, mask).transpose(1, 2), None
        if mask is None:
            return fused(query, key, value).transpose(1, 2), None
        attention = split_in_place if way == "split, gradients in place" else partial(split, fused)
        return attention(query, key, value, tokens=sizes.tokens).transpose(1, 2), None

    AttentionInterface.register("benchmark", attend)
    model.set_attn_implementation("benchmark")
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")


@contextmanager
def frames_recomputed():
    """Training rollouts that compute all earlier frames again at every step."""
    from vjepa2_hf import modeling_world_model

    def rollout_loss(dynamics, inputs, targets, predicted, cache):
        window, step, losses = inputs[:1], predicted[:, :1], []
        for k in range(dynamics.config.rollout_steps):
            losses.append(dynamics.loss(step, targets[:, k : k + 1], inputs))
            frame = inputs[k + 1 : k + 2]
            if k + 1 < dynamics.config.rollout_steps:
                frame.latents = step
                window = window.append(frame)
                step = dynamics.predict(window)[:, -1:]
        return sum(losses) / len(losses)

    kept, modeling_world_model.rollout_loss = modeling_world_model.rollout_loss, rollout_loss
    try:
        yield
    finally:
        modeling_world_model.rollout_loss = kept


def training_step(sizes: Sizes, frames: int, episodes: int, rollout_steps: int) -> dict[str, Any]:
    """Forward, backward and AdamW of a world model on latents."""
    import torch
    from measure import check_agreement

    model = build_model(sizes, frames - 1).train()
    model.config.rollout_steps = rollout_steps
    latents = torch.randn(episodes, frames, model.tokens_per_frame, model.latent_size)
    actions = torch.randn(episodes, frames - 1, ACTIONS)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, fused=True)

    def step(context: Callable) -> torch.Tensor:
        with context():
            loss = model(latents=latents, actions=actions).loss
            loss.backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in trained if parameter.grad is not None])
        optimizer.step()
        optimizer.zero_grad()
        return torch.cat([loss.detach().view(1), gradient])

    changes = {name: partial(attention_by, model, sizes, name) for name in ("split", "split, gradients in place")}
    changes |= {
        "products": partial(attention_by, model, sizes, "products"),
        "frames computed again": frames_recomputed,
    }
    runs = {MODEL: partial(step, nullcontext)}
    runs |= {name: partial(step, change) for name, change in changes.items()}
    expected = runs[MODEL]()
    for name, run in runs.items():
        check_agreement(f"loss and gradients, {name}", run(), expected, 1e-4)
    what = f"training step, {episodes} × {frames} frames, {rollout_steps} rollout steps"
    return {"work": what, **compare(runs, sizes.step_rounds)}


def plan(sizes: Sizes, horizon: int, context: int) -> dict[str, Any]:
    """Costs of all candidates of a search."""
    import torch
    from measure import check_agreement

    model = build_model(sizes, horizon + context).eval()
    latents, goal = torch.randn(2, 1, context, model.tokens_per_frame, model.latent_size)
    past = torch.randn(1, context - 1, ACTIONS) if context > 1 else None
    actions = torch.randn(1, sizes.candidates, horizon, ACTIONS)

    @torch.no_grad()
    def score(change: Callable) -> torch.Tensor:
        with change():
            return model.score(latents, goal[:, :1], actions, context_actions=past)

    runs = {
        MODEL: partial(score, nullcontext),
        "products": partial(score, partial(attention_by, model, sizes, "products")),
    }
    check_agreement("costs", runs["products"](), runs[MODEL](), 1e-4)
    what = f"plan, {sizes.candidates} candidates, H = {horizon}, {context} frames of context"
    return {"work": what, **compare(runs, sizes.step_rounds)}


def measure(sizes: Sizes, flex: bool) -> dict[str, Any]:
    """All of it."""
    import torch

    torch.manual_seed(0)
    results: dict[str, Any] = {"machine": describe_machine(), "rounds": sizes.rounds, "step_rounds": sizes.step_rounds}
    print("calls ...", file=sys.stderr, flush=True)
    results["training"] = [
        training_call(sizes, frames, backward, flex) for backward in (False, True) for frames in sizes.frames
    ]
    results["rollouts"] = [
        rollout_call(sizes, horizon, context, flex) for horizon in sizes.horizons for context in sizes.contexts
    ]
    print("whole steps ...", file=sys.stderr, flush=True)
    results["works"] = [
        *(training_step(sizes, frames, episodes, 2) for frames, episodes in sizes.steps),
        training_step(sizes, *sizes.steps[0], 3),
        plan(sizes, sizes.horizons[-1], sizes.contexts[-1]),
    ]
    return results


# ---------------------------------------------------------------------------------------------- tables


def table(rows: list[dict[str, Any]], titles: dict[str, str], first: str) -> str:
    """Markdown of rows: what they are, milliseconds of the first way, and the ratio to each other way."""
    from vjepa2_hf.visualization.tables import format_table

    ways = list(dict.fromkeys(name for row in rows for name in row["ratio"]))
    lines = []
    for row in rows:
        shown = [f"{row['ratio'][name]['median']:.2f}" if name in row["ratio"] else "–" for name in ways]
        lines.append([*(str(row[key]) for key in titles), f"{1000 * row['seconds']:.3g}", *shown])
    return "\n".join(format_table([*titles.values(), f"{first}, ms", *ways], lines))


def format_tables(results: dict[str, Any]) -> str:
    """Markdown of all results."""
    machine = results["machine"]
    shape = {"frames": "frames", "keys": "keys"}
    forward, both = ([row for row in results["training"] if row["backward"] is each] for each in (False, True))
    blocks = [
        f"{machine['processor']}, one thread, float32, torch {machine['torch']}. Milliseconds of CPU time; then how "
        f"many times faster than that another way is. Medians of {results['rounds']} paired rounds for calls and "
        f"{results['step_rounds']} for steps and plans.",
        "Calls in training, forward. Without a mask the result is another one; the column shows what the mask costs.",
        table(forward, shape, MASK),
        "Calls in training, forward and backward.",
        table(both, shape, MASK),
        "Attention of all steps of a rollout, which needs no mask. Keys: of the last step.",
        table(results["rollouts"], {"horizon": "H", "context": "frames of context", "keys": "keys"}, "fused kernel"),
        "Whole steps and plans.",
        table(results["works"], {"work": "work"}, "as it is"),
    ]
    return "\n\n".join(blocks)


# ---------------------------------------------------------------------------------------------- command


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flex", action="store_true", help="also FlexAttention, compiled for the CPU (needs g++)")
    return parse_table_options(parser, __file__, arguments)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measures, writes the JSON, prints the tables and publishes them; returns the results."""
    options = parse_arguments(arguments)
    sizes = TINY if options.tiny else Sizes()
    return measure_tables(options, "attention", partial(measure, sizes, options.flex), format_tables)


if __name__ == "__main__":
    parse_arguments()  # wrong arguments are reported before the restart
    restart_with_fixed_allocator()
    run_with_errors(main)
