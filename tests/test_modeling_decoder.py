"""The pixel decoder: it paints a frame from its own latents alone, and each thing where it is."""

import pytest
import torch
from builders import TINY_ENCODER, same_weights, spread

from vjepa2_hf import (
    VJepa2Encoder,
    VJepa2EncoderConfig,
    VJepa2PixelDecoder,
    VJepa2PixelDecoderConfig,
    VJepa2WorldModel,
)


TINY = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "crop_size": 32, "patch_size": 8}


def build(**fields) -> VJepa2PixelDecoder:
    torch.manual_seed(0)
    config = VJepa2PixelDecoderConfig(**{**TINY, "num_latents": 16, "latent_size": 12, **fields})
    return spread(VJepa2PixelDecoder(config).eval())


@torch.no_grad()
@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (2, 3, 2)])
def test_every_frame_is_painted_from_its_own_latents(leading):
    model, latents = build(), torch.randn(*leading, 16, 12)
    pixels = model(latents).predicted_pixels
    assert pixels.shape == (*leading, 3, 32, 32)
    if leading:
        changed = latents.clone()
        changed[(-1,) * len(leading)] += 1
        others = (model(changed).predicted_pixels - pixels).flatten(len(leading)).abs().amax(-1).flatten()
        assert (others[:-1] == 0).all() and others[-1] > 0.01


@torch.no_grad()
@pytest.mark.parametrize(("num_latents", "patch_size", "side"), [(16, 8, 8), (4, 8, 16), (4, 4, 16), (1, 8, 32)])
def test_a_latent_paints_the_squares_it_covers(num_latents, patch_size, side):
    """Without blocks nothing mixes the latents: the last one's square alone changes with it."""
    model = build(num_latents=num_latents, patch_size=patch_size, num_hidden_layers=0)
    latents = torch.randn(1, num_latents, 12)
    changed = latents.clone()
    changed[:, -1] = torch.randn(12)
    difference = (model(changed).predicted_pixels - model(latents).predicted_pixels).abs()[0].amax(0)
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[-side:, -side:] = True
    assert (difference[~inside] == 0).all() and difference[inside].min() > 0


@torch.no_grad()
def test_squares_of_one_latent_are_told_apart_by_position():
    pixels = build(num_latents=1)(torch.randn(1, 12)).predicted_pixels
    assert (pixels[:, :8, :8] - pixels[:, 8:16, :8]).abs().max() > 0.01
    assert (pixels[:, :8, :8] - pixels[:, :8, 8:16]).abs().max() > 0.01


@torch.no_grad()
def test_patches_lie_as_the_encoders_do():
    """Token n of the encoder and patch n of the decoder have the same position: a moved square moves in the output."""
    world_model = VJepa2WorldModel.from_encoder(
        VJepa2Encoder(VJepa2EncoderConfig(**TINY_ENCODER)),
        state_type="pixels",
        normalize_latents="none",
        action_dim=2,
        predictor_hidden_size=24,
        predictor_num_hidden_layers=1,
        predictor_num_attention_heads=2,
    )
    frames = torch.rand(1, 2, 3, 32, 32)
    latents = world_model.encode(frames)  # raw patches: copying them into their squares gives the frame back
    decoder = VJepa2PixelDecoder.from_world_model(
        world_model, hidden_size=latents.shape[-1], num_attention_heads=1, num_hidden_layers=0
    )
    decoder.embed.weight.copy_(torch.eye(latents.shape[-1]))
    decoder.embed.bias.zero_()
    decoder.proj.weight.copy_(torch.eye(latents.shape[-1]))
    decoder.proj.bias.zero_()
    decoder.layernorm = torch.nn.Identity()
    positions = decoder._spread(torch.zeros(1, *decoder.embed(latents)[0, 0].shape))
    expected = decoder._spread(latents[0]) - positions
    torch.testing.assert_close(expected, latents[0])
    painted = decoder(latents - positions).predicted_pixels
    torch.testing.assert_close(painted, frames, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("exponent", "expected"), [(1, 2.0), (2, 2.5)])
def test_four_numbers_by_hand(exponent, expected):
    """|d| = 1, 3, 1, 3: mean 2; squares 1, 9, 1, 9: mean 5, halved."""
    model = build(loss_exponent=exponent)
    loss = model.pixel_loss(torch.tensor([1.0, -3.0, 0.0, 5.0]), torch.tensor([0.0, 0.0, 1.0, 2.0]))
    assert loss.item() == pytest.approx(expected)


@torch.no_grad()
def test_pictures_are_no_longer_normalized():
    model = build(image_mean=[0.5, 0.0, 0.25], image_std=[0.1, 1.0, 0.5])
    latents = torch.randn(5, 16, 12)
    pixels, images = model(latents).predicted_pixels, model.decode(latents)
    torch.testing.assert_close(images[:, 0], (pixels[:, 0] * 0.1 + 0.5).clamp(0, 1))
    torch.testing.assert_close(images[:, 2], (pixels[:, 2] * 0.5 + 0.25).clamp(0, 1))
    assert images.min() >= 0 and images.max() <= 1
    torch.testing.assert_close(model.decode(latents, chunk_size=2), images)
    in_bfloat16 = build().to(torch.bfloat16).decode(latents.bfloat16())
    assert in_bfloat16.dtype == torch.float32


