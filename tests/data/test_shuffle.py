"""The shuffle buffer: how well it mixes, its bounds, exact resume, and other numbers of readers after a stop."""

import collections
import io
import itertools
import json
import random
import sys
import tarfile
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Features, Image, Value, Video
from torchdata.stateful_dataloader import StatefulDataLoader

from vjepa2_hf.data.clips import ClipStream, DataSource
from vjepa2_hf.data.elastic import redistribute
from vjepa2_hf.data.sampling import FramesCurriculum
from vjepa2_hf.data.shards import ShardSource, write_shards
from vjepa2_hf.data.shuffle import SHUFFLE_BYTES, SHUFFLE_ROWS, RowOrder


ROW_FEATURES = Features({"video": Video(decode=False), "label": Value("int64")})
IMAGE_FEATURES = Features({"image": Image(decode=False), "path": Value("string")})


def png() -> bytes:
    content = io.BytesIO()
    PIL.Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(content, "png")
    return content.getvalue()


PNG = png()


@pytest.fixture(scope="module")
def mixing():
    """benchmarks/mixing.py as a module."""
    folder = str(Path(__file__).parents[2] / "benchmarks")
    sys.path.insert(0, folder)
    import mixing

    yield mixing
    sys.path.remove(folder)


def raw(frames, generator):
    return frames.float()


