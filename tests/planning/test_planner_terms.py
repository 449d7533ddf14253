"""The planner with every solver, cost and constraint; goals in sequence, landscapes, budgets, the published arm."""

import functools
import time

import numpy as np
import pytest
import torch
from builders import ENCODER, GOAL, OBSERVATION, OTHER, build_planner, golden, load_published, same_plan
from transformers import pipeline

from vjepa2_hf import VJepa2Planner, VJepa2VideoProcessor, VJepa2WorldModelConfig
from vjepa2_hf.planning import (
    CEM,
    ICEM,
    MPPI,
    SOLVERS,
    ActionPenalty,
    CategoricalCEM,
    ClosedGripper,
    Closest,
    Cost,
    DeadZone,
    Fixed,
    GradientDescent,
    LatentDistance,
    ProprioDistance,
    RandomShooting,
    StepBounds,
    TemporalDistance,
    Uncertainty,
)


SMALL = {
    "cem": CEM(3, 8, 2, 3),
    "icem": ICEM(3, 8, 2, 3, noise_exponent=1.0),
    "mppi": MPPI(3, 8, 2, temperature=0.5),
    "gradient": GradientDescent(3, 3, 4),
    "random": RandomShooting(3, 8),
}


@pytest.fixture(scope="module")
def planner():
    return build_planner(action_low=[-0.5, -1.0], action_high=[0.5, 2.0], proprio_dim=2, proprio_transition="add")


@pytest.fixture
def remade(planner):
    def remake(**settings):
        return VJepa2Planner(planner.model, planner.video_processor, **settings)

    saved = planner.model.config.planner
    yield remake
    planner.model.config.planner = saved


STATE = {"proprio_state": [0.2, -0.1]}


@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "categorical_cem"])
def test_every_solver_plans_batches_as_single_plans_and_is_saved(remade, name, tmp_path):
    planner = remade(solver=SMALL[name], candidate_chunk_size=2)
    plan = planner(OBSERVATION, GOAL, **STATE)
    assert plan["actions"].shape == (3, 2) and np.isfinite(plan["cost"])
    assert (plan["actions"] >= [-0.5, -1]).all() and (plan["actions"] <= [0.5, 2]).all()
    states = {"proprio_state": [STATE["proprio_state"], [0.5, 0.5]]}
    batch = planner([OBSERVATION, OTHER], [GOAL, GOAL], **states)
    assert same_plan(batch[0], plan)
    assert same_plan(batch[1], planner(OTHER, GOAL, proprio_state=[0.5, 0.5]))
    planner.save_pretrained(tmp_path)
    loaded = pipeline("latent-planning", model=str(tmp_path))
    assert loaded.solver == SMALL[name] and same_plan(loaded(OBSERVATION, GOAL, **STATE), plan)
    assert type(VJepa2Planner.from_pretrained(tmp_path, solver="cem").solver) is CEM


def test_a_warm_start_is_a_result_that_the_next_call_takes(remade):
    for solver, shape in ((SMALL["cem"], (3, 2)), (SMALL["icem"], (3, 3, 2))):
        planner = remade(solver=solver)
        plan = planner(OBSERVATION, GOAL, **STATE)
        assert plan["warm_start"].shape == shape and plan["warm_start"].dtype == np.float32
        one = planner(OBSERVATION, GOAL, warm_start=plan["warm_start"], **STATE)
        states = {"proprio_state": [STATE["proprio_state"]] * 2}
        two = planner([OBSERVATION] * 2, [GOAL] * 2, warm_start=[plan["warm_start"]] * 2, **states)
        assert same_plan(two[0], one) and not np.array_equal(one["actions"], plan["actions"])
    moved = remade(solver=SMALL["mppi"])(OBSERVATION, GOAL, **STATE)
    np.testing.assert_array_equal(moved["warm_start"], moved["actions"][[1, 2, 2]])


