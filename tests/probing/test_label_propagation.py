"""Label propagation: objects are followed, the radius holds, J, files of masks."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
from builders import ROOT, TINY_ENCODER

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig
from vjepa2_hf.probing.label_files import read_label_frames
from vjepa2_hf.probing.label_propagation import (
    Propagation,
    label_video,
    propagate_labels,
    region_similarity,
    to_grid,
    to_pixels,
    video_features,
)


def moving_object(steps: int = 5, grid: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (T', H', W', D) with a feature of its own at one position that moves right, and its labels."""
    torch.manual_seed(0)
    features = torch.randn(1, grid, grid, 16).expand(steps, -1, -1, -1).clone()
    one = 5 * torch.randn(16)
    labels = torch.zeros(steps, 2, grid, grid)
    labels[:, 0] = 1
    for step in range(steps):
        features[step, 2, step] = one
        labels[step, :, 2, step] = torch.tensor([0.0, 1.0])
    return features, labels


def test_labels_follow_their_features():
    features, labels = moving_object()
    found = propagate_labels(features, labels[0], Propagation(top_k=1))
    assert torch.equal(found, labels)
    soft = propagate_labels(features, labels[0], Propagation(top_k=3, context_frames=0, radius=None))
    torch.testing.assert_close(soft.sum(dim=1), torch.ones(5, 6, 6))
    assert (soft[1:, 1].flatten(1).argmax(dim=1) == labels[1:, 1].flatten(1).argmax(dim=1)).all()


def test_labels_do_not_jump_beyond_the_radius():
    features, labels = moving_object(steps=2)
    features[1] = features[0]
    features[1, 2, 0], features[1, 2, 5] = torch.zeros(16), features[0, 2, 0]  # five positions further
    everywhere = propagate_labels(features, labels[0], Propagation(top_k=1, radius=None))
    near = propagate_labels(features, labels[0], Propagation(top_k=1, radius=2))
    assert everywhere[1, 1, 2, 5] == 1 and near[1, 1, 2, 5] == 0


def test_pixels_and_grid_agree():
    image = torch.zeros(16, 24, dtype=torch.int64)
    image[4:12, 8:16] = 2
    soft = to_grid(image, 3, (4, 6))
    assert soft.shape == (3, 4, 6) and soft[2, 1, 2] == 1 and soft[1].sum() == 0
    assert (
        region_similarity(np.stack([image, to_pixels(soft[None], (16, 24))[0]]), {1: image.numpy()}, 3)["mean"] > 0.85
    )


@pytest.mark.parametrize(("by", "steps"), [("frame", 6), ("clip", 3)])
def test_a_video_is_labeled_at_any_size(by, steps):
    torch.manual_seed(0)
    encoder = VJepa2Encoder(VJepa2EncoderConfig(**TINY_ENCODER)).eval()
    pixels = torch.randn(1, 3, 16, 24).expand(6, -1, -1, -1)  # nothing moves
    first = torch.zeros(32, 48, dtype=torch.uint8)
    first[:16, 16:32] = 1
    assert video_features(encoder, pixels, by).shape == (steps, 2, 3, 24)
    labels = label_video(encoder, pixels, first, 2, Propagation(top_k=1), by)
    assert labels.shape == (steps, 32, 48) and torch.equal(labels[0], first.long())
    if by == "frame":
        assert region_similarity(labels, {5: first.numpy()}, 2)["mean"] > 0.6


@pytest.mark.parametrize("dtype", [np.bool_, np.uint16, np.uint32, np.int32])
def test_labels_may_be_any_integers(dtype):
    encoder = VJepa2Encoder(VJepa2EncoderConfig(**TINY_ENCODER)).eval()
    first = np.zeros((16, 24), dtype)
    first[:8, 8:16] = 1
    labels = label_video(encoder, torch.randn(2, 3, 16, 24), first, 2)
    assert np.array_equal(labels[0].numpy(), first)


