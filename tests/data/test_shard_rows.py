"""Rows of files that nobody has checked: an odd row costs that row, and no row reaches or costs more than allowed."""

import gc
import io
import json
import logging
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import numbered_video, write_numbered_shards

from vjepa2_hf.data import shard_rows
from vjepa2_hf.data.clips import ClipStream
from vjepa2_hf.data.feature_cache import data_fingerprint
from vjepa2_hf.data.shard_files import ShardNames, files_at
from vjepa2_hf.data.shard_rows import confined
from vjepa2_hf.data.shards import ShardSource
from vjepa2_hf.video_io import ReadLimits


@pytest.fixture(scope="module")
def video() -> bytes:
    return numbered_video(6)


def image() -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (8, 8)).save(buffer, "png")
    return buffer.getvalue()


def write_tar(path: Path, *members: tuple[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def read(data, limits: ReadLimits | None = None) -> tuple[list[dict], dict[str, str]]:
    """The rows, and the reasons of the skipped ones by the end of their names."""
    source = ShardSource(data, limits)
    rows = [row for *_, row in source.read_all()]
    return rows, {name.rpartition("/")[2]: reason for name, reason in source.skipped.items()}


HUGE = b"\x93NUMPY\x01\x00\x46\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}"


class TestTar:
    def test_samples_that_differ_cost_only_those_without_a_video(self, tmp_path, video):
        members = [(f"{k}.{end}", video if end == "mp4" else b"{}") for k in range(4) for end in ("mp4", "json")]
        members.remove(("2.mp4", video))
        members[0] = ("0.webm", video)
        rows, skipped = read(write_tar(tmp_path / "a.tar", *members))
        assert [row["__key__"] for row in rows] == ["0", "1", "3"]
        assert skipped == {"a.tar, row 2 (2)": "it has no video or image, only ['json']"}

    @pytest.mark.parametrize(
        ("name", "content", "value"),
        [
            ("json", b'{"label": 3}', {"label": 3}), ("json", b"{bad", None), ("json", b"[" * 10**5, None),
            ("cls", b"7", 7), ("cls", b"cat", None), ("txt", "ö".encode(), "ö"), ("txt", b"\xff\xfe", None),
            ("pth", b"cos\nsystem\n(S'exit 1'\ntR.", b"cos\nsystem\n(S'exit 1'\ntR."),
            ("npy", HUGE, None),
        ],
    )  # fmt: skip
    def test_a_sidecar_is_parsed_or_left_out_and_the_video_stays(self, tmp_path, video, caplog, name, content, value):
        rows, skipped = read(write_tar(tmp_path / "a.tar", ("0.mp4", video), (f"0.{name}", content)))
        assert [row[name] for row in rows] == [value] and rows[0]["video"]["bytes"] == video and not skipped
        assert (f"a.tar, 0.{name} is unreadable and left out" in caplog.text) == (value is None)

    @pytest.mark.parametrize("order", ["json first", "mp4 first"])
    def test_names_with_dots_are_samples_of_their_own(self, tmp_path, video, order):
        ends = ("json", "mp4") if order == "json first" else ("mp4", "json")
        for count in (1, 3):
            contents = [{"mp4": video, "json": json.dumps(k).encode()} for k in range(count)]
            members = [(f"clip_{k}.5s.{end}", contents[k][end]) for k in range(count) for end in ends]
            members += [(f"www.youtube.com_{k}.{end}", contents[k][end]) for k in range(count) for end in ends]
            rows, skipped = read(write_tar(tmp_path / "a.tar", *members))
            assert [row["json"] for row in rows] == [*range(count)] * 2 and not skipped
            assert rows[-1]["path"] == f"www.youtube.com_{count - 1}.mp4"

    def test_several_views_of_a_sample_are_rows_with_its_sidecar_and_said_so(self, tmp_path, video, caplog):
        tar = write_tar(tmp_path / "a.tar", ("0.cls", b"5"), ("0.left.mp4", video), ("0.right.mp4", image()))
        rows, _ = read(tar)
        assert [(row["path"], row["cls"]) for row in rows] == [("0.left.mp4", 5), ("0.right.mp4", 5)]
        assert "'0' names several videos or images; each is a row" in caplog.text

    def test_other_files_of_a_sample_do_not_make_rows(self, tmp_path, video):
        names = ["0.mp4", "0.poster.png", "0.thumb.png", "1.clip.mp4", "1.meta.json", "._2.mp4", "2.jpg", "2.mask.png"]
        contents = {"mp4": video, "json": b"{}", "png": image(), "jpg": image()}
        members = [(name, contents[name.rpartition(".")[2]]) for name in names]
        rows, skipped = read(write_tar(tmp_path / "a.tar", *members))
        assert [row["path"] for row in rows] == ["0.mp4", "1.clip.mp4", "2.jpg"] and not skipped
        assert rows[1]["meta.json"] == {} and rows[2]["image"]["bytes"] == image()

    def test_the_same_name_twice_is_two_samples(self, tmp_path, video):
        rows, _ = read(write_tar(tmp_path / "a.tar", ("0.mp4", video), ("0.mp4", image())))
        assert [row["video"]["bytes"] for row in rows] == [video, image()]

    def test_a_corrupt_header_is_not_taken_for_the_end(self, tmp_path, video):
        tar = write_tar(tmp_path / "a.tar", *((f"{k}.mp4", video) for k in range(3)))
        content = bytearray(tar.read_bytes())
        second = 512 + -(-len(video) // 512) * 512
        content[second : second + 100] = bytes(100)
        content[second] = 200
        tar.write_bytes(content)
        rows, skipped = read(tar)
        assert len(rows) == 1 and "header at byte" in skipped["a.tar"]

    def test_an_archive_that_is_cut_between_files_is_read_and_named(self, tmp_path, video):
        tar = write_tar(tmp_path / "a.tar", *((f"{k}.mp4", video) for k in range(3)))
        tar.write_bytes(tar.read_bytes()[: 2 * (512 + -(-len(video) // 512) * 512)])
        rows, skipped = read(tar)
        assert [row["path"] for row in rows] == ["0.mp4", "1.mp4"] and "no end-of-archive mark" in skipped["a.tar"]

    def test_a_sample_above_the_bytes_allowed_is_skipped_unread(self, tmp_path, video):
        tar = write_tar(
            tmp_path / "a.tar.gz", ("0.mp4", video), ("1.mp4", bytes(10**7)), ("2.mp4", video), mode="w:gz"
        )
        tar = tar.rename(tmp_path / "a.tar")
        assert tar.stat().st_size < 10**5
        tracemalloc.start()
        rows, skipped = read(tar, ReadLimits(max_bytes=10**5))
        assert tracemalloc.get_traced_memory()[1] < 3 * 10**6
        tracemalloc.stop()
        assert len(rows) == 2 and "10,000,000 bytes, more than limits.max_bytes=100,000" in skipped["a.tar, row 1 (1)"]

    def test_an_extended_header_of_any_size_is_not_read(self, tmp_path, video):
        with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            tar.addfile(tarfile.TarInfo("0.mp4"))
            member = tarfile.TarInfo("1.mp4")
            member.pax_headers = {"comment": "x" * 2**21}
            tar.addfile(member)
        assert "an extended header has 2,097" in read(tmp_path / "a.tar")[1]["a.tar"]

    @pytest.mark.parametrize("world_size", [1, 3])
    def test_readers_share_the_samples_and_each_bad_one_is_counted_once(self, tmp_path, video, world_size):
        members = [(f"{k}.{'txt' if k == 4 else 'mp4'}", video) for k in range(7)]
        tar = write_tar(tmp_path / "a.tar", *members)
        sources = [ShardSource(tar) for _ in range(world_size)]
        rows = [row for rank, one in enumerate(sources) for *_, row in one.read_all(rank, world_size)]
        assert sorted(row["path"] for row in rows) == [f"{k}.mp4" for k in range(7) if k != 4]
        assert sum(len(one.take_skips()) for one in sources) == 1

    def test_resuming_inside_reads_the_rest(self, tmp_path, video):
        tar = write_tar(tmp_path / "a.tar", *((f"{k}.mp4", video) for k in range(5)))
        assert [row["path"] for _, row in ShardSource(tar).read(0, 3)] == ["3.mp4", "4.mp4"]


def write_parquet(path: Path, rows: list[dict], schema: pa.Schema | None = None, **options) -> Path:
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, **options)
    return path


class TestParquet:
    def test_text_for_bytes_and_other_kinds_cost_their_rows(self, tmp_path, video):
        media = pa.struct({"bytes": pa.string(), "path": pa.string()})
        rows = [{"video": {"bytes": "no bytes", "path": "a.mp4"}}, {"video": None}, {"video": {"path": "b.mp4"}}]
        write_parquet(tmp_path / "a.parquet", rows, pa.schema({"video": media}))
        write_parquet(tmp_path / "b.parquet", [{"video": 3, "ts": 1.5}, {"video": None, "ts": 2.5}])
        (tmp_path / "b.mp4").write_bytes(video)
        rows, skipped = read(str(tmp_path / "*.parquet"))
        assert [row["video"] for row in rows] == [str(tmp_path / "b.mp4")]
        assert skipped == {
            "a.parquet, row 0": "the bytes of its video are of type str; expected bytes",
            "a.parquet, row 1": "its 'video' is empty",
            "b.parquet, row 0": "its video is of type int; expected bytes, a path, or a dict of bytes and path",
            "b.parquet, row 1": "its 'video' is empty",
        }

    def test_text_that_is_not_utf8_costs_its_row(self, tmp_path, video):
        names = pa.array([b"good", b"\xff\xfe", b"good"]).view(pa.string())
        media = pa.array([{"bytes": video, "path": None}] * 3)
        pq.write_table(pa.table({"video": media, "path": names}), tmp_path / "a.parquet")
        rows, skipped = read(tmp_path)
        assert len(rows) == 2 and list(skipped) == ["a.parquet, row 1"]

    def test_a_row_of_both_columns_takes_the_one_that_is_there(self, tmp_path, video):
        write_parquet(tmp_path / "a.parquet", [{"video": video, "image": None}, {"video": None, "image": image()}])
        rows, _ = read(tmp_path)
        assert rows[0]["video"]["bytes"] == video
        assert rows[1]["video"] is None and rows[1]["image"]["bytes"] == image()

    def test_a_corrupt_row_group_costs_its_rows_and_the_others_are_read(self, tmp_path, video):
        rows = [{"video": video, "number": k} for k in range(6)]
        path = write_parquet(tmp_path / "a.parquet", rows, row_group_size=2, compression="none")
        column = pq.ParquetFile(path).metadata.row_group(1).column(0)
        content = bytearray(path.read_bytes())
        content[column.dictionary_page_offset : column.dictionary_page_offset + 20] = bytes(range(200, 220))
        path.write_bytes(content)
        for world_size in (1, 4):
            sources = [ShardSource(path) for _ in range(world_size)]
            found = [
                row["number"] for rank in range(world_size) for *_, row in sources[rank].read_all(rank, world_size)
            ]
            assert sorted(found) == [0, 1, 4, 5]
            assert sum(skip.rows for source in sources for skip in source.take_skips()) == 2

    def test_a_flipped_bit_inside_a_video_is_noticed(self, tmp_path, video):
        folder = Path(write_numbered_shards(tmp_path / "shards", num_videos=40, num_shards=1, bad=()))
        (path,) = folder.glob("*.parquet")
        content = bytearray(path.read_bytes())
        content[pq.read_metadata(path).row_group(1).column(0).dictionary_page_offset + 500] ^= 4
        path.write_bytes(content)
        rows, skipped = read(path)
        assert 24 <= len(rows) < 40 and "CRC checksum verification failed" in "".join(skipped.values())

    def test_fewer_rows_than_the_metadata_says_are_noticed(self, tmp_path, video):
        path = write_parquet(tmp_path / "a.parquet", [{"video": video}] * 5, row_group_size=5)
        table = pq.read_table(path)
        write_parquet(tmp_path / "b.parquet", [{"video": video}] * 4, row_group_size=4)
        two = pq.read_metadata(path)
        two.append_row_groups(pq.read_metadata(tmp_path / "b.parquet"))
        assert table.num_rows == 5
        lying = pq.ParquetFile(tmp_path / "b.parquet", metadata=pq.read_metadata(path))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shard_rows.pq, "ParquetFile", lambda *a, **k: lying)
            rows, skipped = read(tmp_path / "b.parquet")
        assert len(rows) < 5 and skipped

    @pytest.mark.parametrize("first", range(7))
    def test_resuming_inside_reads_the_rest(self, tmp_path, video, first):
        path = write_parquet(tmp_path / "a.parquet", [{"video": video, "n": k} for k in range(7)], row_group_size=3)
        assert [row["n"] for _, row in ShardSource(path).read(0, first)] == list(range(first, 7))


LIMIT = 10**6


class TestBytes:
    """A few kilobytes of parquet stand for much more."""

    def check(self, tmp_path, kept: int, reason: str, most: int = 4 * LIMIT) -> None:
        before = pa.total_allocated_bytes()
        tracemalloc.start()
        source, count = ShardSource(tmp_path / "a.parquet", ReadLimits(max_bytes=LIMIT)), 0
        for _ in source.read_all():
            count += 1
            assert pa.total_allocated_bytes() - before < 4 * LIMIT
        assert tracemalloc.get_traced_memory()[1] < most
        tracemalloc.stop()
        assert count == kept and all(reason in found for found in source.skipped.values())
        assert bool(source.skipped) == bool(reason)

    def test_many_equal_videos_are_read_one_by_one(self, tmp_path):
        write_parquet(tmp_path / "a.parquet", [{"video": bytes(LIMIT // 2)}] * 100, compression="zstd")
        assert (tmp_path / "a.parquet").stat().st_size < 10**4
        self.check(tmp_path, 100, "")

    def test_one_large_video_is_refused(self, tmp_path):
        write_parquet(tmp_path / "a.parquet", [{"video": bytes(3 * LIMIT)}], compression="zstd")
        self.check(tmp_path, 0, "its column 'video' has 3,0")

    @pytest.mark.parametrize(
        "value",
        [[1.5] * 10**6, [None] * 10**6, [bytes(10**5)] * 100, ["x" * 10**5] * 100, [[{"a": b"y" * 10**5}] * 100]],
        ids=["numbers", "nulls", "bytes", "text", "nested"],
    )
    def test_lists_of_equal_values_are_refused(self, tmp_path, value):
        rows = [{"video": b"v", "more": value}]
        schema = pa.schema({"video": pa.binary(), "more": pa.list_(pa.null())}) if value[0] is None else None
        write_parquet(tmp_path / "a.parquet", rows, schema, compression="zstd")
        assert (tmp_path / "a.parquet").stat().st_size < 10**4
        self.check(tmp_path, 0, "limits.max_bytes")

    def test_lists_of_usual_size_are_read_as_they_are(self, tmp_path):
        rows = [{"video": b"v", "words": ["a", "bb", "a"] * 5000, "numbers": [k, 2.5]} for k in range(3)]
        write_parquet(tmp_path / "a.parquet", rows)
        found, skipped = read(tmp_path, ReadLimits(max_bytes=LIMIT))
        assert [(row["words"], row["numbers"]) for row in found] == [(row["words"], row["numbers"]) for row in rows]
        assert not skipped

    def test_a_setting_raises_the_limit(self, tmp_path):
        write_parquet(tmp_path / "a.parquet", [{"video": bytes(3 * LIMIT)}])
        assert len(read(tmp_path, ReadLimits(max_bytes=4 * LIMIT))[0]) == 1


class TestConfinement:
    """Rows name files of their own data."""

    @pytest.fixture
    def data(self, tmp_path, video) -> Path:
        for folder in ("data/shards", "data/videos", "other"):
            (tmp_path / folder).mkdir(parents=True)
        for name in ("data/shards/own.mp4", "data/videos/a.mp4", "other/secret.mp4", "data-2.mp4"):
            (tmp_path / name).write_bytes(video)
        (tmp_path / "data/linked").symlink_to(tmp_path / "other")
        return tmp_path / "data"

    def rows(self, data: Path, *names: str, limits: ReadLimits | None = None) -> tuple[list[str], list[str]]:
        write_parquet(data / "shards/a.parquet", [{"video": name} for name in names])
        rows, skipped = read(data, limits)
        return [row["video"] for row in rows], list(skipped.values())

    def test_files_below_the_folder_are_read(self, data):
        names = ["own.mp4", "videos/a.mp4", "../videos/a.mp4", f"{data}/videos/a.mp4", f"file://{data}/videos/a.mp4"]
        found, skipped = self.rows(data, *names, "linked/secret.mp4")
        assert not skipped and all(Path(name).is_file() for name in found) and len(found) == 6

    @pytest.mark.parametrize(
        "name",
        [
            "{}/other/secret.mp4",
            "../../other/secret.mp4",
            "file://{}/other/secret.mp4",
            "{}/data-2.mp4",
            "/etc/passwd",
        ],
    )
    def test_files_outside_are_skipped_rows_unless_allowed(self, data, name):
        name = name.format(data.parent)
        assert self.rows(data, name)[0] == []
        reason = self.rows(data, name)[1][0]
        assert f"outside of {str(data)!r}; set limits.allow_outside=true" in reason and Path(name).name in reason
        found, _ = self.rows(data, name, limits=ReadLimits(allow_outside=True))
        assert found and Path(found[0]).is_file()

    @pytest.mark.parametrize(
        "name",
        ["http://169.254.169.254/latest/a.mp4", "github://a:b@c/d.mp4", "zip://a.mp4::file:///etc/x.zip", "s3://b/a.mp4",
         "file://x::http://127.0.0.1/a.mp4"],
    )  # fmt: skip
    def test_urls_are_skipped_rows_unless_allowed(self, data, name):
        found, (reason,) = self.rows(data, name)
        assert found == [] and "set limits.allow_urls=true if you trust the data" in reason
        assert self.rows(data, name, limits=ReadLimits(allow_urls=True))[0]

    def test_a_run_goes_on_past_refused_rows(self, data, video):
        write_parquet(data / "shards/a.parquet", [{"video": name} for name in ("/etc/passwd", "own.mp4", "own.mp4")])
        stream = ClipStream(data, 4, crop_size=8, epochs=1)
        assert [json.loads(line)["name"][-5:] for clip in stream for line in clip["skipped"].splitlines()] == ["row 0"]
        stream = ClipStream(data, 4, crop_size=8, epochs=1, limits=ReadLimits(allow_outside=True))
        assert ["outside" in line for clip in stream for line in clip["skipped"].splitlines()] == [False]

    def test_a_remote_source_names_urls_below_its_root_and_no_local_file(self, video, tmp_path):
        import fsspec

        memory = fsspec.filesystem("memory")
        memory.pipe({"/rows/a.mp4": video, "/rows/b/own.mp4": video, "/elsewhere/c.mp4": video})
        (tmp_path / "d.mp4").write_bytes(video)
        names = ["own.mp4", "../a.mp4", "memory:///rows/a.mp4", "memory:///elsewhere/c.mp4", f"{tmp_path}/d.mp4"]
        names += ["../../elsewhere/c.mp4", "memory:///rows/%2e%2e/elsewhere/c.mp4", "http://127.0.0.1/a.mp4"]
        buffer = io.BytesIO()
        pq.write_table(pa.table({"video": names}), buffer)
        memory.pipe("/rows/b/x.parquet", buffer.getvalue())
        source = ShardSource("memory://rows/**/*.parquet")
        assert source.shards == ["memory:///rows/b/x.parquet"] and source.root == "memory:///rows"
        assert [row["video"] for *_, row in source.read_all()] == [
            "memory:///rows/b/own.mp4",
            "memory:///rows/a.mp4",
        ]
        assert len(source.skipped) == 6
        assert "d.mp4' outside of 'memory:///rows'; set limits.allow_outside" in source.skipped[source.row_name(0, 4)]
        files = ShardSource("memory://rows/b/own.mp4")
        assert [row["video"] for *_, row in files.read_all()] == ["memory:///rows/b/own.mp4"]
        with pytest.raises(FileNotFoundError, match="no parquet file"):
            ShardSource("memory://nowhere")


class TestPathLists:
    def test_a_list_is_read_wherever_its_files_lie_and_bad_lines_are_named(self, tmp_path, video):
        (tmp_path / "videos").mkdir()
        (tmp_path / "videos/a b.mp4").write_bytes(video)
        (tmp_path / "videos/c.png").write_bytes(image())
        (tmp_path / "lists").mkdir()
        lines = [
            f"{tmp_path}/videos/a b.mp4 3",
            "../videos/c.png 4",
            "gone.mp4 5",
            "no file",
            "http://127.0.0.1/a.mp4 6",
        ]
        path = tmp_path / "lists/train.csv"
        path.write_text("\n".join(lines))
        source = ShardSource(path)
        assert source.kind == "videos" and len(source.shards) == 5
        rows = [row for *_, row in source.read_all()]
        assert [row["label"] for row in rows] == [3, 4, 5] and rows[1]["video"] is None and rows[1]["image"]
        assert [reason[:40] for reason in source.skipped.values()] == [
            f"line 4 of '{path}' is 'no file'"[:40], "it names the URL 'http://127.0.0.1/a.mp4"
        ]  # fmt: skip
        stream = ClipStream(path, 4, crop_size=8, epochs=1)
        assert sorted(clip["label"] for clip in stream) == [3, 4] and len(stream.sources[0].skipped) == 3

    def test_a_changed_file_of_a_list_changes_the_key_of_caches(self, tmp_path, video):
        for name in ("[a].mp4", "b.mp4"):
            (tmp_path / name).write_bytes(video)
        (tmp_path / "list.txt").write_text("[a].mp4 0\nb.mp4 1\n")
        before = data_fingerprint(tmp_path / "list.txt"), data_fingerprint(tmp_path / "[a].mp4")
        (tmp_path / "[a].mp4").write_bytes(video + b"x")
        after = data_fingerprint(tmp_path / "list.txt"), data_fingerprint(tmp_path / "[a].mp4")
        assert before[0] != after[0] and before[1] != after[1]


@pytest.mark.parametrize(
    ("url", "is_read"),
    [
        ("hf://datasets/me/data@abc/videos/a.mp4", True), ("hf://datasets/me/data/a.mp4", True),
        ("hf://datasets/me/data-2/a.mp4", False), ("hf://datasets/you/data/a.mp4", False),
        ("hf://datasets/me/data@abc/../../../you/data/a.mp4", False), ("hf://datasets/me/data/a.mp4::zip://x", False),
        ("https://huggingface.co/datasets/me/data/a.mp4", False),
    ],
)  # fmt: skip
def test_a_dataset_of_the_hub_names_its_own_files(url, is_read):
    shard, root = "hf://datasets/me/data@abc/train.parquet", "hf://datasets/me/data"
    assert confined("b/a.mp4", shard, root, ReadLimits()) == "hf://datasets/me/data@abc/b/a.mp4"
    if is_read:
        assert confined(url, shard, root, ReadLimits()) == url
    else:
        with pytest.raises(ValueError, match="outside of 'hf://datasets/me/data'; set limits.allow_urls"):
            confined(url, shard, root, ReadLimits())


class TestNames:
    def test_paths_with_brackets_and_colons_are_read(self, tmp_path, video):
        for name in ("[v1] run/a.mp4", "[v1] run/b [x].mp4", "a::b: c?*.mp4"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(video)
        folder = tmp_path / "[v1] run"
        assert len(ShardSource(folder).shards) == 2 and ShardSource(folder).root == str(folder)
        assert ShardSource(folder / "*.mp4").shards == ShardSource(folder).shards
        for name in ("[v1] run/b [x].mp4", "a::b: c?*.mp4"):
            assert [row["video"] for *_, row in ShardSource(tmp_path / name).read_all()] == [str(tmp_path / name)]
        assert files_at(str(tmp_path / "[[]v1] run/*.mp4")) == files_at(folder / "*.mp4")
        assert len(list(ClipStream(folder / "*.mp4", 4, crop_size=8, epochs=1))) == 2

    def test_names_in_one_block_are_the_same_names(self):
        for names in ([], ["a"], ["/x/ä.mp4", "/x/b\udcff.mp4", "/y"], ["b", "ab", "b"], ["/x/a", "/q", "/x/b"]):
            packed = ShardNames(names)
            assert packed == names and list(packed) == names and packed[:2] == names[:2] and len(packed) == len(names)
            assert packed != [*names, "more"]
            if names:
                assert packed[-1] == names[-1]
        with pytest.raises(IndexError):
            ShardNames(["a"])[1]


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_nothing_is_read_after_the_end(tmp_path, video, kind):
    if kind == "tar":
        path = write_tar(tmp_path / "a.tar", *((f"{k}.mp4", video) for k in range(6)))
    else:
        path = write_parquet(tmp_path / "a.parquet", [{"video": video}] * 6, row_group_size=2, compression="none")
    if kind == "tar":  # damage after the samples that are asked for
        path.write_bytes(path.read_bytes()[: 4 * (512 + -(-len(video) // 512) * 512) + 512])
    source = ShardSource(path)
    assert [number for number, _ in source.read(0, 1, end=4)] == [1, 2, 3]
    assert [number for number, _ in source.read(0, 1, lambda row: row % 2, end=3)] == [1]
    assert not source.skipped


class TestFingerprint:
    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        return Path(write_numbered_shards(tmp_path / "shards", num_videos=8, bad=()))

    def test_shards_rewritten_under_the_same_names_are_noticed(self, folder, caplog, tmp_path):
        stream = ClipStream(folder, 4, crop_size=8)
        clips = iter(stream)
        next(clips), next(clips)
        state = stream.state_dict()
        copy = tmp_path / "copy"
        copy.mkdir()
        for path in folder.iterdir():
            (copy / path.name).write_bytes(path.read_bytes())
        with caplog.at_level(logging.WARNING):
            ClipStream(copy, 4, crop_size=8).load_state_dict(state)  # moved: other times, the same files
            assert not caplog.text
            path = sorted(copy.glob("*.parquet"))[1]
            rows = pq.read_table(path).to_pylist()
            write_parquet(path, rows[::-1], pq.read_schema(path), compression="none")
            ClipStream(copy, 4, crop_size=8).load_state_dict(state)
        assert "have changed since the checkpoint (4 now)" in caplog.text

    def test_the_fingerprint_of_version_0_1_is_accepted(self, folder, caplog):
        stream = ClipStream(folder, 4, crop_size=8)
        state = stream.state_dict()
        state["sources"][0]["fingerprint"] = 2896808184  # crc32 of the names, one per line
        with caplog.at_level(logging.WARNING):
            stream.load_state_dict(state)
            assert not caplog.text
            state["sources"][0]["fingerprint"] += 1
            stream.load_state_dict(state)
        assert "have changed" in caplog.text


def test_the_memory_of_a_source_does_not_grow_with_the_shards_read(tmp_path, video):
    content = write_parquet(tmp_path / "one", [{"video": b"v"}]).read_bytes()
    (tmp_path / "shards").mkdir()
    for number in range(400):
        (tmp_path / f"shards/data-{number:05d}.parquet").write_bytes(content)
    source = ShardSource(tmp_path / "shards")
    tracemalloc.start()
    for count, _ in enumerate(source.read_all()):
        if count == 100:
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
    gc.collect()
    assert (tracemalloc.get_traced_memory()[0] - before) / 300 < 400  # bytes; 12,800 with a dataset kept for each
    tracemalloc.stop()
    assert count == 399 and not source.skipped


def test_no_pickle_is_read(tmp_path, video):
    """torch.save and pickles as sidecars stay bytes, whatever their extension."""
    members = [("0.mp4", video)] + [(f"0.{end}", b"\x80\x04.") for end in ("pth", "pt", "pkl", "pyd", "ten", "npz")]
    (row,), _ = read(write_tar(tmp_path / "a.tar", *members))
    assert all(row[end] == b"\x80\x04." for end in ("pth", "pt", "pkl", "pyd", "ten", "npz"))
    assert not hasattr(shard_rows, "torch") and not hasattr(shard_rows, "pickle")
    np.save(buffer := io.BytesIO(), np.array([{"a": 1}], object), allow_pickle=True)
    (row,), _ = read(write_tar(tmp_path / "b.tar", ("0.mp4", video), ("0.npy", buffer.getvalue())))
    assert row["npy"] is None
