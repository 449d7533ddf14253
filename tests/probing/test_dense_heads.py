"""Dense probes: labels reach the positions they belong to, statistics, scores, images with masks."""

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import save_file

from vjepa2_hf import VJepa2VideoProcessor
from vjepa2_hf.data.dataset_card import write_dataset_card
from vjepa2_hf.data.feature_cache import FeatureCache, finish_cache
from vjepa2_hf.probing.dense_clips import (
    DenseClip,
    LabeledImages,
    fill_dense_cache,
    read_mask,
    resize_labels,
    step_frames,
)
from vjepa2_hf.probing.dense_heads import DenseHead, DenseTraining, score_dense_head, train_dense_heads


class Clips(list):
    """Clips as a source that could read all of them."""

    skipped: dict = {}


def patches(pixels: torch.Tensor) -> torch.Tensor:
    """An encoder for tests: mean colors of 4 x 4 patches of every second frame, (B, T', H', W', 3)."""
    b, t = pixels.shape[:2]
    means = torch.nn.functional.avg_pool2d(pixels.flatten(0, 1), 4).unflatten(0, (b, t))
    return means[:, 1::2].movedim(2, -1) if t > 1 else means.movedim(2, -1)


def squares(count: int, frames: int = 4) -> Clips:
    """Clips of 16 x 16 pixels with a bright square that moves by 4 pixels a frame, label 1."""
    clips = Clips()
    for number in range(count):
        labels = np.zeros((frames, 16, 16), np.int64)
        for t in range(frames):
            labels[t, 4 * (number % 4) : 4 * (number % 4) + 4, 4 * t : 4 * t + 4] = 1
        pixels = np.where(labels[..., None] == 1, 220, 30) + np.zeros(3, int)
        clips.append(DenseClip(f"clip {number}", pixels.astype(np.uint8), labels))
    return clips


def cache_of(folder, clips, to_labels=lambda labels: labels, label_size=(16, 16)) -> FeatureCache:
    fill_dense_cache(folder, clips, patches, VJepa2VideoProcessor(size=16, crop_size=16), label_size, to_labels, 3)
    finish_cache(folder, {})
    return FeatureCache(folder, ("features", "labels"))


def test_a_linear_head_segments_what_features_show(tmp_path):
    cache = cache_of(tmp_path / "cache", squares(8))
    batch = cache.windows(torch.tensor([1]), torch.tensor([0]), 2)
    assert batch["features"].shape == (1, 2, 4, 4, 3) and batch["labels"].shape == (1, 2, 16, 16)
    assert batch["labels"][0, 0, 4:8, 4:8].all()  # a tubelet has the labels of its last frame, here frame 1
    heads = [DenseHead(3, "segmentation", 2, ["floor", "square"]) for _ in range(2)]
    losses = train_dense_heads(cache, torch.arange(6), heads, [0.1, 1e-6], DenseTraining(steps=80, batch_size=4))
    assert losses[0] < 0.1 < losses[1]
    scores = [score_dense_head(head, cache, torch.tensor([6, 7]), cache_dir=str(tmp_path)) for head in heads]
    assert scores[0]["mean_iou"] > 0.8 > scores[1]["mean_iou"]
    heads[0].save_pretrained(tmp_path / "head")
    loaded = DenseHead.from_pretrained(tmp_path / "head")
    assert loaded.label_names == ["floor", "square"] and loaded.levels == "last"
    assert torch.equal(loaded.predict(batch["features"], (16, 16)), heads[0].predict(batch["features"], (16, 16)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "has no config.json, so it holds no dense head; train one with examples/dense_probe.py"),
        ("model.safetensors", None, "has no model.safetensors, so it holds no dense head"),
        ("config.json", b"{", "does not load .JSONDecodeError.* expected the config.json and model.safetensors of a"),
        ("config.json", b"[]", "does not load .AttributeError"),
        ("config.json", b'{"task": "regression"}', "does not load .TypeError.* 'feature_size'"),
        ("config.json", b'{"feature_size": 4, "task": "regression"}', "does not load .RuntimeError.* size mismatch"),
        ("model.safetensors", b"half a fi", "does not load .SafetensorError.*: train one with"),
    ],
)
def test_a_damaged_head_is_one_sentence(tmp_path, name, content, message):
    DenseHead(3, "regression").save_pretrained(tmp_path)
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as refusal:
        DenseHead.from_pretrained(tmp_path)
    assert "\n" not in str(refusal.value)


