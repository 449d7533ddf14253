"""Planning with several cameras, and for one of several embodiments."""

import numpy as np
import pytest
import torch
from builders import GOAL, OBSERVATION, OTHER, SOLVER, build_planner, noise_image, same_plan
from transformers import pipeline

from vjepa2_hf import VJepa2Planner, VJepa2VideoProcessor
from vjepa2_hf.planning import Fixed


CAMERAS = {"num_views": 2, "view_names": ["front", "wrist"]}
SEEN = {"front": OBSERVATION, "wrist": OTHER}
WANTED = {"wrist": noise_image(4), "front": GOAL}
PUSHER_AND_ARM = {
    "num_embodiments": 2,
    "embodiment_names": ["pusher", "arm"],
    "action_dim": 3,
    "embodiment_action_dims": [2, 3],
    "proprio_dim": 3,
    "embodiment_proprio_dims": [0, 3],
    "action_low": [[-1.0, 0.1], [-0.05] * 3],
    "action_high": [[1.0, 0.2], [0.05] * 3],
}


@pytest.fixture(scope="module")
def planner():
    return build_planner(**CAMERAS, distance_head=True)


class TestCameras:
    def test_dicts_and_processed_tensors_are_the_same(self, planner):
        plan = planner(SEEN, WANTED)
        processor, pixels = planner.video_processor, []
        for views in (SEEN, WANTED):
            frames = [
                processor(views[name], return_tensors="pt")["pixel_values_videos"] for name in ("front", "wrist")
            ]
            pixels.append(torch.stack(frames, dim=2))
        assert pixels[0].shape == (1, 1, 2, 3, 32, 32)
        assert same_plan(planner(*pixels)[0], plan)
        by_name = [dict(zip(("front", "wrist"), each.unbind(2), strict=True)) for each in pixels]
        assert same_plan(planner(*by_name)[0], plan)

    def test_a_batch_is_single_plans(self, planner):
        plans = planner([SEEN, WANTED], [WANTED, SEEN])
        for plan, (observation, goal) in zip(plans, [(SEEN, WANTED), (WANTED, SEEN)], strict=True):
            assert same_plan(plan, planner(observation, goal))

    def test_every_camera_of_observation_and_goal_counts(self, planner):
        costs = [planner(SEEN, WANTED)["cost"]]
        costs += [planner(SEEN | {name: GOAL}, WANTED)["cost"] for name in ("front", "wrist")]
        costs += [planner(SEEN, WANTED | {name: OTHER})["cost"] for name in ("front", "wrist")]
        assert len(set(costs)) == 5

    def test_fewer_cameras(self, planner):
        wrist = {"wrist": WANTED["wrist"]}
        both, part = planner(SEEN, WANTED), planner(SEEN, wrist)
        alone = planner({"wrist": OTHER}, wrist)
        assert len({both["cost"], part["cost"], alone["cost"]}) == 3
        with pytest.raises(ValueError, match="the goal shows front, which the observation lacks"):
            planner({"wrist": OTHER}, WANTED)

    def test_goals_in_sequence(self, planner):
        plan = planner(SEEN, goals=[SEEN, WANTED])
        assert plan["goal_index"] == 1  # it starts at the first
        part = planner(SEEN, goals=[{"wrist": OTHER}, {"wrist": GOAL}])
        assert part["goal_index"] == 1 and part["cost"] != plan["cost"]
        with pytest.raises(ValueError, match="the goals show different cameras"):
            planner(SEEN, goals=[{"wrist": OTHER}, WANTED])

    def test_landscape_and_clips(self, planner):
        landscape = planner.energy_landscape(SEEN, {"wrist": GOAL}, points=3)
        assert landscape["costs"].shape == (3, 3) and np.isfinite(landscape["costs"]).all()
        clip = {name: torch.stack([torch.from_numpy(image)] * 2).permute(0, 3, 1, 2) for name, image in SEEN.items()}
        plan = planner(clip, WANTED, context_actions=[[0.1, 0.2]])
        assert plan["actions"].shape == (3, 2)

    def test_it_saves_and_loads(self, planner, tmp_path):
        planner.save_pretrained(tmp_path)
        assert same_plan(pipeline("latent-planning", model=str(tmp_path))(SEEN, WANTED), planner(SEEN, WANTED))

    @pytest.mark.parametrize(
        ("observation", "goal", "message"),
        [
            (OBSERVATION, GOAL, "the model sees 2 views: expected a dict of cameras .'front', 'wrist'."),
            (SEEN, {"side": GOAL}, "'side'; known ones are front, wrist"),
            (SEEN, GOAL, "the goal is .*; the model sees 2 views"),
            (torch.zeros(1, 1, 1, 3, 32, 32), [WANTED], "observation of .* has 1 views; .* fewer as a dict of cam"),
            ([SEEN, {"front": GOAL}], [WANTED, WANTED], "the observations of the batch show different cameras"),
            ([{0: GOAL, "wrist": GOAL}, SEEN], [WANTED] * 2, "the observations of the batch show different"),
            ({}, WANTED, "the observation is {}; expected a dict of at least one camera out of front, wrist"),
        ],
    )  # fmt: skip
    def test_other_observations_are_refused(self, planner, observation, goal, message):
        with pytest.raises(ValueError, match=message):
            planner(observation, goal)

    def test_subgoals_need_every_camera(self, planner):
        class Same:
            def choose(self, model, latents, goal):
                return goal, [{"reason": "test"}] * len(goal)

        with_subgoals = VJepa2Planner(planner.model, planner.video_processor, subgoals=Same(), **SOLVER)
        assert with_subgoals(SEEN, WANTED)["subgoal"] == {"reason": "test"}
        with pytest.raises(ValueError, match="subgoals need an observation and a goal of every camera"):
            with_subgoals(SEEN, {"wrist": GOAL})

    def test_a_model_of_one_camera_takes_a_dict_too(self):
        planner = build_planner(view_names=["front"])
        assert same_plan(planner({"front": OBSERVATION}, {"front": GOAL}), planner(OBSERVATION, GOAL))


