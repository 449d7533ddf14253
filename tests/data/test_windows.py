"""Windows of cached episodes: sampled, tiled, and in batches."""

import pickle

import numpy as np
import pytest
import torch
from builders import write_cache
from torch.utils.data import DataLoader

from vjepa2_hf.data.feature_cache import CacheWriter, FeatureCache, finish_cache
from vjepa2_hf.data.windows import WindowBatches, WindowMixture


def whole(folder, **settings) -> WindowMixture:
    cache = FeatureCache(folder, **settings)
    return WindowMixture([cache], [torch.arange(len(cache.ids))], [1.0])


LENGTHS = {"1": 5, "2": 9, "3": 2, "4": 6}


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


class TestEmbodiments:
    @pytest.fixture
    def mixture(self, tmp_path) -> WindowMixture:
        """Two robots, of 2 actions and 1 state and of 3 actions without states."""
        caches = []
        for name, (actions, states) in {"a": (2, 1), "b": (3, 0)}.items():
            writer = CacheWriter(tmp_path / name)
            columns = {"latents": torch.zeros(6, 1, 2), "actions": torch.arange(1.0, 5 * actions + 1).view(5, actions)}
            columns |= {"proprio_states": torch.ones(6, states)} if states else {}
            writer.add(name, 10.0, columns)
            writer.flush()
            finish_cache(tmp_path / name, {})
            wanted = ["latents", "actions", "proprio_states"]
            caches.append(FeatureCache(tmp_path / name, wanted, optional=["proprio_states"]))
        return WindowMixture(caches, [torch.tensor([0])] * 2, [1.0, 3.0], [0, 1])

    def test_shorter_actions_and_missing_states_are_padded_at_their_end(self, mixture):
        batch = mixture.read(torch.tensor([[1, 0, 0], [0, 0, 1]]), 3, 2)
        assert batch["embodiment_ids"].tolist() == [1, 0]
        assert batch["actions"].shape == (2, 2, 1, 6)  # two actions of three numbers
        assert batch["actions"][0, 0, 0].tolist() == [1, 2, 3, 4, 5, 6]
        assert batch["actions"][1, 0, 0].tolist() == [3, 4, 5, 6, 0, 0]
        assert batch["proprio_states"].tolist() == [[[0]] * 3, [[1]] * 3]

    def test_the_sizes_of_a_model_may_be_larger_but_not_smaller(self, mixture):
        mixture.fit_widths(4, 2)
        batch = mixture.read(torch.tensor([[0, 0, 1]]), 3, 2)
        assert batch["actions"][0, 0, 0].tolist() == [3, 4, 5, 6, 0, 0, 0, 0]
        assert batch["proprio_states"][0, 0].tolist() == [1, 0]
        with pytest.raises(ValueError, match="has actions of 4 numbers, but the model's are 2 at most"):
            mixture.fit_widths(2, 1)

    def test_batches_are_sampled_by_weight_and_one_robot_is_selected(self, mixture):
        batches = WindowBatches(mixture, 2000, lambda step: 2)
        assert batches[0]["embodiment_ids"].float().mean() == pytest.approx(0.75, abs=0.04)
        assert [cache.ids for cache in mixture.of_embodiment(1).caches] == [["b"]]


def test_windows_too_long_for_every_episode_are_refused(tmp_path):
    with pytest.raises(ValueError, match="No episode has the 21 frames of a window"):
        whole(write_cache(tmp_path, LENGTHS)).sample(1, 11, 2, np.random.default_rng(0))


def test_tiles_cover_episodes_and_are_thinned_evenly(tmp_path):
    mixture = whole(write_cache(tmp_path, LENGTHS))
    assert mixture.tile(2, 1, 2, 100)[:, 1:].tolist() == [[0, 0], [0, 2], *[[1, i] for i in (0, 2, 4, 6)], [2, 0],
                                                         [3, 0], [3, 2], [3, 4]]  # fmt: skip
    assert mixture.tile(2, 1, 2, 3)[:, 1:].tolist() == [[0, 0], [1, 4], [3, 4]]


def test_the_order_does_not_depend_on_how_many_processes_wrote(tmp_path):
    one, two = (whole(write_cache(tmp_path / str(ranks), LENGTHS, 1, ranks)) for ranks in (1, 2))
    assert one.caches[0].ids == two.caches[0].ids
    windows = one.sample(50, 3, 1, np.random.default_rng(0))
    assert torch.equal(windows, two.sample(50, 3, 1, np.random.default_rng(0)))
    assert torch.equal(one.read(windows, 3, 1)["latents"], two.read(windows, 3, 1)["latents"])


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
