"""Building a subgoal graph: nodes of training episodes that cover them, edges that connect them."""

import numpy as np
import pytest
import torch
from builders import write_cache

from vjepa2_hf.data.feature_cache import FeatureCache
from vjepa2_hf.data.windows import WindowMixture
from vjepa2_hf.pipelines.subgoal_building import GraphSettings, build_graph, seen_edges


class Numbers:
    """A model of latents that are one number, which stands for frames."""

    device = torch.device("cpu")
    standardize = staticmethod(lambda latents: latents)
    distance_embedding = staticmethod(lambda latents: latents.flatten(-2))
    embedded_distance = staticmethod(lambda a, b: (a - b).abs().squeeze(-1))


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """Episodes 000 and 001, of the numbers 0 to 59 and 100 to 159; 002 is held out."""
    folder = write_cache(tmp_path_factory.mktemp("cache") / "latents", {"000": 60, "001": 60, "002": 60})
    return WindowMixture([FeatureCache(folder, ["latents"])], [torch.tensor([0, 1])], [1.0])


def test_nodes_cover_the_training_episodes_and_no_others(training):
    subgoals = build_graph(Numbers(), training, GraphSettings(num_nodes=20))
    numbers = subgoals.latents.flatten().sort().values.numpy()
    assert subgoals.latents.shape == (20, 1, 1) and numbers.max() < 160
    for episode in (np.arange(60), 100 + np.arange(60)):  # every frame has a node nearby
        assert np.abs(episode[:, None] - numbers).min(axis=1).max() <= 6
    assert subgoals.graph.reach == 1.5 * subgoals.graph.max_edge


def test_edges_are_as_long_as_needed_or_as_given(training):
    found = build_graph(Numbers(), training, GraphSettings(num_nodes=20)).graph
    assert 41 <= found.max_edge <= 60 and found.largest_component() >= 0.95  # across the gap between the episodes
    given = build_graph(Numbers(), training, GraphSettings(num_nodes=20, max_edge=8, reach=3)).graph
    assert (given.max_edge, given.reach) == (8, 3) and given.largest_component() == 0.5


def test_the_same_seed_builds_the_same_graph(training):
    one, other, third = (build_graph(Numbers(), training, GraphSettings(num_nodes=9, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(one.latents, other.latents) and not torch.equal(one.latents, third.latents)


def test_nodes_that_follow_one_another_in_an_episode_have_an_edge():
    nodes = torch.tensor([[0, 0, 3], [0, 0, 9], [0, 1, 2], [1, 1, 5], [1, 1, 6]])
    assert seen_edges(nodes) == [(0, 1, 6.0), (3, 4, 1.0)]


def test_a_head_without_finite_embeddings_builds_no_graph(training):
    class Broken(Numbers):
        distance_embedding = staticmethod(lambda latents: latents.flatten(-2) * torch.nan)

    with pytest.raises(ValueError, match="no finite embedding: train the distance head again"):
        build_graph(Broken(), training, GraphSettings(num_nodes=9, max_edge=3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_nodes": 1}, "num_nodes is 1; expected an integer from 2 to 4000"),
        ({"max_edge": 0}, "max_edge is 0; expected a finite number above 0"),
        ({"reach": -1}, "reach is -1; expected a finite number above 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        GraphSettings(**settings)