def write_rows(folder, rows: int, shards: int, labels: int = 10, size: int = 10) -> str:
    """Rows of `size` bytes, sorted by label, that nobody decodes."""
    numbered = ({"video": {"bytes": b"x" * size, "path": None}, "label": i * labels // rows} for i in range(rows))
    write_shards(numbered, folder, ROW_FEATURES, shards)
    return str(folder)


def write_images(folder, rows: int, shards: int, bad: tuple[int, ...] = ()) -> str:
    media = ({"bytes": b"bad" if i in bad else PNG, "path": None} for i in range(rows))
    write_shards(({"image": each, "path": f"{i:03d}"} for i, each in enumerate(media)), folder, IMAGE_FEATURES, shards)
    return str(folder)


def order_of(data, reader=0, readers=1, epochs=2, max_rows=SHUFFLE_ROWS, max_bytes=SHUFFLE_BYTES, state=None):
    return RowOrder(ShardSource(data), reader, readers, 0, epochs, max_rows, max_bytes, state)


def rows_of(order) -> list:
    return [row for row in order.rows() if row]


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> str:
    """1000 rows in 8 shards of 125, sorted by label: 10 labels, each in every shard."""
    return write_rows(tmp_path_factory.mktemp("data") / "table", 1000, 8)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> str:
    return write_images(tmp_path_factory.mktemp("data") / "images", 150, 4, bad=(5, 16, 77))


class TestMixing:
    @pytest.mark.parametrize("readers", [1, 8, 10])
    def test_clips_of_a_batch_meet_again_as_rarely_as_if_perfectly_shuffled(self, table, mixing, readers):
        orders = [rows_of(order_of(table, reader, readers, epochs=3)) for reader in range(readers)]
        assert mixing.cooccurrence(orders) < 0.03  # 15 of 999 when shuffled perfectly, 0.65 to 1 without a buffer
        assert mixing.labels_per_batch(orders) > 6.5  # of 10; 8.15 when shuffled perfectly, 2.2 without a buffer

    def test_without_a_buffer_rows_keep_their_order_and_their_company(self, table, mixing):
        rows = rows_of(order_of(table, max_rows=0))
        for _, group in itertools.groupby(rows, key=lambda row: row[:2]):
            assert [row.number for row in group] == list(range(125))
        assert mixing.cooccurrence([rows]) > 0.5

    def test_one_row_group_of_a_table_of_paths_is_mixed_too(self, tmp_path, mixing):
        paths = [f"{i}.mp4" for i in range(1000)]
        pq.write_table(pa.table({"video": paths, "label": [i // 100 for i in range(1000)]}), tmp_path / "a.parquet")
        orders = [rows_of(order_of(tmp_path))]
        assert len(orders[0]) == 2000
        assert mixing.cooccurrence(orders) < 0.03 and mixing.labels_per_batch(orders) > 7.5

    @pytest.mark.parametrize("readers", [2, 5, 9, 70])  # by shard, by row group, by row, more than rows
    def test_readers_together_read_every_row_once_in_an_epoch(self, tmp_path, readers):
        data = write_rows(tmp_path / "data", 60, 6)
        orders = [rows_of(order_of(data, reader, readers)) for reader in range(readers)]
        counts = collections.Counter(row[:3] for rows in orders for row in rows)
        assert len(counts) == 120 and set(counts.values()) == {1}

    def test_the_order_depends_on_seed_epoch_and_reader(self, table):
        rows = rows_of(order_of(table))
        assert rows == rows_of(order_of(table))
        first, second = rows[:1000], rows[1000:]
        assert [row[1:3] for row in first] != [row[1:3] for row in second]
        other = RowOrder(ShardSource(table), 0, 1, 1, 1, SHUFFLE_ROWS, SHUFFLE_BYTES)
        assert [row[1:3] for row in first] != [row[1:3] for row in rows_of(other)]


class TestBounds:
    @pytest.mark.parametrize(("max_rows", "max_bytes"), [(64, 2**28), (512, 100_000), (1, 1)])
    def test_rows_and_bytes_are_bounded_but_for_one_row_group(self, tmp_path, max_rows, max_bytes):
        data = write_rows(tmp_path / "data", 300, 3, size=2000)
        order, most = order_of(data, max_rows=max_rows, max_bytes=max_bytes), 0
        for row in order.rows():
            held = [*order.buffer, *order.ahead, *([row] if row else [])]
            most = max(most, len(held))
            assert len(held) < max_rows + 16 and sum(each.size for each in held) < max_bytes + 16 * 2000
        assert most >= min(max_rows, max_bytes // 2000)  # it fills

    def test_the_state_holds_positions_and_no_rows(self, table):
        order = order_of(table)
        next(order.rows())
        assert len(json.dumps(order.state_dict())) < 12 * SHUFFLE_ROWS

    def test_a_resume_reads_the_row_groups_of_the_buffer_and_no_epoch(self, tmp_path, monkeypatch):
        data, read = write_rows(tmp_path / "data", 3000, 3), []
        order = order_of(data, max_rows=32)
        rows = order.rows()
        for _ in range(1000):
            next(rows)
        original = ShardSource.read
        monkeypatch.setattr(ShardSource, "read", lambda *given: (read.append(row) or row for row in original(*given)))
        next(order_of(data, max_rows=32, state=order.state_dict()).rows())
        assert len(read) < 32 + 16


SETTINGS = {
    "plain": {},
    "small buffer": {"shuffle_buffer": 7, "clips_per_video": 3},
    "few bytes, shared row groups": {"shuffle_bytes": 800, "world_size": 3, "rank": 1},
    "no buffer": {"shuffle_buffer": 0, "clips_per_video": 2},
    "shared rows": {"world_size": 7, "rank": 6, "clips_per_video": 2},
}


def key(clip) -> tuple:
    return clip["clip_name"], clip["seed"], tuple(clip["frame_indices"].tolist())


class TestResume:
    @pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
    @pytest.mark.parametrize("is_mixture", [False, True])
    def test_a_state_resumes_at_every_clip(self, images, settings, is_mixture):
        def stream():
            data = [DataSource(images, 0.7), DataSource(images, 0.3)] if is_mixture else images
            return ClipStream(data, 4, transform=raw, epochs=2, seed=1, **settings)

        whole = stream()
        expected = [key(clip) for clip in stream()]
        clips, stops = iter(whole), sorted(random.Random(0).sample(range(len(expected)), 2))
        for number in range(len(expected)):
            if number in stops:
                resumed = stream()
                resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
                assert [key(clip) for clip in resumed] == expected[number:]
            next(clips)

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_a_loader_of_a_process_resumes_with_mixture_and_curriculum(self, images, num_workers):
        def loader():
            curriculum = FramesCurriculum(((0, 2), (4, 4)), batch_size=4)
            data = [DataSource(images, 0.7), DataSource(images, 0.3)]
            settings = {"clips_per_video": 3, "rank": 1, "world_size": 2, "shuffle_buffer": 20}
            return StatefulDataLoader(
                ClipStream(data, curriculum, crop_size=4, **settings), batch_size=4, num_workers=num_workers
            )

        whole, batches = loader(), []
        for number, batch in enumerate(whole):
            if number == 2:
                state = whole.state_dict()
            batches.append((batch["clip_name"], batch["seed"].tolist(), batch["pixel_values_videos"].shape[1]))
            if number == 30:
                break
        assert [frames for *_, frames in batches[:6]] == [2, 2, 2, 2, 4, 4]
        resumed = loader()
        resumed.load_state_dict(state)
        for expected, batch in zip(batches[3:], resumed):
            assert expected == (batch["clip_name"], batch["seed"].tolist(), batch["pixel_values_videos"].shape[1])

    def test_a_state_of_0_1_continues_in_order_without_a_buffer(self, images):
        def stream(**settings):
            return ClipStream(images, 4, transform=raw, clips_per_video=2, epochs=1, **settings)

        expected = [key(clip) for clip in stream(shuffle_buffer=0)]
        # As 0.1 wrote it, inside the third row of the second shard
        position = {"epoch": 0, "place": 1, "row": 2, "clip": 1, "used": 39, "skipped": 1}
        position["fingerprint"] = ShardSource(images).names_fingerprint
        state = {"batch": 0, "slot": 0, "batch_epoch": 0, "rows": 40, "sources": [position]}
        resumed = stream()
        resumed.load_state_dict(state)
        clips = [key(clip) for clip in resumed]
        assert len(clips) > 150 and clips == expected[-len(clips) :]
        assert ", row 2 " in clips[0][0] and clips[0] != clips[1] and clips[0][0] != clips[1][0]
        later = stream()
        later.load_state_dict(resumed_state(stream(), state, 50))
        assert [key(clip) for clip in later] == clips[50:]


def resumed_state(stream, state, clips: int) -> dict:
    stream.load_state_dict(state)
    iterator = iter(stream)
    for _ in range(clips):
        next(iterator)
    return stream.state_dict()


class TestOtherReaders:
    """Every row is read once in an epoch, however the readers change."""

    def stream(self, data, rank=0, world_size=1, **settings):
        settings = {"epochs": 3, "transform": raw, **settings}
        return ClipStream(data, 2, rank=rank, world_size=world_size, **settings)

    @pytest.mark.parametrize("settings", [{}, {"shuffle_buffer": 20}, {"shuffle_buffer": 0}], ids=str)
    @pytest.mark.parametrize("changes", [(2, 1), (1, 2), (3, 2, 5), (5, 1, 3), (1, 9)], ids=str)
    def test_processes_change_without_a_row_lost_or_read_twice(self, images, caplog, changes, settings):
        counts, state = collections.Counter(), None
        for number, world_size in enumerate(changes):
            states = []
            for rank in range(world_size):
                stream = self.stream(images, rank, world_size, **settings)
                if state:
                    stream.load_state_dict(state)
                is_last = number + 1 == len(changes)
                # Processes stop in different epochs
                stop = None if is_last else 40 * (rank + 1) % (3 * 150 // world_size)
                counts.update((clip["clip_name"], clip["seed"]) for clip in itertools.islice(stream_of(stream), stop))
                states.append({"dataset_state": stream.state_dict()})
            state = json.loads(json.dumps(redistribute(states)))
        assert set(counts.values()) == {1}  # a seed has its epoch
        rows = collections.Counter(name for name, _ in counts)
        assert len(rows) == 147 and set(rows.values()) == {3}
        assert "dealt out to the new readers" in caplog.text

    @pytest.mark.parametrize("workers", [(0, 2), (2, 0)], ids=str)
    def test_workers_change_without_a_row_lost_or_read_twice(self, images, workers):
        def loader(num_workers):
            stream = self.stream(images, shuffle_buffer=30, epochs=2)
            return StatefulDataLoader(stream, batch_size=3, num_workers=num_workers)

        before, after = map(loader, workers)
        counts = collections.Counter()
        for batch in itertools.islice(before, 31):
            counts.update(zip(batch["clip_name"], batch["seed"].tolist()))
        after.dataset.load_state_dict(redistribute([before.state_dict()]))
        for batch in after:
            counts.update(zip(batch["clip_name"], batch["seed"].tolist()))
        assert len(counts) == 2 * 147 and set(counts.values()) == {1}

    @pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (2, 1)])
    def test_a_curriculum_continues_at_its_step(self, images, before, after):
        def loader(num_workers):
            curriculum = FramesCurriculum(((0, 2), (3, 4), (6, 6)), batch_size=2)
            stream = ClipStream(images, curriculum, crop_size=4)
            return StatefulDataLoader(stream, batch_size=2, num_workers=num_workers)

        first = loader(before)
        frames = [batch["pixel_values_videos"].shape[1] for batch in itertools.islice(first, 4)]
        second = loader(after)
        second.dataset.load_state_dict(redistribute([first.state_dict()]))
        frames += [batch["pixel_values_videos"].shape[1] for batch in itertools.islice(second, 4)]
        assert frames == [2, 2, 2, 4, 4, 4, 6, 6]

    @pytest.mark.parametrize("readers", [(1, 2), (2, 1), (3, 8)], ids=str)
    def test_tar_shards_are_shuffled_resumed_and_dealt_out_too(self, tmp_path, readers):
        for shard in range(4):
            with tarfile.open(tmp_path / f"{shard}.tar", "w") as archive:
                for number in range(20 + 5 * shard):
                    member = tarfile.TarInfo(f"{shard}{number:03d}.png")
                    member.size = len(PNG)
                    archive.addfile(member, io.BytesIO(PNG))
        counts, states = collections.Counter(), []
        for rank in range(readers[0]):
            stream = self.stream(tmp_path, rank, readers[0], epochs=2, shuffle_buffer=20)
            counts.update(clip["seed"] for clip in itertools.islice(stream_of(stream), 25 + rank))
            states.append({"dataset_state": stream.state_dict()})
            resumed = self.stream(tmp_path, rank, readers[0], epochs=2, shuffle_buffer=20)
            resumed.load_state_dict(json.loads(json.dumps(stream.state_dict())))
            uninterrupted = self.stream(tmp_path, rank, readers[0], epochs=2, shuffle_buffer=20)
            assert [*map(key, resumed)] == [*map(key, uninterrupted)][25 + rank :]
        for rank in range(readers[1]):
            stream = self.stream(tmp_path, rank, readers[1], epochs=2)
            stream.load_state_dict(redistribute(states))
            counts.update(clip["seed"] for clip in stream)
        assert len(counts) == 2 * (20 + 25 + 30 + 35) and set(counts.values()) == {1}

    def test_a_shard_without_rows_does_not_end_a_long_run_of_two_readers(self, tmp_path):
        write_images(tmp_path / "a", 1, 1)
        features = IMAGE_FEATURES.arrow_schema
        pq.write_table(features.empty_table(), tmp_path / "a" / "empty.parquet")
        epochs = 1500  # a reader gets the empty shard 10 times in a row
        streams = [self.stream(tmp_path / "a", rank, 2, epochs=epochs, shuffle_buffer=0) for rank in range(2)]
        assert sum(1 for stream in streams for _ in stream) == epochs

    def test_a_worker_that_had_not_begun_counts(self, images):
        streams = [self.stream(images, rank, 2) for rank in range(2)]
        read = [clip["clip_name"] for clip in itertools.islice(streams[0], 5)]
        state = redistribute([{"dataset_state": stream.state_dict()} for stream in streams])
        again = redistribute([{"dataset_state": state}])  # stopped again before its first clip
        rest = self.stream(images, epochs=1)
        rest.load_state_dict(again)
        assert len({*read, *(clip["clip_name"] for clip in rest)}) == 147

    def test_readers_far_apart_leave_epochs_without_a_row_for_some(self, tmp_path):
        for name in "abc":
            (tmp_path / f"{name}.png").write_bytes(PNG)
        states, seeds = [], []
        for rank, clips in enumerate((90, 1)):
            stream = self.stream(tmp_path, rank, 2, epochs=60)
            seeds += [clip["seed"] for clip in itertools.islice(stream_of(stream), clips)]
            states.append({"dataset_state": stream.state_dict()})
        for rank in range(3):
            stream = self.stream(tmp_path, rank, 3, epochs=60)
            stream.load_state_dict(redistribute(states))
            seeds += [clip["seed"] for clip in stream]
        assert len(set(seeds)) == len(seeds) == 3 * 60

    @pytest.mark.parametrize("states", [[], [{}], [None], [{"_snapshot": {}}]])
    def test_what_is_no_state_of_a_loader_is_refused(self, states):
        with pytest.raises(ValueError, match="no loader state|not the state of a StatefulDataLoader"):
            redistribute(states)


def stream_of(stream):
    yield from stream