@pytest.mark.parametrize(
    "cost",
    [
        LatentDistance("cosine"),
        LatentDistance("l1", summed=True),
        ProprioDistance([1]) + 0.1 * ActionPenalty(),
        0.5 * LatentDistance() + 2.0 * ProprioDistance(),
    ],
)
def test_costs_are_the_models_score_saved_and_replaced_in_a_call(remade, cost, tmp_path):
    planner = remade(solver=SMALL["cem"], cost=cost)
    arguments = {**STATE, "goal_proprio_state": [0.4, 0.3]}
    plan = planner(OBSERVATION, GOAL, **arguments)
    frames, goal = (
        planner.video_processor(x, return_tensors="pt")["pixel_values_videos"] for x in (OBSERVATION, GOAL)
    )
    score = planner.model.score(
        frames,
        goal,
        torch.from_numpy(plan["actions"])[None, None],
        proprio_states=torch.tensor([[STATE["proprio_state"]]]),
        goal_proprio_states=torch.tensor([[0.4, 0.3]]),
        cost=cost,
    )
    assert plan["cost"] == pytest.approx(score.item(), rel=1e-4)
    planner.save_pretrained(tmp_path)
    loaded = pipeline("latent-planning", model=str(tmp_path))
    assert loaded.cost == cost and same_plan(loaded(OBSERVATION, GOAL, **arguments), plan)
    assert same_plan(remade(solver=SMALL["cem"])(OBSERVATION, GOAL, cost=cost, **arguments), plan)


def test_the_cost_decides_what_is_searched(remade):
    planner = remade(solver=CEM(3, 64, 6, 8))
    near = planner(OBSERVATION, GOAL, cost="proprio", goal_proprio_state=[0.5, 0.6], **STATE)
    reached = np.array(STATE["proprio_state"]) + near["actions"].sum(axis=0)
    np.testing.assert_allclose(reached, [0.5, 0.6], atol=0.05)
    alone = planner(OBSERVATION, cost="proprio", goal_proprio_state=[0.5, 0.6], **STATE)  # no picture of the goal
    assert same_plan(alone, near)
    still = planner(OBSERVATION, GOAL, cost=ActionPenalty(), **STATE)
    assert np.abs(still["actions"]).max() < 0.05


@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "categorical_cem"])
def test_constraints_hold_are_saved_and_replaced_in_a_call(remade, name, tmp_path):
    constraints = [StepBounds([-0.1, -0.2], [0.1, 0.2]), Fixed([1], 0.05)]
    planner = remade(solver=SMALL[name], constraints=constraints)
    plan = planner(OBSERVATION, GOAL, **STATE)
    assert (plan["actions"][:, 1] == np.float32(0.05)).all()
    assert (np.abs(plan["actions"][:, 0]) <= np.float32([0.1, 0.2, 0.2])).all() and plan["actions"][:, 0].any()
    planner.save_pretrained(tmp_path)
    loaded = pipeline("latent-planning", model=str(tmp_path))
    assert loaded.constraints == constraints and same_plan(loaded(OBSERVATION, GOAL, **STATE), plan)
    assert same_plan(remade(solver=SMALL[name])(OBSERVATION, GOAL, constraints=constraints, **STATE), plan)


@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "categorical_cem"])
def test_constraints_hold_for_both_environment_actions_of_a_step(name, tmp_path):
    model = build_planner(action_dim=4, actions_per_step=2)
    constraints = [StepBounds([0.2, 0.5], [0.3, 0.9]), ClosedGripper(1, dim=-1), DeadZone(0, 0.25)]
    planner = VJepa2Planner(model.model, model.video_processor, solver=SMALL[name], constraints=constraints)
    plan = planner(OBSERVATION, GOAL)
    first, *later = plan["actions"].reshape(3, 2, 2)  # model steps, environment actions, their dimensions
    assert ((first[:, 0] == 0) | (first[:, 0] >= 0.25)).all() and (first[:, 0] <= np.float32(0.3)).all()
    assert (first[:, 1] >= np.float32(0.2)).all() and (first[:, 1] <= np.float32(0.3)).all()
    for step in later:
        assert (step[:, 0] >= 0.5).all() and (step[:, 0] <= np.float32(0.9)).all() and (step[:, 1] == 1.0).all()
    planner.save_pretrained(tmp_path)
    loaded = pipeline("latent-planning", model=str(tmp_path))
    assert loaded.constraints == constraints and same_plan(loaded(OBSERVATION, GOAL), plan)
    fixed = planner(OBSERVATION, GOAL, constraints=[StepBounds([0.2, 0.5], [0.3, 1.0]), Fixed([1], 0.0)])
    assert (fixed["actions"][:, [1, 3]] == 0).all() and (fixed["actions"][:, [0, 2]] >= np.float32(0.2)).all()
    with pytest.raises(ValueError, match="on dimension 3, but actions have 2; expected -2 to 1, of one environment"):
        planner(OBSERVATION, GOAL, constraints=[Fixed([3])])


