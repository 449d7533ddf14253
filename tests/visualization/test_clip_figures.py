"""Figures from clips to a plot. `tests/examples/test_look.py` runs them on files and shards."""

import io

import numpy as np
import PIL.Image
import pytest
import yaml
from builders import noise_pixels

from vjepa2_hf.masking import FutureMask
from vjepa2_hf.visualization.clip_figures import Masks, animate_features, plot_neighbors


def test_features_play_beside_their_frames():
    frames = np.zeros((4, 10, 20, 3), np.uint8)
    frames[:, ..., 0] = np.array([0, 80, 160, 240])[:, None, None]
    colors = np.zeros((2, 1, 2, 3))
    colors[1, 0, 1] = (0, 1, 0)  # the second tubelet's right half is green
    with PIL.Image.open(io.BytesIO(animate_features(frames, colors, fps=5, side=40))) as animation:
        assert animation.n_frames == 4 and animation.size == (80 + 8 + 80, 40)
        shown = []
        for number in range(4):
            animation.seek(number)
            shown.append(np.asarray(animation.convert("RGB")).astype(int))
            assert animation.info["duration"] == 200
    assert np.abs(np.array([image[20, 40, 0] for image in shown]) - [0, 80, 160, 240]).max() < 12
    assert [image[20, 150, 1] > 200 for image in shown] == [False, False, True, True]
    assert all(image[20, 100].max() < 40 for image in shown)


def test_neighbors_are_the_frames_of_other_clips_and_their_lengths_may_differ(encoder):
    """The second clip begins with the first clip's frames, so these are nearest, at distance 0."""
    first, other = noise_pixels(4, 32), noise_pixels(6, 32)
    same = first.roll(0, dims=0)
    frames = [np.full((len(clip), 8, 8, 3), 40 * number, np.uint8) for number, clip in enumerate((first, other, same))]
    plot, steps = plot_neighbors(encoder, [first, other, same], frames, ["one", "two", "three"], neighbors=2)
    assert steps == 2
    captions = [axis.get_xlabel() for axis in plot().subfigs[0].axes if axis.get_xlabel()]
    nearest = captions[::2]
    assert [caption.split("\n") for caption in nearest] == [["three, frame 0", "0.000"], ["three, frame 2", "0.000"]]
    assert all(caption.startswith("two, frame ") for caption in captions[1::2])


def test_masks_are_those_of_the_run_or_the_published_ones(tmp_path):
    model = tmp_path / "run" / "final"
    assert Masks.of_run(model).source is None and len(Masks.of_run(model).samplers) == 2
    model.mkdir(parents=True)
    settings = {"masks": [{"type": "future", "context_ratio": 0.5}], "mask_token_index": 1}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    masks = Masks.of_run(model)
    assert isinstance(masks.samplers[0], FutureMask) and masks.mask_token_index == 1
    with pytest.raises(FileNotFoundError):
        Masks.of_run(model, tmp_path / "missing.yaml")
