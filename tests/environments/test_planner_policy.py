"""A planner in closed loop: who is planned for, where searches start, and models that do not fit."""

import numpy as np
import pytest
import torch
from tqdm import tqdm

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig, VJepa2Planner, VJepa2VideoProcessor, VJepa2WorldModel
from vjepa2_hf.environments import PUSHING
from vjepa2_hf.environments.goal_policies import GoalPolicy
from vjepa2_hf.environments.planner_policy import PlannerPolicy
from vjepa2_hf.environments.tasks import Tasks
from vjepa2_hf.planning import ICEM


QUIET = tqdm(disable=True)
BOUNDS = {"action_low": [-1.0] * 4, "action_high": [1.0] * 4}


def make_planner(embodiment=None, **fields) -> VJepa2Planner:
    """Random weights; model steps of two environment actions."""
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "crop_size": 64}
    dynamics = {"predictor_hidden_size": 12, "predictor_num_hidden_layers": 1, "predictor_num_attention_heads": 2}
    torch.manual_seed(0)
    fields = {"action_dim": 4, "actions_per_step": 2, "frame_skip": 2, **BOUNDS, **dynamics, **fields}
    model = VJepa2WorldModel.from_encoder(VJepa2Encoder(VJepa2EncoderConfig(**sizes)), **fields)
    solver = {"horizon": 3, "num_candidates": 4, "num_iterations": 1, "num_elites": 2}
    solver |= {} if embodiment is None else {"embodiment": embodiment}
    return VJepa2Planner(model, VJepa2VideoProcessor(size=64, crop_size=64), solver="cem", device="cpu", **solver)


@pytest.mark.parametrize(
    ("fields", "views", "shown"),
    [
        ({}, [], "top"),
        ({}, ["agent", "top"], "agent"),
        ({"view_names": ["agent"]}, ["top", "agent"], "agent"),
        ({"num_views": 2, "view_names": ["agent", "top"]}, ["top", "agent"], ["agent", "top"]),
        ({"num_views": 2, "view_names": ["agent", "top"]}, ["top"], ["top"]),
    ],
)
def test_a_model_sees_the_views_that_it_was_trained_on(monkeypatch, fields, views, shown):
    seen, plain = [], VJepa2Planner.__call__

    def call(self, images, goal, **settings):
        seen.extend([images, goal.images])
        return plain(self, images, goal, **settings)

    monkeypatch.setattr(VJepa2Planner, "__call__", call)
    tasks = Tasks(PUSHING, range(2), env_kwargs={"views": views} if views else {})
    PlannerPolicy(make_planner(**fields), 0, QUIET)(tasks)
    for images, states in zip(seen, (tasks.states, tasks.goals), strict=True):
        for image, state in zip(images, states, strict=True):
            found = image if isinstance(shown, list) else {shown: image}
            assert list(found) == (shown if isinstance(shown, list) else [shown])
            for view, one in found.items():
                np.testing.assert_array_equal(one, tasks.env.render_state(state, view=view))


def test_one_of_several_embodiments_plans_with_its_own_sizes():
    fields = {
        "num_embodiments": 2,
        "embodiment_action_dims": [7, 2],
        "action_dim": 7,
        "embodiment_proprio_dims": [7, 2],
    }
    fields |= {"proprio_dim": 7, "actions_per_step": 1, "frame_skip": 1, "action_low": None, "action_high": None}
    planner = make_planner(**fields, embodiment=1)
    assert PlannerPolicy(planner, 0, QUIET)(Tasks(PUSHING, range(2))).shape == (2, 3, 2)
    other = make_planner(**fields, embodiment=0)
    with pytest.raises(ValueError, match="has actions of 7 numbers, 1 environment actions each"):
        PlannerPolicy(other, 0, QUIET)(Tasks(PUSHING, range(2)))


def test_tasks_without_the_views_of_a_model_are_refused():
    policy = PlannerPolicy(make_planner(view_names=["wrist"]), 0, QUIET)
    with pytest.raises(ValueError, match=r"sees wrist, but the tasks show top: set views=\['wrist'\]"):
        policy(Tasks(PUSHING, range(2)))


def test_episodes_that_reached_their_goal_are_not_planned_any_more():
    tasks = Tasks(PUSHING, range(4))
    tasks.reached[:] = [True, False, True, False]
    policy = PlannerPolicy(make_planner(), 0, QUIET)
    actions = policy(tasks)
    assert actions.shape == (4, 6, 2)  # 3 model steps of 2 environment actions
    assert policy.plans == 2
    assert not actions[[0, 2]].any() and actions[[1, 3]].any()


