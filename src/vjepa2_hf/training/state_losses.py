"""Losses of a learned state: the same-episode contrast, the prediction error, inverse dynamics and SIGReg.

A step predicts the next state of E episodes and looks for it among the F frames of the same episode. These have floor,
colors, light and objects at rest in common, so that none of it helps: the state holds what moves.

Letters: E episodes, F frames of each (consecutive model steps), D width of a state, A action of a model step, R rows.
"""

import copy

import torch
from torch import nn

from ..configuration_world_model import VJepa2WorldModelConfig
from ..modeling_encoder import VJepa2Encoder
from ..modeling_learned_state import arranged_latents
from ..modeling_world_model import VJepa2WorldModel
from .state_settings import StateSettings


TRANSITION_SIZE = 256  # width of the networks that only the losses need
SIGREG_SLICES, SIGREG_POINTS, SIGREG_RANGE = 256, 17, 3.0


def episode_contrast(
    predicted: torch.Tensor, states: torch.Tensor, temperature: float, among_others: bool = False
) -> tuple[torch.Tensor, ...]:
    """The same-episode contrast: cross-entropy of finding z_{t+1} among the F frames of its episode, with logits
    −‖ẑ_{t+1} − z_j‖² / τ, and the fraction that is nearest to its own.

    The energy is that of C-SWM (arXiv 1911.12247), the cross-entropy that of InfoNCE (arXiv 1807.03748). The gradient
    reaches both sides; there is no moving average of the network. A constant that is added to all states of an episode
    changes nothing.

    Args:
        predicted: ẑ, (E, F-1, D), of the frames 1 to F-1.
        states: z, (E, F, D).
        among_others: leave frame t, from which ẑ_{t+1} is predicted, out of the F frames. Without an action nothing
            says in which direction the state moves, and frame t would be the nearest.
    """
    distances = (predicted.unsqueeze(2) - states.unsqueeze(1)).square().sum(dim=-1)  # (E, F-1, F)
    if among_others:
        own = torch.eye(*distances.shape[1:], dtype=torch.bool, device=states.device)
        distances = distances.masked_fill(own, torch.inf)
    logits = (-distances / temperature).flatten(0, 1)
    true = torch.arange(1, states.shape[1], device=states.device).repeat(len(states))
    found = (logits.argmax(dim=-1) == true).float().mean()
    return nn.functional.cross_entropy(logits, true), found


def sigreg(states: torch.Tensor, slices: int = SIGREG_SLICES) -> torch.Tensor:
    """Sketched isotropic Gaussian regularization (LeJEPA, arXiv 2511.08544, sec. 4): the Epps–Pulley statistic
    R ∫ |φ_R(t) − φ(t)|² φ(t) dt of R states (R, D), projected on random directions, averaged over these.

    φ_R is the empirical characteristic function of a projection and φ(t) = exp(−t²/2) that of a standard normal
    variable. The integral from −3 to 3 is twice that from 0, by the trapezoidal rule on 17 points, as in the authors'
    code.
    """
    directions = torch.randn(states.shape[-1], slices, device=states.device, dtype=states.dtype)
    projected = states @ nn.functional.normalize(directions, dim=0)  # (R, slices)
    points = torch.linspace(0, SIGREG_RANGE, SIGREG_POINTS, device=states.device, dtype=states.dtype)
    normal = torch.exp(-points.square() / 2)
    angles = projected.unsqueeze(-1) * points  # (R, slices, points)
    error = (angles.cos().mean(dim=0) - normal).square() + angles.sin().mean(dim=0).square()
    return len(states) * 2 * torch.trapezoid(error * normal, points, dim=-1).mean()


