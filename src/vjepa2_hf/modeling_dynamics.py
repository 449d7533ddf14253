"""The dynamics of the world model: a block-causal transformer over frames of tokens.

Shapes: B episodes, F frames of a window, N tokens of a frame, D width of a latent, d width of the dynamics, A action,
S proprio state, E extrinsics, h heads.
"""

from dataclasses import dataclass

import torch
from torch import nn

from .configuration_vjepa2 import VJepa2EncoderConfig, VJepa2WorldModelConfig
from .modeling_layers import build_layers
from .modeling_positions import grid_positions, rotary_table


KeyValues = list[tuple[torch.Tensor, torch.Tensor]]  # one (key, value) (B, h, tokens so far, d) a layer


@dataclass
class Inputs:
    """What the dynamics sees of F frames: latents (B, F, N, D), actions (B, F, A), and the optional states."""

    latents: torch.Tensor
    actions: torch.Tensor
    proprio_states: torch.Tensor | None = None  # (B, F, S)
    extrinsics: torch.Tensor | None = None  # (B, F, E)

    def map(self, function) -> "Inputs":
        parts = (self.latents, self.actions, self.proprio_states, self.extrinsics)
        return Inputs(*(None if part is None else function(part) for part in parts))

    def append(self, frame: "Inputs") -> "Inputs":
        pairs = zip(vars(self).values(), vars(frame).values(), strict=True)
        return Inputs(*(None if a is None else torch.cat([a, b], dim=1) for a, b in pairs))


