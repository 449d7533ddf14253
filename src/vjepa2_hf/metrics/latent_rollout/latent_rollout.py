"""Errors of rolled-out latents by horizon, as an `evaluate` module.

    metric = evaluate.load("FOLDER_OF_THE_PACKAGE/metrics/latent_rollout")
    metric.add_batch(predictions=predictions, references=references, copies=copies, previous=previous)
    metric.compute(horizons=[1, 5, 10])

Shapes: B windows, P steps of a rollout, N tokens of a frame (or any other dimensions, or none), D width of a latent.
"""

from collections.abc import Sequence
from typing import Any

import datasets
import torch

from vjepa2_hf import metrics
from vjepa2_hf.specs import describe, is_integer, refuse


def step_scores(predictions: torch.Tensor, references: torch.Tensor) -> dict[str, torch.Tensor]:
    """`error`, `absolute_error` and `cosine` (B, P) of each window and step; latents (B, P, ..., D), shapes that
    broadcast."""
    predictions, references = torch.broadcast_tensors(predictions.float(), references.float())
    difference = predictions - references
    return {
        "error": difference.square().flatten(2).mean(dim=-1),
        "absolute_error": difference.abs().flatten(2).mean(dim=-1),
        "cosine": torch.cosine_similarity(predictions, references, dim=-1).unsqueeze(-1).flatten(2).mean(dim=-1),
    }


def extrapolate(previous: torch.Tensor, copies: torch.Tensor, steps: int) -> torch.Tensor:
    """Linear extrapolation of two latents (B, ...) to `steps` further steps: (B, steps, ...)."""
    h = torch.arange(1, steps + 1, device=copies.device).view(-1, *[1] * (copies.ndim - 1))
    return copies.unsqueeze(1) + h * (copies - previous).unsqueeze(1)


class RolloutScores:
    """Sums of scores over batches of windows, in the memory of one batch."""

    def __init__(self):
        self._sums: dict[str, torch.Tensor] = {}  # float64 (P,)
        self.windows = 0

    def add(self, predictions: Any, references: Any, copies: Any = None, previous: Any = None) -> None:
        """Adds windows, as tensors, arrays or lists; see `LatentRollout.compute`."""
        given = {"predictions": predictions, "references": references, "copies": copies, "previous": previous}
        given = {name: _as_tensor(name, value) for name, value in given.items() if value is not None}
        _check(given)
        references = given["references"]
        scores = step_scores(given["predictions"], references)
        if "copies" in given:
            copied = step_scores(given["copies"].unsqueeze(1), references)
            scores |= {f"copy_{name}": value for name, value in copied.items()}
        if "previous" in given:
            line = extrapolate(given["previous"].float(), given["copies"].float(), references.shape[1])
            scores |= {f"extrapolation_{name}": value for name, value in step_scores(line, references).items()}
        sums = {name: value.cpu().double().sum(dim=0) for name, value in scores.items()}
        before = self._sums or {name: torch.zeros_like(value) for name, value in sums.items()}
        if before.keys() != sums.keys() or len(before["error"]) != references.shape[1]:
            raise ValueError(
                f"a batch gives {sorted(sums)} of {references.shape[1]} steps, but the ones before gave "
                f"{sorted(before)} of {len(before['error'])}: give the same inputs every time."
            )
        self._sums = {name: before[name] + value for name, value in sums.items()}
        self.windows += len(references)

    def means(self, horizons: Sequence[int] | None = None) -> dict[str, Any]:
        """Means over the windows, see `LatentRollout.compute`; horizons count from 1."""
        if not self.windows:
            raise ValueError("there are no windows to score: add predictions and references first.")
        steps = len(self._sums["error"])
        horizons = list(range(1, steps + 1)) if horizons is None else list(horizons)
        for horizon in horizons:
            if not is_integer(horizon) or not 1 <= horizon <= steps:
                raise ValueError(f"a horizon is {describe(horizon)}, but the rollouts have steps 1 to {steps}.")
        index = [horizon - 1 for horizon in horizons]
        means = {name: (value[index] / self.windows).tolist() for name, value in self._sums.items()}
        return {"horizon": horizons, **means, "windows": self.windows}

    def rows(self, horizons: Sequence[int] | None = None) -> list[dict[str, float]]:
        """`means`, a dict for each horizon."""
        columns = self.means(horizons)
        del columns["windows"]
        return [dict(zip(columns, row)) | {"windows": self.windows} for row in zip(*columns.values())]


def _as_tensor(name: str, value: Any) -> torch.Tensor:
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        refuse(name, value, "a tensor, an array or lists of numbers")
    return tensor if not tensor.is_complex() else refuse(name, value, "real numbers")


def _check(given: dict[str, torch.Tensor]) -> None:
    if "references" not in given or "predictions" not in given:
        raise ValueError("predictions or references are missing; expected latents (B, P, ..., D) of both.")
    shape = tuple(given["references"].shape)
    if len(shape) < 3 or 0 in shape:
        raise ValueError(f"references have shape {shape}; expected (B, P, ..., D), none of them 0.")
    frame = (shape[0], *shape[2:])
    for name, wanted in {"predictions": shape, "copies": frame, "previous": frame}.items():
        if name in given and tuple(given[name].shape) != wanted:
            raise ValueError(f"{name} have shape {tuple(given[name].shape)}; references {shape} need {wanted}.")
    if "previous" in given and "copies" not in given:
        raise ValueError("previous is given without copies: extrapolation needs the last two latents.")


class LatentRollout(metrics.OneProcessMetric):
    """Mean squared and absolute error and cosine similarity of rolled-out latents by horizon, next to two baselines:
    copying the last known latents, and linear extrapolation of the last two.

    It keeps sums instead of its inputs, as latents of a few windows fill gigabytes.
    """

    _frame = datasets.List(datasets.List(datasets.Value("float32")))
    columns = {"predictions": datasets.List(_frame), "references": datasets.List(_frame)}
    columns |= {"copies": _frame, "previous": _frame}

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._scores = RolloutScores()

    def __len__(self) -> int:
        return self._scores.windows

    def add_batch(self, *, predictions=None, references=None, copies=None, previous=None) -> None:
        """Adds windows."""  # `evaluate` extends this docstring
        self._scores.add(predictions, references, copies, previous)

    def add(self, *, prediction=None, reference=None, copies=None, previous=None) -> None:
        """Adds one window: inputs without the first dimension."""
        given = (prediction, reference, copies, previous)
        self._scores.add(*(None if value is None else torch.as_tensor(value).unsqueeze(0) for value in given))

    def compute(
        self, *, predictions=None, references=None, copies=None, previous=None, horizons=None
    ) -> dict[str, Any]:
        """
        Args:
            predictions: (B, P, ..., D), predicted latents of the P steps after the last known frame.
            references: (B, P, ..., D), the true latents.
            copies: (B, ..., D), latents of the last known frame; needed for the baselines.
            previous: (B, ..., D), latents of the frame before it; needed for linear extrapolation.
            horizons: steps to report; all by default.

        Returns:
            `horizon` and `windows`, and means over windows for each horizon: `error` (squared), `absolute_error` and
            `cosine` of the predictions; the same with `copies` as `copy_error` and so on, and with `previous` as
            `extrapolation_error` and so on.
        """
        if predictions is not None or references is not None:
            self._scores.add(predictions, references, copies, previous)
        scores, self._scores = self._scores, RolloutScores()
        return scores.means(horizons)
