"""Actions and proprio states of the world model, of one embodiment or several: checks, standardization, projections.

An embodiment is a robot or environment with actions and proprio states of its own. Several share the dynamics: each
has its own projections and a learned embedding, and shorter actions and states are padded with zeros, which nothing
reads.

Shapes: B episodes, T frames, F frames of a window, N tokens of a frame, D width of a latent, d width of the dynamics,
A action, S proprio state (with several embodiments the largest), E extrinsics, M macro-action, J candidates, P steps.
"""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .configuration_world_model import EMBODIMENT_VECTORS, VJepa2WorldModelConfig
from .modeling_state import (
    DynamicsInputs,
    as_numbers,
    check_view_tokens,
    frame_shape,
    held_views,
    one_hot_actions,
    state_shape,
    to_float_tensors,
)
from .pose import next_proprio_state
from .specs import check_count, check_known, check_tensor, describe, is_integer, refuse


# Of each embodiment, buffers beside its projections: mean of its states, their deviation, and that of a step's change
STATE_STATISTICS = ("state_mean", "state_scale", "state_change")

# --- One of several embodiments


def embodiment_index(config: VJepa2WorldModelConfig, embodiment: int | str | None) -> int:
    """The index of an embodiment given by name or index; `None` is the only one."""
    if embodiment is None:
        if config.num_embodiments > 1:
            raise ValueError(f"embodiment is missing; expected one of {_embodiments(config)}.")
        return 0
    if isinstance(embodiment, str):
        if not config.embodiment_names:
            expected = f"an index out of {_embodiments(config)}: the config has no embodiment_names"
            refuse("embodiment", embodiment, expected)
        check_known(embodiment, config.embodiment_names, "embodiment")
        return config.embodiment_names.index(embodiment)
    return check_count("embodiment", embodiment, lowest=0, highest=config.num_embodiments - 1)


def embodiment_config(config: VJepa2WorldModelConfig, embodiment: int | str | None) -> VJepa2WorldModelConfig:
    """The config with the sizes, statistics and bounds of one embodiment, as if it were the only one."""
    index = embodiment_index(config, embodiment)
    if config.num_embodiments == 1:
        return config
    one = copy.copy(config)  # every plan asks for it; only fields of its own are set
    action_dim, proprio_dim, transition = config.embodiment_sizes(index)
    one.num_embodiments, one.embodiment_names, one.embodiment_states_fitted = 1, None, False
    one.embodiment_action_dims = one.embodiment_proprio_dims = one.embodiment_proprio_transitions = None
    one.action_dim, one.proprio_dim, one.proprio_transition = action_dim, proprio_dim, transition
    for name in EMBODIMENT_VECTORS:
        values = getattr(config, name)
        setattr(one, name, None if values is None else values[index])
    return one


def embodiment_ids(config: VJepa2WorldModelConfig, ids: Any, batch_size: int, device) -> torch.Tensor | None:
    """Ids (B,) from a tensor, or an index or name for all rows; `None` for a model of one embodiment."""
    if isinstance(ids, str) or is_integer(ids):
        ids = torch.full((batch_size,), embodiment_index(config, ids))
    if ids is None:
        if config.num_embodiments > 1:
            expected = f"expected int64 ({batch_size},), or an index for all, of {_embodiments(config)}"
            raise ValueError(f"embodiment_ids are missing; {expected}.")
        return None
    ids = as_numbers(ids, "embodiment_ids")
    if ids.shape != (batch_size,) or ids.is_floating_point() or ids.dtype == torch.bool:
        refuse("embodiment_ids", ids, f"integers of shape ({batch_size},), one per episode")
    if ids.device.type == "cpu" and not 0 <= ids.min() <= ids.max() < config.num_embodiments:
        found = f"embodiment_ids are {describe(ids.tolist())}"
        raise ValueError(f"{found}; expected 0 to {config.num_embodiments - 1}: {_embodiments(config)}.")
    return None if config.num_embodiments == 1 else ids.to(device).long()


def _embodiments(config: VJepa2WorldModelConfig) -> str:
    names = config.embodiment_names or [""] * config.num_embodiments
    return ", ".join(f"{index} ({name})" if name else str(index) for index, name in enumerate(names))