def test_gradients_reach_every_parameter():
    model = build().train()
    model(torch.randn(2, 3, 16, 12), torch.randn(2, 3, 3, 32, 32)).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_a_square_is_painted_where_it_is():
    """A hundred steps on single squares: unseen positions of it are then painted within a pixel."""
    torch.manual_seed(0)
    grid = torch.arange(32.0)

    def squares(centers: torch.Tensor) -> torch.Tensor:
        inside = ((grid[None] - centers[:, :1]).abs() < 4)[:, :, None] & ((grid[None] - centers[:, 1:]).abs() < 4)[
            :, None
        ]
        return inside.float().unsqueeze(1).repeat(1, 3, 1, 1)

    def center(images: torch.Tensor) -> torch.Tensor:
        mass = images.mean(1).clamp(min=0.3) - 0.3
        weights = mass / mass.sum((1, 2), keepdim=True)
        return torch.stack([(weights.sum(2) * grid).sum(1), (weights.sum(1) * grid).sum(1)], dim=1)

    projection = torch.randn(3 * 64, 48) / 8
    model = VJepa2PixelDecoder(
        VJepa2PixelDecoderConfig(
            **{**TINY, "hidden_size": 48}, num_latents=16, latent_size=48, image_mean=[0.0] * 3, image_std=[1.0] * 3
        )
    )

    def latents(images: torch.Tensor) -> torch.Tensor:
        patches = images.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5)
        return patches.flatten(3).flatten(1, 2) @ projection

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(100):
        images = squares(5 + 22 * torch.rand(32, 2))
        model(latents(images), images).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    images = squares(5 + 22 * torch.rand(64, 2))
    distance = (center(model.eval().decode(latents(images))) - center(images)).norm(dim=1)
    assert distance.mean() < 1.0


def test_save_and_load(tmp_path):
    model = build(image_mean=[0.1, 0.2, 0.3])
    model.save_pretrained(tmp_path)
    loaded, info = VJepa2PixelDecoder.from_pretrained(tmp_path, output_loading_info=True)
    assert same_weights(model, loaded) and not info["missing_keys"] and not info["unexpected_keys"]
    assert list(loaded.config.image_mean) == [0.1, 0.2, 0.3]
    card = (tmp_path / "README.md").read_text()
    assert "VJepa2PixelDecoder.from_pretrained" in card and "16 latents of 12 numbers" in card


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_latents": 15}, "num_latents=15 is not a square grid"),
        ({"num_latents": 9}, "num_latents=9 is not a square grid that divides the 4 × 4 patches"),
        ({"num_latents": 64}, "choose another patch_size"),
        ({"patch_size": 5}, "patch_size=5 must divide crop_size=32"),
        ({"image_std": [1.0, 1.0]}, "expected 3 finite numbers"),
        ({"image_std": [1.0, 0.0, 1.0]}, "expected numbers above 0"),
        ({"hidden_size": 12}, "multiple of 8"),
        ({"latent_sise": 3}, "Did you mean 'latent_size'"),
    ],
)
def test_settings_that_do_not_fit_end_in_a_sentence(fields, message):
    with pytest.raises(ValueError, match=message):
        VJepa2PixelDecoderConfig(**{**TINY, "num_latents": 16, "latent_size": 12, **fields})


def test_views_are_decoded_side_by_side():
    model, latents = build(), torch.randn(2, 3, 32, 12)  # 16 of each of two cameras
    images = model.decode_views(latents, chunk_size=4)
    assert images.shape == (2, 3, 3, 32, 64)
    for view, image in zip(latents.split(16, dim=-2), images.split(32, dim=-1), strict=True):
        torch.testing.assert_close(image, model.decode(view))
    assert torch.equal(model.decode_views(latents[..., :16, :]), model.decode(latents[..., :16, :]))
    with pytest.raises(ValueError, match=r"shape \(2, 3, 31, 12\); expected \(\.\.\., V·16, 12\)"):
        model.decode_views(latents[..., 1:, :])


def test_other_latents_and_frames_are_refused():
    model = build()
    for decode in (model, model.decode, model.decode_views):
        with pytest.raises(ValueError, match=r"latents has shape \(12,\); expected a float tensor \(\.\.\., "):
            decode(torch.zeros(12))
    with pytest.raises(ValueError, match=r"shape \(2, 32, 12\).* or use decode_views"):
        model(torch.zeros(2, 32, 12))
    with pytest.raises(ValueError, match=r"shape \(2, 4, 12\); expected \(\.\.\., 16, 12\)"):
        model(torch.zeros(2, 4, 12))
    with pytest.raises(ValueError, match=r"shape \(2, 3, 16, 16\); expected \(2, 3, 32, 32\)"):
        model(torch.zeros(2, 16, 12), torch.zeros(2, 3, 16, 16))
