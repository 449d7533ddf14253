"""How far imagined latents are from true ones, by horizon: an `evaluate` module that needs nothing from the Hub.

    metric = evaluate.load("FOLDER_OF_THE_PACKAGE/metrics/latent_rollout")
    metric.add_batch(predictions=predictions, references=references, copies=copies, previous=previous)
    metric.compute(horizons=[1, 5, 10])

Shapes: B windows, P steps of a rollout, N tokens of a frame (or any other dimensions, or none), D width of a latent.
"""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import torch


_DESCRIPTION = """
Mean squared error (over tokens and channels) and cosine (of each token, then their mean) of rolled out latents, by
horizon, beside two guesses that need no model: copying the last known latents, and moving on from the last two in a
straight line.
"""

_INPUTS = """
Args:
    predictions: (B, P, ..., D), imagined latents of the P steps after the last known frame.
    references: (B, P, ..., D), the true ones.
    copies: (B, ..., D), the latents of the last known frame; without it no guess is scored.
    previous: (B, ..., D), those of the frame before it; without it no straight line is scored.
    horizons: of `compute`: steps to report; all by default.

Returns:
    `horizon` and `windows`, and means over windows, a number for each horizon: `error` and `cosine` of the
    predictions; with `copies` also `copy_error` and `copy_cosine`; with `previous` `extrapolation_error` and
    `extrapolation_cosine`.
"""


def step_scores(predictions: torch.Tensor, references: torch.Tensor) -> dict[str, torch.Tensor]:
    """`error` and `cosine` (B, P) of each window and step; latents (B, P, ..., D), shapes that broadcast."""
    predictions, references = torch.broadcast_tensors(predictions.float(), references.float())
    return {
        "error": (predictions - references).square().flatten(2).mean(dim=-1),
        "cosine": torch.cosine_similarity(predictions, references, dim=-1).flatten(2).mean(dim=-1),
    }


def extrapolate(previous: torch.Tensor, copies: torch.Tensor, steps: int) -> torch.Tensor:
    """The straight line through two latents (B, ...), h steps past the second: (B, steps, ...)."""
    h = torch.arange(1, steps + 1, device=copies.device).view(-1, *[1] * (copies.ndim - 1))
    return copies.unsqueeze(1) + h * (copies - previous).unsqueeze(1)


class RolloutScores:
    """Sums the scores of batches of windows: memory stays that of one batch."""

    def __init__(self):
        self._sums: dict[str, torch.Tensor] = {}  # float64 (P,)
        self.windows = 0

    def add(self, predictions: Any, references: Any, copies: Any = None, previous: Any = None) -> None:
        """Adds windows; tensors, arrays or lists as the module's inputs are described.

        Raises:
            ValueError: shapes that do not fit together, `previous` without `copies`, or other inputs or steps than the
                batches before had.
        """
        given = {"predictions": predictions, "references": references, "copies": copies, "previous": previous}
        given = {name: torch.as_tensor(value) for name, value in given.items() if value is not None}
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
        if {name: len(value) for name, value in before.items()} != {name: len(value) for name, value in sums.items()}:
            raise ValueError(
                f"a batch gives {sorted(sums)} of {references.shape[1]} steps, but the ones before gave "
                f"{sorted(before)} of {len(before['error'])}: give the same inputs every time."
            )
        self._sums = {name: before[name] + value for name, value in sums.items()}
        self.windows += len(references)

    def means(self, horizons: Sequence[int] | None = None) -> dict[str, Any]:
        """Means over the windows, see the module's `Returns`; horizons count from 1.

        Raises:
            ValueError: no window yet, or a horizon that was not rolled out.
        """
        if not self.windows:
            raise ValueError("there are no windows to score: add predictions and references first.")
        steps = len(self._sums["error"])
        horizons = list(range(1, steps + 1)) if horizons is None else list(horizons)
        for horizon in horizons:
            if not 1 <= horizon <= steps:
                raise ValueError(f"a horizon is {horizon}, but the rollouts have steps 1 to {steps}.")
        means = {
            name: [(value[horizon - 1] / self.windows).item() for horizon in horizons]
            for name, value in self._sums.items()
        }
        return {"horizon": horizons, **means, "windows": self.windows}

    def rows(self, horizons: Sequence[int] | None = None) -> list[dict[str, float]]:
        """`means`, a dict for each horizon."""
        means = self.means(horizons)
        columns = {name: values for name, values in means.items() if name != "windows"}
        return [
            {**dict(zip(columns, row, strict=True)), "windows": self.windows}
            for row in zip(*columns.values(), strict=True)
        ]


def _check(given: dict[str, torch.Tensor]) -> None:
    shape = tuple(given["references"].shape)
    expected = {"predictions": shape, "copies": (shape[0], *shape[2:]), "previous": (shape[0], *shape[2:])}
    if len(shape) < 3 or 0 in shape:
        raise ValueError(f"references have shape {shape}; expected (B, P, ..., D), none of them 0.")
    for name, wanted in expected.items():
        if name in given and tuple(given[name].shape) != wanted:
            raise ValueError(f"{name} have shape {tuple(given[name].shape)}; references {shape} need {wanted}.")
    if "previous" in given and "copies" not in given:
        raise ValueError("previous is given without copies: a straight line needs the last two latents.")


class LatentRollout(evaluate.Metric):
    """The `evaluate` module. Unlike others it keeps sums and not its inputs: latents of a few windows fill gigabytes.

    So it adds up in one process; gather the windows of several first.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.num_process != 1:
            raise ValueError(f"num_process is {self.num_process}, but latent_rollout adds up in one process.")
        self._scores = RolloutScores()

    def _info(self) -> evaluate.MetricInfo:
        frame = datasets.List(datasets.List(datasets.Value("float32")))
        steps = datasets.List(frame)
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": steps, "references": steps, "copies": frame, "previous": frame}
            ),
        )

    def __len__(self) -> int:
        return self._scores.windows

    def add_batch(self, *, predictions=None, references=None, copies=None, previous=None) -> None:
        """Adds windows."""
        self._scores.add(predictions, references, copies, previous)

    def add(self, *, prediction=None, reference=None, copies=None, previous=None) -> None:
        """Adds one window: inputs without the first dimension."""
        given = (prediction, reference, copies, previous)
        self._scores.add(*(None if value is None else torch.as_tensor(value).unsqueeze(0) for value in given))

    def compute(
        self, *, predictions=None, references=None, copies=None, previous=None, horizons=None
    ) -> dict[str, Any]:
        """Scores what was added, and windows given here, and begins anew."""
        if predictions is not None or references is not None:
            self._scores.add(predictions, references, copies, previous)
        scores, self._scores = self._scores, RolloutScores()
        return scores.means(horizons)
