"""The other side of each comparison, with the same weights: transformers' V-JEPA 2, and planning without a cache.

Shapes: B clips, N tokens of a clip (of a frame, when planning), K tokens kept, M targets, D width, J candidates,
P horizon, F frames so far, A action.
"""

import re

import torch
from torch import nn
from transformers import VJEPA2Config, VJEPA2Model
from transformers.models.vjepa2.modeling_vjepa2 import rotate_queries_or_keys

from vjepa2_hf import VJepa2EncoderConfig, VJepa2MaskedLatentPredictionConfig, VJepa2WorldModel


# ---------------------------------------------------------------------------------------------- transformers


def transformers_model(config: VJepa2MaskedLatentPredictionConfig) -> VJEPA2Model:
    """transformers' model of the same sizes, with random weights, none of them zero or one."""
    encoder: VJepa2EncoderConfig = config.encoder_config
    names = ("patch_size", "tubelet_size", "in_chans", "crop_size", "frames_per_clip", "hidden_size", "mlp_ratio")
    names += ("num_hidden_layers", "num_attention_heads", "layer_norm_eps", "qkv_bias", "hidden_act")
    predictor = ("hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_ratio")
    model = VJEPA2Model(
        VJEPA2Config(
            **{name: getattr(encoder, name) for name in names},
            **{f"pred_{name}": getattr(config, f"predictor_{name}") for name in predictor},
            pred_num_mask_tokens=config.num_mask_tokens,
            attn_implementation="sdpa",
        )
    )
    return disturb_weights(model)


@torch.no_grad()
def disturb_weights(model: nn.Module, seed: int = 0) -> nn.Module:
    """Moves every weight, so that a bias or norm that went missing would show in the result."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator, device=device), alpha=0.02)
    return model


def our_weights(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of transformers' model under our names, with queries, keys and values in one matrix."""
    renamed = {}
    for name, value in state.items():
        if re.search(r"attention\.(key|value)\.", name):
            continue
        if ".attention.query." in name:
            parts = [state[name.replace(".query.", f".{part}.")] for part in ("query", "key", "value")]
            name, value = name.replace(".query.", ".qkv."), torch.cat(parts)
        name = re.sub(r"^encoder\.embeddings\.", "encoder.", name)
        name = name.replace("predictor.embeddings.predictor_embeddings.", "predictor.embed.")
        renamed[name.replace("predictor.embeddings.", "predictor.")] = value
    return renamed


def transformers_loss(
    model: VJEPA2Model,
    target_model: VJEPA2Model,
    pixel_values_videos: torch.Tensor,
    context_masks: list[torch.Tensor],
    target_masks: list[torch.Tensor],
) -> torch.Tensor:
    """Masked latent prediction with transformers' classes: the clip goes through the encoder whole, masks come after.

    One encoder forward serves all mask sets. The predictor's forward takes mask token 1 for all of them.
    """
    with torch.no_grad():
        targets = target_model(pixel_values_videos, skip_predictor=True).last_hidden_state
        targets = nn.functional.layer_norm(targets, targets.shape[-1:])
    encoded = model(pixel_values_videos, skip_predictor=True).last_hidden_state
    losses = []
    for context_ids, target_ids in zip(context_masks, target_masks, strict=True):
        predicted = model.predictor(encoded, [context_ids], [target_ids]).last_hidden_state
        selected = targets.gather(1, target_ids.unsqueeze(-1).expand(-1, -1, targets.shape[-1]))
        losses.append((predicted - selected).abs().mean())
    return torch.stack(losses).mean()


@torch.no_grad()
def update_target(model: VJEPA2Model, target_model: VJEPA2Model, momentum: float) -> None:
    """EMA update in its usual form."""
    for target, source in zip(target_model.encoder.parameters(), model.encoder.parameters(), strict=True):
        target.lerp_(source, 1.0 - momentum)


# ---------------------------------------------------------------------------------------------- planning


@torch.no_grad()
def plain_cost(
    model: VJepa2WorldModel, latents: torch.Tensor, goal: torch.Tensor, actions: torch.Tensor
) -> torch.Tensor:
    """Planning cost as the published loop computes it: at every step all candidates' whole sequences go through the
    dynamics again, and nothing is kept or shared.

    Args:
        model: its dynamics' weights are used and none of its code; one frame of context, a window of P or more frames,
            "concat" fusion, rope, layer-normed latents, not residual.
        latents: (1, 1, N, D), the present frame.
        goal: (1, 1, N, D).
        actions: (1, J, P, A).

    Returns:
        (1, J), mean squared difference of the last latents to the goal's.
    """
    candidates, horizon = actions.shape[1:3]
    actions = actions.to(latents)
    sequence = latents.expand(candidates, -1, -1, -1)
    for step in range(horizon):
        predicted = plain_dynamics(model, sequence, actions[0, :, : step + 1])
        sequence = torch.cat([sequence, predicted[:, -1:]], dim=1)
    return (sequence[:, -1].float() - goal[0].float()).square().mean(dim=(1, 2)).unsqueeze(0)


def plain_dynamics(model: VJepa2WorldModel, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """Latents (J, F, N, D) and actions (J, F, A) -> the latents after every frame (J, F, N, D)."""
    dynamics = model.predictor
    frames, patches_per_frame = latents.shape[1:3]
    action_tokens = dynamics.action_encoder(actions).unsqueeze(2)
    tokens = torch.cat([action_tokens, dynamics.embed(latents)], dim=2).flatten(1, 2)  # (J, F · (1 + N), d)
    positions = _positions(frames, patches_per_frame).to(tokens)
    frame_of = positions[0]
    block_causal = frame_of.unsqueeze(0) <= frame_of.unsqueeze(1)
    for layer in dynamics.layer:
        qkv = layer.attention.qkv(layer.norm1(tokens)).unflatten(-1, (3, layer.attention.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (J, h, F · (1 + N), d / h) each
        query, key = _rotate(query, positions), _rotate(key, positions)
        attended = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=block_causal)
        tokens = tokens + layer.attention.proj(attended.transpose(1, 2).flatten(2))
        tokens = tokens + layer.mlp.fc2(nn.functional.gelu(layer.mlp.fc1(layer.norm2(tokens))))
    patches = tokens.unflatten(1, (frames, 1 + patches_per_frame))[:, :, 1:]
    output = dynamics.proj(dynamics.layernorm(patches))
    return nn.functional.layer_norm(output, output.shape[-1:])


def _positions(frames: int, patches: int) -> torch.Tensor:
    """Time, row and column (3, F · (1 + N)); the action token, first in its frame, has row and column 0."""
    side = int(patches**0.5)
    index = torch.cat([torch.zeros(1, dtype=torch.long), torch.arange(patches)])
    time = torch.arange(frames).repeat_interleave(1 + patches)
    return torch.stack([time, (index // side).repeat(frames), (index % side).repeat(frames)]).float()


def _rotate(states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """3-D RoPE with the angles made again for every layer, for queries and for keys, as published."""
    size = 2 * ((states.shape[-1] // 3) // 2)
    turned = [
        rotate_queries_or_keys(states[..., axis * size : (axis + 1) * size], positions[axis]) for axis in range(3)
    ]
    return torch.cat([*turned, states[..., 3 * size :]], dim=-1)
