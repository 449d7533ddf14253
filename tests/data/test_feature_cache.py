"""Caches of features: written in parts, continued, and read by memory map."""

import json
import logging
import os
import random
import resource
import signal
from pathlib import Path

import pytest
import torch
from builders import cached_episode, write_cache
from safetensors import safe_open
from safetensors.torch import save_file

from vjepa2_hf.data.episodes import EpisodeSource
from vjepa2_hf.data.feature_cache import (
    CacheWriter,
    FeatureCache,
    data_fingerprint,
    discard_damaged,
    finish_cache,
    is_finished,
)
from vjepa2_hf.data.files import cache_key, weights_fingerprint
from vjepa2_hf.data.parts import DamagedPartError


LENGTHS = {"1": 5, "2": 9, "3": 2, "4": 6}


@pytest.mark.parametrize("part_bytes", [1, 60, 2**20])  # every episode its own file, two or three, all in one
def test_windows_hold_the_actions_between_their_frames(tmp_path, part_bytes):
    cache = FeatureCache(write_cache(tmp_path, LENGTHS, part_bytes))
    assert len(cache.files) == {1: 4, 60: 2, 2**20: 1}[part_bytes]
    batch = cache.windows(torch.tensor([3, 1, 0]), torch.tensor([1, 4, 0]), frames=3, skip=2)
    assert batch["latents"].flatten(1).tolist() == [[401, 403, 405], [204, 206, 208], [100, 102, 104]]
    assert batch["actions"][1].tolist() == [[[204.5], [205.5]], [[206.5], [207.5]]]


def test_statistics_are_those_of_the_chosen_episodes(tmp_path):
    cache = FeatureCache(write_cache(tmp_path, LENGTHS, part_bytes=60))
    found = cache.statistics("actions", torch.tensor([0, 3]))
    values = torch.cat([cached_episode(1, 5)["actions"], cached_episode(4, 6)["actions"]]).double()
    assert found["rows"] == len(values) == 9
    assert found["mean"] == pytest.approx([values.mean().item()])
    assert found["std"] == pytest.approx([values.std(correction=0).item()])
    assert (found["low"], found["high"]) == ([100.5], [404.5])
    frames = cache.statistics("latents", torch.tensor([1]))
    assert (frames["low"], frames["high"], frames["rows"]) == ([[200.0]], [[208.0]], 9)


def test_an_unfinished_cache_is_not_read_and_goes_on_where_it_was(tmp_path):
    writer = CacheWriter(tmp_path, part_bytes=1)
    writer.add("1", 10.0, cached_episode(1, 5))
    (tmp_path / "part-000-00001.safetensors.tmp").write_bytes(b"half a part")  # what a kill leaves
    assert not is_finished(tmp_path)
    with pytest.raises(FileNotFoundError, match="not finished"):
        FeatureCache(tmp_path)
    again = CacheWriter(tmp_path, part_bytes=1)
    assert again.done == {"1"}
    again.add("2", 10.0, cached_episode(2, 9))
    finish_cache(tmp_path, {})
    cache = FeatureCache(tmp_path)
    assert cache.ids == ["1", "2"] and cache.files == ["part-000-00000.safetensors", "part-000-00001.safetensors"]
    assert cache.windows(torch.tensor([0, 1]), torch.tensor([0, 0]), 2)["latents"][:, 0].flatten().tolist() == [
        100,
        200,
    ]


def test_two_episodes_of_one_name_are_refused(tmp_path):
    writer = CacheWriter(tmp_path / "one")
    writer.add("1", 10.0, cached_episode(1, 5))
    with pytest.raises(ValueError, match="Two episodes are called '1'"):
        writer.add("1", 10.0, cached_episode(1, 5))
    with pytest.raises(ValueError, match="Two episodes are called '1'"):
        for rank in range(2):
            other = CacheWriter(tmp_path / "two", rank)
            other.done = set()  # both began before either had written
            other.add("1", 10.0, cached_episode(1, 5))
            other.flush()
        finish_cache(tmp_path / "two", {})


def test_columns_that_differ_between_episodes_or_processes_are_refused(tmp_path):
    writer, other = CacheWriter(tmp_path, 0), CacheWriter(tmp_path, 1)
    writer.add("1", 10.0, cached_episode(1, 5))
    rewarded = {**cached_episode(2, 5), "rewards": torch.zeros(4, 1)}
    with pytest.raises(ValueError, match="Episode '2' has columns .* but the ones before had"):
        writer.add("2", 10.0, rewarded)
    with pytest.raises(ValueError, match="Episode '3' has 5 rows of 'actions' for 5 frames"):
        writer.add(
            "3", 10.0, {**cached_episode(3, 5), "actions": torch.zeros(5, *cached_episode(3, 5)["actions"].shape[1:])}
        )
    other.add("2", 10.0, rewarded)
    writer.flush()
    other.flush()
    with pytest.raises(ValueError, match="part-001-00000.safetensors has columns"):
        finish_cache(tmp_path, {})


