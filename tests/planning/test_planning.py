"""The solvers on cost functions whose answer is known, and the published CEM's own numbers."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from vjepa2_hf.planning import CEM, SOLVERS, CategoricalCEM, RandomShooting, build_solver


FIXTURE = Path(__file__).parents[1] / "fixtures" / "cem_ac_noise.safetensors"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quadratic(target):
    """Squared distance of every action of the sequence to the target."""
    return lambda actions: (actions - torch.as_tensor(target)).square().sum(dim=(-1, -2))


def ranks(order):
    """A cost that makes the candidates of one problem better in the given order, whatever they are."""

    def cost(candidates):
        num_candidates = candidates.shape[1]
        costs = torch.full((1, num_candidates), 100.0)
        for place, index in enumerate(order):
            if index < num_candidates:
                costs[0, index] = place
        return costs

    return cost


def test_cem_finds_the_minimum_of_a_quadratic():
    target = torch.tensor([[0.3, -0.4], [0.9, 0.0], [-0.7, 0.1]])
    result = CEM(3, num_candidates=200, num_iterations=12, num_elites=20)(
        quadratic(target), batch_size=2, action_dim=2, generator=seeded()
    )
    assert result.actions.shape == (2, 3, 2) and result.actions.dtype == torch.float32
    assert torch.allclose(result.actions, target.expand(2, 3, 2), atol=1e-2)
    assert torch.allclose(result.cost, quadratic(target)(result.actions))


def test_random_shooting_does_not_reach_what_cem_reaches_with_as_many_candidates():
    cost, arguments = quadratic([0.3, -0.4]), {"batch_size": 4, "action_dim": 2}
    cem = CEM(6, 200, 10, 20)(cost, generator=seeded(), **arguments)
    random = RandomShooting(6, 200, 10)(cost, generator=seeded(), **arguments)
    assert cem.cost.max() < 1e-2 < 0.3 < random.cost.min()


def test_cem_meets_a_minimum_outside_the_bounds_at_the_bound():
    result = CEM(2, 100, 10, 10)(
        quadratic([5.0, -5.0]), 1, 2, action_low=[-0.5, -0.2], action_high=torch.tensor([0.1, 2.0]), generator=seeded()
    )
    assert torch.allclose(result.actions, torch.tensor([0.1, -0.2]).expand(1, 2, 2), atol=1e-3)


def test_bounds_that_do_not_hold_zero():
    result = CEM(2, 100, 10, 10)(quadratic([2.5]), 1, 1, action_low=2.0, action_high=4.0, generator=seeded())
    assert torch.allclose(result.actions, torch.full((1, 2, 1), 2.5), atol=1e-2)


def test_read_only_numpy_bounds_are_taken():
    low = np.full(2, -0.5, dtype=np.float32)
    low.setflags(write=False)
    assert CEM(2, 8, 1, 2)(quadratic([-3.0, -3.0]), 1, 2, low, -low, generator=seeded()).actions.min() >= -0.5


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    name=st.sampled_from(["cem", "random"]),
    horizon=st.integers(1, 4),
    batch_size=st.integers(1, 3),
    bounds=st.lists(st.tuples(st.floats(-3, 3, width=32), st.floats(0, 3, width=32)), min_size=1, max_size=3),
)
def test_every_candidate_and_the_plan_lie_in_the_bounds_and_the_same_seed_gives_the_same_plan(
    seed, name, horizon, batch_size, bounds
):
    low = torch.tensor([each[0] for each in bounds])
    high = low + torch.tensor([each[1] for each in bounds])
    seen = []

    def cost(candidates):
        seen.append(candidates.clone())
        return quadratic(torch.linspace(-4, 4, len(bounds)))(candidates)

    elites = {"num_elites": 3} if name == "cem" else {}
    solver = build_solver(name, horizon=horizon, num_candidates=9, num_iterations=3, **elites)
    first = solver(cost, batch_size, len(bounds), low, high, generator=seeded(seed))
    second = solver(cost, batch_size, len(bounds), low, high, generator=seeded(seed))
    assert torch.equal(first.actions, second.actions) and torch.equal(first.cost, second.cost)
    assert first.actions.shape == (batch_size, horizon, len(bounds))
    for actions in [*seen, first.actions]:
        assert (actions >= low).all() and (actions <= high).all()


def test_momentum_by_hand():
    # 3 candidates, 1 step, 1 dimension; init_std 2, bounds wide; candidates 0 and 1 are always the elites
    solver = CEM(1, num_candidates=3, num_iterations=2, num_elites=2, momentum=0.25, init_std=2.0)
    noise = torch.tensor([[1.0, 2.0, -9.0], [1.0, -1.0, 9.0]]).reshape(2, 3, 1, 1)
    result = solver(ranks([0, 1]), 1, 1, -100.0, 100.0, noise=noise)
    # iteration 1: elites 2 and 4 -> mean 3, unbiased std sqrt(2)
    mean, std = 0.75 * 3, 0.25 * 2 + 0.75 * 2**0.5
    # iteration 2: elites mean + std and mean - std -> the same mean, unbiased std sqrt(2) std
    assert result.actions.item() == pytest.approx(mean)
    assert result.trace["std"][:, 0].tolist() == pytest.approx([std, 0.25 * std + 0.75 * 2**0.5 * std])


def test_refitted_deviation_is_unbiased_and_zero_for_one_elite():
    noise = torch.tensor([0.1, 0.2, 0.6, 0.9]).reshape(1, 4, 1, 1)
    three = CEM(1, 4, 1, 3, init_std=1.0)(ranks([0, 1, 2]), 1, 1, noise=noise)
    assert three.trace["std"].item() == pytest.approx(torch.tensor([0.1, 0.2, 0.6]).std().item())
    one = CEM(1, 4, 1, 1, init_std=1.0)(ranks([2]), 1, 1, noise=noise)
    assert one.trace["std"].item() == 0.0 and one.actions.item() == pytest.approx(0.6)


def test_a_dimension_with_no_deviation_stays_where_the_warm_start_put_it():
    result = CEM(2, 50, 5, 5, init_std=[0.5, 0.0])(
        quadratic([0.5, 0.5]), 1, 2, warm_start=torch.full((1, 2, 2), -0.3), generator=seeded()
    )
    assert torch.allclose(result.actions[..., 1], torch.tensor(-0.3)) and (result.actions[..., 0] > 0.3).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_cost_that_is_not_finite_never_becomes_an_elite(bad):
    def cost(candidates):
        # non-finite wherever the first action is positive: nothing of that half may pull the mean
        costs = quadratic([1.0])(candidates)
        return torch.where(candidates[..., 0, 0] > 0, torch.tensor(bad), costs)

    result = CEM(1, 40, 4, 30, init_std=1.0)(cost, 2, 1, generator=seeded())
    assert (result.actions <= 0).all() and torch.isfinite(result.cost).all()
    assert torch.isfinite(result.trace["cost"]).all() and torch.isfinite(result.trace["std"]).all()
    shot = RandomShooting(1, 40)(cost, 2, 1, generator=seeded())
    assert (shot.actions <= 0).all() and torch.isfinite(shot.cost).all()


def test_with_fewer_finite_candidates_than_elites_the_finite_ones_are_refitted():
    noise = torch.tensor([0.1, 0.3, 0.5, 0.7]).reshape(1, 4, 1, 1)

    def cost(candidates):
        costs = torch.tensor([[float("nan"), 2.0, 1.0, float("inf")]])
        return costs[:, : candidates.shape[1]]

    result = CEM(1, 4, 1, 3, init_std=1.0)(cost, 1, 1, noise=noise)
    assert result.actions.item() == pytest.approx(0.4)
    assert result.trace["cost"].item() == pytest.approx(1.5) and result.trace["best_cost"].item() == 1.0
    # the mean itself gets the first of these costs: what is not finite is reported as infinite
    assert result.cost.item() == float("inf")


@pytest.mark.parametrize("solver", [CEM(2, 8, 2, 2), RandomShooting(2, 8)])
def test_no_finite_cost_is_an_error_that_names_the_row(solver):
    def cost(candidates):
        costs = quadratic([0.0])(candidates)
        costs[1] = float("nan")
        return costs

    with pytest.raises(ValueError, match="batch row 1 has a finite cost"):
        solver(cost, 3, 1, generator=seeded())


def test_the_warm_start_is_the_first_mean():
    start = torch.tensor([[[0.8], [-0.6]]])
    result = CEM(2, 16, 1, 4, init_std=1e-4)(quadratic([0.0]), 1, 1, warm_start=start, generator=seeded())
    assert torch.allclose(result.actions, start, atol=1e-3)
    outside = CEM(2, 16, 1, 4, init_std=1e-4)(quadratic([0.0]), 1, 1, warm_start=start * 9, generator=seeded())
    assert torch.allclose(outside.actions, start.sign(), atol=1e-3)
    kept = RandomShooting(2, 16)(quadratic(start[0]), 1, 1, warm_start=start, generator=seeded())
    assert torch.equal(kept.actions, start)


@pytest.mark.parametrize("low, high, first", [(0.0, 512.0, 256.0), (-1.0, 1.0, 0.0), (2.0, float("inf"), 2.0)])
def test_without_a_warm_start_the_search_begins_in_the_middle(low, high, first):
    seen = []

    def cost(actions: torch.Tensor) -> torch.Tensor:
        seen.append(actions)
        return actions.square().sum(dim=(2, 3))

    CEM(2, 16, 1, 4, init_std=1e-6)(cost, 1, 1, low, high, generator=seeded())
    assert torch.allclose(seen[0], torch.full_like(seen[0], first), atol=1e-4)


def test_warm_start_is_not_changed_in_place():
    start = torch.full((1, 2, 1), 0.25)
    CEM(2, 16, 3, 4)(quadratic([0.0]), 1, 1, warm_start=start, generator=seeded())
    assert (start == 0.25).all()


@pytest.mark.parametrize("solver", [CEM(3, 30, 4, 5, momentum=0.15), RandomShooting(3, 30, 4)])
def test_a_plan_does_not_depend_on_the_batch_it_is_planned_in(solver):
    targets = torch.tensor([[0.3, -0.4], [-0.8, 0.6]]).reshape(2, 1, 1, 2)
    both = solver(quadratic(targets), 2, 2, generator=seeded(3))
    for row in range(2):
        alone = solver(quadratic(targets[row]), 1, 2, generator=seeded(3))
        assert torch.equal(both.actions[row], alone.actions[0]) and torch.equal(both.cost[row], alone.cost[0])
    own = solver(quadratic(targets), 2, 2, generator=[seeded(3), seeded(4)])
    assert torch.equal(own.actions[0], both.actions[0]) and not torch.equal(own.actions[1], both.actions[1])
    assert torch.equal(own.actions[1], solver(quadratic(targets[1]), 1, 2, generator=seeded(4)).actions[0])


def test_trace_has_a_row_an_iteration_and_falls():
    result = CEM(2, 100, 6, 10)(quadratic([0.5]), 3, 1, generator=seeded())
    assert {name: tuple(values.shape) for name, values in result.trace.items()} == {
        "cost": (6, 3), "best_cost": (6, 3), "std": (6, 3)
    }  # fmt: skip
    assert (result.trace["cost"][-1] < result.trace["cost"][0]).all()
    assert (result.trace["best_cost"] <= result.trace["cost"]).all()
    assert (result.trace["std"][-1] < result.trace["std"][0]).all()


def test_candidates_need_no_gradient_and_the_caller_keeps_gradient_mode():
    def cost(candidates):
        assert not torch.is_grad_enabled()
        return quadratic([0.0])(candidates)

    CEM(1, 4, 1, 2)(cost, 1, 1, generator=seeded())
    assert torch.is_grad_enabled()


def test_first_candidates_have_half_the_range_as_deviation():
    seen = []

    def cost(candidates):
        seen.append(candidates)
        return quadratic([0.0, 0.0])(candidates)

    noise = torch.full((1, 1, 1, 2), 0.5)
    CEM(1, 1, 1, 1)(cost, 1, 2, [-1.0, -4.0], [1.0, 4.0], noise=noise)
    assert seen[0].flatten().tolist() == [0.5, 2.0]


def test_noise_drawn_per_step_is_the_order_of_the_published_code():
    seen = []

    def cost(candidates):
        seen.append(candidates)
        return quadratic([0.0] * 3)(candidates)

    solver = CEM(2, 5, 1, 2, init_std=1.0, sample_noise_per_step=True)
    solver(cost, 1, 3, -100.0, 100.0, generator=seeded(7))
    generator = seeded(7)
    for step in range(2):
        assert torch.equal(seen[0][0, :, step], torch.randn(5, 3, generator=generator))


def test_published_planner_after_each_iteration():
    """The published CEM's noise and results; the elites are those that its world model chose."""
    golden = load_file(FIXTURE)
    noise = golden["noise"].reshape(3, 2, 24, 4).transpose(1, 2)
    high = torch.tensor([0.05, 0.05, 0.05, 0.75])
    for iterations in (1, 2, 3):
        elites = iter(golden["elites"])

        def cost(candidates, elites=elites):
            costs = torch.ones(1, candidates.shape[1])
            if candidates.shape[1] > 1:
                costs[0, next(elites)] = 0.0
            return costs

        solver = CEM(2, 24, iterations, 5, momentum=0.15, init_std=[0.05, 0.05, 0.05, 1.0])
        actions = solver(cost, 1, 4, -high, high, noise=noise[:iterations]).actions[0]
        # the published code returns a gripper value below 0.25 in size as 0
        actions[:, 3] = actions[:, 3].where(actions[:, 3].abs() >= 0.25, 0.0)
        assert torch.allclose(actions, golden["actions"][iterations - 1], atol=1e-6)


