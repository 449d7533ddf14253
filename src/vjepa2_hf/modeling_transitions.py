"""Optional heads of the world model: the reward of a transition, and what chance adds to a prediction.

Shapes: N tokens of a frame, D width of a latent, d width of the dynamics, A action, Z numbers of chance.
"""

import math

import torch
from torch import nn
from torch.distributions import LowRankMultivariateNormal, Normal

from .configuration_vjepa2 import VJepa2WorldModelConfig
from .modeling_layers import VJepa2MLP
from .modeling_positions import sincos_table
from .modeling_state import state_shape


MIN_DEVIATION = 0.01  # of a number; latents have about 1


class VJepa2RewardHead(nn.Module):
    """A transition to its reward.

    ::

        [s_t, s_{t+1}] at a place ──► Linear ─┐
        action a_t ──► Linear ────────────────┼─► MLP ──► mean over places ──► MLP ──► Linear ──► reward
        position of the place ────────────────┘

    The mean comes after a layer that knows the place: means of the latents themselves lose where things are.

    Args:
        config: of the world model.
    """

    def __init__(self, config: VJepa2WorldModelConfig):
        super().__init__()
        size, encoder_config = config.predictor_hidden_size, config.encoder_config
        self.embed = nn.Linear(2 * state_shape(config)[1], size)
        self.action_embed = nn.Linear(config.action_dim, size)
        self.norm1 = nn.LayerNorm(size, eps=encoder_config.layer_norm_eps)
        self.mlp1 = VJepa2MLP(size, config.predictor_mlp_ratio, encoder_config.hidden_act)
        self.norm2 = nn.LayerNorm(size, eps=encoder_config.layer_norm_eps)
        self.mlp2 = VJepa2MLP(size, config.predictor_mlp_ratio, encoder_config.hidden_act)
        self.proj = nn.Linear(size, 1)

    def forward(self, actions: torch.Tensor, latents: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        """Standardised actions (..., A), latents before and after (..., N, D) -> standardised rewards (...)."""
        tokens = self.embed(torch.cat([latents, following], dim=-1)) + self.action_embed(actions).unsqueeze(-2)
        rows = math.isqrt(tokens.shape[-2])
        columns = -(-tokens.shape[-2] // rows)
        positions = sincos_table((1, rows, columns), tokens.shape[-1], uniform_power=True, device=tokens.device)
        tokens = tokens + positions[: tokens.shape[-2]].to(tokens.dtype)
        tokens = tokens + self.mlp1(self.norm1(tokens))
        pooled = tokens.mean(dim=-2)
        return self.proj(pooled + self.mlp2(self.norm2(pooled))).squeeze(-1).float()


class VJepa2GaussianHead(nn.Module):
    """The dynamics' hidden states to a Gaussian of what its prediction leaves open, over all numbers of a frame.

    ::

        s_{t+1} = ŝ_{t+1} + L z + d · e        z ~ N(0, I_Z) of the frame, e ~ N(0, 1) of every number
        L = σ · u / √(1 + |u|²),  d = σ / √(1 + |u|²),  σ > 0 and u (Z) of every number

    So σ is a number's deviation, and u says what share of it moves together with the others', and how: the
    covariance is L Lᵀ + diag(d²), whose diagonal is σ².

    Args:
        config: of the world model; `stochastic_dim` is Z.
    """

    def __init__(self, config: VJepa2WorldModelConfig):
        super().__init__()
        size, encoder_config = config.predictor_hidden_size, config.encoder_config
        self.rank, self.latent_size = config.stochastic_dim, state_shape(config)[1]
        self.norm1 = nn.LayerNorm(size, eps=encoder_config.layer_norm_eps)
        self.mlp = VJepa2MLP(size, config.predictor_mlp_ratio, encoder_config.hidden_act)
        self.norm2 = nn.LayerNorm(size, eps=encoder_config.layer_norm_eps)
        self.proj = nn.Linear(size, self.latent_size * (self.rank + 1))

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Hidden states (..., N, d) -> σ (..., N · D), L / σ (..., N · D, Z) and d / σ (..., N · D), float32."""
        hidden_states = hidden_states + self.mlp(self.norm1(hidden_states))
        numbers = self.proj(self.norm2(hidden_states)).float()
        numbers = numbers.unflatten(-1, (self.latent_size, self.rank + 1)).flatten(-3, -2)
        together = numbers[..., 1:] / math.sqrt(self.rank)  # at the start the same share for every Z
        alone = (1 + together.square().sum(dim=-1)).rsqrt()
        return nn.functional.softplus(numbers[..., 0]) + MIN_DEVIATION, together * alone.unsqueeze(-1), alone

    def negative_log_likelihood(
        self, hidden_states: torch.Tensor, errors: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of errors s_{t+1} - ŝ_{t+1} (..., N, D), in nats a number: float32 (...), twice.

        The first is that of all numbers together, as a function of u alone; the second that of every number for
        itself, as a function of σ. Their sum is what to minimise: the margins by their own likelihood, then what
        they have in common given them ("inference functions for margins", Joe and Xu 1996). The first one as a
        function of both says next to nothing about how wide L is: of N · D numbers it is Z.
        """
        deviation, together, alone = self(hidden_states)
        errors, fixed = errors.float().flatten(-2), deviation.detach()
        with torch.autocast(errors.device.type, enabled=False):  # small determinants need all digits
            joint = LowRankMultivariateNormal(
                torch.zeros_like(errors), fixed.unsqueeze(-1) * together, (fixed * alone).square(), validate_args=False
            )
            single = Normal(torch.zeros_like(errors), deviation, validate_args=False)
            return -joint.log_prob(errors) / errors.shape[-1], -single.log_prob(errors).mean(dim=-1)

    def sample(self, hidden_states: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """L z + d · e of hidden states (..., N, d) and noise [z, e] (..., Z + N · D): (..., N, D)."""
        deviation, together, alone = self(hidden_states)
        z, e = noise[..., : self.rank], noise[..., self.rank :]
        drawn = deviation * ((together @ z.unsqueeze(-1)).squeeze(-1) + alone * e)
        return drawn.unflatten(-1, (-1, self.latent_size)).to(hidden_states)


__all__ = ["VJepa2GaussianHead", "VJepa2RewardHead"]
