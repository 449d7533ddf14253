"""Inputs of the world model's dynamics: the state of a frame, actions, proprio states and extrinsics.

Shapes: B episodes, T frames, F frames of a window, C channels, H W pixels, A action, S proprio state, E extrinsics.
N tokens of width D are the state of a frame; before the fitted map a frame is *arranged*: n tokens of width m. With V
views (cameras) these are the tokens of one view, and a frame has V·N tokens, one view after the other.

::

    frame ──► encoder ──► LayerNorm ──► arranged: all tokens, 2×2 merged, or pooled (modeling_learned_state.py)
          ──► fitted by `fit_state`: minus the mean per position, linear map (`state_dim`), over one standard deviation
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from .configuration_world_model import VJepa2WorldModelConfig
from .specs import (
    LARGEST_COUNT,
    check_count,
    check_generator,
    check_known,
    check_tensor,
    describe,
    is_integer,
    refuse,
)


SLOW_WHITENED = 192  # principal components in which slow directions are searched
SLOW_LAG = 3  # frames over which "slow" is measured
_EXACT_SIZE = 4096  # largest covariance that is decomposed exactly
_CHUNK = 1024  # frames at a time


# --- State


def token_size(config: VJepa2WorldModelConfig) -> int:
    """Width of one level of a token of the encoder, or of a raw patch: the channels that are normalized together."""
    encoder = config.encoder_config
    return encoder.in_chans * encoder.patch_size**2 if config.state_type == "pixels" else encoder.hidden_size


def encoder_token_size(config: VJepa2WorldModelConfig) -> int:
    """Width of a token of the encoder, of all its levels that are read."""
    return token_size(config) * (len(config.encoder_config.output_levels) if config.state_levels == "all" else 1)


def arranged_shape(config: VJepa2WorldModelConfig) -> tuple[int, int]:
    """(n, m) of a square view of the configured size."""
    if config.state_type == "learned":
        return 1, config.state_dim
    tokens = (config.encoder_config.crop_size // config.encoder_config.patch_size) ** 2
    size = encoder_token_size(config)
    return {"merged": (tokens // 4, 4 * size), "pooled": (1, size)}.get(config.state_type, (tokens, size))


def state_shape(config: VJepa2WorldModelConfig) -> tuple[int, int]:
    """(N, D) of a square view of the configured size."""
    tokens, size = arranged_shape(config)
    return 1 if config.state_type == "projected" else tokens, config.state_dim or size


def frame_shape(config: VJepa2WorldModelConfig) -> tuple[int, int]:
    """(V·N, D) of a frame of all views of the configured size."""
    tokens, size = state_shape(config)
    return config.num_views * tokens, size


def empty_state_map(config: VJepa2WorldModelConfig) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Mean (V·n, m), linear map (or `None`) and scale () of the shapes of `fit_state_map`, to load weights into."""
    tokens, size = arranged_shape(config)
    inputs = tokens * size if config.state_type == "projected" else size
    linear_map = torch.eye(inputs, config.state_dim) if config.has_state_map else None
    return torch.zeros(config.num_views * tokens, size), linear_map, torch.ones(())


def apply_state_map(
    config: VJepa2WorldModelConfig, centered: torch.Tensor, linear_map: torch.Tensor | None
) -> torch.Tensor:
    """Centered latents (..., V·n, m) through the linear map, if there is one: (..., V·N, D)."""
    if linear_map is None:
        return centered
    if config.state_type == "projected":
        centered = centered.unflatten(-2, (-1, arranged_shape(config)[0])).flatten(-2)  # one vector per view
    return centered @ linear_map.to(centered)


def standardized_state(
    config: VJepa2WorldModelConfig,
    latents: torch.Tensor,
    views: tuple[int, ...] | None,
    mean: torch.Tensor,
    linear_map: torch.Tensor | None,
    scale: torch.Tensor,
) -> torch.Tensor:
    """Arranged latents (..., V·n, m) of the views -> the state (..., V·N, D), with the fitted parts of the config's
    whole frame."""
    check_tensor("latents", latents, "(..., n, m)")
    if views is not None:
        mean = mean.unflatten(0, (config.num_views, -1))[list(views)].flatten(0, 1)
    if latents.shape[-2] != len(mean):
        found = f"the frame has {latents.shape[-2]} tokens, but the state was fitted on {len(mean)}"
        raise ValueError(f"{found}: resize frames to {config.encoder_config.crop_size} pixels.")
    return apply_state_map(config, latents - mean, linear_map) / scale


