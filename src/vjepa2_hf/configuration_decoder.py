"""Configuration of the pixel decoder."""

import math
from typing import Literal

from transformers import PreTrainedConfig

from .configuration_vjepa2 import VJepa2BaseConfig, check, check_activation, check_heads, check_numbers, strict_config
from .specs import is_number


@strict_config
class VJepa2PixelDecoderConfig(VJepa2BaseConfig, PreTrainedConfig):
    r"""Configuration of [`VJepa2PixelDecoder`].

    Latents, as a world model's `encode` and `rollout` return them:
        num_latents (`int`, defaults to 256): N, tokens per frame; a square number that divides the image evenly.
        latent_size (`int`, defaults to 1024): D.
    Image:
        crop_size (`int`, defaults to 256): side in pixels.
        in_chans (`int`, defaults to 3): color channels.
        patch_size (`int`, defaults to 16): side in pixels of an output patch. It may be smaller than the encoder's:
            one latent then covers several patches.
        image_mean, image_std (lists): the normalization of the pixels, which `decode` inverts.
    Transformer:
        hidden_size, num_hidden_layers, num_attention_heads, mlp_ratio (default to 512, 4, 8, 4.0: about VideoMAE's,
            arXiv 2203.12602), hidden_act, layer_norm_eps, initializer_range. With no layers it is a linear map of
            each latent.
    Loss:
        loss_exponent (`int`, defaults to 2): p of mean |x̂ − x|^p / p on normalized pixels.
    """

    model_type = "vjepa2_hf_pixel_decoder"

    num_latents: int = 256
    latent_size: int = 1024
    crop_size: int = 256
    in_chans: int = 3
    patch_size: int = 16
    image_mean: list | tuple = (0.485, 0.456, 0.406)
    image_std: list | tuple = (0.229, 0.224, 0.225)

    hidden_size: int = 512
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    mlp_ratio: int | float = 4.0
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02

    loss_exponent: Literal[1, 2] = 2

    def __post_init__(self, **kwargs):
        sizes = "num_latents latent_size crop_size in_chans patch_size hidden_size mlp_ratio layer_norm_eps"
        check_numbers(self, f"{sizes} initializer_range", not_negative="num_hidden_layers")
        check_activation(self.hidden_act)
        check_heads("hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)
        check(self.hidden_size % 8 == 0, f"hidden_size is {self.hidden_size}; expected a multiple of 8 (sin-cos).")
        for name in ("image_mean", "image_std"):
            values = getattr(self, name)
            valid = len(values) == self.in_chans and all(is_number(value) and math.isfinite(value) for value in values)
            check(valid, f"{name} is {values}; expected {self.in_chans} finite numbers, as in_chans says.")
        check(min(self.image_std) > 0, f"image_std is {self.image_std}; expected numbers above 0.")
        crop, patch = self.crop_size, self.patch_size
        check(crop % patch == 0, f"patch_size={patch} must divide crop_size={crop}: choose another.")
        side, patches = math.isqrt(self.num_latents), crop // patch
        check(
            side**2 == self.num_latents and patches % side == 0,
            f"num_latents={self.num_latents} is not a square grid that divides the {patches} × {patches} patches of "
            f"crop_size={crop} and patch_size={patch}: choose another patch_size.",
        )
        super().__post_init__(**self._refuse_unknown(kwargs))
