"""A pixel decoder for latents of a frozen model, to visualize the predictions of a world model.

Shapes: B episodes, T frames, N latents of a frame, D their width, C channels, H W pixels, M output patches, d width of
the decoder.
"""

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import nn
from transformers.utils import ModelOutput

from .configuration_decoder import VJepa2PixelDecoderConfig
from .configuration_vjepa2 import VJepa2EncoderConfig
from .modeling_base import VJepa2PreTrainedModel
from .modeling_layers import build_layers, power_loss, sincos_table
from .specs import check_count, check_tensor


@dataclass
class VJepa2PixelDecoderOutput(ModelOutput):
    """Output of [`VJepa2PixelDecoder`].

    loss: where pixels were given, mean |x̂ − x|^p / p over pixels and channels.
    predicted_pixels: (..., C, H, W), normalized as the processor's.
    """

    loss: torch.Tensor | None = None
    predicted_pixels: torch.Tensor | None = None


class VJepa2PixelDecoder(VJepa2PreTrainedModel):
    """A small transformer from the latents of a frame to its pixels.

    ::

        latents s_t (N, D) ──► Linear ──► copied to their patches ──► + position ──► blocks ──► Linear ──► pixels

    It only visualizes; encoder and dynamics do not change (temporal recipe, "Limitations", 4: an "optional decoder for
    visualization (like VideoMAE)", arXiv 2203.12602). A latent that covers several patches is copied to each of them,
    and positions distinguish the copies (arXiv 1901.07017), so the decoder works for tokens, merged tokens and a state
    of one vector. One decoder serves all cameras of a world model: `world_model.split_views(latents)` (..., V, N, D)
    -> images (..., V, C, H, W), or `decode_views` -> images side by side.

    Example:
        >>> decoder = VJepa2PixelDecoder.from_pretrained("runs/demo/decoder/final")
        >>> images = decoder.decode(wm.rollout(latents, actions))  # (B, P, N, D) -> (B, P, C, H, W) in 0 to 1
    """

    config: VJepa2PixelDecoderConfig
    main_input_name = "latents"
    _can_record_outputs = {}

    def __init__(self, config: VJepa2PixelDecoderConfig):
        super().__init__(config)
        size, heads = config.hidden_size, config.num_attention_heads
        layer = {"hidden_act": config.hidden_act, "layer_norm_eps": config.layer_norm_eps}
        layer_config = VJepa2EncoderConfig(hidden_size=size, num_attention_heads=heads, **layer)
        self.embed = nn.Linear(config.latent_size, size)
        self.layer = build_layers(config, size, heads, config.mlp_ratio, config.num_hidden_layers, layer_config)
        self.layernorm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.proj = nn.Linear(size, config.in_chans * config.patch_size**2)
        self.post_init()

    @classmethod
    def from_world_model(cls, world_model: VJepa2PreTrainedModel, **config) -> "VJepa2PixelDecoder":
        """A decoder with random weights for latents and frames of a [`VJepa2WorldModel`]; `config` are other fields of
        [`VJepa2PixelDecoderConfig`]."""
        encoder_config = world_model.config.encoder_config
        sizes = {name: getattr(encoder_config, name) for name in ("crop_size", "patch_size", "in_chans")}
        sizes.update(num_latents=world_model.tokens_per_view, latent_size=world_model.latent_size)
        return cls(VJepa2PixelDecoderConfig(**{**sizes, **config}))

    def forward(
        self, latents: torch.Tensor, pixel_values_videos: torch.Tensor | None = None
    ) -> VJepa2PixelDecoderOutput:
        """Decodes frames, each from its own latents.

        Args:
            latents: (..., N, D) from the world model: of frames (B, T), candidates (B, J, P), or one frame.
            pixel_values_videos: the true frames (..., C, H, W), normalized, for the loss.
        """
        config = self.config
        check_tensor("latents", latents, "(..., N, D)")
        expected = (config.num_latents, config.latent_size)
        if tuple(latents.shape[-2:]) != expected:
            wanted = f"(..., {expected[0]}, {expected[1]}), as of the world model that the decoder was trained on"
            if latents.shape[-1] == expected[1] and latents.shape[-2] % expected[0] == 0:
                wanted += "; of several cameras give world_model.split_views(latents), or use decode_views"
            raise ValueError(f"latents have shape {tuple(latents.shape)}; expected {wanted}.")
        leading = latents.shape[:-2]
        hidden_states = self._spread(self.embed(latents.reshape(-1, *expected).to(self.embed.weight.dtype)))
        for layer in self.layer:
            hidden_states = layer(hidden_states)[0]
        patches = self.proj(self.layernorm(hidden_states))
        side, patch = config.crop_size // config.patch_size, config.patch_size
        pixels = rearrange(patches, "b (h w) (c p q) -> b c (h p) (w q)", h=side, p=patch, q=patch)
        pixels = pixels.reshape(*leading, *pixels.shape[1:])
        loss = None if pixel_values_videos is None else self.pixel_loss(pixels, pixel_values_videos)
        return VJepa2PixelDecoderOutput(loss=loss, predicted_pixels=pixels)

    def _spread(self, embedded: torch.Tensor) -> torch.Tensor:
        """Embedded latents (B, N, d) -> (B, M, d): each copied to the patches that it covers, plus positions."""
        latent_side = math.isqrt(self.config.num_latents)
        side = self.config.crop_size // self.config.patch_size
        grid = embedded.unflatten(1, (latent_side, latent_side))
        grid = grid.repeat_interleave(side // latent_side, dim=1).repeat_interleave(side // latent_side, dim=2)
        positions = sincos_table((1, side, side), self.config.hidden_size, device=embedded.device)
        return grid.flatten(1, 2) + positions.to(embedded.dtype)

    def pixel_loss(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """mean |x̂ − x|^p / p over frames, pixels and channels."""
        check_tensor("pixel_values_videos", target)
        if predicted.shape != target.shape:
            shapes = f"{tuple(target.shape)}; expected {tuple(predicted.shape)}, as the latents and the config say"
            raise ValueError(f"pixel_values_videos has shape {shapes}.")
        return power_loss(predicted, target, self.config.loss_exponent)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, chunk_size: int = 256) -> torch.Tensor:
        """Images, float32 (..., C, H, W) in 0 to 1, of latents (..., N, D), decoded `chunk_size` frames at a time."""
        check_tensor("latents", latents, "(..., N, D)")
        chunk_size = check_count("chunk_size", chunk_size)
        leading, frames = latents.shape[:-2], latents.reshape(-1, *latents.shape[-2:])
        pixels = torch.cat([self(part).predicted_pixels.float() for part in frames.split(chunk_size)])
        mean, std = (
            pixels.new_tensor(values)[:, None, None] for values in (self.config.image_mean, self.config.image_std)
        )
        return (pixels * std + mean).clamp(0, 1).reshape(*leading, *pixels.shape[1:])

    def decode_views(self, latents: torch.Tensor, chunk_size: int = 256) -> torch.Tensor:
        """As `decode`, for the latents of several cameras (..., V·N, D): their images side by side, (..., C, H, V·W).
        One camera is decoded as by `decode`."""
        check_tensor("latents", latents, "(..., V·N, D)")
        tokens = self.config.num_latents
        if latents.shape[-2] % tokens:
            expected = f"(..., V·{tokens}, {self.config.latent_size}), the latents of V cameras one after the other"
            raise ValueError(f"latents have shape {tuple(latents.shape)}; expected {expected}.")
        return side_by_side(self.decode(latents.unflatten(-2, (-1, tokens)), chunk_size))


def side_by_side(images: torch.Tensor) -> torch.Tensor:
    """Images of V cameras (..., V, C, H, W) -> (..., C, H, V·W)."""
    return rearrange(images, "... v c h w -> ... c h (v w)")
