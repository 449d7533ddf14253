"""Imagined images and positions, with latents that are the states themselves."""

import numpy as np
import pytest
import torch

from vjepa2_hf import VJepa2PixelDecoder
from vjepa2_hf.configuration_decoder import VJepa2PixelDecoderConfig
from vjepa2_hf.environments import TWO_ROOMS, make_plain
from vjepa2_hf.visualization.imagination import Imagery, check_decoder, draw_paths, enlarge, overlay


ENV = make_plain(TWO_ROOMS)
STATES = ENV.sample_starts(np.random.default_rng(0), 50)
FRAMES = np.stack([ENV.render_state(state) for state in STATES])
LATENTS = torch.from_numpy(STATES).reshape(50, 2, 1)  # N = 2 tokens of D = 1
BLACK, RED = (0, 0, 0), (255, 0, 0)


def test_without_states_the_nearest_known_frame_is_shown():
    imagery = Imagery(FRAMES, LATENTS)
    asked = torch.stack([LATENTS[[7, 3]] + 1e-4, LATENTS[[11, 0]]])
    np.testing.assert_array_equal(imagery.images(asked), FRAMES[[[7, 3], [11, 0]]])
    assert imagery.states(asked) is None and imagery.source == "the nearest of 50 known images"


def test_states_are_read_from_latents_and_drawn():
    imagery = Imagery(FRAMES, LATENTS, STATES, ENV.render_state)
    between = torch.tensor([[[0.25], [0.4]]])
    assert imagery.states(between)[0] == pytest.approx([0.25, 0.4], abs=1e-3)
    difference = imagery.images(between)[0].astype(int) - ENV.render_state(np.float32([0.25, 0.4]))
    assert np.abs(difference).max() <= 10  # anti-aliased edges of a disc one thousandth away
    assert "linear probe" in imagery.source


def test_a_decoder_comes_first_and_must_fit():
    config = VJepa2PixelDecoderConfig(
        num_latents=4,
        latent_size=3,
        crop_size=16,
        patch_size=8,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    decoder = VJepa2PixelDecoder(config).eval()
    imagery = Imagery(FRAMES, LATENTS, STATES, ENV.render_state, decoder)
    latents = torch.randn(2, 5, 4, 3)
    expected = (255 * decoder.decode(latents)).round().byte().movedim(-3, -1).numpy()
    np.testing.assert_array_equal(imagery.images(latents), expected)
    assert imagery.source.startswith("decoded")
    np.testing.assert_array_equal(Imagery(decoder=decoder).images(latents), expected)
    assert Imagery(decoder=decoder).states(latents) is None
    views = Imagery(decoder=decoder).images(torch.cat([latents, latents.flip(1)], dim=-2))  # side by side
    np.testing.assert_array_equal(views, np.concatenate([expected, expected[:, ::-1]], axis=-2))
    with pytest.raises(ValueError, match="neither known frames nor a decoder"):
        Imagery()
    model = type("Model", (), {"tokens_per_view": 4, "latent_size": 5})
    with pytest.raises(ValueError, match="takes 4 latents of size 3, but the world model has 4 of size 5"):
        check_decoder(decoder, model)


def test_paths_lie_where_they_say_and_the_last_on_top():
    image = np.full((64, 64, 3), 225, np.uint8)
    across, down = np.float32([[0.1, 0.5], [0.9, 0.5]]), np.float32([[0.5, 0.1], [0.5, 0.9]])
    drawn = draw_paths(image, [across, down], [BLACK, RED], size=128)
    assert drawn.shape == (128, 128, 3) and (drawn[10, 10] == 225).all()
    assert (drawn[64, 32] < 100).all() and drawn[64, 64, 0] > 200 > 100 > drawn[64, 64, 1]
    assert (drawn[115, 64] == RED).all() and (drawn[64, 125] == 225).all()


def test_small_images_grow_in_whole_blocks_and_large_ones_stay():
    small = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert enlarge(small, 5).size == (6, 6) and (np.asarray(enlarge(small, 5))[:3, :3] == small[0, 0]).all()
    assert enlarge(np.zeros((40, 50, 3), np.uint8), 30).size == (50, 40)


def test_an_overlay_is_the_mean():
    assert overlay(np.uint8([[[[0, 10, 255]]], [[[255, 20, 255]]]])).tolist() == [[[128, 15, 255]]]
