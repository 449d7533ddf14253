"""Training of a world model with longer steps on the latents of another one: two time scales of one latent space."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..modeling_world_model import VJepa2WorldModel


if TYPE_CHECKING:  # a planner, which checks its second time scale here, reads no data
    from ..data.windows import WindowMixture

STATE_FIELDS = ("state_type", "state_dim", "state_input", "state_stem", "standardize_frames", "normalize_latents")
STATE_FIELDS += ("state_levels", "num_views")
STATE_BUFFERS = ("state_mean", "state_map", "state_scale")
RANGE = (0.01, 0.99)  # quantiles of the macro-actions of the training data, between which a planner searches
RANGE_WINDOWS = 8192


def copy_state(model: VJepa2WorldModel, folder: str | Path) -> bool:
    """Gives a model the fitted map of the state of the world model in a folder, so that the latents of both are equal.
    Returns whether there is one: the first stage of a learned state has fitted none.

    Raises:
        ValueError: the other model has another encoder or another state, or its state is not fitted.
    """
    other = VJepa2WorldModel.from_pretrained(folder)
    if not other.config.state_fitted and other.config.state_type != "learned":
        raise ValueError(f"state_of={folder} has no fitted state to copy: train it with fit_state=true.")
    _check_same_encoding(model, other, f"state_of={folder}")
    if not other.config.state_fitted:
        return False
    for name in STATE_BUFFERS:
        if hasattr(other, name):
            model.register_buffer(name, getattr(other, name).to(model.device))
    if other.config.state_whitened:
        model.state_whitening = other.state_whitening.to(model.device)
    model.config.state_fitted, model.config.state_whitened = True, other.config.state_whitened
    return True


def check_same_latents(model: VJepa2WorldModel, other: VJepa2WorldModel, name: str) -> None:
    """Refuses a model, called `name` in the error, whose latents are not those of another one of the same dtype."""
    _check_same_encoding(model, other, name)
    if not _equal(*({buffer: getattr(each, buffer, None) for buffer in STATE_BUFFERS} for each in (model, other))):
        raise ValueError(f"{name} has another fitted state: train it with state_of=FOLDER of the planner's model.")


def _check_same_encoding(model: VJepa2WorldModel, other: VJepa2WorldModel, name: str) -> None:
    for field in STATE_FIELDS:
        mine, others = getattr(model.config, field), getattr(other.config, field)
        if mine != others:
            raise ValueError(f"{name}: {field} is {mine!r} in one model and {others!r} in the other; use one state.")
    for part, words in (("encoder", "encoder"), ("state_network", "network of its learned state")):
        modules = (getattr(each, part, None) for each in (model, other))
        if not _equal(*({} if module is None else module.state_dict() for module in modules)):
            raise ValueError(f"{name} has another {words}: both time scales need the latents of one {words}.")


def _equal(tensors: dict[str, torch.Tensor | None], others: dict[str, torch.Tensor | None]) -> bool:
    if tensors.keys() != others.keys():
        return False
    pairs = [(value, others[name]) for name, value in tensors.items()]
    return all(a is b or None not in (a, b) and torch.equal(a.cpu(), b.cpu()) for a, b in pairs)


@torch.no_grad()
def set_macro_range(model: VJepa2WorldModel, training: WindowMixture) -> None:
    """Stores the range of the macro-actions of the training episodes in the config, as bounds of a planner's search:
    predictions for macro-actions that training never saw mean nothing."""
    skip = model.config.frame_skip
    windows = training.tile(2, skip, skip, RANGE_WINDOWS)
    actions = training.read(windows, 2, skip)["actions"].flatten(2)[:, 0]  # (windows, A)
    macro_actions = model.encode_actions(actions.to(model.device)).float().cpu()
    low, high = macro_actions.quantile(torch.tensor(RANGE), dim=0)
    model.config.macro_action_low, model.config.macro_action_high = low.tolist(), high.tolist()
