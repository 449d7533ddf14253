"""Goals encoded once: the same plans to the bit, fewer passes of the encoder, and no goal of other weights."""

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest
import torch
from builders import GOAL, OBSERVATION, OTHER, build_planner, noise_image, spread

from vjepa2_hf.modeling_encoder import VJepa2Encoder
from vjepa2_hf.planning import GradientDescent


@pytest.fixture
def planner():
    return build_planner()


@pytest.fixture
def frames_encoded(monkeypatch) -> list[int]:
    """The number of frames in each pass of an encoder."""
    counts, forward = [], VJepa2Encoder.forward

    def counted(self, pixels, *arguments, **settings):
        counts.append(len(pixels))
        return forward(self, pixels, *arguments, **settings)

    monkeypatch.setattr(VJepa2Encoder, "forward", counted)
    return counts


def is_equal(one, other) -> bool:
    return np.array_equal(one["actions"], other["actions"]) and one["cost"] == other["cost"]


def test_an_encoded_goal_gives_the_plan_of_its_image_without_a_pass_for_it(planner, frames_encoded):
    expected = planner(OBSERVATION, GOAL)
    assert sum(frames_encoded) == 2
    goal = planner.encode_goal(GOAL)
    frames_encoded.clear()
    for _ in range(3):
        assert is_equal(planner(OBSERVATION, goal), expected)
    assert sum(frames_encoded) == 3  # the observations
    costs = [planner.energy_landscape(OBSERVATION, one, points=3)["costs"] for one in (GOAL, goal)]
    assert np.array_equal(*costs)


def test_batches_rows_of_them_and_processed_goals(planner):
    observations, goals = [OBSERVATION, OTHER, GOAL], [GOAL, OBSERVATION, GOAL]
    encoded = planner.encode_goal(goals)
    for plan, expected in zip(planner(observations, encoded), planner(observations, goals), strict=True):
        assert is_equal(plan, expected)
    rows = planner([OTHER, GOAL], encoded[[1, 2]])
    for plan, expected in zip(rows, planner([OTHER, GOAL], goals[1:]), strict=True):
        assert np.allclose(plan["actions"], expected["actions"], atol=1e-5)
    pixels = [planner.video_processor(x, return_tensors="pt")["pixel_values_videos"] for x in (OBSERVATION, GOAL)]
    (plan,) = planner(pixels[0], planner.encode_goal(pixels[1]))
    assert is_equal(plan, planner(OBSERVATION, GOAL))


@pytest.mark.parametrize("rows", [0, None, slice(2), [], [3], [-4], [0.5], [True, False], np.array([True, False])])
def test_rows_that_are_no_list_of_indices_are_refused(planner, rows):
    goal = planner.encode_goal([GOAL, OTHER, GOAL])
    with pytest.raises(
        ValueError, match="the index of an encoded goal is .*; expected a list of at least one row from 0 to 2"
    ):
        goal[rows]


@pytest.mark.parametrize("rows", [(0, 2), range(0, 3, 2), np.array([0, 2]), torch.tensor([0, 2]), [-3, -1]])
def test_rows_may_be_any_sequence_of_indices(planner, rows):
    goal = planner.encode_goal([GOAL, OTHER, OBSERVATION])
    assert torch.equal(goal[rows].latents, goal.latents[[0, 2]]) and goal[rows].images == [GOAL, OBSERVATION]


def test_encoded_goals_in_a_list_or_in_another_place_are_refused_by_name(planner):
    goal = planner.encode_goal(GOAL)
    for call in (
        lambda: planner([OBSERVATION, OTHER], [goal, goal]),
        lambda: planner.encode_goal(goal),
        lambda: planner.encode_goal([goal]),
        lambda: planner(goal, GOAL),
    ):
        with pytest.raises(ValueError, match="is, or holds, an encoded goal; expected images"):
            call()


