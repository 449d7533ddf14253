"""Views of clips, their names and cache, and labels as numbers."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from builders import numbered_video
from datasets import Features, Value, Video

from vjepa2_hf import VJepa2VideoProcessor
from vjepa2_hf.data.feature_cache import FeatureCache, finish_cache
from vjepa2_hf.data.shards import write_shards
from vjepa2_hf.data.video_writing import encode_video
from vjepa2_hf.probing.labeled_clips import ClipViews, LabeledClips, LabeledPart, Labels, fill_cache


PROCESSOR = VJepa2VideoProcessor(size=32, crop_size=32)
ROW = {"video": numbered_video(60, fps=12)}


def indices(views: ClipViews, name: str = "clip") -> list[list[int]]:
    return views.cut(ROW, name, PROCESSOR)["frame_indices"].tolist()


class TestViews:
    def test_segments_reach_from_the_start_to_the_end(self):
        assert indices(ClipViews(4)) == [[28, 29, 30, 31]]
        assert indices(ClipViews(4, segments=3)) == [[0, 1, 2, 3], [28, 29, 30, 31], [56, 57, 58, 59]]
        assert indices(ClipViews(4, speed=4.0, segments=2)) == [[0, 4, 8, 12], [47, 51, 55, 59]]
        assert indices(ClipViews(4, fps=2.0, segments=2)) == [[0, 6, 12, 18], [41, 47, 53, 59]]

    def test_crops_are_squares_along_the_longer_side(self):
        wide = np.zeros((4, 32, 96, 3), np.uint8)
        wide[:, :, 32:64] = 120
        wide[:, :, 64:] = 240
        row = {"video": encode_video(wide, fps=4, crf=1)}
        for frames in (row, {"video": encode_video(wide.transpose(0, 2, 1, 3), fps=4, crf=1)}):
            views = ClipViews(4, crops=3).cut(frames, "clip", PROCESSOR)["frames"]
            assert views.shape == (3, 4, 3, 32, 32) and views.dtype == torch.uint8
            means = views[..., 4:-4, 4:-4].float().mean(dim=(1, 2, 3, 4))
            assert torch.allclose(means, torch.tensor([0.0, 120, 240]), atol=4)
        assert ClipViews(4).cut(row, "clip", PROCESSOR)["frames"].shape == (1, 4, 3, 32, 32)

    def test_what_is_to_be_anticipated_is_not_seen(self):
        assert indices(ClipViews(4, anticipate_frames=0)) == [[56, 57, 58, 59]]
        assert indices(ClipViews(4, anticipate_frames=8)) == [[48, 49, 50, 51]]
        assert indices(ClipViews(4, fps=2.0, anticipate_frames=2)) == [[29, 35, 41, 47]]  # 2 frames are a second
        random = ClipViews(4, segments=2, random_crop={"scale": (0.5, 1.0)}, anticipate_frames=8)
        assert indices(random) == [[48, 49, 50, 51]] * 2
        with pytest.raises(ValueError, match="it has 60 frames, fewer than the 61 of a clip"):
            indices(ClipViews(4, anticipate_frames=57))
        picture = {"video": None, "image": None}
        with pytest.raises(ValueError, match="an image, which has no later frames"):
            ClipViews(4, anticipate_frames=2).cut(picture, "picture", PROCESSOR)

    def test_shuffled_frames_are_the_same_frames_in_an_order_of_each_clip(self):
        views = ClipViews(16, shuffle_time=True)
        (first,), (other,) = indices(views, "a"), indices(views, "b")
        assert sorted(first) == sorted(other) == indices(ClipViews(16))[0]
        assert first != sorted(first) and first != other and [first] == indices(views, "a")
        pictures = views.cut(ROW, "a", PROCESSOR)["frames"][0].float()
        ordered = ClipViews(16).cut(ROW, "a", PROCESSOR)["frames"][0].float()
        assert torch.equal(pictures, ordered[torch.tensor(first) - min(first)])

    def test_random_crops_are_drawn_by_seed_clip_and_view(self):
        crop = {"scale": (0.3, 0.9), "ratio": (0.75, 1.35), "flip_probability": 0.5}
        views = ClipViews(4, segments=5, random_crop=crop)
        starts = [view[0] for view in indices(views)]
        assert len(set(starts)) > 2 and starts == [view[0] for view in indices(views)]
        assert starts != [view[0] for view in indices(ClipViews(4, segments=5, random_crop=crop, seed=1))]
        first, again = (views.cut(ROW, "clip", PROCESSOR)["frames"] for _ in "ab")
        assert torch.equal(first, again) and first.shape == (5, 4, 3, 32, 32)
        assert not torch.equal(first, views.cut(ROW, "other", PROCESSOR)["frames"])

    def test_wrong_numbers_are_refused(self):
        for name in ("frames_per_clip", "segments", "crops"):
            with pytest.raises(ValueError, match=f"{name} is 0"):
                ClipViews(**{name: 0})
        with pytest.raises(ValueError, match="speed is"):
            ClipViews(speed=0.0)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    rows = (
        {"video": {"bytes": numbered_video(8) if n != 3 else b"broken", "path": None}, "label": n} for n in range(6)
    )
    write_shards(rows, folder, Features({"video": Video(decode=False), "label": Value("int64")}), num_shards=2)
    return folder


class TestCache:
    def test_processes_share_the_rows_and_names_do_not_depend_on_the_place(self, shards, tmp_path):
        (tmp_path / "moved").symlink_to(shards)
        whole = [clip for clip in LabeledClips(shards, ClipViews(4), PROCESSOR) if "name" in clip]
        moved = [clip for clip in LabeledClips(tmp_path / "moved", ClipViews(4), PROCESSOR) if "name" in clip]
        assert [clip["name"] for clip in whole] == [clip["name"] for clip in moved]
        parts = [LabeledClips(shards, ClipViews(4), PROCESSOR, rank=rank, world_size=3) for rank in range(3)]
        names = [clip["name"] for part in parts for clip in part if "name" in clip]
        assert sorted(names) == sorted(clip["name"] for clip in whole) and len(names) == 5

    def test_it_holds_rows_views_and_what_did_not_read_and_goes_on_where_it_was(self, shards, tmp_path):
        seen = []

        def encode(frames):
            seen.append(len(frames))
            if len(seen) == 3 and not again:
                raise KeyboardInterrupt
            return {"features": frames.float().mean(dim=(1, 3, 4))}

        for again in (False, True):
            stream = LabeledClips(shards, ClipViews(4, segments=2), PROCESSOR)
            try:
                fill_cache(tmp_path, stream, encode, Accelerator(), batch_size=4)
            except KeyboardInterrupt:
                assert not again
        finish_cache(tmp_path, {})
        cache = FeatureCache(tmp_path, ("features", "frame_indices"))
        assert sorted(row["label"] for row in cache.notes["row"]) == [0, 1, 2, 4, 5] and len(cache.skipped) == 1
        assert set(cache.lengths.tolist()) == {2} and max(seen) == 4  # two clips of two views at once
        labels = Labels.describe(cache.notes["row"], "label")
        part = LabeledPart(cache, torch.tensor([2, 0]), labels, tubelet=2)
        assert part.read(part.clips, "features").shape == (2, 2, 3)
        assert part.flat_targets.tolist() == [cache.notes["row"][i]["label"] for i in (2, 0)]


class TestLabels:
    def test_strings_are_sorted_ints_keep_their_number(self):
        rows = [{"a": "red", "b": 2}, {"a": "blue", "b": 0}]
        names = Labels.describe(rows, "a")
        assert names.names == ("blue", "red") and names.targets(rows).tolist() == [1, 0]
        numbers = Labels.describe(rows, "b")
        assert numbers.names == ("0", "1", "2") and numbers.targets(rows).tolist() == [2, 0]
        assert Labels.describe([{"b": True}, {"b": False}], "b").targets([{"b": True}]).tolist() == [1]

    def test_several_labels_and_numbers(self):
        rows = [{"a": ["x", "z"], "b": [1.0, 2.0], "c": 3}, {"a": [], "b": [0.0, 5.0], "c": 4}]
        several = Labels.describe(rows, "a", "multi_label_classification")
        assert several.targets(rows).tolist() == [[1, 1], [0, 0]] and several.names == ("x", "z")
        assert Labels.describe(rows, "b", "regression").targets(rows).tolist() == [[1, 2], [0, 5]]
        assert Labels.describe(rows, "c", "regression").targets(rows).tolist() == [[3], [4]]

    def test_a_label_for_each_frame_is_taken_at_the_frames_that_were_seen(self):
        rows = [{"a": [0, 1, 2, 3, 4, 5]}, {"a": [5, 4, 3, 2, 1, 0]}]
        labels = Labels.describe(rows, "a", per_frame=True)
        frames = torch.tensor([[[1, 3]], [[0, 5]]])  # E, V, T'
        assert labels.targets(rows, frames).tolist() == [[[1, 3]], [[5, 0]]]
        with pytest.raises(ValueError, match="at least 7 frames, but 6 labels"):
            labels.targets(rows, torch.full((2, 1, 1), 6))

    @pytest.mark.parametrize(
        ("value", "kind", "message"),
        [
            (-1, None, "classes are strings or ints from 0"),
            (0.5, None, "set problem_type=regression"),
            ("x", "regression", "a number or a list of numbers is expected"),
            (float("nan"), "regression", "is nan, but a regression needs finite numbers"),
            ([1.0, float("inf")], "regression", "a regression needs finite numbers"),
            (1, "multi_label_classification", "a list of classes is expected"),
            (None, None, "has no label 'a'"),
        ],
    )
    def test_values_that_do_not_fit_are_a_sentence(self, value, kind, message):
        with pytest.raises(ValueError, match=message):
            Labels.describe([{"a": value}], "a", kind)

    def test_numbers_of_different_counts_are_refused(self):
        with pytest.raises(ValueError, match=r"have \[1, 2\] numbers"):
            Labels.describe([{"a": 1}, {"a": [1, 2]}], "a", "regression")


def test_a_split_of_an_unknown_name_beside_known_ones_is_named(tmp_path, caplog):
    features = Features({"video": Video(decode=False), "split": Value("string")})
    for name, splits in {"one": ("train", "holdout", None), "none": ("fold 1", "fold 2")}.items():
        rows = [{"video": {"bytes": ROW["video"], "path": None}, "split": split} for split in splits]
        write_shards(rows, tmp_path / name, features, num_shards=1)
        assert len(list(LabeledClips(tmp_path / name, ClipViews(2), PROCESSOR))) == len(rows)
        assert ("The split 'holdout' of" in caplog.text) == (name == "one")
        caplog.clear()
