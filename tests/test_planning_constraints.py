"""Constraints: what they make of actions, and what is refused."""

import json

import pytest
import torch

from vjepa2_hf.planning import CEM, ClosedGripper, Constraint, DeadZone, Fixed, StepBounds, build_constraints


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
        (lambda: StepBounds([[0.0] * 3], [[1.0] * 3]).apply(ACTIONS), "low of StepBounds has 3 numbers a step"),
        (lambda: DeadZone(1, 0.0), "below is 0.0; expected a number above 0"),
        (lambda: build_constraints(["fixed"]), "the constraint is 'fixed'; expected an object with `apply`"),
        (lambda: build_constraints({"constraint": "fixt"}), "one of fixed, closed_gripper, step_bounds, dead_zone"),
        (lambda: build_constraints({"constraint": "fixed", "dim": 1}), "does not fit: .*dim"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
