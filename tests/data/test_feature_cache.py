import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from vjepa2_hf.data.episodes import EpisodeSource
from vjepa2_hf.data.feature_cache import CacheWriter, FeatureCache, data_fingerprint, finish_cache, is_finished
from vjepa2_hf.data.files import cache_key, weights_fingerprint
from vjepa2_hf.data.windows import WindowBatches, WindowMixture


def episode(number: int, length: int) -> dict[str, torch.Tensor]:
    """Frame t of episode e is the number 100 e + t, and the action that leads from t to t + 1 is that plus a half."""
    frames = 100.0 * number + torch.arange(length)
    return {"latents": frames.view(-1, 1, 1), "actions": frames[:-1].unsqueeze(1) + 0.5}


def write_cache(folder, lengths: dict[str, int], part_bytes: int = 2**20, ranks: int = 1):
    """Episodes by id and length, dealt to several writers; the number in an id is the episode's."""
    for rank in range(ranks):
        writer = CacheWriter(folder, rank, part_bytes)
        for name in list(lengths)[rank::ranks]:
            writer.add(name, 10.0, episode(int(name), lengths[name]))
        writer.flush()
    finish_cache(folder, {})
    return folder


def whole(folder, **settings) -> WindowMixture:
    cache = FeatureCache(folder, **settings)
    return WindowMixture([cache], [torch.arange(len(cache.ids))], [1.0])


LENGTHS = {"1": 5, "2": 9, "3": 2, "4": 6}


@pytest.mark.parametrize("part_bytes", [1, 60, 2**20])  # every episode its own file, two or three, all in one
def test_windows_hold_the_actions_between_their_frames(tmp_path, part_bytes):
    cache = FeatureCache(write_cache(tmp_path, LENGTHS, part_bytes))
    assert len(cache.files) == {1: 4, 60: 2, 2**20: 1}[part_bytes]
    batch = cache.windows(torch.tensor([3, 1, 0]), torch.tensor([1, 4, 0]), frames=3, skip=2)
    assert batch["latents"].flatten(1).tolist() == [[401, 403, 405], [204, 206, 208], [100, 102, 104]]
    assert batch["actions"][1].tolist() == [[[204.5], [205.5]], [[206.5], [207.5]]]


def test_every_window_of_every_episode_is_sampled_equally_often(tmp_path):
    mixture = whole(write_cache(tmp_path, LENGTHS, part_bytes=1))
    windows = mixture.sample(14_000, 3, 2, np.random.default_rng(0))  # rooms 1, 5, 0 and 2
    found, counts = windows.unique(dim=0, return_counts=True)
    assert found[:, 1:].tolist() == [[0, 0], [1, 0], [1, 1], [1, 2], [1, 3], [1, 4], [3, 0], [3, 1]]
    assert counts.min() > 1600 and counts.max() < 1900
    first = mixture.read(windows, 3, 2)["latents"][:, 0, 0, 0]
    assert torch.equal(first, 100.0 * (windows[:, 1] + 1) + windows[:, 2])


def test_sources_are_sampled_by_their_weights(tmp_path):
    caches = [FeatureCache(write_cache(tmp_path / name, {name: 8})) for name in ("1", "2")]
    mixture = WindowMixture(caches, [torch.tensor([0])] * 2, [3.0, 1.0])
    windows = mixture.sample(4000, 2, 1, np.random.default_rng(0))
    assert (windows[:, 0] == 0).float().mean().item() == pytest.approx(0.75, abs=0.03)
    latents = mixture.read(windows, 2, 1)["latents"][:, 0, 0, 0]
    assert torch.equal(latents, 100.0 * (windows[:, 0] + 1) + windows[:, 2])


def test_windows_too_long_for_every_episode_are_refused(tmp_path):
    with pytest.raises(ValueError, match="No episode has the 21 frames of a window"):
        whole(write_cache(tmp_path, LENGTHS)).sample(1, 11, 2, np.random.default_rng(0))


