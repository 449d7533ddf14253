"""The predictor of masked latents, for hidden tokens of a clip and for the frames that follow it.

Shapes: B clips, K tokens of a context, M of a target, (T', H', W') grid of tokens, D width of the encoder.
"""

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers import initialization as init

from .configuration_vjepa2 import VJepa2EncoderConfig, VJepa2MaskedLatentPredictionConfig
from .modeling_encoder import VJepa2EncoderOutput
from .modeling_layers import (
    add_positions,
    build_layers,
    grid_positions,
    init_modality,
    modality_parameters,
    position_parameter,
    rotary_table,
)


class VJepa2Predictor(nn.Module):
    """Narrow transformer over context tokens and mask tokens, each with its position in the clip.

    It reads the last tokens of the encoder, or with `predictor_levels` those of all levels; see `predictor_input`.

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
        width, levels = encoder_config.hidden_size, config.num_levels
        self.embed = nn.Linear(width, size)
        if levels > 1:
            self.embed = nn.Sequential(nn.Linear(levels * width, width), nn.GELU(), self.embed)
        self.image_modality_embedding = self.video_modality_embedding = None
        if config.predictor_modality_embeddings:
            self.image_modality_embedding, self.video_modality_embedding = modality_parameters(size)
        self.mask_tokens = nn.Parameter(torch.zeros(config.num_mask_tokens, 1, 1, size))
        self.position_embeddings = position_parameter(encoder_config, size)
        self.layer = build_layers(model_config or config, size, heads, ratio, depth, encoder_config)
        for layer in self.layer:
            layer.attention.qkv.init_query_key_bias = config.predictor_query_key_bias
        self.layernorm = nn.LayerNorm(size, eps=encoder_config.layer_norm_eps)
        self.proj = nn.Linear(size, config.prediction_size)
        self.proj_context = nn.Linear(size, config.prediction_size) if config.predict_context else None

    def forward(
        self,
        context: torch.Tensor,
        context_mask: torch.Tensor,
        target_mask: torch.Tensor,
        grid: tuple[int, int, int],
        mask_token_index: int = 0,
        is_image: bool = False,
        with_context: bool = False,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Context tokens (B, K, D), or (B, K, L · D) of L levels, at ids (B, K) -> predictions (B, M, P) at ids (B, M)
        of the grid (T', H', W'), P = `config.prediction_size`.

        Args:
            is_image: the clip is one frame, which matters for modality embeddings alone.
            with_context: also return the predictions (B, K, P) of the context's own tokens (`predict_context`).
        """
        token = self.mask_tokens[mask_token_index % len(self.mask_tokens)]
        hidden_states = torch.cat([self.embed(context), token.expand(*target_mask.shape, -1)], dim=1)
        modality = self.image_modality_embedding if is_image else self.video_modality_embedding
        if modality is not None:
            hidden_states = hidden_states + modality.to(hidden_states)
        ids = torch.cat([context_mask, target_mask], dim=1)
        encoder_config = self.config.encoder_config
        hidden_states = add_positions(hidden_states, encoder_config, grid, ids, self.position_embeddings)
        rotary = None
        if encoder_config.position_embedding_type == "rope":
            head_dim = self.config.predictor_hidden_size // self.config.predictor_num_attention_heads
            positions = grid_positions(grid, context.device, encoder_config.rope_grid_size)[ids]
            rotary = rotary_table(positions, head_dim, encoder_config.rope_interleave)
        for layer in self.layer:  # attention is permutation-invariant: tokens need no sorting
            hidden_states = layer(hidden_states, rotary)[0]
        predicted = self.proj(self.layernorm(hidden_states[:, context.shape[1] :]))
        if not with_context:
            return predicted
        return predicted, self.proj_context(self.layernorm(hidden_states[:, : context.shape[1]]))


def predictor_input(config: VJepa2MaskedLatentPredictionConfig, output: VJepa2EncoderOutput) -> torch.Tensor:
    """What the predictor reads of the encoder's output: its tokens (B, K, D), or those of its levels (B, K, L · D)."""
    return torch.cat(output.level_hidden_states, dim=-1) if config.predictor_levels else output.last_hidden_state


@torch.no_grad()
def init_predictor(predictor: VJepa2Predictor) -> None:
    """Initializes mask tokens, positions and modality; `_init_weights` of the model does the rest."""
    config = predictor.config
    if config.zero_init_mask_tokens:
        init.zeros_(predictor.mask_tokens)
    else:
        init.trunc_normal_(predictor.mask_tokens, std=config.initializer_range)
    if predictor.position_embeddings is not None:
        init.trunc_normal_(predictor.position_embeddings, std=config.initializer_range)
    init_modality(predictor)


def predict_following(
    predictor: VJepa2Predictor,
    context: torch.Tensor,
    grid: tuple[int, int, int],
    steps: int,
    autoregressive: bool = False,
    skip: int = 0,
) -> torch.Tensor:
    """Tokens (B, steps, H'·W', P) of the tubelets that follow a clip with tokens (B, T'·H'·W', D), or those of levels.

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