class TestEmbodiments:
    def planner(self, embodiment, **settings):
        model = build_planner(**PUSHER_AND_ARM, options={"embodiment": 0}).model
        processor = VJepa2VideoProcessor(size=32, crop_size=32)
        return VJepa2Planner(model, processor, embodiment=embodiment, **{**SOLVER, **settings})

    def test_each_plans_with_its_own_actions_bounds_and_states(self):
        pusher, arm = self.planner("pusher"), self.planner(1)
        assert (pusher.embodiment, arm.embodiment) == (0, 1)
        plan = pusher(OBSERVATION, GOAL)
        assert plan["actions"].shape == (3, 2)
        assert (plan["actions"][:, 1] >= 0.1).all() and (plan["actions"][:, 1] <= 0.2).all()
        plan = arm(OBSERVATION, GOAL, proprio_state=[0.0, 0.1, 0.2])
        assert plan["actions"].shape == (3, 3) and np.abs(plan["actions"]).max() <= 0.05
        with pytest.raises(ValueError, match="proprio_state is missing"):
            arm(OBSERVATION, GOAL)
        with pytest.raises(ValueError, match="proprio_state was given, but the model has none"):
            pusher(OBSERVATION, GOAL, proprio_state=[0.0, 0.1, 0.2])

    def test_the_cost_is_that_of_the_model(self):
        arm = self.planner("arm")
        plan = arm(OBSERVATION, GOAL, proprio_state=[0.0, 0.1, 0.2])
        frames = [
            arm.video_processor(image, return_tensors="pt")["pixel_values_videos"] for image in (OBSERVATION, GOAL)
        ]
        actions = torch.from_numpy(plan["actions"])[None, None]
        states = torch.tensor([[[0.0, 0.1, 0.2]]])
        with torch.no_grad():
            cost = arm.model.score(*frames, actions, proprio_states=states, embodiment_ids="arm")
        assert abs(cost.item() - plan["cost"]) < 1e-5

    def test_it_saves_and_loads_for_the_same_embodiment(self, tmp_path):
        pusher = self.planner("pusher", init_std=[0.3, 0.01], constraints=[Fixed([1], 0.15)], action_low=[-0.5, 0.1])
        pusher.save_pretrained(tmp_path)
        loaded = VJepa2Planner.from_pretrained(tmp_path)
        assert loaded.embodiment == 0 and loaded.action_low == [-0.5, 0.1]
        assert same_plan(loaded(OBSERVATION, GOAL), pusher(OBSERVATION, GOAL))
        assert loaded.model.config.action_low == [[-0.5, 0.1], [-0.05] * 3]  # the arm's are untouched
        arm = VJepa2Planner.from_pretrained(tmp_path, embodiment="arm")  # without what was set for the pusher
        assert arm.action_low == [-0.05] * 3 and arm.solver.init_std is None and arm.constraints == []
        assert arm.solver.horizon == pusher.solver.horizon

    def test_the_embodiment_must_be_named(self):
        model = build_planner(**PUSHER_AND_ARM, options={"embodiment": 0}).model
        processor = VJepa2VideoProcessor(size=32, crop_size=32)
        with pytest.raises(ValueError, match=r"embodiment is missing; expected one of 0 \(pusher\), 1 \(arm\)"):
            VJepa2Planner(model, processor)
        with pytest.raises(ValueError, match="Unknown embodiment 'hand'"):
            VJepa2Planner(model, processor, embodiment="hand")
        with pytest.raises(ValueError, match="embodiment is 1; expected an integer from 0 to 0"):
            VJepa2Planner(build_planner().model, processor, embodiment=1)

    def test_an_added_embodiment_leaves_the_saved_planner_to_the_first(self):
        planner = build_planner(options={"init_std": [0.1, 0.2]}, action_low=[-1.0, -1.0], action_high=[1.0, 1.0])
        model, processor = planner.model, planner.video_processor
        plan = planner(OBSERVATION, GOAL)
        model.config.planner = planner.solver.to_dict()
        model.add_embodiment(3, name="arm", action_low=[-0.1] * 3, action_high=[0.1] * 3)
        first, added = VJepa2Planner(model, processor), VJepa2Planner(model, processor, embodiment="arm")
        assert first.embodiment == 0 and same_plan(first(OBSERVATION, GOAL), plan)
        assert added.solver.init_std is None and added(OBSERVATION, GOAL)["actions"].shape == (3, 3)
