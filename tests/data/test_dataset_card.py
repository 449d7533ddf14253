"""Dataset cards: a written folder streams at once, and our own readers do not take the card for data."""

import numpy as np
import pytest
import yaml
from builders import CLIP_FEATURES, moving_square
from datasets import Features, Value, get_dataset_split_names, load_dataset
from huggingface_hub import DatasetCard
from script_runs import write_noise_episodes

from vjepa2_hf.data.dataset_card import MARK, write_dataset_card
from vjepa2_hf.data.episodes import read_episodes
from vjepa2_hf.data.feature_cache import data_fingerprint
from vjepa2_hf.data.shards import ShardSource, write_shards
from vjepa2_hf.environments.manifest import describe_folder
from vjepa2_hf.video_io import read_video


def write_videos(folder, count=3, **more):
    rows = ({"video": {"bytes": moving_square(4), "path": None}, "path": f"{i}.mp4"} for i in range(count))
    write_shards(rows, folder, CLIP_FEATURES, num_shards=2, **more)
    return folder


def head(folder):
    return DatasetCard.load(folder / "README.md").data.to_dict()


def test_a_folder_of_videos_streams_with_its_columns(tmp_path):
    folder = write_videos(tmp_path / "out", skipped={"broken.mp4": "it is no video"})
    rows = load_dataset(str(folder), split="train", streaming=True)
    assert rows.features == CLIP_FEATURES  # from the head: before a file is opened
    assert sorted(row["path"] for row in rows) == ["0.mp4", "1.mp4", "2.mp4"]
    assert len(read_video(next(iter(rows))["video"])) == 4
    assert get_dataset_split_names(str(folder)) == ["train"]
    assert load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache")).num_rows == 3


def test_the_head_says_what_stays_true(tmp_path):
    found = head(write_noise_episodes(tmp_path / "out"))
    assert found["license"] == "unknown" and found["task_categories"] == ["robotics"]
    assert found["size_categories"] == ["n<1K"]
    files = [{"split": "train", "path": "data-*.parquet"}]
    assert found["configs"] == [{"config_name": "default", "data_files": files}]
    assert set(found["dataset_info"]) == {"features"}  # counts would be false once a shard is added


@pytest.mark.parametrize(
    ("rows", "size"), [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (99_999, "10K<n<100K"), (10**13, "n>1T")]
)
def test_size_categories(rows, size, tmp_path):
    write_dataset_card(tmp_path, Features({"video": Value("string")}), rows)
    assert head(tmp_path)["size_categories"] == [size]


def test_the_same_data_gives_the_same_card(tmp_path):
    cards = [(write_videos(tmp_path / name) / "README.md").read_bytes() for name in ("one", "two")]
    assert cards[0] == cards[1] and str(tmp_path).encode() not in cards[0]


def test_our_readers_ignore_it(tmp_path):
    folder = write_noise_episodes(tmp_path / "out")
    before = data_fingerprint(folder), describe_folder(str(folder)), ShardSource(folder).fingerprint
    frames = [episode["frames"] for episode in read_episodes(folder)]
    (folder / "README.md").unlink()
    assert (data_fingerprint(folder), describe_folder(str(folder)), ShardSource(folder).fingerprint) == before
    assert all(np.array_equal(*pair) for pair in zip(frames, (e["frames"] for e in read_episodes(folder))))


def test_a_card_that_somebody_wrote_stays(tmp_path):
    write_videos(tmp_path / "out")
    own = "---\nlicense: mit\n---\nMy data.\n"
    for text, kept in ((own, True), (f"{own}{MARK} -->", False)):
        (tmp_path / "out" / "README.md").write_text(text)
        write_dataset_card(tmp_path / "out", CLIP_FEATURES, 3)
        found = (tmp_path / "out" / "README.md").read_text()
        assert (found == text) == kept and yaml.safe_load(found.split("---")[1])