def test_a_cache_of_nothing_and_a_missing_column_are_refused(tmp_path):
    with pytest.raises(ValueError, match="No episode, clip or image was written to the cache .* Give other data"):
        finish_cache(tmp_path, {})
    CacheWriter(tmp_path, 1).skip({"7.png": "its mask is too large.", "8.png": "so is its"})
    message = (
        r"All 2 episodes, clips or images of 'data' .* the first of them 7\.png \(its mask is too large\): repair them"
    )
    with pytest.raises(ValueError, match=message):
        finish_cache(tmp_path, {"path": "data"})
    with pytest.raises(ValueError, match="The episodes have no 'proprio_states'; they have actions, latents"):
        FeatureCache(write_cache(tmp_path / "cache", LENGTHS), ("latents", "proprio_states"))
    with pytest.raises(ValueError, match="The weight of 'here' is 0"):
        EpisodeSource("here", weight=0.0)


def test_windows_are_read_without_the_rest_of_the_file(tmp_path):
    """40 MB of latents on disk, of which two frames are asked for."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    writer = CacheWriter(tmp_path)
    writer.add("1", 10.0, {"latents": torch.zeros(1000, 10_000, 1), "actions": torch.zeros(999, 1)})
    writer.flush()
    finish_cache(tmp_path, {})
    cache, before = FeatureCache(tmp_path), resident()
    cache.windows(torch.tensor([0]), torch.tensor([7]), 2)
    assert resident() - before < 8e6


def test_the_key_changes_with_weights_data_and_settings(tmp_path):
    layer = torch.nn.Linear(2, 2)
    before = weights_fingerprint(layer)
    assert weights_fingerprint(layer) == before
    with torch.no_grad():
        layer.bias[1] += 1
    assert weights_fingerprint(layer) != before
    (tmp_path / "a.parquet").write_bytes(b"1")
    first = data_fingerprint(tmp_path)
    assert data_fingerprint(str(tmp_path)) == first
    os.utime(tmp_path / "a.parquet", ns=(1, 1))
    second = data_fingerprint(tmp_path)
    (tmp_path / "b.parquet").write_bytes(b"2")
    assert len({first, second, data_fingerprint(tmp_path)}) == 3
    assert data_fingerprint(tmp_path / "a.parquet") == second  # the same file alone
    assert cache_key({"a": 1, "b": None}) == cache_key({"b": None, "a": 1}) != cache_key({"a": 2, "b": None})
    with pytest.raises(FileNotFoundError, match="nowhere"):
        data_fingerprint(tmp_path / "nowhere")


def test_the_index_tells_what_the_cache_was_made_of(tmp_path):
    CacheWriter(tmp_path, part_bytes=1).add("1", 10.0, cached_episode(1, 5))
    finish_cache(tmp_path, {"path": "runs/demo/episodes"})
    assert json.loads((tmp_path / "index.json").read_text())["description"] == {"path": "runs/demo/episodes"}


def test_what_did_not_read_is_listed_until_it_does(tmp_path):
    writer = CacheWriter(tmp_path)
    writer.add("1", 10.0, cached_episode(1, 5))
    writer.flush()
    writer.skip({"2": "the video is cut"})
    writer.skip({"3": "no such file"})
    writer = CacheWriter(tmp_path)  # stopped, and going on: all of it is tried again
    writer.add("2", 10.0, cached_episode(2, 5))
    writer.flush()
    writer.skip({"3": "still no such file"})
    finish_cache(tmp_path, {})
    assert FeatureCache(tmp_path).ids == ["1", "2"]
    assert FeatureCache(tmp_path).skipped == {"3": "still no such file"}


class TestDamage:
    """Whatever happens to a file of a cache, its numbers are those that were written, or the file is named."""

    @staticmethod
    def damages(content: bytes):
        rng = random.Random(0)
        for position in range(0, len(content), 4):  # one bit
            yield content[:position] + bytes([content[position] ^ (1 << rng.randrange(8))]) + content[position + 1 :]
        yield from (content[:length] for length in range(0, len(content), 197))
        yield content + b"\0"

    @pytest.mark.parametrize("name", ["part-000-00001.safetensors", "index.json"])
    def test_no_damage_of_one_file_is_taken(self, tmp_path, name, caplog):
        write_cache(tmp_path, LENGTHS, part_bytes=60)
        caplog.set_level(logging.ERROR)
        content = (tmp_path / name).read_bytes()
        before = {path: path.read_bytes() for path in tmp_path.glob("*.*")}
        for damaged in self.damages(content):
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(DamagedPartError, match="is damaged .*: remove this file, and the next run"):
                FeatureCache(tmp_path)
            assert name in discard_damaged(tmp_path) and not is_finished(tmp_path)
            for path, whole in before.items():
                path.write_bytes(whole)
        assert discard_damaged(tmp_path) == [] and FeatureCache(tmp_path).ids == list(LENGTHS)

    def test_a_removed_part_is_computed_again_and_nothing_else(self, tmp_path):
        write_cache(tmp_path, LENGTHS, part_bytes=60)
        before = {path.name: path.read_bytes() for path in tmp_path.glob("part*")}
        first, last = sorted(before)
        (tmp_path / first).write_bytes(before[first][:100])
        assert discard_damaged(tmp_path) == [first, "index.json"]
        writer = CacheWriter(tmp_path, part_bytes=60)
        lost = [name for name in LENGTHS if name not in writer.done]
        assert 0 < len(lost) < len(LENGTHS)
        for name in lost:
            writer.add(name, 10.0, cached_episode(int(name), LENGTHS[name]))
        writer.flush()
        finish_cache(tmp_path, {})
        assert (tmp_path / last).read_bytes() == before[last]  # its number was not given again
        cache = FeatureCache(tmp_path)
        assert cache.ids == list(LENGTHS)
        assert cache.windows(torch.tensor([0, 1, 2, 3]), torch.zeros(4, dtype=int), 2)[
            "latents"
        ].flatten().tolist() == [value for number in range(1, 5) for value in (100 * number, 100 * number + 1)]

    def test_processes_divide_the_parts(self, tmp_path):
        write_cache(tmp_path, LENGTHS, part_bytes=1)
        for path in tmp_path.glob("part*"):
            path.write_bytes(b"")
        found = [discard_damaged(tmp_path, rank, 3) for rank in range(3)]
        assert sorted(name for names in found for name in names if name != "index.json") == [
            f"part-000-0000{number}.safetensors" for number in range(4)
        ]
        assert list(tmp_path.iterdir()) == []

    def test_a_part_that_is_gone_makes_the_cache_unfinished(self, tmp_path):
        write_cache(tmp_path, LENGTHS, part_bytes=60)
        (tmp_path / "part-000-00001.safetensors").unlink()
        assert discard_damaged(tmp_path) == ["index.json"]
        assert discard_damaged(tmp_path / "nothing") == []

    def test_parts_under_each_others_names_are_noticed(self, tmp_path):
        write_cache(tmp_path, LENGTHS, part_bytes=60)
        one, other = sorted(tmp_path.glob("part*"))
        content = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(content)
        with pytest.raises(DamagedPartError, match="index.json' is damaged .it lists other parts"):
            FeatureCache(tmp_path)
        assert discard_damaged(tmp_path) == ["index.json"]
        finish_cache(tmp_path, {})
        batch = FeatureCache(tmp_path).windows(torch.tensor([0, 3]), torch.tensor([0, 0]), 2)
        assert batch["latents"].flatten().tolist() == [100, 101, 400, 401]

    def test_a_damaged_part_is_named_by_the_writer(self, tmp_path):
        (tmp_path / "part-000-00000.safetensors").write_bytes(b"half a part")
        with pytest.raises(DamagedPartError, match="part-000-00000.safetensors' is damaged .*: remove this file"):
            CacheWriter(tmp_path)

    def test_caches_of_older_versions_are_read(self, tmp_path):
        for part in write_cache(tmp_path, LENGTHS, part_bytes=60).glob("part*"):
            with safe_open(part, "pt") as file:
                tensors, note = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()["episodes"]  # noqa: SIM118
            save_file(tensors, part, metadata={"episodes": note})
        index = json.loads((tmp_path / "index.json").read_text())
        (tmp_path / "index.json").write_text(json.dumps({k: index[k] for k in ("description", "episodes", "skipped")}))
        assert discard_damaged(tmp_path) == [] and FeatureCache(tmp_path).ids == list(LENGTHS)

    def test_a_full_disk_leaves_nothing_half_written(self, tmp_path):
        """A limit on the size of files fails like a full disk: in the middle of a write."""
        writer = CacheWriter(tmp_path, part_bytes=1)
        writer.add("1", 10.0, cached_episode(1, 5))
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, limits[1]))
        try:
            with pytest.raises(OSError, match="could not be written .* see whether the disk is full, then run"):
                writer.add("2", 10.0, cached_episode(2, 500))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, before)
        assert [path.name for path in tmp_path.iterdir()] == ["part-000-00000.safetensors"]
        assert CacheWriter(tmp_path).done == {"1"}

    def test_a_damaged_list_of_skipped_episodes_costs_only_the_list(self, tmp_path, caplog):
        write_cache(tmp_path, LENGTHS)
        (tmp_path / "skipped-000.json").write_text('{"5": "the vid')
        finish_cache(tmp_path, {})
        assert FeatureCache(tmp_path).skipped == {} and "skipped-000.json is damaged" in caplog.text
