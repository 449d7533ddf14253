"""Fields of a world model that come from its data: embodiment ids, and a list of statistics for each."""

from types import SimpleNamespace

import pytest

from vjepa2_hf.data.episodes import EpisodeSource
from vjepa2_hf.training.episode_latents import count_views, find_cameras
from vjepa2_hf.training.world_model_fields import data_fields, embodiments_of


def column(size: int) -> dict[str, list[float]]:
    return {"mean": [1.0] * size, "std": [2.0] * size, "low": [-1.0] * size, "high": [3.0] * size}


def sources(*embodiments: int) -> list[EpisodeSource]:
    return [EpisodeSource(str(number), embodiment=each) for number, each in enumerate(embodiments)]


def test_ids_begin_at_0_without_gaps():
    assert embodiments_of(sources(0, 0)) is None
    assert embodiments_of(sources(1, 0, 1)) == [1, 0, 1]
    with pytest.raises(ValueError, match=r"are \[1, 2\], without 0; expected ids from 0 without gaps\."):
        embodiments_of(sources(2, 1))


def test_a_known_model_needs_neither_all_ids_nor_the_first():
    assert embodiments_of(sources(0), first=1) == [0] and embodiments_of(sources(1), first=3) == [1]
    assert embodiments_of(sources(2), first=2) == [2]
    with pytest.raises(ValueError, match="without 2; expected ids from 0 without gaps, or of the 2 known ones"):
        embodiments_of(sources(3), first=2)


def test_one_robot_has_flat_lists_and_several_one_list_each():
    alone = data_fields({"actions": column(2), "proprio_states": column(1)}, skip=2)
    assert (alone["action_dim"], alone["actions_per_step"], alone["action_mean"]) == (4, 2, [1.0] * 4)
    assert alone["proprio_dim"] == 1 and "num_embodiments" not in alone
    both = data_fields({"actions": [column(2), column(3)], "proprio_states": [None, column(4)]}, skip=2)
    assert (both["num_embodiments"], both["action_dim"], both["proprio_dim"]) == (2, 6, 4)
    assert (both["embodiment_action_dims"], both["embodiment_proprio_dims"]) == ([4, 6], [0, 4])
    assert both["action_low"] == [[-1.0] * 4, [-1.0] * 6] and both["proprio_std"] == [None, [2.0] * 4]
    plain = data_fields({"actions": [column(2), column(3)]}, skip=1, normalize=False)
    assert "action_mean" not in plain and plain["action_high"] == [[3.0] * 2, [3.0] * 3]


def test_sources_have_equally_many_cameras():
    two = EpisodeSource("a", camera=["front", "wrist"])
    assert count_views([two, two]) == 2 and count_views(sources(0)) == 1
    with pytest.raises(ValueError, match=r"different numbers of cameras \(2 of 'a', 1 of '0'\): name as many"):
        count_views([two, *sources(0)])


def test_the_cameras_of_a_model_are_its_views_in_their_order(caplog):
    two, one = (SimpleNamespace(num_views=len(names), view_names=names) for names in (["front", "wrist"], ["wrist"]))
    assert find_cameras("a", None, two) == ["front", "wrist"] and find_cameras("a", ["x", "y"], two) == ["x", "y"]
    with pytest.raises(ValueError, match=r"but the world model's views are \['front', 'wrist'\]: give this order"):
        find_cameras("a", ["wrist", "front"], two)
    assert find_cameras("a", "wrist", one) == "wrist" and not caplog.text
    assert find_cameras("a", None, one) is None and "was trained on the camera 'wrist'" in caplog.text