class VJepa2Dynamics(nn.Module):
    """Block-causal transformer over frames of [action, proprio state, extrinsics, latents] tokens."""

    def __init__(self, config: VJepa2WorldModelConfig):
        super().__init__()
        size = config.predictor_hidden_size
        self.config = config
        self.embed = nn.Linear(latent_size(config), size)
        self.action_encoder = _action_encoder(config)
        if config.proprio_dim:
            self.proprio_encoder = nn.Linear(config.proprio_dim, size)
        extrinsics_dim = config.extrinsics_dim or config.stored_extrinsics_dim
        if extrinsics_dim:
            self.extrinsics_encoder = nn.Linear(extrinsics_dim, size)
            self.extrinsics_encoder.requires_grad_(config.extrinsics_dim > 0)
        if config.predictor_position_embedding_type == "learned":
            side = config.encoder_config.crop_size // config.encoder_config.patch_size
            self.place_embedding = nn.Parameter(torch.zeros(side * side, size))
            self.time_embedding = nn.Parameter(torch.zeros(config.context_frames, size))
        self.layer = build_layers(
            config,
            size,
            config.predictor_num_attention_heads,
            config.predictor_mlp_ratio,
            config.predictor_num_hidden_layers,
            config.encoder_config,
        )
        self.layernorm = nn.LayerNorm(size, eps=config.encoder_config.layer_norm_eps)
        self.proj = nn.Linear(size, latent_size(config))
        if config.residual:
            self.proj.init_scale = 0.0  # at the start nothing changes

    def forward(
        self, inputs: Inputs, past: KeyValues | None = None, project: bool = True
    ) -> tuple[torch.Tensor | None, KeyValues]:
        """Frames (B, F, N, D), which follow the cached ones, -> outputs (B, F, N, D) and keys and values of all.

        Args:
            inputs: standardised actions and states.
            past: keys and values of earlier frames.
            project: `False` returns `None` for the outputs, for a context of which only keys and values are needed.
        """
        batch_size, frames, places, _ = inputs.latents.shape
        extra = self._extra_tokens(inputs)
        patches = self.embed(inputs.latents)
        if self.config.action_fusion == "add":
            patches = patches + sum(extra).unsqueeze(2)
            extra = []
        tokens_per_frame = places + len(extra)
        first = past[0][0].shape[2] // tokens_per_frame if past else 0
        patches = self._with_positions(patches, first)
        tokens = torch.cat([torch.stack(extra, dim=2), patches], dim=2) if extra else patches  # (B, F, extra + N, d)
        rotary = self._rotary(first, frames, places, len(extra), tokens.device)
        mask = _block_causal_mask(frames, first, tokens_per_frame, tokens.device) if frames > 1 else None

        hidden_states, present = tokens.flatten(1, 2), []
        for i, layer in enumerate(self.layer):
            hidden_states, key_value = layer(hidden_states, rotary, mask, past[i] if past else None)
            present.append(key_value)
        if not project:
            return None, present
        patches = hidden_states.unflatten(1, (frames, tokens_per_frame))[:, :, len(extra) :]
        return self.proj(self.layernorm(patches)), present

    def _extra_tokens(self, inputs: Inputs) -> list[torch.Tensor]:
        """Embedded action, proprio state and extrinsics, (B, F, d) each."""
        extra = [self.action_encoder(inputs.actions)]
        if inputs.proprio_states is not None:
            extra.append(self.proprio_encoder(inputs.proprio_states))
        if inputs.extrinsics is not None:
            extra.append(self.extrinsics_encoder(inputs.extrinsics))
        return extra

    def _with_positions(self, patches: torch.Tensor, first: int) -> torch.Tensor:
        if self.config.predictor_position_embedding_type != "learned":
            return patches
        frames, places = patches.shape[1:3]
        if places != len(self.place_embedding):
            raise ValueError(
                f"the frame has {places} tokens, but learned positions are for {len(self.place_embedding)}: resize it "
                "to "
                f"{self.config.encoder_config.crop_size} pixels, or use predictor_position_embedding_type='rope'."
            )
        return patches + self.place_embedding + self.time_embedding[first : first + frames].unsqueeze(1)

    def _rotary(self, first: int, frames: int, places: int, extra: int, device):
        """Patches turn by time, row and column, the other tokens by time alone; rows and columns are scaled to the
        configured grid (published; no change for square frames of that size)."""
        if self.config.predictor_position_embedding_type != "rope":
            return None
        side = self.config.encoder_config.crop_size // self.config.encoder_config.patch_size
        rows = columns = int(places**0.5)
        if rows * columns != places:
            raise ValueError(f"the frame has {places} tokens, which is no square grid: crop frames to squares.")
        patches = grid_positions((frames, rows, columns), device).unflatten(0, (frames, places))
        patches[..., 1:] *= side / rows
        others = torch.zeros(frames, extra, 3, device=device)
        others[..., 0] = torch.arange(frames, device=device).unsqueeze(1)
        positions = torch.cat([others, patches], dim=1).flatten(0, 1)
        positions[:, 0] += first
        head_dim = self.config.predictor_hidden_size // self.config.predictor_num_attention_heads
        return rotary_table(positions, head_dim, self.config.encoder_config.rope_interleave)


def _block_causal_mask(frames: int, first: int, tokens_per_frame: int, device) -> torch.Tensor:
    """(1, 1, F · n, (first + F) · n), true where a frame's token may look: its own frame and earlier ones."""
    query = torch.arange(first, first + frames, device=device).repeat_interleave(tokens_per_frame)
    key = torch.arange(first + frames, device=device).repeat_interleave(tokens_per_frame)
    return (key <= query.unsqueeze(1))[None, None]


def _action_encoder(config: VJepa2WorldModelConfig) -> nn.Module:
    """One linear layer (published), or an MLP with GELU (seed 003, sec. 4.4)."""
    size, layers = config.predictor_hidden_size, []
    for i in range(config.action_encoder_num_layers):
        layers += [nn.GELU()] if i else []
        layers.append(nn.Linear(size if i else config.action_dim, size))
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


def latent_size(config: VJepa2WorldModelConfig) -> int:
    encoder_config: VJepa2EncoderConfig = config.encoder_config
    if config.state_type == "pixels":
        return encoder_config.in_chans * encoder_config.patch_size**2
    return encoder_config.hidden_size