def test_gradient_descent_plans_in_inference_mode(remade):
    planner = remade(solver=SMALL["gradient"])
    with torch.inference_mode():
        plan = planner(OBSERVATION, GOAL, **STATE)
    assert same_plan(plan, planner(OBSERVATION, GOAL, **STATE))


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        (SMALL["cem"], "the model's actions are discrete: take 'categorical_cem'"),
        (CategoricalCEM(3, 8, 2, 3), "the model has actions_per_step=2"),
    ],
)
def test_solvers_of_other_actions_than_the_models_are_refused(solver, message):
    planner = build_planner(action_type="discrete", action_dim=4, actions_per_step=2)
    with pytest.raises(ValueError, match=message):
        VJepa2Planner(planner.model, planner.video_processor, solver=solver)


class TestGoals:
    @pytest.fixture
    def quick(self, remade):
        return remade(solver=RandomShooting(2, 2))

    def test_goals_that_are_reached_are_passed(self, quick):
        goals = [OBSERVATION, GOAL, OTHER]
        first = quick(OBSERVATION, goals=goals, **STATE)
        assert first["goal_index"] == 1 and first["goal_distance"] > 0
        assert same_plan(first, quick(OBSERVATION, GOAL, **STATE))
        second = quick(GOAL, goals=goals, goal_index=first["goal_index"], **STATE)
        assert second["goal_index"] == 2 and same_plan(second, quick(GOAL, OTHER, **STATE))
        last = quick(OTHER, goals=goals, goal_index=second["goal_index"], **STATE)
        assert last["goal_index"] == 2 and last["goal_distance"] == pytest.approx(0, abs=1e-6)
        assert "goal_index" not in quick(OBSERVATION, GOAL, **STATE)

    def test_a_goal_that_lies_behind_does_not_come_back_and_none_is_left_out(self, quick):
        goals = [OBSERVATION, GOAL, OTHER]
        assert quick(OBSERVATION, goals=goals, goal_index=1, **STATE)["goal_index"] == 1
        assert quick(OTHER, goals=goals, **STATE)["goal_index"] == 0  # the last goal's picture, too early
        assert quick(OTHER, goals=goals, goal_threshold=1e9, **STATE)["goal_index"] == 2

    def test_problems_of_a_batch_are_at_goals_of_their_own(self, quick):
        goals = [[OBSERVATION, OTHER], [GOAL, GOAL], [OTHER, OBSERVATION]]
        states = {"proprio_state": [STATE["proprio_state"]] * 2}
        plans = quick([OBSERVATION, GOAL], goals=goals, goal_index=[0, 1], **states)
        assert [plan["goal_index"] for plan in plans] == [1, 2]
        assert same_plan(plans[0], quick(OBSERVATION, GOAL, **STATE))
        assert same_plan(plans[1], quick(GOAL, OBSERVATION, **STATE))

    def test_proprio_states_of_goals(self, quick):
        goals, states = [OBSERVATION, GOAL], [[0.0, 0.0], [0.4, 0.3]]
        cost = LatentDistance() + ProprioDistance()
        plan = quick(OBSERVATION, goals=goals, goal_proprio_state=states, cost=cost, **STATE)
        assert same_plan(plan, quick(OBSERVATION, GOAL, goal_proprio_state=states[1], cost=cost, **STATE))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"goals": [GOAL], "goal": GOAL}, "give either goal, or goals"),
            ({"goals": []}, "give either goal, or goals as a list of at least one"),
            ({"goals": [GOAL, OTHER], "goal_index": 2}, "goal_index is 2; expected 0 to 1, as there are 2 goals"),
            ({"goals": [GOAL, OTHER], "goal_index": [0, 0]}, r"goal_index is \[0, 0\]; expected an index"),
            ({"goals": [GOAL, OTHER], "cost": "action"}, "goals need a cost with a LatentDistance"),
            ({"goals": [GOAL, np.stack([OTHER] * 2)]}, "the goal has 2 frames"),
            ({"goals": [GOAL], "goal_proprio_state": np.zeros((2, 2))}, "goal_proprio_state has shape"),
            ({}, "goal is missing"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, quick, arguments, message):
        with pytest.raises(ValueError, match=message):
            quick(OBSERVATION, **arguments, **STATE)


