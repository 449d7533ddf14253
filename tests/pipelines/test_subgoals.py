"""Subgoals of a planner: what the solver plans for, what a plan says of it, and folders that bring them back."""

import json

import numpy as np
import pytest
import torch
from builders import GOAL, OBSERVATION, OTHER, build_planner, same_plan
from transformers import pipeline

from vjepa2_hf import VJepa2Planner, VJepa2WorldModel
from vjepa2_hf.pipelines.subgoals import GraphSubgoals
from vjepa2_hf.planning import ProprioDistance
from vjepa2_hf.planning.subgoal_graph import SubgoalGraph


@pytest.fixture(autouse=True)
def distance(monkeypatch):
    """A distance of latents by a single number of theirs, which stands for frames."""
    for name, method in [
        ("distance_embedding", lambda self, latents: latents.float()[..., 0, :1]),
        ("embedded_distance", lambda self, a, b: 100 * (a - b).abs().squeeze(-1)),
    ]:
        monkeypatch.setattr(VJepa2WorldModel, name, method, raising=False)


class Halfway:
    """Plans for the mean of observation and goal."""

    def choose(self, model, latents, goal):
        return (latents + goal) / 2, [{"kind": "halfway"}] * len(goal)


def encoded(planner, image) -> torch.Tensor:
    frames = planner.video_processor(image, return_tensors="pt")["pixel_values_videos"]
    return planner.model.encode(frames.to(planner.model.dtype))[:, 0]


def graph_of(planner, reach_fraction: float = 0.4) -> GraphSubgoals:
    """A graph of ten latents from those of OBSERVATION to those of GOAL."""
    ends = encoded(planner, OBSERVATION), encoded(planner, GOAL)
    latents = torch.cat([torch.lerp(*ends, weight) for weight in torch.linspace(0, 1, 10).tolist()])
    embeddings = planner.model.distance_embedding(latents)
    distances = planner.model.embedded_distance(embeddings.unsqueeze(1), embeddings).numpy()
    reach = reach_fraction * float(distances[0, -1])
    graph = SubgoalGraph.from_distances(distances, max_edge=0.15 * float(distances[0, -1]), reach=reach)
    return GraphSubgoals(latents, embeddings, graph)


@pytest.fixture(scope="module")
def planner():
    return build_planner(options={"device": "cpu"})