def fit_state_map(
    config: VJepa2WorldModelConfig, latents: torch.Tensor | Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Mean (V·n, m), linear map (or `None`) and scale () of the state; see [`VJepa2WorldModel.fit_state`]. The map is
    the same for all views. The scale of a learned state is its deviation within an episode, if episodes are given: how
    appearances differ should not decide about the unit of a motion."""
    episodes = _as_episodes(config, latents)
    count = sum(map(len, episodes))
    chunks = [part for episode in episodes for part in episode.split(_CHUNK)]
    mean = (sum(part.sum(dim=0, dtype=torch.float64) for part in chunks) / count).float()
    linear_map = _fit_map(config, [part - mean for part in episodes]) if config.has_state_map else None
    largest = max(part.abs().max() for part in chunks)
    squares = size = 0
    if config.state_type == "learned" and (own := known_episodes(latents)):
        chunks = [episode - episode.mean(dim=0) + mean for episode in own]
    for part in chunks:
        mapped = apply_state_map(config, part - mean, linear_map)
        squares, size = squares + mapped.square().sum(dtype=torch.float64), size + mapped.numel()
    scale = (squares / size).sqrt()
    if not 1e-6 * largest < scale < torch.inf:  # rounding errors, or too large for float32
        raise ValueError(f"latents deviate by {scale:.2g}, of {largest:.2g} at most; expected frames that differ.")
    parts = (mean, linear_map, scale)
    # contiguous, as they load back: another layout rounds differently
    return tuple(None if part is None else part.to(episodes[0]).contiguous() for part in parts)


def _as_episodes(config: VJepa2WorldModelConfig, latents: torch.Tensor | Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Episodes (T, V·n, m) each; where time does not matter, one of all frames."""
    if not isinstance(latents, (torch.Tensor, list, tuple)):
        refuse("latents", latents, "a float tensor (..., N, D), or a list of episodes (T, N, D)")
    parts = [latents] if isinstance(latents, torch.Tensor) else list(latents)
    tokens, size = arranged_shape(config)
    expected = config.num_views * tokens, size
    for part in parts:
        if not isinstance(part, torch.Tensor) or not part.is_floating_point():
            refuse("latents, or an episode of them,", part, f"a float tensor (..., {expected[0]}, {expected[1]})")
        if not part.isfinite().all():
            raise ValueError("latents hold numbers that are not finite; expected finite latents of `encode`.")
        if tuple(part.shape[-2:]) != expected or part.ndim < 3 or not part.numel():
            raise ValueError(f"latents have shape {tuple(part.shape)}; expected (..., {expected[0]}, {expected[1]}).")
    if not parts:
        raise ValueError("latents are an empty list; expected episodes (T, N, D).")
    if config.state_projection != "slow":
        return [part.flatten(0, -3) for part in parts]
    if isinstance(latents, torch.Tensor) and latents.ndim != 4:
        raise ValueError(
            f"latents have shape {tuple(latents.shape)}; state_projection='slow' needs episodes: give "
            f"(E, T, {expected[0]}, {expected[1]}), or a list of (T, {expected[0]}, {expected[1]})."
        )
    return [episode for part in parts for episode in (part if part.ndim == 4 else [part])]


def known_episodes(latents: torch.Tensor | Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The episodes (T, n, m), T of 2 or more, of a list of them or of (E, T, n, m); none of other latents, in which it
    is not known what belongs together."""
    if isinstance(latents, torch.Tensor):
        parts = latents if latents.ndim == 4 else []
    else:
        parts = [
            episode for part in latents for episode in (part if part.ndim == 4 else [part]) if part.ndim in (3, 4)
        ]
    return [episode for episode in parts if len(episode) > 1]


def _fit_map(config: VJepa2WorldModelConfig, episodes: list[torch.Tensor]) -> torch.Tensor:
    """Centered episodes (T, V·n, m) -> the linear map to `state_dim`."""
    if config.num_views > 1 and config.state_type == "projected":  # one map for all views, each an episode
        episodes = [view for part in episodes for view in part.chunk(config.num_views, dim=1)]
    if config.state_projection == "slow":
        return slow_directions([part.flatten(1) for part in episodes], config.state_dim)
    rows = torch.cat(episodes)
    rows = rows.flatten(0, 1) if config.state_type == "merged" else rows.flatten(1)  # one map for all merged tokens
    return principal_directions(rows, config.state_dim)[1]


def principal_directions(
    rows: torch.Tensor, count: int, at_least: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` directions of largest variance of centered float32 rows (r, m), at least `at_least` if they vary in
    fewer: variances (k,), descending, and orthonormal directions (m, k), the largest entry of each positive.

    Up to 4096 columns the covariance is decomposed exactly; beyond, by `torch.svd_lowrank` with a fixed seed.
    """
    number, size = rows.shape
    if size <= _EXACT_SIZE:
        covariance = sum((part.T @ part).double() for part in rows.split(_CHUNK)) / number
        values, vectors = torch.linalg.eigh(covariance)
        values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count]
    else:
        with torch.random.fork_rng(devices=[rows.device] if rows.is_cuda else []):
            torch.manual_seed(0)
            _, singular, vectors = torch.svd_lowrank(rows, q=min(count + 32, number), niter=4)
        values, vectors = (singular.square() / number)[:count], vectors[:, :count]
    known, needed = int((values > 1e-6 * values[0]).sum()), at_least or count  # smaller ones are float32 rounding
    if known < needed:
        found = f"{number} latents of {size} numbers vary in {known} directions, and the state needs {needed}"
        raise ValueError(f"{found}: give latents of more frames, or lower state_dim.")
    return values[:known].to(rows), _with_fixed_signs(vectors[:, :known]).to(rows)


def slow_directions(episodes: list[torch.Tensor], count: int) -> torch.Tensor:
    """The directions (m, count) in which centered episodes (T, m) change least over 3 frames, relative to their
    variance within an episode; the slowest first.

    Slow feature analysis (Wiskott & Sejnowski 2002): the first 192 principal components of the within-episode
    covariance are whitened; of the covariance of differences in that space, the directions of smallest variance are
    kept. The within-episode variance excludes what differs between episodes but never changes, such as a background.
    """
    within = torch.cat([episode - episode.mean(dim=0) for episode in episodes])
    variances, directions = principal_directions(within, max(count, SLOW_WHITENED), at_least=count)
    whitening = directions / variances.sqrt()
    moving = [episode for episode in episodes if len(episode) > SLOW_LAG]
    if not moving:
        advice = "give longer ones, or use state_projection='pca'."
        raise ValueError(f"no episode has more than {SLOW_LAG} frames, over which 'slow' measures change: {advice}")
    steps = torch.cat([(episode[SLOW_LAG:] - episode[:-SLOW_LAG]) @ whitening for episode in moving])
    _, rotations = torch.linalg.eigh((steps.T @ steps).double())  # ascending: the slowest first
    return _with_fixed_signs(whitening @ rotations[:, :count].to(whitening))


def _with_fixed_signs(directions: torch.Tensor) -> torch.Tensor:
    """Directions (m, k) with the largest entry of each positive; the sign of a decomposition is arbitrary."""
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    return directions * largest.sign()


# --- Views


def view_names(config: VJepa2WorldModelConfig) -> list[str]:
    """Names of the cameras, in the order of their tokens in a frame."""
    return config.view_names or [f"view_{index}" for index in range(config.num_views)]


def view_indices(config: VJepa2WorldModelConfig, views: Any, name: str = "views") -> tuple[int, ...] | None:
    """Indices of the views with these names or indices; `None` for all in order, also where they are all given."""
    if views is None:
        return None
    names, found = view_names(config), []
    if not isinstance(views, (list, tuple)) or not views:
        refuse(name, views, f"a list of views out of {', '.join(names)}")
    for view in views:
        if isinstance(view, str):
            check_known(view, names, f"view in {name}:")
            view = names.index(view)
        found.append(check_count(f"a view in {name}", view, lowest=0, highest=config.num_views - 1))
    if len(set(found)) < len(found):
        raise ValueError(f"{name} is {list(views)}, which names a view twice; expected different views.")
    return None if found == list(range(config.num_views)) else tuple(found)


def held_views(config: VJepa2WorldModelConfig, views: tuple[int, ...] | None) -> tuple[int, ...]:
    """`views`, or the indices of all."""
    return tuple(range(config.num_views)) if views is None else views


def stack_views(
    config: VJepa2WorldModelConfig,
    frames: Any,
    views: Any,
    name: str = "pixel_values_videos",
    views_name: str | None = "views",
) -> tuple[torch.Tensor, tuple[int, ...] | None]:
    """Frames (B, T, V, C, H, W), or a dict of camera names -> (B, T, C, H, W), as (B, T, V, C, H, W), and the indices
    of their views (`None`: all); of a model of one view (B, T, C, H, W).

    A dict may lack views; a tensor of fewer views needs `views`, in its order. Errors call the arguments `name` and
    `views_name`; `None`: the caller takes no views.
    """
    if isinstance(frames, dict):
        if views is not None:
            raise ValueError(f"{name} is a dict, whose keys name the views: leave out {views_name}={views!r}.")
        held = held_views(config, view_indices(config, list(frames), name))
        ordered = sorted(zip(held, frames, strict=True))  # views and the keys that name them
        parts = [check_tensor(f"{name}[{key!r}]", frames[key], "(B, T, C, H, W)") for _, key in ordered]
        shapes = {tuple(part.shape) for part in parts}
        if len(shapes) > 1:
            expected = "expected equal shapes: process all cameras to one size, with as many frames each"
            raise ValueError(f"the cameras of {name} have shapes {sorted(shapes)}; {expected}.")
        return (parts[0] if config.num_views == 1 else torch.stack(parts, dim=2)), view_indices(config, sorted(held))
    views = view_indices(config, views, views_name or "views")
    count = len(held_views(config, views))
    if isinstance(frames, torch.Tensor) and frames.ndim == 6:
        check_tensor(name, frames, "(B, T, V, C, H, W)")
        if frames.shape[2] != count:
            names = ", ".join(view_names(config)[view] for view in held_views(config, views))
            fewer = (
                f"name the views of fewer with {views_name}=[…]" if views_name else "give fewer as a dict of cameras"
            )
            advice = f"expected {count} ({names}); {fewer}"
            raise ValueError(f"{name} of shape {tuple(frames.shape)} has {frames.shape[2]} views; {advice}.")
        return (frames.squeeze(2) if config.num_views == 1 else frames), views
    if config.num_views > 1:
        cameras = f"(B, T, V, C, H, W), or a dict of cameras ({', '.join(view_names(config))})"
        refuse(name, frames, f"frames {cameras} -> (B, T, C, H, W): the model sees {config.num_views} views")
    return frames, views


def random_views(config: VJepa2WorldModelConfig, views: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The views, or in a fraction `view_dropout` of calls a random part of them."""
    held = held_views(config, views)
    if not config.view_dropout or len(held) == 1 or torch.rand(()) >= config.view_dropout:
        return views
    count = int(torch.randint(1, len(held), ()))
    return tuple(sorted(held[index] for index in torch.randperm(len(held))[:count].tolist()))


def check_view_tokens(
    config: VJepa2WorldModelConfig,
    latents: torch.Tensor,
    views: tuple[int, ...] | None,
    name: str = "latents",
    views_name: str = "views",
) -> None:
    """Refuses latents (..., M, D) whose M tokens are not those of the views; names as for `stack_views`."""
    if latents.ndim < 2:
        refuse(name, latents, "latents (..., N, D)")
    tokens, count, configured = latents.shape[-2], len(held_views(config, views)), state_shape(config)[0]
    held = tokens // configured if tokens % configured == 0 else count
    if config.num_views > 1 and (tokens % count or held != count and held <= config.num_views):
        found = f"{name} of shape {tuple(latents.shape)} have {tokens} tokens per frame"
        advice = f"latents of fewer views than the model's need {views_name}=[…], their names in order"
        raise ValueError(f"{found}; expected those of {count} views, {count} · {configured}: {advice}.")


def tokens_of_views(
    config: VJepa2WorldModelConfig,
    views: tuple[int, ...] | None,
    goal_views: tuple[int, ...] | None,
    tokens: int,
    device: torch.device,
) -> torch.Tensor | None:
    """Ids (M,) of the goal's views among the tokens of a frame that holds `views`; `None` if both hold the same."""
    present, wanted = held_views(config, views), held_views(config, goal_views)
    names = view_names(config)
    if missing := [names[view] for view in wanted if view not in present]:
        shown = ", ".join(names[view] for view in present)
        raise ValueError(
            f"the goal shows {', '.join(missing)}, which the observation lacks (it shows {shown}): leave the view out "
            "of the goal, or add it to the observation."
        )
    if present == wanted:
        return None
    each = tokens // len(present)
    ids = torch.arange(tokens, device=device).unflatten(0, (len(present), each))
    return ids[[present.index(view) for view in wanted]].flatten()


# --- Inputs


@dataclass
class DynamicsInputs:
    """Standardized inputs of F frames; `inputs[first:last]` takes some of the frames."""

    latents: torch.Tensor  # (B, F, V·N, D)
    actions: torch.Tensor  # (B, F, A), or of F - 1 frames
    proprio_states: torch.Tensor | None = None  # (B, F, S)
    extrinsics: torch.Tensor | None = None  # (B, F, E)
    embodiment_ids: torch.Tensor | None = None  # (B, F), with several embodiments
    views: tuple[int, ...] | None = None  # indices of the views in a frame; None: all

    def tensors(self) -> dict[str, torch.Tensor]:
        """The parts that are tensors."""
        return {name: part for name, part in vars(self).items() if isinstance(part, torch.Tensor)}

    def map(self, function) -> "DynamicsInputs":
        """These inputs after `function`; parts that are `None` stay."""
        return DynamicsInputs(**{name: function(part) for name, part in self.tensors().items()}, views=self.views)

    def __getitem__(self, frames: slice) -> "DynamicsInputs":
        return self.map(lambda part: part[:, frames])

    def append(self, frame: "DynamicsInputs") -> "DynamicsInputs":
        """These inputs followed by those of later frames."""
        later = frame.tensors()
        joined = {name: torch.cat([part, later[name]], dim=1) for name, part in self.tensors().items()}
        return DynamicsInputs(**joined, views=self.views)


def to_float_tensors(latents: torch.Tensor, *values: torch.Tensor | None) -> list[torch.Tensor | None]:
    """Values of any shape in environment units (often float64 or integers) on the latents' device, in float32 at
    least: bfloat16 would lose small differences before the mean is subtracted."""
    dtype = torch.promote_types(latents.dtype, torch.float32)
    return [value if value is None else as_numbers(value).to(latents.device, dtype) for value in values]


def match_dtype(latents: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Latents of any shape in the dtype of a weight, but under autocast, which converts them itself."""
    if latents.dtype == weight.dtype or torch.is_autocast_enabled(latents.device.type):
        return latents
    return latents.to(weight.dtype)


def as_numbers(value: torch.Tensor | np.ndarray | list, name: str = "actions or states") -> torch.Tensor:
    """A tensor of any shape unchanged; a numpy array, as a planner returns, or a list as a tensor of its own."""
    if not isinstance(value, torch.Tensor):
        try:
            value = torch.tensor(value)  # copied: an array may be read-only
        except (TypeError, ValueError, RuntimeError, OverflowError):
            refuse(name, value, "numbers: a tensor, a numpy array or a list")
    return refuse(name, value, "real numbers") if value.is_complex() else value


def one_hot_actions(
    config: VJepa2WorldModelConfig, actions: torch.Tensor | None, name: str = "actions"
) -> torch.Tensor | None:
    """Integer categories (..., steps), or (..., steps, k) with k actions per step, as one-hot floats (..., steps, A);
    other actions unchanged, as a tensor."""
    actions = None if actions is None else as_numbers(actions, name)
    if config.action_type != "discrete" or actions is None or actions.is_floating_point():
        return actions
    each = config.actions_per_step
    categories = config.action_dim // each
    actions = actions.unsqueeze(-1) if each == 1 else actions
    if actions.ndim < 3 or actions.shape[-1] != each:
        shape = "(B, steps)" if each == 1 else f"(B, steps, {each})"
        expected = f"categories {shape}, or one-hot floats (B, steps, {config.action_dim})"
        raise ValueError(f"{name} are integers of shape {tuple(actions.shape)}; expected {expected}.")
    if actions.numel() and not 0 <= actions.min() <= actions.max() < categories:
        found = f"categories {actions.min()} to {actions.max()}"
        raise ValueError(f"{name} hold {found}; the model knows 0 to {categories - 1}.")
    return nn.functional.one_hot(actions.long(), categories).flatten(-2).float()


def given_frames(
    config: VJepa2WorldModelConfig, pixel_values_videos: Any, latents: Any, views: Any
) -> tuple[torch.Tensor, Any]:
    """The frames (B, T, C, H, W), or (B, T, V, C, H, W), or latents (B, T, N, D) of training, of which one must be
    given, and their views; refuses fewer than two frames, and latents for an encoder that learns."""
    if (pixel_values_videos is None) == (latents is None):
        raise ValueError("give either pixel_values_videos or latents (and not both).")
    if latents is None:
        given, views = stack_views(config, pixel_values_videos, views)
        given = check_tensor("pixel_values_videos", given, "(B, T, C, H, W)", "(B, T, V, C, H, W)")
    else:
        given = check_tensor("latents", latents, "(B, T, N, D)")
    if given.ndim > 1 and given.shape[1] < 2:
        raise ValueError(f"episodes have {given.shape[1]} frames; training needs 2 or more.")
    if latents is not None and not config.freeze_encoder:
        outdated = "cached latents are outdated after every step: give pixel_values_videos."
        raise ValueError(f"latents were given, but with freeze_encoder=False {outdated}")
    return given, views


def check_scored(
    observation: torch.Tensor, goal: torch.Tensor | None, goal_views: Any, num_samples: int, generator: Any
) -> None:
    """Refuses what [`VJepa2WorldModel.score`] cannot encode or sample: observations (B, T0, …), goals (B, …)."""
    if goal is None and goal_views is not None:
        raise ValueError(
            f"goal_views is {describe(goal_views)}, but there is no goal: give it, or leave goal_views out."
        )
    if not isinstance(observation, dict):
        check_tensor("observation", observation, "(B, T0, C, H, W)", "(B, T0, V, C, H, W)", "(B, T0, N, D)")
    if goal is not None and not isinstance(goal, dict):
        check_tensor("goal", goal, "(B, 1, C, H, W)", "(B, 1, V, C, H, W)", "(B, 1, N, D)", "(B, N, D)")
    check_count("num_samples", num_samples)
    check_generator("generator", generator)


def check_chunk_size(size: int | None) -> None:
    """Checks the number of candidates of a rollout; `None` lets the model choose."""
    if size is not None and (not is_integer(size) or not 1 <= size <= LARGEST_COUNT):
        raise ValueError(f"candidate_chunk_size is {describe(size)}; expected an integer of at least 1, or None.")


def default_chunk_size(config: VJepa2WorldModelConfig, latents: torch.Tensor) -> int:
    """Number of candidates whose widest activation fits in 16 MB, at most 32, on a CPU (larger chunks are hardly
    faster), or in 1 GB on an accelerator; for latents (B, T, N, D)."""
    on_cpu = latents.device.type == "cpu"
    width = int(config.predictor_hidden_size * config.predictor_mlp_ratio)
    if config.stochastic_dim:
        width = max(width, state_shape(config)[1] * (config.stochastic_dim + 1))
    fitting = max(1, (2**22 if on_cpu else 2**28) // (len(latents) * (latents.shape[2] + 3) * width))
    return min(fitting, 32) if on_cpu else fitting