def pad_inputs(
    config: VJepa2WorldModelConfig, embodiment: Any, batch_size: int, frames: int, actions: list, states: Any
) -> tuple[list, Any]:
    """Actions (…, A) and proprio states (B, T, S), padded with zeros from the sizes of one embodiment, given by index
    or name. An embodiment without states gets zeros for `frames`. Others are returned unchanged."""
    if config.num_embodiments == 1 or not (isinstance(embodiment, str) or is_integer(embodiment)):
        return actions, states
    action_dim, proprio_dim, _ = config.embodiment_sizes(embodiment_index(config, embodiment))
    if states is None and config.proprio_dim and not proprio_dim:
        states = torch.zeros(batch_size, frames, config.proprio_dim)
    return [pad(each, action_dim, config.action_dim) for each in actions], pad(states, proprio_dim, config.proprio_dim)


def pad(values: Any, own: int, size: int) -> Any:
    """Values (..., own) as (..., size); any others unchanged."""
    values = None if values is None else as_numbers(values)
    if values is None or own == size or values.ndim < 2 or values.shape[-1] != own:
        return values
    return nn.functional.pad(values, (0, size - own))


def cut(values: Any, config: VJepa2WorldModelConfig, own: VJepa2WorldModelConfig, kind: str) -> Any:
    """Actions or proprio states (`kind`) without padding, of the size in the config of one embodiment."""
    size = getattr(own, f"{kind}_dim")
    if own is config or values is None or as_numbers(values).shape[-1:] != (getattr(config, f"{kind}_dim"),):
        return values
    return as_numbers(values)[..., :size] if size else None


# --- Standardization


def training_inputs(
    config: VJepa2WorldModelConfig, latents, actions, proprio_states, extrinsics, embodiment, views
) -> DynamicsInputs:
    """Inputs of episodes from arguments of [`VJepa2WorldModel.forward`], for latents (B, T-1, N, D) of all frames but
    the last, and states of T; `embodiment` are ids (B,), or one for all rows."""
    batch_size, steps = latents.shape[:2]
    padding = (config, embodiment, batch_size, steps + 1)
    (actions,), proprio_states = pad_inputs(*padding, [one_hot_actions(config, actions)], proprio_states)
    ids = embodiment_ids(config, embodiment, batch_size, latents.device)
    check_inputs(config, latents, steps + 1, actions, proprio_states, extrinsics, views=views)
    return normalize_inputs(config, latents, actions, proprio_states, extrinsics, ids, views)[:steps]


def normalize_inputs(
    config: VJepa2WorldModelConfig, latents, actions, proprio_states, extrinsics, ids=None, views=None
) -> DynamicsInputs:
    """Inputs from environment units, in the precision of the latents; with the ids (B,) of several embodiments."""
    states, extrinsics = to_float_tensors(latents, proprio_states, extrinsics)
    if states is not None:
        states = _standardize_by(config, "proprio", states, ids).to(latents.dtype)
    extrinsics = None if extrinsics is None else extrinsics.to(latents.dtype)
    frame_ids = None if ids is None else ids.unsqueeze(1).expand(-1, latents.shape[1])
    actions = normalize_actions(config, latents, actions, ids)
    return DynamicsInputs(latents, actions, states, extrinsics, frame_ids, views)


def normalize_actions(
    config: VJepa2WorldModelConfig, latents: torch.Tensor, actions: torch.Tensor, ids: torch.Tensor | None = None
) -> torch.Tensor:
    """Actions (..., A) from environment units, in the precision of the latents; with several embodiments (B, F, A)
    and ids (B,)."""
    (actions,) = to_float_tensors(latents, actions)
    return _standardize_by(config, "action", actions, ids).to(latents.dtype)