class TestChosenGoal:
    def test_the_solver_plans_for_what_choose_returns(self, planner):
        plain = planner(OBSERVATION, GOAL)
        planner.subgoals = Halfway()
        plan = planner(OBSERVATION, GOAL)
        planner.subgoals = None
        middle = (encoded(planner, OBSERVATION) + encoded(planner, GOAL)) / 2
        actions = torch.from_numpy(plan["actions"])[None, None]
        cost = planner.model.score(encoded(planner, OBSERVATION).unsqueeze(1), middle, actions)
        assert plan["cost"] == pytest.approx(cost.item(), rel=1e-4) and plan["subgoal"] == {"kind": "halfway"}
        assert not same_plan(plan, plain) and "subgoal" not in plain

    def test_a_far_goal_is_replaced_by_a_waypoint_within_reach(self, planner):
        subgoals = planner.subgoals = graph_of(planner)
        plan = planner(OBSERVATION, GOAL)
        near = planner(GOAL, GOAL)
        planner.subgoals = None
        chosen = plan["subgoal"]
        assert (chosen["node"], chosen["reason"]) == (3, "waypoint")
        assert chosen["distance"] <= subgoals.graph.reach < chosen["goal_distance"]
        latents = encoded(planner, OBSERVATION).unsqueeze(1)
        cost = planner.model.score(latents, subgoals.latents[[3]], torch.from_numpy(plan["actions"])[None, None])
        assert plan["cost"] == pytest.approx(cost.item(), rel=1e-4)
        assert near["subgoal"]["reason"] == "goal within reach" and same_plan(near, planner(GOAL, GOAL))

    def test_a_batch_chooses_for_each_problem(self, planner):
        planner.subgoals = graph_of(planner)
        alone = [planner(OBSERVATION, GOAL), planner(GOAL, GOAL)]
        together = planner([OBSERVATION, GOAL], [GOAL, GOAL])
        planner.subgoals = None
        assert all(same_plan(*pair) and pair[0]["subgoal"] == pair[1]["subgoal"] for pair in zip(alone, together))

    def test_a_sequence_gives_the_goal_that_is_next(self, planner):
        planner.subgoals = graph_of(planner)
        plan = planner(OBSERVATION, goals=[GOAL, OTHER])
        last = planner(OBSERVATION, goals=[GOAL, OTHER], goal_index=1)
        planner.subgoals = None
        assert (plan["goal_index"], plan["subgoal"]["node"]) == (0, 3)
        assert last["goal_index"] == 1 and last["subgoal"] != plan["subgoal"]

    def test_the_time_of_choosing_counts(self, planner, monkeypatch):
        import time

        class Slow(Halfway):
            def choose(self, *arguments):
                time.sleep(0.3)
                return super().choose(*arguments)

        solver, planner.subgoals, seen = planner.solver, Slow(), {}
        call = type(solver).__call__
        monkeypatch.setattr(type(solver), "__call__", lambda self, *a, **k: call(self, *a, **{**k, **seen_in(k)}))

        def seen_in(arguments):
            seen.update(budget=arguments["budget_ms"])
            return {}

        planner(OBSERVATION, GOAL, budget_ms=1000)
        planner.subgoals = None
        assert seen["budget"] < 700

    def test_bfloat16(self):
        planner = build_planner(options={"device": "cpu"})
        subgoals = graph_of(planner)
        planner.model.to(torch.bfloat16)
        planner.subgoals = subgoals
        assert planner(OBSERVATION, GOAL)["subgoal"]["reason"] == "waypoint"

    def test_what_cannot_be_is_refused(self, planner):
        class Wrong(Halfway):
            def choose(self, model, latents, goal):
                return goal[:, :1], []

        for subgoals, cost, message in [
            (Wrong(), "l2", "subgoals.choose returned latents"),
            (Halfway(), ProprioDistance(), "subgoals do not have"),
        ]:
            planner.subgoals = subgoals
            with pytest.raises(ValueError, match=message):
                planner(OBSERVATION, GOAL, cost=cost)
        planner.subgoals = None
        with pytest.raises(ValueError, match="subgoals is 3; expected a folder"):
            VJepa2Planner(planner.model, planner.video_processor, subgoals=3)


