"""Optional heads of the world model: the reward of a step, a Gaussian of its outcome, and the time between frames.

Shapes: B episodes, F frames, N tokens of a frame (of all its views), D width of a latent, d width of the dynamics, A
action, Z size of the stochastic latent, J candidates, K samples, P steps of a rollout, E embedding.
"""

import math

import torch
from torch import nn
from torch.distributions import LowRankMultivariateNormal, Normal

from .configuration_world_model import VJepa2WorldModelConfig
from .modeling_embodiments import normalize_actions, standardize
from .modeling_layers import VJepa2MLP, sincos_table
from .modeling_state import (
    DynamicsInputs,
    as_numbers,
    frame_shape,
    match_dtype,
    one_hot_actions,
    state_shape,
    to_float_tensors,
)
from .specs import check_tensor


MIN_DEVIATION = 0.01  # smallest standard deviation of a latent's number; latents have about 1
DISTANCE_TOKEN_SIZE = 16  # numbers that the distance head keeps of a token
DISTANCE_SCALE = 10.0  # frames per unit of distance between embeddings, at the start of training


class VJepa2RewardHead(nn.Module):
    """Predicts the reward of a step.

    ::

        [s_t, s_{t+1}] of a token ──► Linear ─┐
        action a_t ──► Linear ────────────────┼─► MLP ──► mean over tokens ──► MLP ──► Linear ──► reward
        position of the token ────────────────┘

    The mean follows a layer that sees positions: a mean of the latents alone would lose where things are.
    """

    def __init__(self, config: VJepa2WorldModelConfig):
        super().__init__()
        size, encoder_config = config.predictor_hidden_size, config.encoder_config
        self.config = config
        self.embed = nn.Linear(2 * state_shape(config)[1], size)
        self.action_embed = nn.Linear(config.action_dim, size)
        self.norm1 = nn.LayerNorm(size, eps=encoder_config.layer_norm_eps)
        self.mlp1 = VJepa2MLP(size, config.predictor_mlp_ratio, encoder_config.hidden_act)
        self.norm2 = nn.LayerNorm(size, eps=encoder_config.layer_norm_eps)
        self.mlp2 = VJepa2MLP(size, config.predictor_mlp_ratio, encoder_config.hidden_act)
        self.proj = nn.Linear(size, 1)

    def forward(self, actions: torch.Tensor, latents: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        """Standardized actions (..., A), latents before and after (..., N, D) -> standardized rewards (...)."""
        tokens = self.embed(torch.cat([latents, following], dim=-1)) + self.action_embed(actions).unsqueeze(-2)
        rows = math.isqrt(tokens.shape[-2])
        columns = -(-tokens.shape[-2] // rows)
        positions = sincos_table((1, rows, columns), tokens.shape[-1], uniform_power=True, device=tokens.device)
        tokens = tokens + positions[: tokens.shape[-2]].to(tokens.dtype)
        tokens = tokens + self.mlp1(self.norm1(tokens))
        pooled = tokens.mean(dim=-2)
        return self.proj(pooled + self.mlp2(self.norm2(pooled))).squeeze(-1).float()

    def predict(self, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Rewards (..., T-1) in environment units; arguments as of [`VJepa2WorldModel.predict_rewards`]."""
        config, size = self.config, state_shape(self.config)[1]
        check_tensor("latents", latents)
        actions = check_tensor("actions", one_hot_actions(config, actions), floating=False)
        if latents.ndim < 3 or latents.shape[-3] < 2 or latents.shape[-1] != size:
            raise ValueError(
                f"latents have shape {tuple(latents.shape)}; expected (..., T, N, {size}), T of 2 or more."
            )
        check_all_views(config, latents)
        latents = match_dtype(latents, self.embed.weight)
        if actions.ndim and actions.shape[-1] == config.action_dim:
            actions = normalize_actions(config, latents, actions)
        expected = (*latents.shape[:-3], latents.shape[-3] - 1, config.action_dim)
        if tuple(actions.shape) != expected:
            raise ValueError(f"actions have shape {tuple(actions.shape)}; expected {expected}, as latents say.")
        std, mean = config.reward_std, config.reward_mean
        rewards = self(actions, latents[..., :-1, :, :], latents[..., 1:, :, :])
        return rewards * (1 if std is None else std) + (mean or 0)

    def loss(self, inputs: DynamicsInputs, targets: torch.Tensor, rewards: torch.Tensor | None) -> torch.Tensor:
        """mean (r̂ − r)² / 2 of standardized rewards (B, F), for inputs of F frames and the latents that follow them
        (B, F, N, D); its gradient reaches only the head."""
        check_all_views(self.config, targets)
        expected = targets.shape[:2]
        rewards = None if rewards is None else as_numbers(rewards, "rewards")
        if rewards is None or rewards.shape != expected:
            found = "missing" if rewards is None else f"of shape {tuple(rewards.shape)}"
            raise ValueError(f"rewards are {found}; the reward head needs {tuple(expected)}.")
        (rewards,) = to_float_tensors(targets, rewards)
        difference = self(inputs.actions, inputs.latents.detach(), targets)
        difference = difference - standardize(rewards, self.config.reward_mean, self.config.reward_std).float()
        return difference.square().mean() / 2


def check_all_views(config: VJepa2WorldModelConfig, latents: torch.Tensor) -> None:
    """Refuses latents (..., M, D) of fewer views than the reward head was trained on."""
    if config.num_views > 1 and latents.shape[-2] != frame_shape(config)[0]:
        raise ValueError(
            f"latents have {latents.shape[-2]} tokens per frame; the reward head reads all {config.num_views} views, "
            f"{frame_shape(config)[0]} tokens: give latents of every view."
        )


class VJepa2GaussianHead(nn.Module):
    """A Gaussian of low rank over the numbers of the next frame, around the prediction of the dynamics.

    ::

        s_{t+1} = ŝ_{t+1} + L z + d · e        z ~ N(0, I_Z) per frame, e ~ N(0, 1) per number
        L = σ · u / √(1 + |u|²),  d = σ / √(1 + |u|²),  with σ > 0 and u (Z) per number

    σ is the standard deviation of a number, and u determines which fraction of its variance is correlated with other
    numbers: the covariance is L Lᵀ + diag(d²), with diagonal σ².
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
        together = numbers[..., 1:] / math.sqrt(self.rank)  # so the initial correlation does not depend on Z
        alone = (1 + together.square().sum(dim=-1)).rsqrt()
        return nn.functional.softplus(numbers[..., 0]) + MIN_DEVIATION, together * alone.unsqueeze(-1), alone

    def negative_log_likelihood(
        self, hidden_states: torch.Tensor, errors: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Negative log-likelihood of errors s_{t+1} - ŝ_{t+1} (..., N, D) in nats per number: float32 (...), twice.

        The first is the joint likelihood of all numbers as a function of u; the second the likelihood of each number
        alone as a function of σ. Training minimizes their sum: the margins first, then the correlations given them
        ("inference functions for margins", Joe and Xu 1996). The joint likelihood alone hardly constrains the scale of
        L, which has only Z of N · D dimensions.
        """
        deviation, together, alone = self(hidden_states)
        errors, fixed = errors.float().flatten(-2), deviation.detach()
        with torch.autocast(errors.device.type, enabled=False):  # determinants need full precision
            joint = LowRankMultivariateNormal(
                torch.zeros_like(errors), fixed.unsqueeze(-1) * together, (fixed * alone).square(), validate_args=False
            )
            single = Normal(torch.zeros_like(errors), deviation, validate_args=False)
            return -joint.log_prob(errors) / errors.shape[-1], -single.log_prob(errors).mean(dim=-1)

    def losses(
        self, dynamics: nn.Module, inputs: DynamicsInputs, hidden_states: torch.Tensor | None, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """-log p(s_{t+1} | s_t, a_t) of a frame's numbers jointly and alone, from hidden states of the dynamics
        (B, F, N, d), or computed here, and targets (B, F, N, D); the gradient reaches only the head."""
        with torch.no_grad():
            hidden_states = dynamics.hidden_states(inputs) if hidden_states is None else hidden_states.detach()
            errors = targets.float() - dynamics.next_latents(hidden_states, inputs).float()
        joint, margins = self.negative_log_likelihood(hidden_states, errors)
        return joint.mean(), margins.mean()

    def sample(self, hidden_states: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """L z + d · e of hidden states (..., N, d) and noise [z, e] (..., Z + N · D): (..., N, D)."""
        deviation, together, alone = self(hidden_states)
        z, e = noise[..., : self.rank], noise[..., self.rank :]
        sampled = deviation * ((together @ z.unsqueeze(-1)).squeeze(-1) + alone * e)
        return sampled.unflatten(-1, (-1, self.latent_size)).to(hidden_states)


class VJepa2DistanceHead(nn.Module):
    """Estimates how many frames of video it takes from one frame to another, as a quasimetric between embeddings.

    ::

        a frame: each token ──► Linear ──► 16 numbers, concatenated ──► Linear ──► GELU ──► Linear ──► embedding (E)

        d(a, b) = scale · (‖a₁ − b₁‖ + max(0, max_i (a₂ − b₂)_i))        a₁, a₂: the two halves of the embedding of a

    It may be farther from a to b than back. From a frame to itself it is 0, and no way is longer than a detour over a
    third frame (metric residual network, arXiv 2208.08133). Concatenation keeps where things are, so that the head
    reads frames of one size only.
    """

    def __init__(self, config: VJepa2WorldModelConfig):
        super().__init__()
        self.shape = frame_shape(config)  # (N, D)
        self.embed = nn.Linear(self.shape[1], DISTANCE_TOKEN_SIZE)
        self.hidden = nn.Linear(self.shape[0] * DISTANCE_TOKEN_SIZE, config.distance_hidden_size)
        self.proj = nn.Linear(config.distance_hidden_size, config.distance_embedding_size)
        self.scale = nn.Parameter(torch.tensor(DISTANCE_SCALE))

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (..., N, D) -> embeddings (..., E)."""
        check_tensor("latents", latents)
        if tuple(latents.shape[-2:]) != self.shape:
            raise ValueError(
                f"latents have shape {tuple(latents.shape)}; the distance head was made for frames of "
                f"{self.shape[0]} tokens of size {self.shape[1]}: expected (..., {self.shape[0]}, {self.shape[1]})."
            )
        tokens = self.embed(match_dtype(latents, self.embed.weight))
        return self.proj(nn.functional.gelu(self.hidden(tokens.flatten(-2))))

    def between(self, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        """Embeddings (..., E), which broadcast -> frames from start to end (...), float32."""
        try:
            difference = check_tensor("start", start).float() - check_tensor("end", end).float()
        except RuntimeError:
            shapes = f"{tuple(start.shape)} and {tuple(end.shape)}"
            raise ValueError(f"embeddings have shapes {shapes}; expected (..., E), which broadcast.") from None
        symmetric, directed = difference.chunk(2, dim=-1)
        length = torch.linalg.vector_norm(symmetric, dim=-1) + directed.amax(dim=-1).clamp(min=0)
        return length * self.scale.float().abs()