def test_tiles_cover_episodes_and_are_thinned_evenly(tmp_path):
    mixture = whole(write_cache(tmp_path, LENGTHS))
    assert mixture.tile(2, 1, 2, 100)[:, 1:].tolist() == [[0, 0], [0, 2], *[[1, i] for i in (0, 2, 4, 6)], [2, 0],
                                                         [3, 0], [3, 2], [3, 4]]  # fmt: skip
    assert mixture.tile(2, 1, 2, 3)[:, 1:].tolist() == [[0, 0], [1, 4], [3, 4]]


def test_statistics_are_those_of_the_chosen_episodes(tmp_path):
    cache = FeatureCache(write_cache(tmp_path, LENGTHS, part_bytes=60))
    found = cache.statistics("actions", torch.tensor([0, 3]))
    values = torch.cat([episode(1, 5)["actions"], episode(4, 6)["actions"]]).double()
    assert found["rows"] == len(values) == 9
    assert found["mean"] == pytest.approx([values.mean().item()])
    assert found["std"] == pytest.approx([values.std(correction=0).item()])
    assert (found["low"], found["high"]) == ([100.5], [404.5])
    frames = cache.statistics("latents", torch.tensor([1]))
    assert (frames["low"], frames["high"], frames["rows"]) == ([[200.0]], [[208.0]], 9)


def test_an_unfinished_cache_is_not_read_and_goes_on_where_it_was(tmp_path):
    writer = CacheWriter(tmp_path, part_bytes=1)
    writer.add("1", 10.0, episode(1, 5))
    (tmp_path / "part-000-00001.safetensors.tmp").write_bytes(b"half a part")  # what a kill leaves
    assert not is_finished(tmp_path)
    with pytest.raises(FileNotFoundError, match="not finished"):
        FeatureCache(tmp_path)
    again = CacheWriter(tmp_path, part_bytes=1)
    assert again.done == {"1"}
    again.add("2", 10.0, episode(2, 9))
    finish_cache(tmp_path, {})
    cache = FeatureCache(tmp_path)
    assert cache.ids == ["1", "2"] and cache.files == ["part-000-00000.safetensors", "part-000-00001.safetensors"]
    assert cache.windows(torch.tensor([0, 1]), torch.tensor([0, 0]), 2)["latents"][:, 0].flatten().tolist() == [
        100,
        200,
    ]


def test_the_order_does_not_depend_on_how_many_processes_wrote(tmp_path):
    one, two = (whole(write_cache(tmp_path / str(ranks), LENGTHS, 1, ranks)) for ranks in (1, 2))
    assert one.caches[0].ids == two.caches[0].ids
    windows = one.sample(50, 3, 1, np.random.default_rng(0))
    assert torch.equal(windows, two.sample(50, 3, 1, np.random.default_rng(0)))
    assert torch.equal(one.read(windows, 3, 1)["latents"], two.read(windows, 3, 1)["latents"])


def test_two_episodes_of_one_name_are_refused(tmp_path):
    writer = CacheWriter(tmp_path / "one")
    writer.add("1", 10.0, episode(1, 5))
    with pytest.raises(ValueError, match="Two episodes are called '1'"):
        writer.add("1", 10.0, episode(1, 5))
    with pytest.raises(ValueError, match="Two episodes are called '1'"):
        for rank in range(2):
            other = CacheWriter(tmp_path / "two", rank)
            other.done = set()  # both began before either had written
            other.add("1", 10.0, episode(1, 5))
            other.flush()
        finish_cache(tmp_path / "two", {})