class TestSaving:
    @pytest.fixture
    def saved(self, tmp_path):
        planner = build_planner(options={"device": "cpu"})
        planner.subgoals = graph_of(planner)
        planner.save_pretrained(tmp_path / "planner")
        return planner, tmp_path / "planner"

    def test_every_way_of_loading_brings_them_back(self, saved):
        planner, folder = saved
        plan = planner(OBSERVATION, GOAL)
        ways = [
            VJepa2Planner.from_pretrained(folder, device="cpu"),
            pipeline("latent-planning", model=str(folder), device="cpu"),
            VJepa2Planner(planner.model, planner.video_processor, device="cpu", subgoals=folder),
            VJepa2Planner.from_pretrained(folder, device="cpu", subgoals=folder / "subgoals"),
        ]
        for loaded in ways:
            again = loaded(OBSERVATION, GOAL)
            assert same_plan(again, plan) and again["subgoal"] == pytest.approx(plan["subgoal"])
        assert VJepa2Planner.from_pretrained(folder, device="cpu", subgoals=False).subgoals is None

    def test_pushing_sends_them_with_the_model(self, saved, hub, tmp_path):
        planner, folder = saved
        planner.push_to_hub("someone/planner")
        there = hub.write_to(tmp_path / "there")
        files = {path.relative_to(folder) for path in folder.rglob("*.*")}
        assert files == {path.relative_to(there) for path in there.rglob("*.*")}
        loaded = VJepa2Planner.from_pretrained(there, device="cpu")
        assert same_plan(loaded(OBSERVATION, GOAL), planner(OBSERVATION, GOAL)) and len(loaded.subgoals) == 10

    def test_a_planner_without_any_removes_old_ones(self, saved):
        planner, folder = saved
        planner.subgoals = None
        planner.save_pretrained(folder)
        assert not (folder / "subgoals").exists() and "subgoals" not in planner.model.config.planner
        assert VJepa2Planner.from_pretrained(folder, device="cpu").subgoals is None

    def test_a_lost_folder_is_named(self, saved):
        planner, folder = saved
        planner.model.save_pretrained(folder / "model")
        planner.video_processor.save_pretrained(folder / "model")
        with pytest.raises(ValueError, match="holds no subgoals/subgoals.json: save the planner"):
            VJepa2Planner.from_pretrained(folder / "model")

    @pytest.mark.parametrize("name", ["graph.safetensors", "subgoals.json"])
    @pytest.mark.parametrize("damage", ["cut", "changed", "other"])
    def test_a_damaged_file_is_one_sentence(self, saved, name, damage):
        path = saved[1] / "subgoals" / name
        content = path.read_bytes()
        middle = len(content) // 2
        other = b"[]" if name.endswith("json") else content[:-1] + b"x"
        content = {"cut": content[:middle], "changed": content[: middle - 1] + b"\xff\xff" + content[middle:]}.get(
            damage, other
        )
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"graph.safetensors' is missing|subgoals.json' is damaged") as error:
            VJepa2Planner.from_pretrained(saved[1], device="cpu")
        assert str(error.value).endswith((".", "again.")) and "\n" not in str(error.value)

    def test_an_unknown_kind_is_named(self, saved):
        (saved[1] / "subgoals" / "subgoals.json").write_text(json.dumps({"kind": "graf"}))
        with pytest.raises(ValueError, match="Unknown kind of subgoals 'graf'; did you mean 'graph'"):
            VJepa2Planner.from_pretrained(saved[1], device="cpu")

    def test_a_graph_of_another_model_is_refused(self, saved, monkeypatch):
        monkeypatch.setattr(VJepa2WorldModel, "distance_embedding", lambda self, latents: latents.float()[..., 1, :1])
        with pytest.raises(ValueError, match="was built with another model, or its distance head was trained again"):
            VJepa2Planner.from_pretrained(saved[1], device="cpu")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda graph: graph.latents[7].fill_(torch.nan), "not finite"),
            (lambda graph: graph.embeddings.fill_(torch.nan), "not finite"),
            (lambda graph: setattr(graph, "latents", graph.latents[:7]), "10 nodes have 7 latents"),
        ],
    )
    def test_nodes_that_cannot_be_are_refused(self, saved, change, message):
        planner, folder = saved
        change(planner.subgoals)
        planner.save_pretrained(folder)
        with pytest.raises(ValueError, match=message):
            VJepa2Planner.from_pretrained(folder, device="cpu")

    def test_a_planner_that_has_macro_actions_itself_brings_its_graph_back(self, tmp_path):
        """Its own folder holds a model with macro-actions, which is no second time scale."""
        macro = {"macro_action_dim": 1, "macro_action_low": [-1.0], "macro_action_high": [1.0], "context_frames": 1}
        planner = build_planner(options={"device": "cpu"}, **macro)
        planner.subgoals = graph_of(planner)
        planner.save_pretrained(tmp_path)
        assert len(VJepa2Planner.from_pretrained(tmp_path, device="cpu").subgoals) == 10

    def test_what_cannot_be_saved_is_refused_before_anything_is_written(self, tmp_path):
        planner = build_planner(options={"device": "cpu", "subgoals": Halfway()})
        with pytest.raises(ValueError, match="are none of graph"):
            planner.save_pretrained(tmp_path / "planner")
        planner.subgoals = graph_of(planner)
        with pytest.raises(ValueError, match="call planner.push_to_hub"):
            planner.save_pretrained(tmp_path / "planner", push_to_hub=True)
        assert not (tmp_path / "planner").exists()

    def test_nodes_are_the_latents_themselves(self, saved):
        planner, folder = saved
        loaded = VJepa2Planner.from_pretrained(folder, device="cpu").subgoals
        assert torch.equal(loaded.latents, planner.subgoals.latents) and len(loaded) == 10
        assert np.array_equal(loaded.graph.lengths, planner.subgoals.graph.lengths)