@pytest.mark.parametrize(
    "solver",
    [
        CEM(3, 10, 2, 4, 0.15, init_std=torch.tensor([0.5, 1.0])),
        CEM(init_std=0.5),
        RandomShooting(2, 5, 3),
        CategoricalCEM(2, 10, 2, 4, actions_per_step=3),
    ],
)
def test_settings_survive_json(solver):
    stored = json.loads(json.dumps(solver.to_dict()))
    assert build_solver(**stored) == solver
    assert stored["solver"] in repr(SOLVERS)


def test_an_object_is_its_own_solver():
    solver = CEM()
    assert build_solver(solver) is solver
    assert build_solver(quadratic) is quadratic


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: CEM(horizon=0), "horizon is 0, expected an integer of at least 1"),
        (lambda: CEM(num_candidates=10.0), "num_candidates is 10.0"),
        (lambda: CEM(num_candidates=10, num_elites=11), "num_elites is 11 but there are only 10 candidates"),
        (lambda: CEM(momentum=1.0), "momentum is 1.0"),
        (lambda: CEM(momentum="0.15"), "momentum is '0.15'"),
        (lambda: CEM(init_std=-1.0), "init_std is -1.0"),
        (lambda: CEM(init_std=[1.0, float("nan")]), "init_std is"),
        (lambda: CEM(init_std="wide"), "init_std is 'wide'"),
        (lambda: CEM(init_std=[[1.0]]), "init_std has shape"),
        (lambda: RandomShooting(num_iterations=True), "num_iterations is True"),
        (lambda: build_solver("cme"), "Unknown solver 'cme'; did you mean 'cem'"),
        (lambda: build_solver("cem", num_elite=3), "solver setting 'cem.num_elite'; did you mean 'cem.num_elites'"),
        (lambda: build_solver(CEM(), horizon=3), "beside a solver object"),
        (lambda: build_solver(CEM), "expected one of"),
        (lambda: build_solver(None), "expected one of"),
        (lambda: CEM(2, 8, 1, 2, init_std=[1.0, 1.0])(quadratic([0.0]), 1, 3), "init_std has shape"),
        (lambda: CEM(2, 8, 1, 2)(quadratic([0.0]), 1, 1, action_low=2.0), "must not exceed"),
        (lambda: CEM(2, 8, 1, 2)(quadratic([0.0]), 1, 1, action_low=float("nan")), "must not exceed"),
        (lambda: CEM(2, 8, 1, 2)(quadratic([0.0]), 1, 3, action_low=[-1.0, -1.0]), "action_low has shape"),
        (lambda: CEM(2, 8, 1, 2)(quadratic([0.0]), 1, 1, action_high=float("inf")), "not finite; give init_std"),
        (lambda: RandomShooting(2, 8)(quadratic([0.0]), 1, 1, action_high=float("inf")), "finite bounds"),
        (lambda: CEM(2, 8, 1, 2)(quadratic([0.0]), 1, 1, warm_start=torch.zeros(1, 3, 1)), "warm_start has shape"),
        (lambda: CEM(2, 8, 1, 2)(quadratic([0.0]), 1, 1, warm_start=torch.full((1, 2, 1), torch.nan)), "warm_start"),
        (lambda: CEM(2, 8, 1, 2)(quadratic([0.0]), 1, 1, noise=torch.zeros(1, 2, 8, 1)), "noise has shape"),
        (lambda: CEM(2, 8, 1, 2)(lambda actions: actions.sum(-1), 1, 1), "cost function returned shape"),
        (lambda: CEM(2, 8, 1, 2)(quadratic([0.0]), 2, 1, generator=[seeded()]), "1 generators were given"),
    ],
)
def test_bad_settings_and_arguments_are_refused_with_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