def test_a_head_without_some_weights_is_refused(tmp_path):
    head = DenseHead(3, "regression")
    head.save_pretrained(tmp_path)
    state = {key: value for key, value in head.state_dict().items() if key != "linear.weight"}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="linear.weight"):
        DenseHead.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        DenseHead.from_pretrained(tmp_path / "nothing")


def test_pixels_without_a_label_change_nothing(tmp_path):
    torch.manual_seed(0)
    features, labels = torch.randn(2, 1, 2, 2, 3), torch.randint(2, (2, 1, 8, 8))
    head = DenseHead(3, "segmentation", 2)
    hidden = labels.clone()
    hidden[:, :, 4:] = 255
    wrong = torch.where(hidden == 255, 255, labels)
    assert torch.equal(head.loss(features, hidden), head.loss(features, wrong))
    assert not torch.equal(head.loss(features, hidden), head.loss(features, labels))
    loss = head.loss(features, torch.full_like(labels, 255))  # no pixel has a label
    loss.backward()
    assert loss == 0 and all(not part.grad.any() for part in head.parameters())
    depth = DenseHead(3, "regression")
    numbers = torch.rand(2, 1, 8, 8)
    numbers[0, 0, 0, 0] = torch.nan
    assert depth.loss(features, numbers).isfinite()


def test_a_regression_is_in_the_unit_of_its_labels(tmp_path):
    cache = cache_of(tmp_path / "cache", squares(8), lambda labels: (labels * 300.0 + 1000).astype(np.float32))
    head = DenseHead(3, "regression")
    train_dense_heads(cache, torch.arange(6), [head], [0.05], DenseTraining(steps=100, batch_size=4))
    found = score_dense_head(head, cache, torch.tensor([6, 7]), cache_dir=str(tmp_path))
    assert found["rmse"] < 0.6 * found["rmse_of_the_mean"]
    predicted = head.predict(cache.windows(torch.tensor([0]), torch.tensor([0]), 2)["features"], (16, 16))
    assert 900 < predicted.min() < 1100 and 1150 < predicted.max() < 1450


def test_labels_are_resized_to_the_nearest_pixel():
    labels = np.arange(16).reshape(1, 4, 4)
    assert resize_labels(labels, (2, 2)).tolist() == [[[5, 7], [13, 15]]]
    assert torch.equal(resize_labels(labels, (8, 8))[:, ::2, ::2], torch.from_numpy(labels))
    assert resize_labels(labels.astype(np.float32), (2, 4)).dtype == torch.float32
    assert step_frames(8, 4).tolist() == [1, 3, 5, 7] and step_frames(1, 1).tolist() == [0]


def write_images(folder, masks, mode="L") -> None:
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number, mask in enumerate(masks):
        image = np.full((8, 12, 3), 20 * number, np.uint8)
        PIL.Image.fromarray(image).save(folder / "images" / f"{number}.png")
        PIL.Image.fromarray(mask).save(folder / "masks" / f"{number}.png")


def test_two_folders_are_paired_by_name(tmp_path):
    masks = [np.full((8, 12), number, np.uint8) for number in range(3)]
    write_images(tmp_path, masks)
    (tmp_path / "masks" / "2.png").unlink()
    clips = list(LabeledImages(str(tmp_path / "images"), str(tmp_path / "masks")))
    assert [clip.name for clip in clips] == ["0", "1"]
    assert clips[1].frames.shape == (1, 8, 12, 3) and (clips[1].labels == 1).all()


