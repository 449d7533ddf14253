"""The predictor of masked latents, for hidden tokens of a clip and for the frames that follow it.

Shapes: B clips, K tokens of a context, M of a target, (T', H', W') grid of tokens, D width of the encoder.
"""

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers import initialization as init

from .configuration_vjepa2 import VJepa2EncoderConfig, VJepa2MaskedLatentPredictionConfig
from .modeling_layers import add_positions, build_layers, grid_positions, position_parameter, rotary_table


class VJepa2Predictor(nn.Module):
    """Narrow transformer over context tokens and mask tokens, each with its position in the clip.

    Positions are of the encoder's kind: rotary (published V-JEPA 2), a sin-cos table of the predictor's width added to
    all tokens (published V-JEPA 1), or its own learned table.

    Args:
        model_config: of the model that holds the predictor, if different; it chooses the attention implementation.
    """

    def __init__(self, config: VJepa2MaskedLatentPredictionConfig, model_config: PreTrainedConfig | None = None):
        super().__init__()
        encoder_config: VJepa2EncoderConfig = config.encoder_config
        size, heads = config.predictor_hidden_size, config.predictor_num_attention_heads
        ratio, depth = config.predictor_mlp_ratio, config.predictor_num_hidden_layers
        self.config = config
        self.embed = nn.Linear(encoder_config.hidden_size, size)
        self.mask_tokens = nn.Parameter(torch.zeros(config.num_mask_tokens, 1, 1, size))
        self.position_embeddings = position_parameter(encoder_config, size)
        self.layer = build_layers(model_config or config, size, heads, ratio, depth, encoder_config)
        for layer in self.layer:
            layer.attention.qkv.init_query_key_bias = config.predictor_query_key_bias
        self.layernorm = nn.LayerNorm(size, eps=encoder_config.layer_norm_eps)
        pixels = encoder_config.in_chans * encoder_config.tubelet_size * encoder_config.patch_size**2
        self.proj = nn.Linear(size, pixels if config.target_type == "pixels" else encoder_config.hidden_size)

    def forward(
        self,
        context: torch.Tensor,
        context_mask: torch.Tensor,
        target_mask: torch.Tensor,
        grid: tuple[int, int, int],
        mask_token_index: int = 0,
    ) -> torch.Tensor:
        """Context tokens (B, K, D) at ids (B, K) -> predictions (B, M, D) at ids (B, M) of the grid (T', H', W')."""
        token = self.mask_tokens[mask_token_index % len(self.mask_tokens)]
        hidden_states = torch.cat([self.embed(context), token.expand(*target_mask.shape, -1)], dim=1)
        ids = torch.cat([context_mask, target_mask], dim=1)
        encoder_config = self.config.encoder_config
        hidden_states = add_positions(hidden_states, encoder_config, grid, ids, self.position_embeddings)
        rotary = None
        if encoder_config.position_embedding_type == "rope":
            head_dim = self.config.predictor_hidden_size // self.config.predictor_num_attention_heads
            positions = grid_positions(grid, context.device)[ids]
            rotary = rotary_table(positions, head_dim, encoder_config.rope_interleave)
        for layer in self.layer:  # attention is permutation-invariant: tokens need no sorting
            hidden_states = layer(hidden_states, rotary)[0]
        return self.proj(self.layernorm(hidden_states[:, context.shape[1] :]))


@torch.no_grad()
def init_predictor(predictor: VJepa2Predictor) -> None:
    """Initializes mask tokens and positions; `_init_weights` of the model does the rest."""
    config = predictor.config
    if config.zero_init_mask_tokens:
        init.zeros_(predictor.mask_tokens)
    else:
        init.trunc_normal_(predictor.mask_tokens, std=config.initializer_range)
    if predictor.position_embeddings is not None:
        init.trunc_normal_(predictor.position_embeddings, std=config.initializer_range)


def predict_following(
    predictor: VJepa2Predictor,
    context: torch.Tensor,
    grid: tuple[int, int, int],
    steps: int,
    autoregressive: bool = False,
    skip: int = 0,
) -> torch.Tensor:
    """Tokens (B, steps, H'·W', D) of the tubelets that follow a clip with tokens (B, T'·H'·W', D).

    Args:
        autoregressive: predict one tubelet at a time and use it as context for the next, instead of all at once.
        skip: tubelets between the clip and those to predict, when all are predicted at once.
    """
    past_steps, rows, columns = grid
    at_once, future = 1 if autoregressive else steps, []
    for first in range(past_steps + skip, past_steps + skip + steps, at_once):
        ids = torch.arange((first + at_once) * rows * columns, device=context.device).expand(len(context), -1)
        known, hidden = ids[:, : context.shape[1]], ids[:, first * rows * columns :]
        predicted = predictor(context, known, hidden, (first + at_once, rows, columns), mask_token_index=0)
        future.append(predicted)
        if autoregressive:
            context = torch.cat([context, predicted], dim=1)
    return torch.cat(future, dim=1).unflatten(1, (steps, rows * columns))