def test_columns_that_differ_between_episodes_or_processes_are_refused(tmp_path):
    writer, other = CacheWriter(tmp_path, 0), CacheWriter(tmp_path, 1)
    writer.add("1", 10.0, episode(1, 5))
    rewarded = {**episode(2, 5), "rewards": torch.zeros(4, 1)}
    with pytest.raises(ValueError, match="Episode '2' has columns .* but the ones before had"):
        writer.add("2", 10.0, rewarded)
    with pytest.raises(ValueError, match="Episode '3' has 5 rows of 'actions' for 5 frames"):
        writer.add("3", 10.0, {**episode(3, 5), "actions": torch.zeros(5, *episode(3, 5)["actions"].shape[1:])})
    other.add("2", 10.0, rewarded)
    writer.flush()
    other.flush()
    with pytest.raises(ValueError, match="part-001-00000.safetensors has columns"):
        finish_cache(tmp_path, {})


def test_a_cache_of_nothing_and_a_missing_column_are_refused(tmp_path):
    with pytest.raises(ValueError, match="No episode was written to the cache"):
        finish_cache(tmp_path, {})
    with pytest.raises(ValueError, match="The episodes have no 'proprio_states'; they have actions, latents"):
        FeatureCache(write_cache(tmp_path / "cache", LENGTHS), ("latents", "proprio_states"))
    with pytest.raises(ValueError, match="The weight of 'here' is 0"):
        EpisodeSource("here", weight=0.0)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_depend_on_the_step_alone(tmp_path, num_workers):
    mixture = whole(write_cache(tmp_path, LENGTHS, 1))
    batches = WindowBatches(mixture, 4, lambda step: 2 if step < 3 else 3, seed=5)
    alone = [batches[number] for number in range(4)]
    assert [batch["latents"].shape[1] for batch in alone] == [2, 2, 3, 3]
    assert not torch.equal(alone[2]["latents"], alone[3]["latents"])
    resumed = DataLoader(batches, batch_size=None, sampler=range(2, 4), num_workers=num_workers)
    assert all(torch.equal(a["actions"], b["actions"]) for a, b in zip(alone[2:], resumed, strict=True))


def test_processes_and_micro_batches_share_out_the_batch_of_one_process(tmp_path):
    mixture = whole(write_cache(tmp_path, LENGTHS, 1))
    together = WindowBatches(mixture, 8, lambda step: 2)[3]["latents"]
    parts = [
        WindowBatches(mixture, 2, lambda step: 2, rank=rank, world_size=2, micro_batches=2)[6 + micro]["latents"]
        for micro in range(2)
        for rank in range(2)
    ]
    assert torch.equal(torch.cat(parts), together)


def test_a_worker_that_is_spawned_maps_the_files_itself(tmp_path):
    mixture = whole(write_cache(tmp_path, {"1": 5000}))
    windows = torch.tensor([[0, 0, 3]])
    here = mixture.read(windows, 2, 1)["latents"]  # now the file is open
    sent = pickle.dumps(mixture)
    assert len(sent) < 5000
    assert torch.equal(here, pickle.loads(sent).read(windows, 2, 1)["latents"])  # noqa: S301


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
    CacheWriter(tmp_path, part_bytes=1).add("1", 10.0, episode(1, 5))
    finish_cache(tmp_path, {"path": "runs/demo/episodes"})
    assert json.loads((tmp_path / "index.json").read_text())["description"] == {"path": "runs/demo/episodes"}


def test_what_did_not_read_is_listed_until_it_does(tmp_path):
    writer = CacheWriter(tmp_path)
    writer.add("1", 10.0, episode(1, 5))
    writer.flush()
    writer.skip({"2": "the video is cut"})
    writer.skip({"3": "no such file"})
    writer = CacheWriter(tmp_path)  # stopped, and going on: all of it is tried again
    writer.add("2", 10.0, episode(2, 5))
    writer.flush()
    writer.skip({"3": "still no such file"})
    finish_cache(tmp_path, {})
    assert FeatureCache(tmp_path).ids == ["1", "2"]
    assert FeatureCache(tmp_path).skipped == {"3": "still no such file"}
