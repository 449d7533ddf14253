"""Rollouts of the world model's dynamics: their loss in training, candidates of a planner, and what they cost.

Shapes: B episodes, T0 frames of context, N tokens of a frame, D width of a latent, A action, S proprio state, E
extrinsics, Z size of the stochastic latent, J candidates, j of a chunk, K samples, P steps of a rollout, W frames of
the window (`context_frames`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from .configuration_world_model import VJepa2WorldModelConfig
from .modeling_costs import Cost, goal_latents, goal_proprio, sum_over_steps
from .modeling_dynamics import Dynamics, KeyValueCache
from .modeling_embodiments import (
    check_inputs,
    cut,
    embodiment_config,
    embodiment_ids,
    next_states,
    normalize_actions,
    normalize_inputs,
    pad,
    pad_inputs,
)
from .modeling_heads import VJepa2GaussianHead
from .modeling_state import (
    DynamicsInputs,
    as_numbers,
    default_chunk_size,
    one_hot_actions,
    state_shape,
    to_float_tensors,
    tokens_of_views,
)
from .pose import proprio_states_after


# --- Loss


def rollout_loss(
    dynamics: Dynamics,
    inputs: DynamicsInputs,
    targets: torch.Tensor,
    predicted: torch.Tensor | None = None,
    cache: KeyValueCache | None = None,
) -> torch.Tensor:
    """(1/H) Σ_k λ^(k−1) loss_k from the first frame to targets (B, T-1, N, D) (two-phase recipe, sec. 4.6), with
    gradient through the whole rollout. Step 1 is the teacher-forced prediction (B, T-1, N, D), if there is one, and
    `cache` that of its frame: block-causal attention computes each frame once."""
    config, steps = dynamics.config, targets.shape[1]
    if steps < config.rollout_steps:
        needed = f"rollout_steps={config.rollout_steps} needs {config.rollout_steps + 1} or more."
        raise ValueError(f"episodes have {steps + 1} frames; {needed}")
    window = inputs[:1]
    if predicted is None:
        hidden_states, cache = dynamics.hidden_states_and_cache(window)
        predicted = dynamics.next_latents(hidden_states, window)
    step = predicted[:, :1]
    losses = [dynamics.loss(step, targets[:, :1], inputs)]
    for k in range(1, config.rollout_steps):
        frame = inputs[k : k + 1]
        frame.latents = step
        window = window.append(frame)
        if window.latents.shape[1] > config.context_frames:
            window, cache = window[1:], None  # the positions of its frames change
        # reentrant checkpointing gives no gradient to the cache
        cached = cache is not None and cache[0][0].requires_grad == step.requires_grad
        hidden_states, cache = dynamics(window[-1:], cache) if cached else dynamics(window)
        step = dynamics.next_latents(hidden_states[:, -1:], window[-1:])
        losses.append(dynamics.loss(step, targets[:, k : k + 1], inputs))
    return sum(config.rollout_discount**k * loss for k, loss in enumerate(losses)) / config.rollout_steps


# --- Rollout


@dataclass
class RolloutContext:
    """The frames up to the present, with actions and states padded to the sizes of the largest embodiment."""

    latents: torch.Tensor  # (B, T0, N, D)
    actions: torch.Tensor | None  # (B, T0-1, A)
    proprio_states: torch.Tensor | None  # (B, T0, S), or of T0 + P frames
    extrinsics: torch.Tensor | None  # (B, T0, E), or of T0 + P frames
    ids: torch.Tensor | None  # (B,) of several embodiments
    views: tuple[int, ...] | None  # in a frame; None: all


def rollout_context(
    config: VJepa2WorldModelConfig, latents, actions, proprio_states, extrinsics, embodiment, views
) -> RolloutContext:
    """The context from arguments of [`VJepa2WorldModel.rollout`]; `embodiment` are ids, or one for all rows."""
    actions = one_hot_actions(config, actions, "context_actions")
    (actions,), proprio_states = pad_inputs(config, embodiment, *latents.shape[:2], [actions], proprio_states)
    ids = embodiment_ids(config, embodiment, len(latents), latents.device)
    return RolloutContext(latents, actions, proprio_states, extrinsics, ids, views)


def rollout_chunks(
    model: PreTrainedModel,
    context: RolloutContext,
    actions: torch.Tensor,
    chunk_size: int | None,
    use_cache: bool = True,
    noise: torch.Tensor | None = None,
) -> Iterator[Iterator[torch.Tensor]]:
    """For every chunk of the candidates' actions (B, J, P, A), an iterator over the latents (B, j, N, D) of the steps.
    Only the cache of the frames before the present is shared: the present's tokens depend on the first action of a
    candidate."""
    config, dynamics, latents = model.config, model.predictor, context.latents
    given = (actions, context.actions, context.proprio_states, context.extrinsics)
    actions, context_actions, *states = to_float_tensors(latents, *given)
    check_rollout(config, latents, actions, context_actions, *states, context.views)
    frames = latents.shape[1]
    known = actions[:, 0, :1] if context_actions is None else torch.cat([context_actions, actions[:, 0, :1]], 1)
    inputs = normalize_inputs(config, latents, known, *states, context.ids, context.views)
    inputs = inputs[:frames][-config.context_frames :]
    use_cache = use_cache and config.context_frames > 1
    cache = dynamics(inputs[:-1])[1] if use_cache and inputs.latents.shape[1] > 1 else None
    chunk_size = chunk_size or default_chunk_size(config, latents)
    head = getattr(model, "stochastic_head", None)
    for first in range(0, actions.shape[1], chunk_size):
        chunk, chunk_noise = actions[:, first : first + chunk_size], None
        if noise is not None:
            samples = torch.arange(first, first + chunk.shape[1], device=actions.device) % noise.shape[1]
            chunk_noise = noise[:, samples].flatten(0, 1)
        yield rollout_steps(dynamics, head, inputs, chunk, states, frames, cache, use_cache, chunk_noise)


def rollout_steps(
    dynamics: Dynamics,
    head: VJepa2GaussianHead | None,
    context: DynamicsInputs,
    actions: torch.Tensor,
    states: list[torch.Tensor | None],
    num_frames: int,
    cache: KeyValueCache | None,
    use_cache: bool,
    noise: torch.Tensor | None,
) -> Iterator[torch.Tensor]:
    """Predicts the frames after a context for j candidates of actions each, one step at a time.

    Args:
        context: the last frames of the context, at most W; the candidates' first action replaces its last action.
        actions: (B, j, P, A) in environment units.
        states: proprio states (B, T0, S) and extrinsics (B, T0, E), or of T0 + P frames, in environment units.
        num_frames: T0.
        cache: of the frames before the last.
        noise: (B·j, P, Z + N·D) for samples of the head, or `None` for the mean prediction.

    Yields:
        P times (B, j, N, D).
    """
    config, (batch_size, candidates, horizon, _) = dynamics.config, actions.shape
    actions = actions.flatten(0, 1)  # (B·j, P, A)
    proprio, extrinsics = (None if part is None else part.repeat_interleave(candidates, dim=0) for part in states)
    window = context.map(lambda part: part.repeat_interleave(candidates, dim=0))
    ids = None if window.embodiment_ids is None else window.embodiment_ids[:, -1]
    first_action = normalize_actions(config, window.latents, actions[:, :1], ids)
    window.actions = torch.cat([window.actions[:, :-1], first_action], dim=1)
    if use_cache:
        frames_kept = min(window.latents.shape[1] - 1 + horizon, config.context_frames)
        cache = dynamics.candidate_cache(cache, candidates, frames_kept, window.latents.shape[2])
    for step in range(horizon):
        if use_cache and (cache or window.latents.shape[1] == 1):
            hidden_states, cache = dynamics(window[-1:], past=cache)
        else:  # the window has moved, which changes the positions of all its frames
            hidden_states, cache = dynamics(window)
        hidden_states = hidden_states[:, -1:]
        latents = dynamics.next_latents(hidden_states, window[-1:])
        if noise is not None:
            latents = latents + head.sample(hidden_states, noise[:, step : step + 1])
        yield latents.squeeze(1).unflatten(0, (batch_size, candidates))
        if step + 1 == horizon:
            return
        now = num_frames + step
        proprio = next_states(config, proprio, actions[:, step], now, ids)
        next_action = actions[:, step + 1 : step + 2]
        frame_proprio = None if proprio is None else proprio[:, now : now + 1]
        frame_extrinsics = None if extrinsics is None else extrinsics[:, : now + 1][:, -1:]  # the last one is held
        frame = (latents, next_action, frame_proprio, frame_extrinsics, ids, window.views)
        window = window.append(normalize_inputs(config, *frame))
        if window.latents.shape[1] > config.context_frames:
            window, cache = window[1:], None


def sample_noise(
    model: PreTrainedModel, shape: tuple[int, ...], num_tokens: int, generator: torch.Generator
) -> torch.Tensor:
    """Standard normal noise (*shape, Z + N · D) for samples of the Gaussian head."""
    if not model.config.stochastic_dim:
        raise ValueError("samples are requested, but the model is deterministic (stochastic_dim is 0).")
    size = model.config.stochastic_dim + num_tokens * state_shape(model.config)[1]
    noise = torch.randn(*shape, size, generator=generator, device=generator.device)
    return noise.to(model.stochastic_head.proj.weight.device)


# --- Checks


def check_candidates(config: VJepa2WorldModelConfig, latents: torch.Tensor, actions: torch.Tensor) -> None:
    """Checks latents (B, T0, N, D) and actions (B, J, P, A)."""
    size, batch_size = config.action_dim, len(latents)
    if latents.ndim != 4:
        raise ValueError(f"latents have shape {tuple(latents.shape)}; expected (B, T0, N, D).")
    if actions is None:
        raise ValueError(f"actions are missing; expected ({batch_size}, steps, {size}), or candidates of them.")
    if actions.ndim != 4 or actions.shape[-1] != size or len(actions) != batch_size:
        expected = f"({batch_size}, steps, {size}) or ({batch_size}, candidates, steps, {size})"
        raise ValueError(f"actions have shape {tuple(actions.shape)}; expected {expected}.")
    if min(actions.shape[1:3]) == 0:
        raise ValueError(f"actions have shape {tuple(actions.shape)}; expected at least one candidate and one step.")


def check_rollout(
    config: VJepa2WorldModelConfig, latents, actions, context_actions, proprio_states, extrinsics, views=None
) -> None:
    """Refuses arguments of a rollout from T0 context frames that do not fit each other."""
    check_candidates(config, latents, actions)
    frames = latents.shape[1]
    if frames > 1 and context_actions is None:
        raise ValueError(f"{frames} frames of context need context_actions ({len(latents)}, {frames - 1}, A).")
    context_actions = actions[:, 0, :0] if context_actions is None else context_actions
    total = frames + actions.shape[2]
    for name, states in (("proprio_states", proprio_states), ("extrinsics", extrinsics)):
        if states is not None and states.ndim != 3:
            raise ValueError(
                f"{name} have shape {tuple(states.shape)}; expected 3 dimensions, ({len(latents)}, T, ·)."
            )
        if states is not None and states.shape[1] not in (frames, total):
            raise ValueError(f"{name} cover {states.shape[1]} frames; expected {frames} (context) or {total} (all).")
    known = [None if part is None else part[:, :frames] for part in (proprio_states, extrinsics)]
    check_inputs(config, latents, frames, context_actions, *known, name="context_actions", views=views)


# --- Score


def score_candidates(
    model: PreTrainedModel,
    terms: Cost,
    goal: torch.Tensor | None,
    goal_views: tuple[int, ...] | None,
    goal_states: Any,
    actions: Any,
    context: dict[str, Any],
    chunk_size: int | None,
    num_samples: int,
    generator: torch.Generator | None,
) -> torch.Tensor:
    """The cost (B, J) of actions (B, J, P, A), see [`VJepa2WorldModel.score`]; `context` are the arguments of
    `rollout_context` by name."""
    config, latents, views = model.config, context["latents"], context["views"]
    ids = embodiment_ids(config, context["embodiment"], len(latents), latents.device)
    if ids is not None and len(ids.unique()) > 1:
        costs = []
        for embodiment in ids.unique().tolist():
            goals, *given, part = _rows_of(embodiment, ids, goal, goal_states, actions, context)
            settings = (part, chunk_size, num_samples, generator)
            costs.append(score_candidates(model, terms, goals, goal_views, *given, *settings))
        return torch.cat(costs)[ids.argsort(stable=True).argsort()]
    tokens = None
    if goal is not None:
        tokens = tokens_of_views(config, views, goal_views, latents.shape[2], latents.device)
        goal = goal_latents(goal, latents if tokens is None else latents[:, :, tokens])
    own = config if ids is None else embodiment_config(config, int(ids[0]))
    states, goal_states = (cut(part, config, own, "proprio") for part in (context["proprio_states"], goal_states))
    goal_states = goal_proprio(terms, own.proprio_dim, states, goal_states, latents)
    actions, noise = cut(one_hot_actions(config, actions), config, own, "action"), None
    check_candidates(own, latents, actions)
    chunk_size = int(chunk_size or default_chunk_size(config, latents))
    if num_samples != 1 or terms.needs_samples:
        if num_samples < 2:
            raise ValueError(f"num_samples is {num_samples}; expected 2 or more to estimate an uncertainty.")
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        noise = sample_noise(model, (num_samples, actions.shape[2]), latents.shape[2], generator)
        noise = noise.expand(len(actions), -1, -1, -1)  # (B, K, P, Z + N · D)
        chunk_size = max(1, chunk_size // int(num_samples))  # samples of a candidate stay together
    goals = (goal, goal_states, _distance_to(model, terms, goal), tokens)
    arguments = (model, terms, rollout_context(config, **context), goals, (own, states), chunk_size, noise)
    with torch.set_grad_enabled(torch.is_grad_enabled() and actions.requires_grad):
        if not torch.is_grad_enabled() or actions.shape[1] <= chunk_size:
            return _costs(*arguments, actions)
        chunks = actions.split(chunk_size, dim=1)
        return torch.cat([checkpoint(_costs, *arguments, chunk, use_reentrant=False) for chunk in chunks], dim=1)


def _rows_of(embodiment: int, ids: torch.Tensor, *parts: Any) -> list:
    """The rows of an embodiment in tensors (B, …) and in a context, for ids (B,)."""
    rows = (ids == embodiment).nonzero().squeeze(1)

    def take(part: Any) -> Any:
        if isinstance(part, dict):
            part = {name: each if name in ("embodiment", "views") else take(each) for name, each in part.items()}
            return {**part, "embodiment": embodiment}
        if part is None:
            return None
        part = as_numbers(part)
        if part.shape[:1] != ids.shape:
            found = (
                f"latents, a goal, actions or states of shape {tuple(part.shape)} were given for {len(ids)} episodes"
            )
            raise ValueError(f"{found}; expected one row for each of embodiment_ids.")
        return part[rows.to(part.device)]

    return [take(part) for part in parts]


def _distance_to(
    model: PreTrainedModel, terms: Cost, goal: torch.Tensor | None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The distance (B, J, K, P) of latents from a goal (B, 1, 1, N, D), embedded once, if a cost needs it."""
    goal = model.distance_embedding(goal).unsqueeze(3) if terms.needs_distance_head else None
    return lambda latents: model.embedded_distance(model.distance_embedding(latents), goal)


def _costs(model, terms, context: RolloutContext, goals, own, chunk_size, noise, actions) -> torch.Tensor:
    """Costs (B, J) of actions (B, J, P, A), with noise (B, K, P, Z + N · D) that all candidates share. `own` are the
    config and the proprio states of the actions' embodiment."""
    samples, costs, (config, states) = 1 if noise is None else noise.shape[1], [], own
    repeated = pad(actions.repeat_interleave(samples, dim=1), config.action_dim, model.config.action_dim)
    chunks = rollout_chunks(model, context, repeated, chunk_size * samples, noise=noise)
    for steps, chunk in zip(chunks, actions.split(chunk_size, dim=1), strict=True):
        following = None
        if terms.needs_proprio:
            kind, frames = config.proprio_transition, context.latents.shape[1]
            following = proprio_states_after(kind, states, chunk, frames, context.latents.device)
        rollout = (steps, chunk, context.latents[:, -1:], samples, model.predict_rewards, following)
        costs.append(sum_over_steps(terms, *rollout, *goals, model.state_whitening))
    return torch.cat(costs, dim=1)
