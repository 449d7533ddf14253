"""Shards written and read: every row once, in a known order, and missing data named."""

import io
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import CLIP_FEATURES, numbered_video, write_numbered_shards
from datasets import Video, load_dataset

from vjepa2_hf.data import shard_files
from vjepa2_hf.data.clips import ClipStream
from vjepa2_hf.data.shards import ShardSource, write_shards


@pytest.fixture(scope="module")
def video() -> bytes:
    return numbered_video()


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    """13 videos in 4 shards; the one named v05 cannot be decoded."""
    return write_numbered_shards(tmp_path_factory.mktemp("data") / "shards")


class TestShards:
    def test_load_dataset_finds_a_video_column_and_every_row(self, shards):
        dataset = load_dataset("parquet", data_files=f"{shards}/*.parquet", split="train", streaming=True)
        assert isinstance(dataset.features["video"], Video)
        assert sorted(row["path"] for row in dataset) == [f"v{i:02d}" for i in range(13)]

    def test_a_failed_writing_leaves_nothing(self, tmp_path, video):
        def rows():
            yield {"video": {"bytes": video, "path": None}, "path": "a"}
            raise RuntimeError("killed")

        with pytest.raises(RuntimeError, match="killed"):
            write_shards(rows(), tmp_path / "out", CLIP_FEATURES)
        assert list(tmp_path.iterdir()) == []

    def test_what_exists_is_not_overwritten(self, shards):
        with pytest.raises(FileExistsError, match="not empty"):
            write_shards([], shards, CLIP_FEATURES)

    def test_a_file_of_the_videos_name_does_not_replace_its_bytes(self, tmp_path, video, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "a.mp4").write_bytes(b"another")
        write_shards([{"video": {"bytes": video, "path": "a.mp4"}, "path": "a"}], "out", CLIP_FEATURES)
        assert [row["video"]["bytes"] for *_, row in ShardSource("out").read_all()] == [video]

    @pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
    def test_readers_are_disjoint_and_complete(self, shards, world_size):
        source = ShardSource(shards)
        read = [row["path"] for rank in range(world_size) for *_, row in source.read_all(rank, world_size)]
        assert sorted(read) == [f"v{i:02d}" for i in range(13)]

    def test_all_rows_are_read_in_the_order_of_the_shards(self, shards):
        numbers = [(shard, number) for shard, number, _ in ShardSource(shards).read_all()]
        assert numbers == sorted(numbers) and len(numbers) == 13

    @pytest.mark.parametrize("data", ["/nowhere/at/all", "/nowhere/*.parquet"])
    def test_missing_data_is_one_sentence(self, data):
        with pytest.raises(FileNotFoundError, match="There is no data at"):
            ClipStream(data, 4, crop_size=8)

    def test_missing_data_beside_a_folder_is_not_asked_of_the_hub(self, tmp_path, monkeypatch):
        (tmp_path / "runs").mkdir()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(
            shard_files, "load_dataset_builder", lambda name: pytest.fail(f"{name} was asked of the Hub")
        )
        with pytest.raises(FileNotFoundError, match="at 'runs/shards': no such folder or file"):
            ClipStream("runs/shards", 4, crop_size=8)

    def test_folder_without_data_is_one_sentence(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no parquet file, .tar shard, video or image"):
            ClipStream(tmp_path, 4, crop_size=8)

    def test_folder_of_hdf5_files_points_to_the_import(self, tmp_path):
        (tmp_path / "demo.hdf5").write_bytes(b"x")
        for data in (tmp_path, tmp_path / "demo.hdf5"):
            with pytest.raises(FileNotFoundError, match="HDF5 or npz files; .* with examples/import_episodes.py"):
                ShardSource(data)

    @pytest.mark.parametrize(
        ("files", "kinds"),
        [
            (["a.mp4", "b.png", "c.png"], r"videos \(1, like .*a.mp4'\) and images \(2, like .*b.png"),
            (["a.mp4", "metadata.parquet"], r"parquet \(1, .* and videos \(1, "),
        ],
    )
    def test_files_of_several_kinds_are_refused_by_name_and_count(self, tmp_path, video, files, kinds):
        for name in files:
            (tmp_path / name).write_bytes(video)
        if "metadata.parquet" in files:
            pq.write_table(pa.table({"file_name": ["a.mp4"], "label": [0]}), tmp_path / "metadata.parquet")
        with pytest.raises(ValueError, match=kinds):
            ShardSource(tmp_path)
        assert ShardSource(tmp_path / "**" / "*.mp4").shards == [str(tmp_path / "a.mp4")]

    def test_parquet_with_paths_of_the_videos_beside_it_is_read(self, tmp_path, video):
        (tmp_path / "a.mp4").write_bytes(video)
        pq.write_table(pa.table({"video": ["a.mp4"]}), tmp_path / "videos.parquet")
        assert [row["video"] for *_, row in ShardSource(tmp_path).read_all()] == [str(tmp_path / "a.mp4")]

    def test_links_to_folders_are_followed_and_no_folder_is_read_twice(self, tmp_path, video):
        for folder in ("data/own", "other", "data/.hidden"):
            (tmp_path / folder).mkdir(parents=True)
            (tmp_path / folder / "a.mp4").write_bytes(video)
        (tmp_path / "data/linked").symlink_to(tmp_path / "other")
        (tmp_path / "data/own/back").symlink_to(tmp_path / "data")
        names = [str(tmp_path / "data" / folder / "a.mp4") for folder in ("linked", "own")]
        assert ShardSource(tmp_path / "data").shards == names

    @pytest.mark.parametrize("damage", ["cut", "random bytes", "empty"])
    def test_a_broken_tar_is_skipped_and_named(self, tmp_path, video, damage):
        for name in ("good.tar", "broken.tar"):
            with tarfile.open(tmp_path / name, "w") as tar:
                for number in range(3):
                    member = tarfile.TarInfo(f"{number}.mp4")
                    member.size = len(video)
                    tar.addfile(member, io.BytesIO(video))
        whole = (tmp_path / "broken.tar").read_bytes()
        second = 512 + -(-len(video) // 512) * 512 + 512  # where its data begins; tar goes by blocks of 512
        damaged = {"cut": whole[: second + len(video) // 2], "random bytes": bytes(range(256)) * 40, "empty": b""}
        (tmp_path / "broken.tar").write_bytes(damaged[damage])
        stream = ClipStream(tmp_path, 4, crop_size=8, epochs=1)
        names = [clip["clip_name"] for clip in stream]
        assert sum("good.tar" in name for name in names) == 3
        assert "is unreadable" in stream.sources[0].skipped[str(tmp_path / "broken.tar")]
