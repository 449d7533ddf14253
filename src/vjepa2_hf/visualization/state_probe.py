"""Linear probe that reads an environment's states from latents, by ridge regression.

Letters: F frames, N tokens and D width of a latent, S state.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # candidate strengths, as fractions of the latents' mean variance


@dataclass
class LinearProbe:
    """states ≈ (latents - mean) · weights + bias."""

    mean: torch.Tensor  # (N·D,)
    weights: torch.Tensor  # (N·D, S)
    bias: torch.Tensor  # (S,)

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """(..., N, D) -> (..., S)."""
        return (latents.float().flatten(-2) - self.mean) @ self.weights + self.bias


def fit_ridge(latents: torch.Tensor, states: torch.Tensor, ridge: float) -> LinearProbe:
    """Fits latents (F, N·D) to states (F, S); `ridge` is a fraction of the latents' mean variance."""
    mean, bias = latents.mean(dim=0), states.mean(dim=0)
    centered, targets = latents - mean, (states - bias).double()
    wide = centered.shape[1] > len(centered)  # then the system of the frames is the smaller one
    factor = centered.T if wide else centered
    gram = sum(part.double().T @ part.double() for part in factor.split(1024))
    gram.diagonal().add_(max(ridge * gram.trace().item() / len(gram), 1e-12))
    if wide:
        weights = centered.T @ torch.linalg.solve(gram, targets).float()
    else:
        right = sum(x.double().T @ y for x, y in zip(centered.split(1024), targets.split(1024), strict=True))
        weights = torch.linalg.solve(gram, right).float()
    return LinearProbe(mean, weights, bias)


def choose_probe(latents: Sequence[torch.Tensor], states: Sequence[torch.Tensor]) -> tuple[LinearProbe, float]:
    """Fits a probe to latents (F, N·D) and states (F, S) of every episode; its strength, which is returned too, is
    chosen among `RIDGES` by the error on every fifth episode."""
    if len(latents) < 2:
        raise ValueError(f"the probe needs 2 or more training episodes with states, but found {len(latents)}.")
    held_out = [number % 5 == min(4, len(latents) - 1) for number in range(len(latents))]

    def join(parts: Sequence[torch.Tensor], wanted: bool) -> torch.Tensor:
        return torch.cat([part for part, left_out in zip(parts, held_out, strict=True) if left_out == wanted])

    std = torch.cat(list(states)).std(dim=0).clamp(min=1e-6)
    errors = []
    for ridge in RIDGES:
        probe = fit_ridge(join(latents, False), join(states, False), ridge)
        predicted = probe(join(latents, True).unsqueeze(1))  # already flat: one token
        errors.append(((predicted - join(states, True)) / std).square().mean().item())
    best = RIDGES[int(np.argmin(errors))]
    return fit_ridge(torch.cat(list(latents)), torch.cat(list(states)), best), best
