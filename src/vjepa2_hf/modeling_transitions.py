"""Optional parts of the world model that read a transition (s_t, a_t, s_{t+1}): its reward, and what chance decides.

Shapes: B episodes, F frames, N tokens of a frame, D width of a latent, d width of the dynamics, A action, Z numbers
that chance decides.
"""

import math

import torch
from torch import nn
from torch.distributions import Normal

from .configuration_vjepa2 import VJepa2WorldModelConfig
from .modeling_layers import VJepa2MLP
from .modeling_positions import sincos_table
from .modeling_state import state_shape


MIN_DEVIATION = 0.1  # of z; smaller ones make KL divergences explode (Dreamer, arXiv 1912.01603, and its successors)


class VJepa2TransitionHead(nn.Module):
    """An action and one state or two to a few numbers.

    ::

        [s_t, s_{t+1}] at a place ──► Linear ─┐
        action a_t ──► Linear ────────────────┼─► MLP ──► mean over places ──► MLP ──► Linear ──► numbers
        position of the place ────────────────┘

    The mean comes after a layer that knows the place: means of the latents themselves lose where things are.

    Args:
        config: of the world model.
        num_states: 1 for (s_t, a_t), 2 for (s_t, a_t, s_{t+1}).
        output_size: numbers a frame.
    """

    def __init__(self, config: VJepa2WorldModelConfig, num_states: int, output_size: int):
        super().__init__()
        size, encoder_config = config.predictor_hidden_size, config.encoder_config
        self.embed = nn.Linear(num_states * state_shape(config)[1], size)
        self.action_embed = nn.Linear(config.action_dim, size)
        self.norm1 = nn.LayerNorm(size, eps=encoder_config.layer_norm_eps)
        self.mlp1 = VJepa2MLP(size, config.predictor_mlp_ratio, encoder_config.hidden_act)
        self.norm2 = nn.LayerNorm(size, eps=encoder_config.layer_norm_eps)
        self.mlp2 = VJepa2MLP(size, config.predictor_mlp_ratio, encoder_config.hidden_act)
        self.proj = nn.Linear(size, output_size)

    def forward(self, actions: torch.Tensor, *states: torch.Tensor) -> torch.Tensor:
        """Standardised actions (..., A), states (..., N, D) -> float32 (..., output_size)."""
        tokens = self.embed(torch.cat(states, dim=-1)) + self.action_embed(actions).unsqueeze(-2)
        rows = math.isqrt(tokens.shape[-2])
        columns = -(-tokens.shape[-2] // rows)
        positions = sincos_table((1, rows, columns), tokens.shape[-1], uniform_power=True, device=tokens.device)
        tokens = tokens + positions[: tokens.shape[-2]].to(tokens.dtype)
        tokens = tokens + self.mlp1(self.norm1(tokens))
        pooled = tokens.mean(dim=-2)
        return self.proj(pooled + self.mlp2(self.norm2(pooled))).float()


class VJepa2GaussianHead(VJepa2TransitionHead):
    """A transition to a Gaussian over z with independent numbers."""

    def __init__(self, config: VJepa2WorldModelConfig, num_states: int):
        super().__init__(config, num_states, 2 * config.stochastic_dim)

    def forward(self, actions: torch.Tensor, *states: torch.Tensor) -> Normal:
        """Standardised actions (..., A), states (..., N, D) -> Normal over (..., Z), float32."""
        mean, deviation = super().forward(actions, *states).chunk(2, dim=-1)
        return Normal(mean, nn.functional.softplus(deviation) + MIN_DEVIATION, validate_args=False)


__all__ = ["VJepa2GaussianHead", "VJepa2TransitionHead"]