def _standardize_by(config: VJepa2WorldModelConfig, kind: str, values: torch.Tensor, ids) -> torch.Tensor:
    """Standardizes actions or proprio states; with ids (B,) values (B, F, ·) by the statistics of each row's
    embodiment, with zeros in the padding."""
    mean, std = getattr(config, f"{kind}_mean"), getattr(config, f"{kind}_std")
    if config.num_embodiments == 1:
        return standardize(values, mean, std)
    sizes = [config.embodiment_sizes(index)[kind == "proprio"] for index in range(config.num_embodiments)]
    width = values.shape[-1]

    def table(vectors: list | None, default: float) -> torch.Tensor:  # (embodiments, width), then (B, 1, width)
        vectors = vectors or [None] * len(sizes)
        rows = [[*(row or [default] * size), *[default] * (width - size)] for row, size in zip(vectors, sizes)]
        return values.new_tensor(rows)[ids].unsqueeze(1)

    own = torch.arange(width, device=values.device) < torch.tensor(sizes, device=values.device).unsqueeze(1)
    standardized = (values - table(mean, 0.0)) / table(std, 1.0)
    return standardized.masked_fill(~own[ids].unsqueeze(1), 0.0)


def standardize(values: torch.Tensor, mean: list | float | None, std: list | float | None) -> torch.Tensor:
    """(values − mean) / std for values (..., A) and statistics of length A or a number; `None` changes nothing."""
    if mean is not None:
        values = values - values.new_tensor(mean)
    return values if std is None else values / values.new_tensor(std)


# --- Projections


def action_encoder(config: VJepa2WorldModelConfig, inputs: int) -> nn.Module:
    """One linear layer (published), or an MLP with GELU (two-phase recipe, sec. 4.4)."""
    size, layers = config.predictor_hidden_size, []
    for i in range(config.action_encoder_num_layers):
        layers += [nn.GELU()] if i else []
        layers.append(nn.Linear(size if i else inputs, size))
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


class VJepa2Embodiment(nn.Module):
    """Projections of the actions and proprio states of one of several embodiments, and its learned embedding, which is
    added to the tokens of a frame. One without states has a learned state token."""

    def __init__(self, config: VJepa2WorldModelConfig, index: int):
        super().__init__()
        self.action_dim, self.proprio_dim, _ = config.embodiment_sizes(index)
        size = config.predictor_hidden_size
        self.action_encoder = action_encoder(config, self.action_dim)
        if self.proprio_dim:
            self.proprio_encoder = nn.Linear(self.proprio_dim, size)
        elif config.proprio_dim:
            self.no_state = nn.Parameter(torch.zeros(size))
        self.embedding = nn.Parameter(torch.zeros(size))

    def encode_states(self, states: torch.Tensor) -> torch.Tensor:
        """Standardized states (B, F, S) -> (B, F, d)."""
        if self.proprio_dim:
            return self.proprio_encoder(states[..., : self.proprio_dim].contiguous())
        return self.no_state.expand(*states.shape[:-1], -1)


