"""Constraints: what they make of actions, and what is refused."""

import json

import pytest
import torch

from vjepa2_hf.planning import CEM, ClosedGripper, Constraint, DeadZone, Fixed, StepBounds, build_constraints
from vjepa2_hf.planning.constraints import for_every_action


ACTIONS = torch.arange(1.0, 13.0).reshape(1, 1, 3, 4) / 12


def test_fixed_dimensions_have_their_values_and_nothing_else_changes():
    fixed = Fixed([1, -1], [0.55, -2.0]).apply(ACTIONS)
    assert (fixed[..., 1] == 0.55).all() and (fixed[..., 3] == -2.0).all()
    assert torch.equal(fixed[..., [0, 2]], ACTIONS[..., [0, 2]]) and (ACTIONS[..., 1] != 0.55).all()
    assert Fixed([1, -1]).fixed_dims(4) == [1, 3]


def test_a_gripper_is_closed_from_its_step_on():
    closed = ClosedGripper(1).apply(ACTIONS)
    assert closed[0, 0, :, -1].tolist() == [ACTIONS[0, 0, 0, -1].item(), 1.0, 1.0]
    assert torch.equal(closed[..., :3], ACTIONS[..., :3])
    mean = torch.full((1, 3, 4), 0.9)
    assert ClosedGripper(2).finish(mean / 2, mean)[0, :, 3].tolist() == pytest.approx([0.45, 0.45, 1.0])
    assert ClosedGripper(2, exact=False).finish(mean / 2, mean)[0, :, 3].tolist() == pytest.approx([0.45, 0.45, 0.9])


def test_every_step_has_its_bounds_and_later_ones_the_last():
    bounded = StepBounds([0.0, 0.5], [0.25, 0.6]).apply(ACTIONS)
    assert bounded[0, 0, 0].max() <= 0.25
    assert torch.allclose(bounded[0, 0, 1:], ACTIONS[0, 0, 1:].clamp(0.5, 0.6))
    each = StepBounds([[0.0, 0.0, 0.0, 0.0]], [[0.1, 0.2, 0.3, 0.4]]).apply(ACTIONS * 9)
    assert torch.allclose(each[0, 0], torch.tensor([0.1, 0.2, 0.3, 0.4]).expand(3, 4))


def test_a_dead_zone_changes_the_plan_and_no_candidate():
    plan = torch.tensor([[[0.1, -0.2], [0.3, 0.2501]]])
    zone = DeadZone(1, 0.25)
    assert zone.apply(plan) is plan
    assert torch.equal(zone.finish(plan, plan), torch.tensor([[[0.1, 0.0], [0.3, 0.2501]]]))


def test_the_cost_of_a_plan_is_that_of_the_plan_that_is_returned():
    def cost(actions):
        return (actions - 0.1).abs().sum(dim=(-1, -2))

    result = CEM(2, 50, 8, 5)(cost, 1, 1, generator=torch.Generator().manual_seed(0), constraints=[DeadZone(0, 0.5)])
    assert (result.actions == 0).all() and result.cost.item() == pytest.approx(0.2)


class Halved:
    """A constraint of one's own that has `apply` alone."""

    def apply(self, actions):
        return actions * actions.new_tensor([0.5, 1.0])


@pytest.mark.parametrize(
    "constraint",
    [
        Fixed([1], 0.3),
        Fixed([-1, 0], [0.1, 0.2]),
        ClosedGripper(1),
        ClosedGripper(2, exact=False, dim=0),
        StepBounds([0.2, 0.3], [0.25, 0.6]),
        StepBounds([[0.2, 0.0], [0.4, 0.1]], [[0.3, 0.1], [0.5, 0.2]]),
        DeadZone(-1, 0.5),
        Halved(),
    ],
)
def test_a_constraint_holds_for_every_environment_action_of_a_model_step(constraint):
    (both,) = for_every_action([constraint], 2)
    plan, mean = ACTIONS[0], ACTIONS[0] * 0.9
    alone = for_every_action([constraint], 1)[0]
    assert alone is constraint  # nothing changes where a step is one action
    allowed, finished = both.apply(ACTIONS), both.finish(plan, mean)
    assert allowed.shape == ACTIONS.shape and not torch.equal(finished, plan)
    for own in (slice(0, 2), slice(2, 4)):
        assert torch.equal(allowed[..., own], constraint.apply(ACTIONS[..., own]))
        finish = getattr(constraint, "finish", lambda plan, mean: constraint.apply(plan))
        assert torch.equal(finished[..., own], finish(plan[..., own], mean[..., own]))
    assert torch.equal(ACTIONS, torch.arange(1.0, 13.0).reshape(1, 1, 3, 4) / 12)  # not written into