def test_a_folder_with_a_mask_column(tmp_path):
    write_images(tmp_path, [np.full((8, 12), number, np.uint8) for number in range(2)])
    lines = [f'{{"file_name": "images/{n}.png", "mask_file_name": "masks/{n}.png"}}\n' for n in range(2)]
    (tmp_path / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    clips = list(LabeledImages(str(tmp_path)))
    assert [int(clip.labels.max()) for clip in clips] == [0, 1] and len({clip.name for clip in clips}) == 2


def test_tables_of_images_have_splits_and_name_no_file_elsewhere(tmp_path):
    write_images(tmp_path / "files", [np.full((8, 12), number, np.uint8) for number in range(3)])
    both = datasets.Features({"picture": datasets.Image(), "labels": datasets.Image()})
    for folder, split, numbers in (("table", "train", [0, 1]), ("table", "test", [2]), ("named", "train", [0])):
        files = [[tmp_path / "files" / part / f"{n}.png" for n in numbers] for part in ("images", "masks")]
        if folder == "table":
            files = [[{"bytes": file.read_bytes(), "path": None} for file in part] for part in files]
        else:
            files = [[{"bytes": None, "path": str(file)} for file in part] for part in files]
        (tmp_path / folder).mkdir(exist_ok=True)
        table = datasets.Dataset.from_dict(dict(zip(both, files, strict=True)), features=both)
        table.to_parquet(tmp_path / folder / f"{split}-00000.parquet")
    columns = {"image_column": "picture", "mask_column": "labels"}
    found = {
        split: list(LabeledImages(str(tmp_path / "table"), **columns, split=split)) for split in ("train", "test")
    }
    assert [int(clip.labels.max()) for clip in (*found["train"], *found["test"])] == [0, 1, 2]
    named = LabeledImages(str(tmp_path / "named"), **columns)
    assert not list(named) and "outside of" in next(iter(named.skipped.values()))
    with pytest.raises(ValueError, match="name them with image_column"):
        LabeledImages(str(tmp_path / "table"))


def test_a_table_with_a_card_is_read_anew_when_its_files_change(tmp_path):
    """`datasets` names the cache of such a folder after the card alone."""
    write_images(tmp_path / "files", [np.full((8, 12), number, np.uint8) for number in range(3)])
    columns = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    (tmp_path / "table").mkdir()
    for numbers in ([0], [1, 2]):
        files = [
            [(tmp_path / "files" / part / f"{n}.png").read_bytes() for n in numbers] for part in ("images", "masks")
        ]
        rows = [[{"bytes": file, "path": None} for file in part] for part in files]
        table = datasets.Dataset.from_dict(dict(zip(columns, rows, strict=True)), features=columns)
        table.to_parquet(tmp_path / "table" / "data-00000.parquet")
        write_dataset_card(tmp_path / "table", columns, len(numbers))
        assert [int(clip.labels.max()) for clip in LabeledImages(str(tmp_path / "table"))] == numbers


def test_unreadable_images_are_listed(tmp_path):
    write_images(tmp_path, [np.zeros((8, 12), np.uint8), np.zeros((8, 9), np.uint8), np.zeros((8, 12), np.uint8)])
    (tmp_path / "masks" / "2.png").write_bytes(b"no image")
    clips = LabeledImages(str(tmp_path / "images"), str(tmp_path / "masks"))
    assert [clip.name for clip in clips] == ["0"]
    assert "expected one shape" in clips.skipped["1"] and "cannot be decoded" in clips.skipped["2"]


def test_masks_keep_their_numbers(tmp_path):
    deep = np.array([[0, 40_000]], np.uint16)
    PIL.Image.fromarray(deep).save(tmp_path / "deep.png")
    assert read_mask(tmp_path / "deep.png").tolist() == [[0, 40_000]]
    palette = PIL.Image.fromarray(np.array([[0, 7]], np.uint8)).convert("P")
    palette.putpalette([255, 0, 0] * 256)
    palette.save(tmp_path / "palette.png")
    assert read_mask(tmp_path / "palette.png").tolist() == [[0, 7]]
    PIL.Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "color.png")
    with pytest.raises(ValueError, match="one number per pixel"):
        read_mask(tmp_path / "color.png")


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 2"):
        DenseHead(3, "segmentation", 1)
    with pytest.raises(ValueError, match="3 channels"):
        DenseHead(3, "regression")(torch.zeros(1, 1, 2, 2, 4), (8, 8))
    for label in (2, -1):
        with pytest.raises(ValueError, match=r"integers from 0 to 1 \(num_labels\), or 255: no label"):
            DenseHead(3, "segmentation", 2).loss(torch.zeros(1, 1, 2, 2, 3), torch.full((1, 1, 8, 8), label))
    with pytest.raises(
        ValueError, match="settings is {'steps': 2}; expected a DenseTraining, such as DenseTraining.ste"
    ):
        train_dense_heads(None, torch.zeros(0), [], [], {"steps": 2})
    with pytest.raises(FileNotFoundError, match="two folders"):
        LabeledImages(str(tmp_path), str(tmp_path / "nothing"))
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="has a mask of its name"):
        LabeledImages(str(tmp_path / "a"), str(tmp_path))
