"""Latents of a frame before the fitted map: the encoder's tokens, raw patches, or the vector of a learned state.

Shapes: B episodes, T frames, F frames of all episodes, C channels, H W pixels, D width of a learned state. A frame is
*arranged*: n tokens of width m (`arranged_shape`).
"""

import warnings

import torch
from einops import rearrange
from torch import nn
from transformers import initialization as init

from .configuration_world_model import VJepa2WorldModelConfig
from .modeling_encoder import VJepa2Encoder, check_clips, clip_grid
from .modeling_state import encoder_token_size, match_dtype


STEM_CHANNELS = (16, 32, 64, 96)  # of four convolutions, each of which halves height and width
TOKEN_SIZE = STEM_CHANNELS[-1]
HIDDEN_SIZE = 256
_LARGEST_PIXEL = 20.0  # the usual means and standard deviations give values of -3 to 3
POSITION_STD = 0.5  # initial standard deviation of positions, about that of the tokens


def conv_stem(channels: int) -> nn.Sequential:
    """Convolutions of stride 2: pixels (F, C, H, W) -> (F, 96, ⌈H / 16⌉, ⌈W / 16⌉)."""
    layers: list[nn.Module] = []
    for before, after in zip((channels, *STEM_CHANNELS), STEM_CHANNELS):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(1, after), nn.GELU()]
    return nn.Sequential(*layers)


class VJepa2LearnedState(nn.Module):
    """A network that turns a frame into one vector, the state of `state_type="learned"`.

    ::

        pixels ─► over their own deviation ─► 4 convolutions of stride 2 ("conv") ─┐
               └► over their own deviation ─► linear embedding ("patches") ────────┼─► tokens (n, 96) + positions
        encoder's tokens ─────────────────► Linear ────────────────────────────────┘
            ─► + MLP of each token ─► concatenated ─► Linear ─► GELU ─► Linear ─► state (D)

    Concatenation keeps where things are, so the network reads frames of one size only. The world model does not train
    it: `vjepa2_hf.training.state_learning` does, before the dynamics.
    """

    def __init__(self, config: VJepa2WorldModelConfig):
        super().__init__()
        encoder, self.config = config.encoder_config, config
        side = encoder.crop_size // encoder.patch_size
        if config.state_input == "tokens":
            self.stem = nn.Linear(encoder_token_size(config), TOKEN_SIZE)
        elif config.state_stem == "patches":
            self.stem = nn.Conv2d(encoder.in_chans, TOKEN_SIZE, encoder.patch_size, stride=encoder.patch_size)
        else:
            self.stem, side = conv_stem(encoder.in_chans), encoder.crop_size
            for _ in STEM_CHANNELS:
                side = (side + 1) // 2
        self.num_tokens = side**2
        self.positions = nn.Parameter(torch.zeros(self.num_tokens, TOKEN_SIZE))
        self.token_mlp = nn.Sequential(
            nn.Linear(TOKEN_SIZE, 2 * TOKEN_SIZE), nn.GELU(), nn.Linear(2 * TOKEN_SIZE, TOKEN_SIZE)
        )
        self.proj = nn.Sequential(
            nn.Linear(self.num_tokens * TOKEN_SIZE, HIDDEN_SIZE), nn.GELU(), nn.Linear(HIDDEN_SIZE, config.state_dim)
        )
        for part in self.modules():
            part.is_part_of_learned_state = True

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Normalized pixels (F, C, H, W), or the encoder's tokens (F, n, m), -> states (F, D)."""
        if self.config.state_input == "tokens":
            tokens = self.stem(match_dtype(frames, self.positions))
        else:
            size = self.config.encoder_config.crop_size
            if tuple(frames.shape[-2:]) != (size, size):
                found = f"frames are {frames.shape[-2]}×{frames.shape[-1]} pixels"
                raise ValueError(f"{found}; a learned state reads the size that it was trained on: resize to {size}.")
            if self.config.standardize_frames:
                frames = nn.functional.layer_norm(frames, frames.shape[-3:])  # over an image's own deviation
            tokens = self.stem(match_dtype(frames, self.positions)).flatten(2).transpose(1, 2)
        if tokens.shape[1] != self.num_tokens:
            found = f"a frame has {tokens.shape[1]} tokens; a learned state reads {self.num_tokens}"
            raise ValueError(f"{found}: resize frames to {self.config.encoder_config.crop_size} pixels.")
        tokens = tokens + self.positions
        return self.proj((tokens + self.token_mlp(tokens)).flatten(1))