def test_no_noise_is_drawn_for_a_dimension_that_is_fixed_in_every_action():
    def cost(actions):
        return (actions - 0.4).square().sum(dim=(-1, -2))

    constraints = for_every_action([Fixed([-1], 0.7), Halved()], 2)
    assert constraints[0].fixed_dims(4) == [1, 3] and constraints[1].fixed_dims(4) == []
    noise = torch.randn(3, 32, 3, 2, generator=torch.Generator().manual_seed(0))  # 2 of 4 numbers are searched
    found = CEM(3, 32, 3, 4)(cost, 1, 4, noise=noise, constraints=constraints).actions
    by_hand = [Fixed([1, 3], 0.7), constraints[1]]
    assert torch.equal(found, CEM(3, 32, 3, 4)(cost, 1, 4, noise=noise, constraints=by_hand).actions)
    assert (found[..., [1, 3]] == torch.tensor(0.7)).all() and len(found[..., [0, 2]].unique()) == 6


@pytest.mark.parametrize(
    "constraint",
    [Fixed([3, 4], [0.0, 1.0]), ClosedGripper(2, exact=False), StepBounds([0.0], [1.0]), DeadZone(6, 0.25)],
)
def test_settings_survive_json(constraint):
    assert build_constraints(json.loads(json.dumps([constraint.to_dict()]))) == [constraint]
    assert build_constraints(constraint) == [constraint]


def test_a_constraint_of_ones_own_needs_apply_alone():
    class Within:
        """The first two numbers lie in a circle."""

        def apply(self, actions):
            length = actions[..., :2].norm(dim=-1, keepdim=True)
            return torch.cat([actions[..., :2] / length.clamp(min=1.0), actions[..., 2:]], dim=-1)

    (own,) = build_constraints(Within())
    result = CEM(2, 100, 8, 10)(
        lambda actions: (actions - 3.0).square().sum(dim=(-1, -2)),
        1,
        3,
        -5.0,
        5.0,
        generator=torch.Generator().manual_seed(0),
        constraints=[own],
    )
    expected = torch.tensor([0.5**0.5, 0.5**0.5, 3.0]).expand(1, 2, 3)
    torch.testing.assert_close(result.actions, expected, atol=0.02, rtol=0)

    class Named(Within, Constraint):
        pass

    with pytest.raises(ValueError, match="none of .*so it cannot be saved"):
        Named().to_dict()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Fixed([1, 2], [0.0]), "value has 1 numbers for 2 dims"),
        (lambda: Fixed([1], "low"), "value is 'low'; expected numbers"),
        (lambda: Fixed([4]).apply(ACTIONS), "on dimension 4, but actions have 4"),
        (lambda: ClosedGripper(-1), "from_step is -1; expected a step, 0 or later"),
        (lambda: StepBounds([0.0, 1.0], [1.0]), r"low has shape \(2,\) and high \(1,\)"),
        (lambda: StepBounds([], []), "at least one step"),
        (lambda: StepBounds([1.0], [0.0]), r"low \[1.0\] must not exceed high \[0.0\]"),
        (lambda: StepBounds([float("nan")], [0.0]), "not NaN"),
        (lambda: StepBounds([[0.0] * 3], [[1.0] * 3]).apply(ACTIONS), "low of StepBounds has 3 numbers per step"),
        (
            lambda: for_every_action([Fixed([2])], 2)[0].apply(ACTIONS),
            "on dimension 2, but actions have 2; expected -2",
        ),
        (lambda: DeadZone(1, 0.0), "below is 0.0; expected a number above 0"),
        (
            lambda: build_constraints(["fixed"]),
            "constraint is 'fixed'; expected a dict with 'constraint'",
        ),
        (lambda: build_constraints({"constraint": "fixt"}), "Unknown constraint 'fixt'; did you mean 'fixed'"),
        (
            lambda: build_constraints({"constraint": "fixed", "dim": 1}),
            "setting 'fixed.dim'; did you mean 'fixed.dims'",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