@pytest.mark.parametrize("solver", [CEM(num_iterations=50), RandomShooting(num_iterations=50)])
def test_no_iteration_begins_after_the_budget(solver):
    def slow(actions):
        time.sleep(0.02)
        return actions.square().sum(dim=(2, 3))

    result = solver(slow, batch_size=1, action_dim=2, budget_ms=50)
    assert 1 <= len(result.trace["cost"]) < 10
    assert len(solver(slow, batch_size=1, action_dim=2, budget_ms=0).trace["cost"]) == 1


class TestCategoricalCEM:
    def test_finds_the_sequence_of_categories_and_returns_it_one_hot(self):
        target = torch.nn.functional.one_hot(torch.tensor([3, 0, 2, 2]), 4).float()
        solver = CategoricalCEM(4, num_candidates=64, num_iterations=6, num_elites=8)
        result = solver(quadratic(target), batch_size=2, action_dim=4, generator=seeded())
        assert torch.equal(result.actions, target.expand(2, 4, 4)) and torch.equal(result.cost, torch.zeros(2))
        assert result.trace["std"].shape == (6, 2) and result.trace["std"][-1].max() < result.trace["std"][0].min()

    def test_every_candidate_is_one_hot_in_every_group(self):
        seen = []

        def cost(actions):
            seen.append(actions)
            return actions[..., 0].sum(dim=-1)

        CategoricalCEM(3, 16, 2, 4, actions_per_step=2)(cost, batch_size=2, action_dim=6, generator=seeded())
        for actions in seen:
            groups = actions.unflatten(-1, (2, 3))
            assert ((groups == 0) | (groups == 1)).all() and (groups.sum(dim=-1) == 1).all()
        assert seen[0].shape == (2, 16, 3, 6) and seen[-1].shape == (2, 1, 3, 6)

    def test_a_category_whose_upper_bound_is_zero_is_never_tried(self):
        def cost(actions):
            assert (actions[..., 1] == 0).all()
            return -actions[..., 2].sum(dim=-1)

        warm_start = torch.eye(3)[[1, 1]].unsqueeze(0)
        solver = CategoricalCEM(2, 32, 3, 8)
        result = solver(cost, 1, 3, action_high=[1.0, 0.0, 1.0], generator=seeded(), warm_start=warm_start)
        assert torch.equal(result.actions, torch.eye(3)[[2, 2]].unsqueeze(0))
        with pytest.raises(ValueError, match="at least one category above 0"):
            solver(cost, 1, 3, action_high=0.0)

    def test_the_warm_start_has_half_of_the_probability(self):
        seen = []

        def cost(actions):
            seen.append(actions)
            return actions.sum(dim=(-1, -2))

        warm_start = torch.eye(4)[[2]].unsqueeze(0)
        CategoricalCEM(1, 4000, 1, 8)(cost, 1, 4, generator=seeded(), warm_start=warm_start)
        share = seen[0][0, :, 0].mean(dim=0)
        torch.testing.assert_close(share, torch.tensor([0.125, 0.125, 0.625, 0.125]), atol=0.03, rtol=0)

    def test_one_generator_gives_every_problem_of_a_batch_the_plan_it_has_alone(self):
        cost = quadratic([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
        solver = CategoricalCEM(2, 5, 1, 2)
        alone = solver(cost, 1, 3, generator=seeded(3)).actions
        assert torch.equal(solver(cost, 3, 3, generator=seeded(3)).actions, alone.expand(3, 2, 3))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"num_elites": 300}, "num_elites is 300 but there are only 256 candidates"),
            ({"momentum": 1.0}, "momentum is 1.0, expected a number in"),
            ({"min_probability": -0.1}, "min_probability is -0.1, expected a number in"),
            ({"actions_per_step": 0}, "actions_per_step is 0, expected an integer of at least 1"),
        ],
    )
    def test_wrong_settings_are_refused(self, settings, message):
        with pytest.raises(ValueError, match=message):
            CategoricalCEM(**settings)

    def test_an_action_size_that_groups_do_not_divide_is_refused(self):
        with pytest.raises(ValueError, match="action_dim=5 is not a multiple of actions_per_step=2"):
            CategoricalCEM(actions_per_step=2)(quadratic(0.0), 1, 5)