class VJepa2Embodiments(nn.ModuleList):
    """The projections of all embodiments. Each is applied to all rows, of which those of its own are kept: all its
    weights take part in every step, as training on several processes needs.

    Once `fit_embodiment` has measured them, the dynamics sees the states of each embodiment minus their mean and over
    their standard deviation, and predicts changes in units of those of a step. Robots differ in what all their frames
    have in common, and in how much a step changes: one that moves slowly would weigh little in a common loss.
    """

    def __init__(self, config: VJepa2WorldModelConfig, embodiments: Iterable[VJepa2Embodiment]):
        super().__init__(embodiments)
        self.num_views = config.num_views
        if config.embodiment_states_fitted:
            self.add_statistics(config)

    def add_statistics(self, config: VJepa2WorldModelConfig) -> None:
        """Registers means (E, V·N, D), deviations (E,) and changes (E,), which have no effect for embodiments that
        have none yet."""
        known = [getattr(self, name, None) for name in STATE_STATISTICS]
        count = 0 if known[0] is None else len(known[0])
        like, added = {"dtype": self[0].embedding.dtype, "device": self[0].embedding.device}, len(self) - count
        new = (torch.zeros(added, *frame_shape(config), **like), *(torch.ones(added, **like) for _ in range(2)))
        for name, old, part in zip(STATE_STATISTICS, known, new):
            self.register_buffer(name, part if old is None else torch.cat([old, part]))

    def statistics(self, inputs: DynamicsInputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """Of every frame's embodiment the mean (B, F, V·N, D) of its states, their deviation (B, F, 1, 1) and that of
        a step's change; `None` where none were measured."""
        if not hasattr(self, STATE_STATISTICS[0]):
            return None
        mean, ids = self.state_mean, inputs.embodiment_ids
        if inputs.views is not None:
            mean = mean.unflatten(1, (self.num_views, -1))[:, list(inputs.views)].flatten(1, 2)
        return mean[ids], *(part[ids][..., None, None] for part in (self.state_scale, self.state_change))

    def condition_tokens(self, inputs: DynamicsInputs) -> list[torch.Tensor]:
        """Embedded actions and proprio states of every frame, (B, F, d) each."""
        actions = [each.action_encoder(inputs.actions[..., : each.action_dim].contiguous()) for each in self]
        tokens = [self._choose(actions, inputs.embodiment_ids)]
        if inputs.proprio_states is not None:
            states = [each.encode_states(inputs.proprio_states) for each in self]
            tokens.append(self._choose(states, inputs.embodiment_ids))
        return tokens

    def embeddings(self, inputs: DynamicsInputs) -> torch.Tensor:
        """Embeddings (B, F, d) of the embodiments of every frame."""
        return torch.stack([each.embedding for each in self])[inputs.embodiment_ids]

    @staticmethod
    def _choose(parts: list[torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
        """Of (B, F, d) per embodiment the one of each row; ids (B, F)."""
        chosen = parts[0]
        for index, part in enumerate(parts[1:], 1):
            chosen = torch.where(ids.unsqueeze(-1) == index, part, chosen)
        return chosen


# --- Proprio states that follow


def next_states(
    config: VJepa2WorldModelConfig,
    states: torch.Tensor | None,
    action: torch.Tensor,
    index: int,
    ids: torch.Tensor | None,
) -> torch.Tensor | None:
    """`next_proprio_state` of states (B, `index` or more, S) and an action (B, A), for each row by the transition of
    its embodiment; ids (B,)."""
    if config.num_embodiments == 1:
        return next_proprio_state(config.proprio_transition, states, action, index)
    if states is None or states.shape[1] > index:
        return states
    following = states[:, -1]
    for embodiment in range(config.num_embodiments):
        action_dim, size, transition = config.embodiment_sizes(embodiment)
        if size and transition != "hold":
            moved = next_proprio_state(transition, states[..., :size], action[:, :action_dim], index)[:, -1]
            moved = torch.cat([moved, following[:, size:]], dim=-1)
            following = torch.where((ids == embodiment).unsqueeze(-1), moved, following)
    return torch.cat([states, following.unsqueeze(1)], dim=1)


# --- Adding an embodiment


def add_embodiment(model: PreTrainedModel, name: str | None, sizes: dict[str, Any], vectors: dict[str, Any]) -> int:
    """See [`VJepa2WorldModel.add_embodiment`]."""
    old, fields = model.config, {}
    count = old.num_embodiments
    if name is not None and not (isinstance(name, str) and name):
        refuse("name", name, "a name of the embodiment, or None")
    new = {"action_dim": old.action_dim, "proprio_dim": 0, "proprio_transition": "hold"}
    new.update({key: value for key, value in sizes.items() if value is not None})
    unknown = sorted(vectors.keys() - set(EMBODIMENT_VECTORS))
    if unknown:
        raise ValueError(f"add_embodiment has no argument {unknown[0]!r}; expected {', '.join(EMBODIMENT_VECTORS)}.")
    each = [
        *map(old.embodiment_sizes, range(count)),
        (new["action_dim"], new["proprio_dim"], new["proprio_transition"]),
    ]
    for key, values in zip(("action_dims", "proprio_dims", "proprio_transitions"), zip(*each)):
        fields[f"embodiment_{key}"] = list(values)
    for key in ("action_dim", "proprio_dim"):
        fields[key] = max(check_count(key, size, lowest=0) for size in fields[f"embodiment_{key}s"])
    if fields["proprio_dim"] and not old.proprio_dim:
        found = f"proprio_dim is {new['proprio_dim']}, but the model was trained without proprio states"
        raise ValueError(f"{found}: it has no state token; expected 0.")
    for key in EMBODIMENT_VECTORS:
        known = getattr(old, key)
        known = [known] if count == 1 else known or [None] * count
        row = _plain_numbers(key, vectors.get(key))
        fields[key] = None if row is None and not any(known) else [*known, row]
    if name is not None or old.embodiment_names:
        known = old.embodiment_names or [f"embodiment_{index}" for index in range(count)]
        fields["embodiment_names"] = [*known, name or f"embodiment_{count}"]
    config = type(old)(**{**old.to_dict(), **fields, "num_embodiments": count + 1})  # refused before anything changes
    _extend_projections(model, config)
    for key, value in {**fields, "num_embodiments": count + 1}.items():
        setattr(old, key, value)
    return count


def _plain_numbers(name: str, row: Any) -> list | None:
    """Numbers of one vector as a list that a config can be saved with; `None` unchanged."""
    if row is None:
        return None
    if as_numbers(row, name).ndim != 1:
        refuse(name, row, "a list of numbers, one per dimension")
    return [value.item() if hasattr(value, "item") else value for value in row]


def _extend_projections(model: PreTrainedModel, config: VJepa2WorldModelConfig) -> None:
    """Gives the dynamics the projections of the last embodiment of a config; those of a single one move to a list."""
    predictor, count = model.predictor, config.num_embodiments - 1
    weight = predictor.embed.weight
    if count == 1:
        first = VJepa2Embodiment(config, 0)  # its embedding of zeros changes no prediction
        first.action_encoder = predictor.action_encoder
        if first.proprio_dim:
            first.proprio_encoder = predictor.proprio_encoder
            del predictor.proprio_encoder
        del predictor.action_encoder
        predictor.embodiments = VJepa2Embodiments(config, [first.to(weight)])
    added = VJepa2Embodiment(config, count)
    for module in added.modules():
        model._init_weights(module)
    with torch.no_grad():  # starts where the others are
        added.embedding.copy_(torch.stack([each.embedding for each in predictor.embodiments]).mean(dim=0))
    predictor.embodiments.append(added.to(weight))
    if config.embodiment_states_fitted:
        predictor.embodiments.add_statistics(config)


def freeze_trunk(model: PreTrainedModel, embodiment: int | str) -> None:
    """See [`VJepa2WorldModel.freeze_trunk`]."""
    if model.config.num_embodiments == 1:
        raise ValueError("freeze_trunk needs a model of several embodiments: call add_embodiment first.")
    if is_integer(embodiment) and -model.config.num_embodiments <= embodiment < 0:
        embodiment += model.config.num_embodiments
    index = embodiment_index(model.config, embodiment)
    model.requires_grad_(False)
    model.predictor.embodiments[index].requires_grad_(True)


@torch.no_grad()
def fit_embodiment(model: PreTrainedModel, embodiment: int | str, latents: Any) -> None:
    """See [`VJepa2WorldModel.fit_embodiment`]."""
    config = model.config
    index, shape = embodiment_index(config, embodiment), frame_shape(config)
    if config.num_embodiments == 1 or not config.state_fitted:
        needed = "several embodiments: call add_embodiment" if config.num_embodiments == 1 else "fit_state"
        raise ValueError(f"fit_embodiment needs {needed} first.")
    check_tensor("latents", latents, "(B, T, N, D)")
    step, found = config.frame_skip, f"latents have shape {tuple(latents.shape)}"
    if latents.shape[2:] != shape or not latents.numel() or latents.shape[1] <= step:
        frames = f"episodes of T > {step} consecutive frames (frame_skip={step})"
        raise ValueError(f"{found}; expected (B, T, {shape[0]}, {shape[1]}) of all views, {frames}.")
    if not latents.isfinite().all():
        raise ValueError("latents hold numbers that are not finite; expected finite latents of `encode`.")
    chunks = latents.flatten(0, -3).split(1024)
    mean = sum(part.sum(dim=0, dtype=torch.float64) for part in chunks) / sum(map(len, chunks))
    squares = sum((part - mean.float()).square().sum(dtype=torch.float64) for part in chunks)
    scale, change = (squares / latents.numel()).sqrt(), (latents[:, step:] - latents[:, :-step]).square().mean().sqrt()
    if not (0 < change < torch.inf and scale < torch.inf):
        raise ValueError(f"latents change by {change:.2g} in a step; expected episodes in which the robot moves.")
    embodiments = model.predictor.embodiments
    if not config.embodiment_states_fitted:
        embodiments.add_statistics(config)
        config.embodiment_states_fitted = True
    for name, value in zip(STATE_STATISTICS, (mean, scale, change)):
        getattr(embodiments, name)[index] = value


# --- Macro-actions


def macro_action_model(model: PreTrainedModel) -> PreTrainedModel:
    """See [`VJepa2WorldModel.macro_model`]."""
    config = copy.deepcopy(model.config)
    check_macro_actions(config)
    config.action_dim, config.action_type = config.macro_action_dim, "continuous"
    config.action_low, config.action_high = config.macro_action_low, config.macro_action_high
    config.macro_action_dim = config.macro_action_low = config.macro_action_high = None
    config.action_mean = config.action_std = None
    config.actions_per_step, config.reward_head = 1, False
    with torch.device("meta"):
        macro = type(model)(config)
    left_out = ("predictor.macro_encoder.", "reward_head.")
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith(left_out)}
    macro.load_state_dict(weights, assign=True)
    return macro.train(model.training)


def encode_macro_actions(model: PreTrainedModel, actions: torch.Tensor) -> torch.Tensor:
    """See [`VJepa2WorldModel.encode_actions`]."""
    config = model.config
    actions = check_tensor("actions", one_hot_actions(config, actions), floating=False)
    if actions.shape[-1:] != (config.action_dim,):
        refuse("actions", actions, f"a tensor (..., {config.action_dim})")
    return model.predictor.macro_actions(normalize_actions(config, model.predictor.embed.weight, actions))


def check_macro_actions(config: VJepa2WorldModelConfig) -> None:
    """Refuses macro-actions of a model without them."""
    if config.macro_action_dim is None:
        raise ValueError("the model has no macro-actions (macro_action_dim is None): train one with 4, for example.")


# --- Checks


def check_inputs(
    config: VJepa2WorldModelConfig,
    latents,
    frames: int,
    actions,
    proprio_states,
    extrinsics,
    name: str = "actions",
    views: tuple[int, ...] | None = None,
) -> None:
    """Refuses inputs that do not fit `frames` frames of the views and the actions between them, which errors call
    `name`."""
    (tokens, size), batch_size, count = state_shape(config), len(latents), len(held_views(config, views))
    if config.has_state_map and not config.state_fitted:
        missing = f"the map of state_type={config.state_type!r} to state_dim={config.state_dim} is not fitted yet"
        raise ValueError(f"{missing}: call fit_state(latents) with latents from `encode`, then encode again.")
    if latents.ndim != 4 or latents.shape[-1] != size or (tokens == 1 and latents.shape[2] != count):
        shape = (batch_size, frames, *latents.shape[2:])
        raise ValueError(f"latents have shape {shape}; expected (B, T, {count if tokens == 1 else 'N'}, {size}).")
    check_view_tokens(config, latents, views)
    if config.embodiment_states_fitted and latents.shape[2] != count * tokens:
        fitted = f"the states of its embodiments were fitted on {count * tokens}"
        advice = f"resize frames to {config.encoder_config.crop_size} pixels"
        raise ValueError(f"the frame has {latents.shape[2]} tokens, but {fitted}: {advice}.")
    expected = {
        name: (actions, frames - 1, config.action_dim),
        "proprio_states": (proprio_states, frames, config.proprio_dim),
        "extrinsics": (extrinsics, frames, config.extrinsics_dim),
    }
    for name, (value, length, width) in expected.items():
        value = None if value is None else as_numbers(value, name)
        if width == 0 and value is not None:
            raise ValueError(f"{name} were given, but the model does not use them (their size is 0).")
        if width and (value is None or tuple(value.shape) != (batch_size, length, width)):
            found = "are missing" if value is None else f"have shape {tuple(value.shape)}"
            raise ValueError(f"{name} {found}; expected ({batch_size}, {length}, {width}).")