class StateLearner(nn.Module):
    """The network of a world model's learned state, and what only its losses need: for the contrast and the prediction
    error a transition ẑ_{t+1} = z_t + MLP(z_t, a_t), or MLP(z_t) without actions, which starts at no change, and for
    inverse dynamics an inverse model.

    The transition of the contrast is unfit for rollouts: it must only be nearer to the next frame than to the others.
    """

    def __init__(self, model: VJepa2WorldModel, settings: StateSettings):
        super().__init__()
        config = model.config
        self.settings, self.network, self.config = settings, model.state_network.requires_grad_(True), config
        if settings.train_encoder:
            self.encoder = model.encoder.requires_grad_(True)
        # parts without a loss are left out: in several processes all parameters must have gradients
        if settings.episode_contrast_weight or settings.prediction_weight:
            inputs = config.state_dim + (config.action_dim if settings.use_actions else 0)
            self.transition = _mlp(inputs, config.state_dim)
            nn.init.zeros_(self.transition[-1].weight)
            nn.init.zeros_(self.transition[-1].bias)
        if settings.inverse_dynamics_weight:
            inputs = 2 * config.state_dim + settings.inverse_dynamics_steps
            self.inverse = _mlp(inputs, config.action_dim)

    def forward(self, frames: torch.Tensor, actions: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Losses by name, `loss` first, of what the network reads of frames, (E, F, …), or of the pixels of an encoder
        that learns, and of standardized actions (E, F-1, A), None if the settings read none."""
        if self.settings.train_encoder:
            frames = encoder_tokens(self.config, self.encoder, frames)
        states = self.network(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).float()
        settings, losses = self.settings, {}
        if settings.episode_contrast_weight or settings.prediction_weight:
            inputs = states[:, :-1] if actions is None else torch.cat([states[:, :-1], actions], dim=-1)
            predicted = states[:, :-1] + self.transition(inputs).float()
        if settings.episode_contrast_weight:
            how = (settings.episode_contrast_temperature, not settings.use_actions)
            losses["episode_contrast_loss"], losses["found_frames"] = episode_contrast(predicted, states, *how)
        if settings.prediction_weight:  # L_pred of arXiv 2603.19312
            losses["prediction_loss"] = nn.functional.mse_loss(predicted, states[:, 1:])
        if settings.inverse_dynamics_weight:
            losses["inverse_dynamics_loss"] = self._inverse_loss(states, actions)
        if settings.sigreg_weight:
            losses["sigreg_loss"] = sigreg(states.flatten(0, 1))
        names = [name.removesuffix("_loss") for name in losses if name.endswith("_loss")]
        total = sum(getattr(settings, f"{name}_weight") * losses[f"{name}_loss"] for name in names)
        return {"loss": total, **losses}

    def _inverse_loss(self, states: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Mean squared error of a_t from z_t, z_{t+n} and n, over n = 1 to `inverse_dynamics_steps`."""
        losses, steps = [], self.settings.inverse_dynamics_steps
        for n in range(1, steps + 1):
            before, after = states[:, :-n], states[:, n:]
            apart = nn.functional.one_hot(torch.tensor(n - 1, device=states.device), steps).to(states)
            inputs = torch.cat([before, after, apart.expand(*before.shape[:2], -1)], dim=-1)
            losses.append((self.inverse(inputs).float() - actions[:, : before.shape[1]]).square().mean())
        return torch.stack(losses).mean()


def _mlp(inputs: int, outputs: int) -> nn.Sequential:
    size = TRANSITION_SIZE
    hidden = (nn.Linear(inputs, size), nn.GELU(), nn.Linear(size, size), nn.GELU())
    return nn.Sequential(*hidden, nn.Linear(size, outputs))


def encoder_tokens(
    config: VJepa2WorldModelConfig, encoder: VJepa2Encoder, pixel_values_videos: torch.Tensor
) -> torch.Tensor:
    """What a learned state reads of frames (E, F, C, H, W): (E, F, tokens, width)."""
    config = copy.copy(config)
    config.state_type = "tokens"
    return arranged_latents(config, encoder, None, pixel_values_videos)