class TestTemporalDistance:
    """Wherever a cost goes, the distance head's may go: every solver, saving, goals in sequence, the landscape."""

    NEAREST = Closest(2 * LatentDistance() + TemporalDistance())

    @pytest.fixture
    def timed(self):
        built = build_planner(distance_head=True)
        return VJepa2Planner(built.model, built.video_processor, solver=RandomShooting(2, 4), cost=self.NEAREST)

    @pytest.mark.parametrize("name", ["cem", "gradient"])
    def test_the_plans_cost_is_its_score(self, timed, name):
        planner = VJepa2Planner(timed.model, timed.video_processor, solver=SMALL[name], cost=self.NEAREST)
        plan = planner(OBSERVATION, GOAL)
        frames = [planner.video_processor(frame[None], return_tensors="pt") for frame in (OBSERVATION, GOAL)]
        latents = torch.cat([planner.model.encode(frame["pixel_values_videos"]) for frame in frames])
        actions = torch.from_numpy(plan["actions"])[None, None]
        score = planner.model.score(latents[:1], latents[1:], actions, cost=self.NEAREST)
        assert plan["cost"] == pytest.approx(score.item(), rel=1e-4)
        assert plan["cost"] <= planner.model.score(latents[:1], latents[1:], 0 * actions, cost=self.NEAREST).item()

    def test_it_is_saved_with_the_planner(self, timed, tmp_path):
        plan = timed(OBSERVATION, GOAL)
        timed.save_pretrained(tmp_path)
        loaded = pipeline("latent-planning", model=str(tmp_path))
        assert loaded.cost == self.NEAREST and same_plan(loaded(OBSERVATION, GOAL), plan)

    def test_goals_are_reached_by_the_costs_own_distance(self, timed):
        plans = {
            name: timed(OBSERVATION, goals=[OTHER, GOAL], cost=cost)
            for name, cost in {"nearest": self.NEAREST, "l2": "l2", "temporal": "temporal"}.items()
        }
        distances = {name: plan["goal_distance"] for name, plan in plans.items()}
        assert distances["nearest"] == pytest.approx(2 * distances["l2"] + distances["temporal"], rel=1e-4)
        assert timed(OBSERVATION, goals=[OBSERVATION, GOAL])["goal_index"] == 1

    def test_the_landscape_is_of_it(self, timed):
        found = timed.energy_landscape(OBSERVATION, GOAL, points=3)["costs"]
        assert found.shape == (3, 3) and (found > 0).all()
        others = timed.energy_landscape(OBSERVATION, GOAL, points=3, cost="temporal")["costs"]
        assert (others < found).all()

    def test_a_model_without_a_head_is_refused(self, remade):
        with pytest.raises(ValueError, match="the model has no distance head.*train_distance_head.py"):
            remade(cost="temporal")


