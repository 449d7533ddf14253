"""What a world model takes from its data before training: the sizes, statistics and bounds of actions and proprio
states, and the fitted map of its state.

statistics = {"actions": measure_column(training, "actions")}      # with several embodiments a list, one for each
fields = data_fields(statistics, skip=5, discrete=False, normalize=True)

Letters: k environment actions of a model step, A action, S proprio state.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch

from ..configuration_world_model import VJepa2WorldModelConfig
from ..data.episodes import EpisodeSource
from ..data.windows import WindowMixture
from ..modeling_world_model import VJepa2WorldModel
from ..specs import check_known
from .cached_windows import window_statistics
from .episode_latents import model_inputs


logger = logging.getLogger(__name__)

Statistics = dict[str, Any]  # of a column, as `window_statistics` returns them
FIT_BYTES = 2**30  # latents that the state is fitted on, spread over the training episodes
FIT_FRAMES = 64  # consecutive frames of each


def embodiments_of(sources: Sequence[EpisodeSource], first: int = 0) -> list[int] | None:
    """The embodiment of each source, or None if there is only one.

    Args:
        first: embodiments of a model that goes on training; its sources need not have all of them.

    Raises:
        ValueError: an id is left out.
    """
    found = [source.embodiment for source in sources]
    missing = sorted(set(range(first, max(found))) - set(found))
    if missing:
        expected = f"expected ids from 0 without gaps{f', or of the {first} known ones' if first else ''}"
        raise ValueError(f"The embodiments of data are {sorted(set(found))}, without {missing[0]}; {expected}.")
    return found if first or max(found) > 0 else None


def measure_column(mixture: WindowMixture, column: str) -> Statistics | list[Statistics | None]:
    """`window_statistics` of a column; with several embodiments those of each, None for one without the column."""
    if mixture.embodiments is None:
        return window_statistics(mixture, column)
    found = []
    for embodiment in sorted(set(mixture.embodiments)):
        own = mixture.of_embodiment(embodiment)
        having = [column in cache.columns for cache in own.caches]
        if any(having) and not all(having):
            folders = " and ".join(repr(str(cache.folder)) for cache in own.caches)
            raise ValueError(f"Only some sources of embodiment {embodiment} have {column} ({folders}).")
        found.append(window_statistics(own, column) if all(having) else None)
    return found


def data_fields(
    statistics: dict[str, Any], skip: int, discrete: bool = False, normalize: bool = True
) -> dict[str, Any]:
    """The fields of [`VJepa2WorldModelConfig`] that the statistics by column determine.

    Args:
        skip: frames of a model step, whose k actions are concatenated.
        discrete: actions are one-hot categories, which have no statistics.
        normalize: whether the model standardizes its inputs.
    """
    if isinstance(statistics["actions"], list):
        return _fields_of_several(statistics, skip, discrete, normalize)
    actions = statistics["actions"]
    fields = {"action_dim": len(actions["mean"]) * skip, "actions_per_step": skip}
    if discrete:
        _check_one_hot(actions)
    else:
        fields |= {"action_low": actions["low"] * skip, "action_high": actions["high"] * skip}
        if normalize:
            fields |= {"action_mean": actions["mean"] * skip, "action_std": actions["std"] * skip}
    states = statistics.get("proprio_states")
    if states is not None:
        fields["proprio_dim"] = len(states["mean"])
        if normalize:
            fields |= {"proprio_mean": states["mean"], "proprio_std": states["std"]}
    rewards = statistics.get("rewards")
    if rewards is not None:  # a model step's reward is the sum over its frames
        fields |= {f"reward_{name}": rewards[name][0] * skip for name in ("mean", "std")}
    return fields


def _fields_of_several(statistics: dict[str, Any], skip: int, discrete: bool, normalize: bool) -> dict[str, Any]:
    """Those of several embodiments: a list of each, padded to the largest size in batches alone."""
    names = [name for name in statistics if name != "rewards"]
    rows = [dict(zip(names, row)) for row in zip(*(statistics[name] for name in names), strict=True)]
    each = [data_fields(row, skip, discrete, normalize) for row in rows]
    fields: dict[str, Any] = {"num_embodiments": len(each), "actions_per_step": skip}
    for size in ("action_dim", "proprio_dim"):
        sizes = [one.pop(size, 0) for one in each]
        fields |= {size: max(sizes), f"embodiment_{size}s": sizes}
    vectors = {name for one in each for name in one} - {"actions_per_step"}
    return fields | {name: [one.get(name) for one in each] for name in sorted(vectors)}


def extend_model(
    model: VJepa2WorldModel,
    embodiments: Sequence[int],
    statistics: dict[str, Any],
    new: dict[str, Any],
    normalize: bool = True,
) -> None:
    """Adds the data's embodiment to a trained model that does not have it, with sizes, statistics and bounds of the
    data.

    Args:
        embodiments: the ids of the data in order, as `statistics` have them.
        new: `name` and `proprio_transition` of the new one.

    Raises:
        ValueError: the data of a known embodiment has other sizes than the model, or `new` is given without a new one.
    """
    for name in new:
        check_known(name, ("name", "proprio_transition"), "key", "new_embodiment.")
    if embodiments[-1] == model.config.num_embodiments:
        own = {name: values[-1] if isinstance(values, list) else values for name, values in statistics.items()}
        fields = data_fields(own, model.config.frame_skip, normalize=normalize)
        model.add_embodiment(**{name: value for name, value in fields.items() if name != "actions_per_step"}, **new)
    elif new:
        raise ValueError(
            f"new_embodiment is {new}, but data has only known embodiments {list(embodiments)}: give the new robot's "
            f"source embodiment: {model.config.num_embodiments}."
        )
    _check_sizes(model.config, embodiments, statistics)


def fit_embodiments(model: VJepa2WorldModel, training: WindowMixture, processor, first: int = 0) -> None:
    """Fits the statistics of the states of each embodiment from `first` on, if the model's state is fitted."""
    for embodiment in sorted(set(training.embodiments or ())):
        if embodiment >= first and model.config.state_fitted:
            model.fit_embodiment(embodiment, latents_to_fit(model, training.of_embodiment(embodiment), processor))