def init_learned_state(module: nn.Module) -> bool:
    """Initializes a module if it is part of a learned state's network, as PyTorch does; returns whether it is."""
    if not getattr(module, "is_part_of_learned_state", False):
        return False
    if isinstance(module, VJepa2LearnedState):
        init.normal_(module.positions, std=POSITION_STD)
    elif hasattr(module, "reset_parameters"):
        module.reset_parameters()
    return True


def arranged_latents(
    config: VJepa2WorldModelConfig,
    encoder: VJepa2Encoder | None,
    network: VJepa2LearnedState | None,
    pixel_values_videos: torch.Tensor,
) -> torch.Tensor:
    """Frames (B, T, C, H, W) of normalized pixels, each encoded alone -> arranged latents (B, T, n, m)."""
    if config.state_type == "learned" and config.reads_pixels:
        latents = network(pixel_values_videos.flatten(0, 1)).unsqueeze(1)
        return latents.unflatten(0, (len(pixel_values_videos), -1))
    if config.state_type == "pixels":
        patch = config.encoder_config.patch_size
        latents = rearrange(pixel_values_videos, "b t c (h p) (w q) -> (b t) (h w) (c p q)", p=patch, q=patch)
    else:
        output = encoder(pixel_values_videos.flatten(0, 1).unsqueeze(1))
        all_levels = config.state_levels == "all"
        latents = torch.stack(output.level_hidden_states, dim=-2) if all_levels else output.last_hidden_state
    latents = latents.to(torch.promote_types(latents.dtype, torch.float32))  # until the statistics are subtracted
    if config.normalize_latents == "layer":
        latents = nn.functional.layer_norm(latents, latents.shape[-1:])
    if config.state_levels == "all":
        latents = latents.flatten(-2)  # (F, n, L, hidden) -> (F, n, L · hidden)
    if config.state_type == "pooled":
        latents = latents.mean(dim=1, keepdim=True)
    elif config.state_type == "learned":
        latents = network(latents).unsqueeze(1)
    elif config.state_type == "merged":
        rows = pixel_values_videos.shape[-2] // config.encoder_config.patch_size
        if rows % 2:
            advice = f"resize frames to a multiple of {2 * config.encoder_config.patch_size} pixels."
            raise ValueError(f"a frame has {rows}×{rows} tokens, which 2×2 merging does not divide: {advice}")
        latents = rearrange(latents, "f (h p w q) d -> f (h w) (p q d)", p=2, q=2, w=rows // 2)
    return latents.unflatten(0, (len(pixel_values_videos), -1))


def check_square(config: VJepa2WorldModelConfig, pixel_values_videos: torch.Tensor) -> None:
    """Refuses frames (B, T, C, H, W) of wrong or unequal sides."""
    check_clips(pixel_values_videos)
    first = pixel_values_videos[:, :1] if pixel_values_videos.ndim > 1 else pixel_values_videos
    _, rows, columns = clip_grid(config.encoder_config, first)
    if rows != columns:
        size = tuple(pixel_values_videos.shape[-2:])
        raise ValueError(f"frames are {size} pixels; expected squares: crop or resize.")


def warn_if_unnormalized(pixel_values_videos: torch.Tensor) -> None:
    """Warns of frames (B, T, C, H, W) that have not been through a video processor."""
    largest = pixel_values_videos.detach().abs().amax().item() if pixel_values_videos.numel() else 0.0
    if largest > _LARGEST_PIXEL:
        warnings.warn(
            f"pixel_values_videos reach {largest:.4g}, far outside the range of a video processor (about -3 to 3): "
            "pass frames through the VJepa2VideoProcessor that the model was saved with, not floats of 0 to 255.",
            stacklevel=4,
        )