class TestLandscape:
    def test_numbers_are_scores_and_there_is_a_picture(self, planner, tmp_path):
        found = planner.energy_landscape(OBSERVATION, GOAL, dims=(1, 0), points=5, **STATE)
        assert found["x"].tolist() == pytest.approx(np.linspace(-1, 2, 5).tolist())
        assert found["y"].tolist() == pytest.approx(np.linspace(-0.5, 0.5, 5).tolist())
        frames, goal = (
            planner.video_processor(x, return_tensors="pt")["pixel_values_videos"] for x in (OBSERVATION, GOAL)
        )
        state = torch.tensor([[STATE["proprio_state"]]])
        for row, column in ((0, 0), (1, 3), (4, 2)):
            action = torch.tensor([[[[found["y"][row], found["x"][column]]]]])
            cost = planner.model.score(frames, goal, action, proprio_states=state)
            assert found["costs"][row, column] == pytest.approx(cost.item(), rel=1e-4)
        assert found["costs"].shape == (5, 5) and found["costs"].std() > 0
        found["figure"].savefig(tmp_path / "landscape.png")
        assert (tmp_path / "landscape.png").stat().st_size > 1000
        axis = found["figure"].axes[0]
        (mark,) = axis.lines
        row, column = np.unravel_index(found["costs"].argmin(), (5, 5))
        assert [*mark.get_xdata(), *mark.get_ydata()] == [found["x"][column], found["y"][row]]
        assert not mark.get_clip_on()  # whole at the edge too
        assert [text.get_text() for text in found["figure"].legends[0].get_texts()] == ["lowest cost"]
        assert axis.get_xlabel() == "action[1]"

    def test_the_other_actions_are_as_given(self, planner):
        plan = np.array([[0.1, 0.2], [0.3, 0.4]])
        found = planner.energy_landscape(OBSERVATION, GOAL, points=3, actions=plan, step=1, **STATE)
        first = planner.energy_landscape(OBSERVATION, GOAL, points=3, actions=plan, **STATE)
        other = planner.energy_landscape(OBSERVATION, GOAL, points=3, actions=plan * 0.5, step=1, **STATE)
        assert np.abs(found["costs"] - first["costs"]).max() > 1e-4
        assert np.abs(found["costs"] - other["costs"]).max() > 1e-5

    def test_dims_are_of_every_environment_action_or_of_the_whole_step(self):
        bounds = {"action_low": [-0.5, -1.0, -0.4, -1.0], "action_high": [0.5, 2.0, 0.5, 1.0]}
        planner = build_planner(action_dim=4, actions_per_step=2, **bounds)
        frames, goal = (
            planner.video_processor(x, return_tensors="pt")["pixel_values_videos"] for x in (OBSERVATION, GOAL)
        )
        base = np.array([[0.1, 0.2, 0.3, 0.4]], np.float32)

        def cost(action):
            return planner.model.score(frames, goal, torch.tensor([[[action]]], dtype=torch.float32)).item()

        found = planner.energy_landscape(OBSERVATION, GOAL, dims=(0, 1), points=3, actions=base)
        assert found["x"].tolist() == pytest.approx([-0.4, 0.05, 0.5])  # what both actions may be
        assert found["y"].tolist() == pytest.approx([-1, 0, 1])
        x, y = found["x"][0], found["y"][2]
        assert found["costs"][2, 0] == pytest.approx(cost([x, y, x, y]), rel=1e-4)
        found = planner.energy_landscape(OBSERVATION, GOAL, dims=(0, 3), points=3, actions=base)
        x, y = found["x"][0], found["y"][2]
        assert (x, y) == pytest.approx((-0.5, 1))
        assert found["costs"][2, 0] == pytest.approx(cost([x, 0.2, 0.3, y]), rel=1e-4)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"dims": (0, 0)}, "dims are .0, 0.; expected two of the 2 dimensions"),
            ({"dims": (0, 2)}, "dims are .0, 2.; expected two of the 2"),
            ({"points": 1}, "points is 1; expected 2 or more"),
            ({"step": 1}, "step is 1; expected 0 to 0"),
            ({"actions": np.zeros(2)}, r"actions have shape \(2,\); expected \(P, 2\)"),
            ({"warm_start": None}, "no argument 'warm_start'"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, planner, arguments, message):
        with pytest.raises(ValueError, match=message):
            planner.energy_landscape(OBSERVATION, GOAL, **arguments, **STATE)
        with pytest.raises(ValueError, match="the observation is a batch"):
            planner.energy_landscape(*torch.zeros(2, 2, 1, 3, 32, 32), proprio_state=[[0.0, 0.0]] * 2)