def latents_to_fit(model: VJepa2WorldModel, training: WindowMixture, processor) -> torch.Tensor:
    """Latents (windows, T, N, D) of evenly spread parts of training episodes, FIT_BYTES at most."""
    lengths = torch.cat([cache.lengths[chosen] for cache, chosen in zip(training.caches, training.episodes)])
    frames = min(FIT_FRAMES, int(lengths.float().quantile(0.1)))  # the shortest tenth may be left out

    def latents(windows: torch.Tensor) -> torch.Tensor:
        inputs = model_inputs(training.read(windows, frames, 1), model, processor)
        return inputs["latents"] if "latents" in inputs else model.encode(inputs["pixel_values_videos"])

    limit = max(1, FIT_BYTES // latents(training.tile(frames, 1, frames, limit=1)).nbytes)
    windows = training.tile(frames, 1, frames, limit)
    return torch.cat([latents(part) for part in windows.split(16)])


def check_windows(config: VJepa2WorldModelConfig, frames: int, rollout_start: float) -> None:
    """Refuses windows of `frames` that are too short for the rollout loss; `rollout_start` is the fraction of steps
    with the one-step loss alone."""
    room = frames - 1
    if rollout_start < 1 and config.rollout_weight and config.rollout_steps > room:
        raise ValueError(
            f"frames_per_window={frames} holds {room} steps; rollout_steps={config.rollout_steps} needs "
            f"{config.rollout_steps + 1} frames."
        )
    if rollout_start < 1 and not any((config.teacher_forcing_weight, config.rollout_weight)):
        raise ValueError("teacher_forcing_weight and rollout_weight are both 0: there is no loss.")


def warn_of_short_windows(config: VJepa2WorldModelConfig, frames: int) -> None:
    """Warns of windows of `frames` that are shorter than the context."""
    if config.context_frames > frames - 1:
        logger.warning(
            "context_frames=%d, but windows of frames_per_window=%d show the model at most %d frames: in longer "
            "rollouts it sees frame positions that were never trained", config.context_frames, frames, frames - 1,
        )  # fmt: skip


def freeze_others(model: VJepa2WorldModel, embodiments: Sequence[int]) -> None:
    """Freezes all weights of a model but the projections of the data's only embodiment."""
    if len(embodiments) > 1:
        raise ValueError(f"train_only='embodiment' trains one embodiment, but data has {list(embodiments)}.")
    model.freeze_trunk(embodiments[0])


def _check_sizes(config: VJepa2WorldModelConfig, embodiments: Sequence[int], statistics: dict[str, Any]) -> None:
    """Refuses data whose actions or proprio states have other sizes than a model has for these embodiments."""
    for number, embodiment in enumerate(embodiments):
        sizes = config.embodiment_sizes(embodiment)[:2]
        for name, expected, count in zip(("actions", "proprio_states"), sizes, (config.frame_skip, 1)):
            own = statistics.get(name)
            own = own[number] if isinstance(own, list) else own
            found = 0 if own is None else count * len(own["mean"])
            if found != expected:
                raise ValueError(
                    f"The {name} of embodiment {embodiment} have {found} numbers in a model step, but the model's "
                    f"{expected}: give the data of another robot an embodiment of its own."
                )


def _check_one_hot(actions: Statistics) -> None:
    """Refuses discrete actions that are stored as category numbers."""
    size, total = len(actions["mean"]), sum(actions["mean"])
    if size < 2 or min(actions["low"]) < 0 or max(actions["high"]) > 1 or abs(total - 1) > 1e-3:
        raise ValueError(
            f"action_type is discrete, but the data's actions have {size} numbers from {min(actions['low']):g} to "
            f"{max(actions['high']):g} that add up to {total:g}: store them one-hot, one number per category."
        )
