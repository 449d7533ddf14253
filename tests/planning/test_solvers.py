"""All solvers on functions with known minima, and what holds for every one of them."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vjepa2_hf import specs
from vjepa2_hf.planning import (
    CEM,
    ICEM,
    MPPI,
    SOLVERS,
    CategoricalCEM,
    ClosedGripper,
    Fixed,
    GradientDescent,
    RandomShooting,
    StepBounds,
    build_solver,
    shift_plan,
)
from vjepa2_hf.planning.problem_costs import ProblemCosts
from vjepa2_hf.planning.search import colored_noise


STEPS, SIZE = 4, 2
SEARCHING = {
    "cem": CEM(STEPS, 200, 12, 20),
    "icem": ICEM(STEPS, 200, 12, 20, noise_exponent=0.5),
    "mppi": MPPI(STEPS, 400, 20),
    "gradient": GradientDescent(STEPS, 8, 200),
}
SHOOTING = RandomShooting(STEPS, 200, 12)  # as many candidates as CEM
CONTINUOUS = {
    "cem": CEM(3, 12, 3, 4, momentum=0.1),
    "icem": ICEM(3, 12, 3, 4),
    "mppi": MPPI(3, 12, 3),
    "gradient": GradientDescent(3, 4, 5),
    "random": RandomShooting(3, 12, 2),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quadratic(target):
    target = torch.as_tensor(target)
    return lambda actions: (actions - target).square().sum(dim=(-1, -2))


def rastrigin(actions):
    """Many valleys; the lowest is at 0.25."""
    away = actions - 0.25
    return (5 * away.square() + 0.25 * (1 - torch.cos(2 * torch.pi * 2 * away))).sum(dim=(-1, -2))


# name: cost, bounds, constraints, the best plan's value at every step and dimension
FUNCTIONS = {
    "quadratic": (quadratic([0.3, -0.4]), (-1.0, 1.0), [], torch.tensor([0.3, -0.4]).expand(STEPS, SIZE)),
    "multimodal": (rastrigin, (-1.0, 1.0), [], torch.full((STEPS, SIZE), 0.25)),
    "bounded": (quadratic([5.0, -5.0]), (-0.5, 0.25), [], torch.tensor([0.25, -0.5]).expand(STEPS, SIZE)),
    "constrained": (
        quadratic([0.3, -0.4]),
        (-1.0, 1.0),
        [StepBounds([-1.0, -1.0, 0.4], [1.0, 0.2, 1.0]), Fixed([1], 0.5)],
        torch.tensor([[0.3, 0.5], [0.2, 0.5], [0.4, 0.5], [0.4, 0.5]]),
    ),
}


def search(solver, function: str, seed: int):
    cost, (low, high), constraints, _ = FUNCTIONS[function]
    return solver(cost, 1, SIZE, low, high, generator=seeded(seed), constraints=constraints).actions[0]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("name", SEARCHING)
@pytest.mark.parametrize("seed", [0, 1])
def test_solvers_reach_the_optimum(name, function, seed):
    plan, best = search(SEARCHING[name], function, seed), FUNCTIONS[function][3]
    assert (plan - best).abs().max() < 0.05, plan


@pytest.mark.parametrize("function", ["quadratic", "multimodal", "bounded"])
@pytest.mark.parametrize("seed", [0, 1])
def test_random_shooting_does_not(function, seed):
    assert (search(SHOOTING, function, seed) - FUNCTIONS[function][3]).abs().max() > 0.1


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    name=st.sampled_from(sorted(CONTINUOUS)),
    batch_size=st.integers(1, 3),
    bounds=st.lists(st.tuples(st.floats(-3, 3, width=32), st.floats(0, 3, width=32)), min_size=2, max_size=3),
    closed_from=st.integers(0, 3),
    fixed=st.booleans(),
)
def test_candidates_and_plans_obey_bounds_and_constraints_and_seeds(
    seed, name, batch_size, bounds, closed_from, fixed
):
    low = torch.tensor([each[0] for each in bounds])
    high, seen = low + torch.tensor([each[1] for each in bounds]), []
    constraints = [ClosedGripper(closed_from, value=9.0, dim=0), *([Fixed([1], -7.0)] if fixed else [])]

    def cost(candidates):
        seen.append(candidates.detach().clone())
        return quadratic(torch.linspace(-4, 4, len(bounds)))(candidates)

    arguments = {"generator": None, "constraints": constraints}
    plans = []
    for _ in range(2):
        arguments["generator"] = seeded(seed)
        plans.append(CONTINUOUS[name](cost, batch_size, len(bounds), low, high, **arguments).actions)
    assert torch.equal(*plans)
    for actions in [*seen, plans[0]]:
        assert (actions[..., closed_from:, 0] == 9.0).all()
        assert not fixed or (actions[..., 1] == -7.0).all()
        free = actions[..., 2 if fixed else 1 :]
        first = 2 if fixed else 1
        assert (free >= low[first:]).all() and (free <= high[first:]).all()
        assert (actions[..., :closed_from, 0] >= low[0]).all() and (actions[..., :closed_from, 0] <= high[0]).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), name=st.sampled_from(sorted(CONTINUOUS)), warm=st.booleans())
def test_a_plan_does_not_depend_on_the_batch_it_is_planned_in(seed, name, warm):
    targets = torch.rand(3, 1, 1, 2, generator=seeded(seed)) * 2 - 1
    starts = torch.rand(3, 3, 2, generator=seeded(seed + 1)) - 0.5 if warm else None
    solver = CONTINUOUS[name]
    together = solver(quadratic(targets), 3, 2, generator=seeded(seed), warm_start=starts)
    for row in range(3):
        start = starts[row : row + 1] if warm else None
        alone = solver(quadratic(targets[row]), 1, 2, generator=seeded(seed), warm_start=start)
        assert torch.equal(alone.actions[0], together.actions[row])
        assert torch.equal(alone.cost[0], together.cost[row])
        assert torch.equal(alone.warm_start[0], together.warm_start[row])


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    name=st.sampled_from([*sorted(CONTINUOUS), "categorical_cem"]),
    bad=st.sampled_from([float("nan"), float("inf"), float("-inf")]),
)
def test_a_cost_that_is_not_finite_never_becomes_an_elite(seed, name, bad):
    solver = CONTINUOUS.get(name, CategoricalCEM(3, 12, 3, 4))
    low, high = (0.0, 1.0) if name == "categorical_cem" else (-1.0, 1.0)

    def cost(candidates):
        costs = -candidates[..., 0].sum(dim=-1)  # wants more of what is forbidden
        return torch.where((candidates[..., 0] > 0.5).any(dim=-1), torch.tensor(bad), costs)

    try:
        result = solver(cost, 2, 2, low, high, generator=seeded(seed))
    except ValueError as error:  # chance tried nothing else
        assert "has a finite cost" in str(error)
        return
    assert (result.actions[..., 0] <= 0.5).all() and torch.isfinite(result.cost).all()
    for values in result.trace.values():
        assert torch.isfinite(values).all()


@pytest.mark.parametrize("name", SOLVERS)
def test_no_finite_cost_is_an_error_that_names_the_row(name):
    solver = CONTINUOUS.get(name, CategoricalCEM(3, 12, 3, 4))
    with pytest.raises(ValueError, match="no candidate of batch row 1 has a finite cost"):
        solver(
            lambda actions: actions.sum(dim=(-1, -2)) * torch.tensor([[1.0], [torch.nan]]), 2, 2, generator=seeded()
        )


@pytest.mark.parametrize("name", SOLVERS)
def test_settings_survive_json(name):
    solver = CONTINUOUS.get(name, CategoricalCEM(3, 12, 3, 4))
    assert build_solver(**json.loads(json.dumps(solver.to_dict()))) == solver
    assert build_solver(name) == SOLVERS[name]()


@pytest.mark.parametrize("solver", [CEM, ICEM, CategoricalCEM])
def test_elites_follow_the_candidates_unless_they_are_given(solver):
    assert [solver(num_candidates=j).num_elites for j in (256, 400, 32, 12, 1)] == [26, 40, 3, 2, 1]
    assert solver(num_candidates=32, num_elites=7).num_elites == 7
    stored = solver(num_candidates=256).to_dict()
    assert build_solver(**{**stored, "num_candidates": 32}).num_elites == 3
    assert build_solver(**{**solver(num_elites=50).to_dict(), "num_candidates": 64}).num_elites == 50


class TestGaussian:
    def test_noise_is_drawn_for_the_free_dimensions_alone(self):
        seen = []

        def cost(candidates):
            seen.append(candidates)
            return quadratic([0.0] * 3)(candidates)

        solver = CEM(2, 5, 1, 2, init_std=1.0, sample_noise_per_step=True)
        solver(cost, 1, 3, -9.0, 9.0, generator=seeded(7), constraints=[Fixed([1], 0.25)])
        generator = seeded(7)
        for step in range(2):
            assert torch.equal(seen[0][0, :, step, [0, 2]], torch.randn(5, 2, generator=generator))
            assert (seen[0][0, :, step, 1] == 0.25).all()

    def test_mppi_weights_by_hand(self):
        noise = torch.tensor([0.1, 0.2, 0.6]).reshape(1, 3, 1, 1)
        costs = torch.tensor([[1.0, 2.0, torch.nan]])
        solver = MPPI(1, 3, 1, temperature=0.5, relative_temperature=False, refit_std=False, init_std=1.0)
        result = solver(lambda actions: costs[:, : actions.shape[1]], 1, 1, noise=noise)
        share = torch.softmax(torch.tensor([-2.0, -4.0]), dim=0)
        expected = share @ torch.tensor([0.1, 0.2])
        assert result.actions.item() == pytest.approx(expected.item())
        assert result.trace["std"].item() == 1.0
        assert result.trace["cost"].item() == pytest.approx((share @ torch.tensor([1.0, 2.0])).item())
        # the deviation of the costs 1 and 2 is 0.5: with it as the unit the same temperature is 0.25
        relative = MPPI(1, 3, 1, temperature=0.5, init_std=1.0)
        result = relative(lambda actions: costs[:, : actions.shape[1]], 1, 1, noise=noise)
        share = torch.softmax(torch.tensor([-4.0, -8.0]), dim=0)
        mean = share @ torch.tensor([0.1, 0.2])
        assert result.actions.item() == pytest.approx(mean.item())
        std = (share @ (torch.tensor([0.1, 0.2]) - mean).square()).sqrt()
        assert result.trace["std"].item() == pytest.approx(std.item(), rel=1e-4)


class TestICEM:
    def test_noise_has_the_colour_and_unit_variance(self):
        white = torch.randn(20000, 16, 1, generator=seeded())
        assert torch.allclose(colored_noise(white, 0.0), white, atol=1e-5)
        noise = colored_noise(white, 2.0)
        assert noise.var(dim=0).sub(1).abs().max() < 0.05
        power = torch.fft.rfft(noise, dim=1).abs().square().mean(dim=(0, 2))
        frequencies = torch.fft.rfftfreq(16)
        expected = power[1] * (frequencies[1:] / frequencies[1]).pow(-2)
        torch.testing.assert_close(power[1:], expected, rtol=0.05, atol=0)
        assert colored_noise(torch.ones(3, 1, 2), 2.0).tolist() == torch.ones(3, 1, 2).tolist()

    def test_candidates_shrink_elites_are_kept_and_the_mean_comes_last(self):
        seen = []

        def cost(candidates):
            seen.append(candidates)
            return quadratic([0.3, -0.4])(candidates)

        result = ICEM(2, 40, 4, 5, candidate_decay=2.0, kept_elites=0.4)(cost, 1, 2, generator=seeded())
        # 40, 20, then no fewer than two times the elites; 2 kept from the second on, the mean in the last
        assert [candidates.shape[1] for candidates in seen] == [40, 22, 12, 13]
        best = seen[0][0, quadratic([0.3, -0.4])(seen[0])[0].argmin()]
        assert (seen[1][0] == best).all(dim=(1, 2)).any()
        everything = torch.cat(seen, dim=1)
        lowest = quadratic([0.3, -0.4])(everything).min()
        assert result.cost.item() == lowest.item()
        assert result.warm_start.shape == (1, 4, 2, 2)  # mean, plan, 2 elites

    def test_elites_go_on_over_a_warm_start(self):
        seen = []

        def cost(candidates):
            seen.append(candidates)
            return quadratic([0.3, -0.4])(candidates)

        solver = ICEM(2, 10, 1, 5)
        first = solver(cost, 1, 2, generator=seeded())
        starts = shift_plan(first.warm_start)
        solver(cost, 1, 2, generator=seeded(1), warm_start=starts)
        for start in starts[0]:
            assert (seen[-1][0] == start).all(dim=(1, 2)).any()

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"noise_exponent": -1.0}, "noise_exponent is -1.0, expected a finite number of at least 0"),
            ({"candidate_decay": 0.5}, "candidate_decay is 0.5"),
            ({"kept_elites": 1.5}, "kept_elites is 1.5"),
        ],
    )
    def test_wrong_settings_are_refused(self, settings, message):
        with pytest.raises(ValueError, match=message):
            ICEM(**settings)


class TestGradientDescent:
    def test_works_where_gradient_is_off_and_leaves_the_mode_alone(self):
        with torch.no_grad():
            result = GradientDescent(2, 2, 100)(quadratic([0.3]), 1, 1, generator=seeded())
            assert not torch.is_grad_enabled()
        assert torch.allclose(result.actions, torch.full((1, 2, 1), 0.3), atol=0.02)
        assert not result.actions.requires_grad

    def test_the_first_restart_is_the_warm_start(self):
        seen, start = [], torch.full((1, 2, 1), 0.7)

        def cost(candidates):
            seen.append(candidates.detach())
            return quadratic([0.0])(candidates)

        GradientDescent(2, 3, 1)(cost, 1, 1, generator=seeded(), warm_start=start)
        torch.testing.assert_close(seen[0][:, 0], start)
        assert seen[0].shape == (1, 3, 2, 1) and not torch.equal(seen[0][:, 1], seen[0][:, 0])

    def test_a_dimension_without_deviation_stays_where_it_starts(self):
        start = torch.tensor([[[100.0, 0.0]]])  # in units of a vanishing deviation: beyond float32
        solver = GradientDescent(1, 2, 100, init_std=[0.0, 1.0])
        result = solver(quadratic([3.0, 3.0]), 1, 2, 0.0, 512.0, generator=seeded(), warm_start=start)
        assert result.actions[0, 0, 0] == 100 and result.actions[0, 0, 1].item() == pytest.approx(3, abs=0.1)

    def test_a_cost_without_gradient_is_refused(self):
        with pytest.raises(ValueError, match="costs without gradient, which GradientDescent needs"):
            GradientDescent(2, 2, 2)(lambda actions: quadratic([0.0])(actions.detach()), 1, 1, generator=seeded())

    @pytest.mark.parametrize("call", [lambda: GradientDescent(learning_rate=0), lambda: MPPI(temperature=-1.0)])
    def test_wrong_settings_are_refused(self, call):
        with pytest.raises(ValueError, match="expected a finite number above 0"):
            call()


def test_shifted_plans_repeat_the_last_action():
    plan = torch.arange(6.0).reshape(3, 2)
    assert shift_plan(plan).tolist() == [[2, 3], [4, 5], [4, 5]]
    assert shift_plan(plan.expand(4, 2, 3, 2), steps=5)[3, 1].tolist() == [[4, 5]] * 3


def test_what_a_solver_does_not_take_is_refused():
    with pytest.raises(ValueError, match="solver 'random' takes no noise"):
        RandomShooting(2, 4)(quadratic([0.0]), 1, 1, noise=torch.zeros(1, 4, 2, 1))
    with pytest.raises(ValueError, match="constraints are for continuous actions"):
        CategoricalCEM(2, 4, 1)(quadratic([0.0, 1.0]), 1, 2, constraints=[Fixed([0])])


class TestBudget:
    """With a clock of its own: every evaluation of candidates takes 10 ms, of the plan 2."""

    @pytest.fixture
    def clock(self, monkeypatch):
        now = [0.0]
        monkeypatch.setattr("vjepa2_hf.planning.search.time.perf_counter", lambda: now[0])
        return now

    @pytest.mark.parametrize(("budget", "iterations"), [(None, 6), (0, 1), (21.9, 1), (24.1, 2), (34.1, 3), (1000, 6)])
    def test_no_iteration_begins_that_would_not_end_in_time(self, clock, budget, iterations):
        def cost(actions):
            clock[0] += 0.010 if actions.shape[1] > 1 else 0.002
            return actions.square().sum(dim=(2, 3))

        result = CEM(2, 8, 6, 2)(cost, 1, 1, generator=seeded(), budget_ms=budget)
        assert len(result.trace["cost"]) == iterations
        if budget is not None and budget > 20:  # that is the 2 ms of the first look at the plan, too
            assert clock[0] * 1000 <= budget

    @pytest.mark.parametrize("name", SOLVERS)
    def test_every_solver_does_one_iteration_and_returns_its_plan(self, name):
        solver = CONTINUOUS.get(name, CategoricalCEM(3, 12, 3, 4))
        result = solver(quadratic([0.2, 0.4]), 2, 2, generator=seeded(), budget_ms=0)
        assert len(result.trace["cost"]) == 1 and torch.allclose(result.cost, quadratic([0.2, 0.4])(result.actions))


def test_a_setting_saved_under_its_name_in_0_1_is_read_with_a_warning(caplog):
    specs._warn_once.cache_clear()  # another test may have read such a planner
    assert build_solver("cem", draw_noise_per_step=True) == CEM(sample_noise_per_step=True)
    assert "'draw_noise_per_step' is now called 'sample_noise_per_step'" in caplog.text


class TestStopping:
    """CEM ends the search of a problem when its elites agree (`stop_std`)."""

    STOPPING = CEM(3, 64, 12, 8, stop_std=0.02)
    TARGETS = torch.tensor([[0.0, 0.0], [0.9, -0.8], [0.3, 0.1]])[:, None, None]
    SCALES = torch.tensor([1.0, 1.0, 0.0])  # of the last problem all candidates cost the same: its elites never agree

    def counted(self, scored):
        def cost(candidates, targets, scales):
            scored.append(len(candidates))
            return scales[:, None] * quadratic(targets)(candidates)

        return ProblemCosts(cost, targets=self.TARGETS, scales=self.SCALES)

    def test_the_plan_is_that_of_a_search_with_as_many_iterations(self):
        scored = []
        result = self.STOPPING(self.counted(scored), 3, 2, generator=seeded())
        assert 1 < result.iterations[0] < 12 and result.iterations[2] == 12
        assert scored[:-1] == [int((result.iterations > i).sum()) for i in range(12)] and scored[-1] == 3  # the plans
        for row, count in enumerate(result.iterations.tolist()):
            fixed = CEM(3, 64, count, 8)(self.counted([]), 3, 2, generator=seeded())
            assert torch.equal(result.actions[row], fixed.actions[row])
            assert torch.equal(result.cost[row], fixed.cost[row])
            for name, values in result.trace.items():
                assert torch.equal(values[:count, row], fixed.trace[name][:, row])
                assert values[count:, row].isnan().all()
            spread = fixed.trace["std"][:, row] / 2  # the range is 2
            assert (spread[:-1] >= 0.02).all() and (count == 12 or spread[-1] < 0.02)

    def test_a_batch_is_single_plans_and_a_cost_without_rows_gives_the_same(self):
        together = self.STOPPING(self.counted([]), 3, 2, generator=seeded())
        plain = self.STOPPING(lambda candidates: self.counted([])(candidates), 3, 2, generator=seeded())
        assert torch.equal(plain.actions, together.actions) and torch.equal(plain.iterations, together.iterations)
        for row in range(3):
            alone = self.STOPPING(self.counted([]).of(torch.tensor([row])), 1, 2, generator=seeded())
            assert torch.equal(alone.actions[0], together.actions[row]) and torch.equal(
                alone.cost[0], together.cost[row]
            )
            assert len(alone.trace["cost"]) == alone.iterations[0] == together.iterations[row]

    def test_a_bound_that_is_never_reached_changes_nothing(self):
        for momentum in (0.0, 0.15):
            off = CEM(3, 32, 4, momentum=momentum)(self.counted([]), 3, 2, generator=seeded())
            on = CEM(3, 32, 4, momentum=momentum, stop_std=1e-9)(self.counted([]), 3, 2, generator=seeded())
            assert torch.equal(on.actions, off.actions) and torch.equal(on.cost, off.cost)
            assert all(torch.equal(on.trace[name], off.trace[name]) for name in off.trace)

    def test_fixed_dimensions_and_dimensions_without_range_do_not_count(self):
        arguments = {"action_low": [-1.0, 0.5, -1.0], "action_high": [1.0, 0.5, 1.0], "constraints": [Fixed([2], 0.0)]}
        solver = CEM(2, 32, 9, 8, stop_std=0.05)
        wide = solver(quadratic([0.3, 0.0, 0.0]), 1, 3, generator=seeded(), **arguments)
        alone = solver(quadratic([0.3]), 1, 1, generator=seeded())
        assert 1 < alone.iterations[0] < 9
        assert wide.trace["std"][-1] / 2 < 0.05 / 3 < wide.trace["std"][-2] / 2  # a mean over all three
        assert CEM(2, 8, 5, stop_std=0.1)(quadratic([0.0]), 1, 1, 0.5, 0.5).iterations[0] == 1  # nothing is searched

    def test_an_error_still_names_the_problem(self):
        calls = []

        def cost(candidates):
            calls.append(candidates)
            costs = quadratic([0.0, 0.0])(candidates) * torch.tensor([[1.0], [0.0]])
            return costs if len(calls) < 10 else costs / torch.tensor([[1.0], [0.0]])

        with pytest.raises(ValueError, match="no candidate of batch row 1 has a finite cost"):
            self.STOPPING(cost, 2, 2, generator=seeded())

    def test_a_budget_ends_it_too(self):
        result = self.STOPPING(self.counted([]), 3, 2, generator=seeded(), budget_ms=0)
        assert result.iterations.tolist() == [1, 1, 1]

    @pytest.mark.parametrize("value", [0, -0.1, float("nan"), float("inf"), "0.1", True])
    def test_wrong_bounds_are_refused(self, value):
        with pytest.raises(ValueError, match="stop_std is .*, expected a finite number above 0"):
            CEM(stop_std=value)

    def test_infinite_action_bounds_are_refused(self):
        with pytest.raises(ValueError, match="stop_std is in units of the action range: give finite bounds"):
            CEM(3, 8, 2, init_std=1.0, stop_std=0.1)(quadratic([0.0]), 1, 1, -torch.inf, torch.inf)

    def test_it_is_saved(self):
        assert build_solver(**json.loads(json.dumps(self.STOPPING.to_dict()))) == self.STOPPING