def test_the_budget_holds_encoding_too(remade, monkeypatch):
    """Encoding takes 50 of 60 milliseconds, an iteration 20: with the search's own time alone two would fit."""
    planner, now = remade(solver=CEM(2, 4, 5, 2)), [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    encode, score = planner.model.encode, planner.model.score

    def slow(function, seconds):
        def call(*args, **kwargs):
            now[0] += seconds
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(planner.model, "encode", slow(encode, 0.05))
    monkeypatch.setattr(planner.model, "score", slow(score, 0.02))
    assert len(planner(OBSERVATION, GOAL, budget_ms=60, **STATE)["trace"]["cost"]) == 1
    assert len(planner(OBSERVATION, GOAL, budget_ms=140, **STATE)["trace"]["cost"]) == 2
    assert len(planner(OBSERVATION, GOAL, **STATE)["trace"]["cost"]) == 5


def test_old_folders_with_a_distance_load(remade, planner):
    planner.model.config.planner = {"solver": "cem", "horizon": 2, "distance": "l1"}
    loaded = remade()
    assert loaded.cost == LatentDistance("l1") and loaded.solver.horizon == 2
    assert remade(cost="cosine").cost == LatentDistance("cosine")


def test_what_cannot_be_saved_or_does_not_fit_is_refused(remade, tmp_path):
    class Mine(Cost):
        def step(self, imagined):
            return imagined.actions[..., 0]

    class Half:
        def apply(self, actions):
            return actions / 2

    for settings, message in [
        ({"cost": Mine()}, "the cost .*cannot be saved"),
        ({"constraints": [Half()]}, "to_dict"),
    ]:
        planner = remade(solver=SMALL["cem"], **settings)
        planner(OBSERVATION, GOAL, **STATE)
        with pytest.raises(ValueError, match=message):
            planner.save_pretrained(tmp_path)
    for settings, message in [
        ({"cost": "l1", "distance": "l2"}, "both cost and distance='l2' were given"),
        ({"cost": Uncertainty()}, "this model is deterministic"),
        ({"constraints": "fixed"}, "constraint is 'fixed'; expected a dict"),
    ]:
        with pytest.raises(ValueError, match=message):
            remade(**settings)


class TestPublishedArm:
    """The published CEM with the published world model, from pictures to actions."""

    def planner(self, iterations: int, **settings) -> VJepa2Planner:
        model = load_published(
            golden("cem_ac"),
            {**ENCODER, "num_hidden_layers": 2},
            loss_exponent=1,
            proprio_transition="pose_delta",
        )
        published = VJepa2WorldModelConfig.published
        for name in ("planner", "action_low", "action_high"):
            setattr(model.config, name, published[name])
        sizes = {"num_candidates": 24, "num_elites": 5, "num_iterations": iterations}  # of the reference run
        processor = VJepa2VideoProcessor(size=64, crop_size=64)
        planner = VJepa2Planner(model, processor, device="cpu", **sizes, **settings)
        noise = golden("cem_ac")["noise"].reshape(3, 2, 24, 4).transpose(1, 2)[:iterations]
        planner.solver = functools.partial(planner.solver, noise=noise)
        return planner

    def plan(self, planner: VJepa2Planner) -> torch.Tensor:
        data = golden("cem_ac")
        frames, goal = (data[name].unsqueeze(1) for name in ("observation", "goal"))
        (plan,) = planner(frames, goal, proprio_state=[data["pose"][0]])
        return torch.from_numpy(plan["actions"]).unsqueeze(0)

    @pytest.mark.parametrize("iterations", [1, 2, 3])
    def test_actions_after_each_iteration(self, iterations):
        expected = golden("cem_ac")[f"out/action_after_{iterations}"]
        torch.testing.assert_close(self.plan(self.planner(iterations)), expected, atol=1e-5, rtol=0)

    def test_a_gripper_that_closes(self):
        gripper = ClosedGripper(1, exact=False)
        planner = self.planner(3)
        planner.constraints.append(gripper)
        expected = golden("cem_ac")["out/action_gripper_closed_from_1"]
        torch.testing.assert_close(self.plan(planner), expected, atol=1e-5, rtol=0)

    def test_the_setting_is_one_config(self):
        planner = self.planner(1)
        solver = planner.solver.func
        assert solver == CEM(2, 24, 1, 5, 0.15, init_std=[0.05, 0.05, 0.05, 0, 0, 0, 1], sample_noise_per_step=True)
        assert planner.cost == LatentDistance("l1")
        assert planner.constraints == [Fixed([3, 4, 5], 0.0), DeadZone(6, 0.25)]