def test_a_copy_is_of_the_same_model_and_no_weights_travel_with_a_goal(planner):
    goal = planner.encode_goal(GOAL)
    assert is_equal(planner(OBSERVATION, copy.deepcopy(goal)), planner(OBSERVATION, goal))
    with pytest.raises(TypeError, match="cannot be pickled: send its `images`, and call encode_goal"):
        pickle.dumps(goal)
    weights = weakref.ref(next(planner.model.parameters()))
    del planner.model
    gc.collect()
    assert weights() is None


def test_goals_in_sequence(planner):
    goals = [GOAL, OTHER]
    plan = planner(OBSERVATION, goals=[planner.encode_goal(goal) for goal in goals], goal_index=1)
    expected = planner(OBSERVATION, goals=goals, goal_index=1)
    assert np.allclose(plan["actions"], expected["actions"], atol=1e-5)  # both in one pass, or each in its own
    assert plan["goal_index"] == 1 and plan["goal_distance"] == pytest.approx(expected["goal_distance"], rel=1e-5)
    with pytest.raises(ValueError, match="1 of 2 goals are encoded: give all of them encoded, or none"):
        planner(OBSERVATION, goals=[planner.encode_goal(GOAL), OTHER])
    pair = [planner.encode_goal([GOAL]), planner.encode_goal([GOAL, OTHER])]
    with pytest.raises(ValueError, match=r"the goals are of \[1, 2\] problems; expected equal"):
        planner([OBSERVATION], goals=pair)


def test_an_adapting_encoder_encodes_goals_with_its_target_encoder():
    planner = build_planner(freeze_encoder=False)
    spread(planner.model.target_encoder)
    assert is_equal(planner(OBSERVATION, planner.encode_goal(GOAL)), planner(OBSERVATION, GOAL))


def test_a_goal_of_fewer_cameras():
    planner = build_planner(num_views=2, view_names=["top", "wrist"])
    observation, goal = {"top": OBSERVATION, "wrist": OTHER}, {"wrist": GOAL}
    assert is_equal(planner(observation, planner.encode_goal(goal)), planner(observation, goal))


def step_once(model):
    optimizer = torch.optim.AdamW(model.encoder.requires_grad_(True).parameters(), lr=1e-3)
    for parameter in model.encoder.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


CHANGES = {
    "a step of an optimizer": lambda planner: step_once(planner.model),
    "loaded weights": lambda planner: planner.model.load_state_dict(planner.model.state_dict()),
    "another precision": lambda planner: planner.model.to(torch.bfloat16),
    "another model": lambda planner: setattr(planner, "model", copy.deepcopy(planner.model)),
    "another encoder": lambda planner: setattr(planner.model, "encoder", copy.deepcopy(planner.model.encoder)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_goal_of_other_weights_is_refused(planner, change):
    goal = planner.encode_goal(GOAL)
    CHANGES[change](planner)
    with pytest.raises(ValueError, match="the goal was encoded by other weights .*: call encode_goal again"):
        planner(OBSERVATION, goal)
    assert is_equal(planner(OBSERVATION, planner.encode_goal(GOAL)), planner(OBSERVATION, GOAL))


def test_what_is_checked_of_a_goal_is_checked_of_an_encoded_one(planner):
    with pytest.raises(ValueError, match="must both be single, or both be a batch"):
        planner(OBSERVATION, planner.encode_goal([GOAL]))
    with pytest.raises(ValueError, match="2 observations and 1 goals"):
        planner([OBSERVATION, OTHER], planner.encode_goal([GOAL]))
    with pytest.raises(ValueError, match="the goal has 2 frames; expected one image"):
        planner(OBSERVATION, planner.encode_goal(np.stack([GOAL] * 2)))
    with pytest.warns(UserWarning, match="observation and goal have aspect ratios"):
        planner(OBSERVATION, planner.encode_goal(noise_image(1, 32, 64)))


def test_a_goal_encoded_in_inference_mode_serves_a_search_by_gradient():
    planner = build_planner()
    planner.solver = GradientDescent(horizon=3, num_candidates=2, num_iterations=2)
    with torch.inference_mode():
        goal = planner.encode_goal(GOAL)
    assert is_equal(planner(OBSERVATION, goal), planner(OBSERVATION, GOAL))