def test_other_settings_and_encoders_are_a_sentence():
    pixels, first = torch.randn(2, 3, 16, 24), np.zeros((16, 24), np.uint8)
    expected = r"settings is {'top_k': 5}; expected a Propagation, such as Propagation\(top_k=…\)\.$"
    with pytest.raises(ValueError, match=expected):
        label_video(None, pixels, first, 2, {"top_k": 5})
    with pytest.raises(ValueError, match=expected):
        propagate_labels(*moving_object()[:1], torch.zeros(2, 6, 6), {"top_k": 5})
    with pytest.raises(
        ValueError, match="encoder is 'runs/mine/final'; expected a VJepa2Encoder: VJepa2Encoder.from_pr"
    ):
        label_video("runs/mine/final", pixels, first, 2)


def test_a_mask_without_objects_stays_empty():
    encoder = VJepa2Encoder(VJepa2EncoderConfig(**TINY_ENCODER)).eval()
    labels = label_video(encoder, torch.randn(3, 3, 16, 24), np.zeros((16, 24), np.uint8), 2)
    assert not labels.any() and region_similarity(labels, labels.numpy(), 2)["mean"] == 1.0


def test_j_is_averaged_over_frames_without_the_first():
    references = np.zeros((3, 2, 4), int)
    references[:, :, :2] = 1
    predictions = references.copy()
    predictions[0] = 2  # the first frame is given
    predictions[2, :, 1] = 0
    found = region_similarity(predictions, references, 3)
    assert found["by_label"] == [pytest.approx(0.75), 1.0]  # label 2 is nowhere
    assert found["by_frame"] == {1: 1.0, 2: pytest.approx(0.75)} and found["mean"] == pytest.approx(0.875)


def test_masks_come_from_polygons_files_and_folders(tmp_path):
    masks = read_label_frames(ROOT / "examples" / "studies" / "masks" / "carphone.json")
    assert masks.names == ("background", "head", "bow tie") and list(masks.frames) == [0, 20, 40, 60, 80, 100]
    image = masks.frames[40]
    assert image.shape == (144, 176) and image[60, 80] == 1 and image[112, 95] == 2 and image[10, 10] == 0
    for number in (0, 12):
        PIL.Image.fromarray(masks.frames[40]).save(tmp_path / f"{number:05d}.png")
    folder = read_label_frames(tmp_path)
    assert list(folder.frames) == [0, 12] and len(folder.names) == 3
    assert np.array_equal(read_label_frames(tmp_path / "00012.png").frames[0], image)


def test_wrong_masks_are_a_sentence(tmp_path):
    path = tmp_path / "masks.json"
    path.write_text(json.dumps({"size": [4, 4], "names": ["a", "c"], "frames": {"0": [{"label": "b", "points": []}]}}))
    with pytest.raises(ValueError, match=r"is not a file of polygons \(KeyError"):
        read_label_frames(path)
    with pytest.raises(ValueError, match="named by the number"):
        read_label_frames(tmp_path)
    with pytest.raises(ValueError, match="integers from 0 to 1"):
        to_grid(torch.full((4, 4), 7), 2, (2, 2))
    with pytest.raises(ValueError, match="at least one after the first"):
        region_similarity(np.zeros((2, 4, 4), int), {0: np.zeros((4, 4), int)}, 2)
    with pytest.raises(ValueError, match=r"references is \['1'\]; expected label images by the number of their frame"):
        region_similarity(np.zeros((2, 4, 4), int), {"1": np.zeros((4, 4), int)}, 2)
    for names, frames in ((["background", "a"], {}), (["background"], {"0": []})):
        path.write_text(json.dumps({"size": [4, 4], "names": names, "frames": frames}))
        with pytest.raises(ValueError, match=f"{len(names)} names and {len(frames)} frames.*expected size, names of"):
            read_label_frames(path)