def test_a_warm_start_is_the_last_plan_moved_on(monkeypatch):
    tasks, planner, starts = Tasks(PUSHING, range(2)), make_planner(), []
    policy = PlannerPolicy(planner, 0, QUIET, executed_actions=2, warm_start=True)
    plain = VJepa2Planner.__call__

    def call(self, *arguments, warm_start=None, **settings):
        starts.append(warm_start)
        return plain(self, *arguments, warm_start=warm_start, **settings)

    monkeypatch.setattr(VJepa2Planner, "__call__", call)
    first = policy(tasks).reshape(2, 3, 4)
    policy(tasks)
    assert starts[0] is None
    np.testing.assert_array_equal(np.stack(starts[1])[:, :2], first[:, 1:])
    np.testing.assert_array_equal(np.stack(starts[1])[:, 2], first[:, 2])  # as the planner's own go on
    policy.begin(1)(tasks)
    assert starts[2] is None  # other episodes
    two_steps = PlannerPolicy(planner, 0, QUIET, executed_actions=4, warm_start=True)
    first = two_steps(tasks).reshape(2, 3, 4)
    two_steps(tasks)
    np.testing.assert_array_equal(np.stack(starts[4]), first[:, [2, 2, 2]])


def test_the_elites_of_icem_go_on(monkeypatch):
    planner = make_planner()
    planner.solver = ICEM(3, 4, 1, 2)
    policy, tasks = PlannerPolicy(planner, 0, QUIET, executed_actions=2, warm_start=True), Tasks(PUSHING, range(2))
    policy(tasks)
    tasks.reached[0] = True  # the one that is left keeps its own
    (start,) = policy._starts(np.array([1]))
    assert start.shape == (3, 3, 4) and np.array_equal(start, policy.last_starts[1])
    policy(tasks)


def test_a_proposal_is_what_the_policy_would_do(tmp_path, monkeypatch):
    planner, starts = make_planner(), []
    GoalPolicy.from_world_model(planner.model, "nowhere", hidden_size=8).save_pretrained(tmp_path)
    policy = PlannerPolicy(planner, 0, QUIET, proposal=str(tmp_path))
    plain = VJepa2Planner.__call__

    def call(self, *arguments, warm_start=None, **settings):
        def noted(*latents):
            starts.extend(warm_start(*latents))
            return torch.stack(starts)

        return plain(self, *arguments, warm_start=noted, **settings)

    encode, encoded = VJepa2WorldModel.encode, []

    def counted(self, pixels, *views):
        encoded.append(len(pixels))
        return encode(self, pixels, *views)

    monkeypatch.setattr(VJepa2Planner, "__call__", call)
    monkeypatch.setattr(VJepa2WorldModel, "encode", counted)
    tasks = Tasks(PUSHING, range(2))
    policy(tasks)
    assert encoded == [2]  # once for proposal and search
    pixels = planner.video_processor(list(tasks.render()), return_tensors="pt")["pixel_values_videos"]
    goals = planner.video_processor(list(tasks.goal_images), return_tensors="pt")["pixel_values_videos"]
    latents = [planner.model.encode(part.flatten(0, 1).unsqueeze(1))[:, 0] for part in (pixels, goals)]
    np.testing.assert_allclose(np.stack(starts)[:, 0], policy.proposal(*latents).detach(), atol=1e-5)


def test_proposals_count_the_steps_left(tmp_path, monkeypatch):
    planner, given = make_planner(), []
    policy = GoalPolicy.from_world_model(planner.model, "w", hidden_size=8, steps_left=4)
    policy.save_pretrained(tmp_path)
    forward = GoalPolicy.forward

    def noted(self, latents, goal, left=None):
        given.append(left.tolist())
        return forward(self, latents, goal, left)

    monkeypatch.setattr(GoalPolicy, "forward", noted)
    plan = PlannerPolicy(planner, 0, QUIET, proposal=str(tmp_path))
    tasks = Tasks(PUSHING, range(1))
    for expected in (4, 2, 1):  # two model steps are executed between calls
        given.clear()
        actions = plan(tasks)
        for step in range(2 * planner.model.config.actions_per_step):
            tasks.step(actions[:, step])
        assert given == [[max(1, expected - step)] for step in range(planner.solver.horizon)]


def test_calls_are_timed_and_compared_with_their_budget():
    tasks = Tasks(PUSHING, range(2))
    policy = PlannerPolicy(make_planner(), 0, QUIET, budget_ms=0.001)
    policy(tasks)
    found = policy.timings()
    assert found["within_budget"] == 0.0  # one iteration is always done
    assert found["plan_milliseconds"] == pytest.approx(found["call_milliseconds"]["median"] / 2)
    assert found["plan_cpu_milliseconds"] > 0


def test_what_does_not_fit_is_a_sentence(tmp_path):
    planner = make_planner()
    with pytest.raises(ValueError, match="executed_actions is 3"):
        PlannerPolicy(planner, 0, QUIET, executed_actions=3, warm_start=True)
    other = make_planner(state_type="pooled")
    GoalPolicy.from_world_model(other.model, "nowhere", hidden_size=8).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="takes 1 tokens of size 12"):
        PlannerPolicy(planner, 0, QUIET, proposal=str(tmp_path))
    bounds = {"action_low": [-1.0] * 6, "action_high": [1.0] * 6}
    with pytest.raises(ValueError, match="actions of 6 numbers"):
        PlannerPolicy(make_planner(action_dim=6, **bounds), 0, QUIET)(Tasks(PUSHING, range(1)))
