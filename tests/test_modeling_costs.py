"""Terms of the planning cost: their numbers by hand, sums, saving."""

import json

import pytest
import torch

from vjepa2_hf.modeling_costs import sum_over_steps
from vjepa2_hf.planning import (
    ActionPenalty,
    Closest,
    Cost,
    ImaginedStep,
    LatentDistance,
    ProprioDistance,
    Reward,
    TemporalDistance,
    Uncertainty,
    WeightedSum,
    build_cost,
)


torch.manual_seed(0)
LATENTS, GOAL = torch.randn(2, 3, 4, 5, 6), torch.randn(2, 1, 1, 5, 6)  # (B, J, K, N, D)
ACTIONS, STATES, GOAL_STATES = torch.randn(2, 3, 2), torch.randn(2, 3, 4), torch.randn(2, 1, 4)
REWARDS, FRAMES = torch.randn(2, 3, 4), torch.rand(2, 3, 4)


def imagined(is_last: bool) -> ImaginedStep:
    return ImaginedStep(1, is_last, LATENTS, ACTIONS, GOAL, STATES, GOAL_STATES, lambda: REWARDS, FRAMES)


NUMBERS = {
    "l1": (LATENTS - GOAL).abs().mean(dim=(2, 3, 4)),
    "l2": (LATENTS - GOAL).square().mean(dim=(2, 3, 4)),
    "cosine": 1 - ((LATENTS * GOAL).sum(-1) / LATENTS.norm(dim=-1) / GOAL.norm(dim=-1)).mean(dim=(2, 3)),
    "proprio": (STATES - GOAL_STATES).square().mean(dim=-1),
    "action": ACTIONS.square().mean(dim=-1),
    "uncertainty": LATENTS.var(dim=2).mean(dim=(2, 3)).sqrt(),
    "reward": -REWARDS.mean(dim=-1),
    "temporal": FRAMES.mean(dim=-1),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_by_hand(name):
    term = build_cost(name)
    torch.testing.assert_close(term.step(imagined(is_last=True)), NUMBERS[name])
    before = term.step(imagined(is_last=False))
    if name in ("action", "reward"):
        torch.testing.assert_close(before, NUMBERS[name])
    else:
        assert before is None
    if name in ("l1", "proprio"):
        summed = LatentDistance("l1", summed=True) if name == "l1" else ProprioDistance(summed=True)
        torch.testing.assert_close(summed.step(imagined(is_last=False)), NUMBERS[name])


def test_proprio_numbers_that_do_not_count_change_nothing():
    expected = (STATES - GOAL_STATES)[..., [0, 2]].square().mean(dim=-1)
    torch.testing.assert_close(ProprioDistance(dims=[0, 2]).step(imagined(True)), expected)


def test_weighted_sums():
    cost = LatentDistance("l1") + 0.5 * ActionPenalty() * 4 + 2 * (Reward() + Uncertainty())
    expected = NUMBERS["l1"] + 2 * NUMBERS["action"] + 2 * (NUMBERS["reward"] + NUMBERS["uncertainty"])
    torch.testing.assert_close(cost.step(imagined(True)), expected)
    before = 2 * NUMBERS["action"] + 2 * NUMBERS["reward"]
    torch.testing.assert_close(cost.step(imagined(False)), before)
    assert (LatentDistance() + Uncertainty()).step(imagined(False)) is None
    assert (cost.needs_goal, cost.needs_samples, cost.needs_proprio) == (True, True, False)
    assert (ActionPenalty() + ProprioDistance()).needs_proprio and not ActionPenalty().needs_goal
    assert (0.5 * TemporalDistance()).needs_distance_head and not cost.needs_distance_head


def test_a_sum_within_a_sum_is_one_sum():
    inner = {"cost": "sum", "parts": [[2, "l1"], [3, "action"]]}
    assert build_cost({"cost": "sum", "parts": [[0.5, inner], [1, "reward"]]}).parts == [
        (1.0, LatentDistance("l1")), (1.5, ActionPenalty()), (1.0, Reward()),
    ]  # fmt: skip


def test_closest_computes_what_it_wraps_at_every_step():
    cost = Closest(2 * LatentDistance("l2") + TemporalDistance())
    expected = 2 * NUMBERS["l2"] + NUMBERS["temporal"]
    for is_last in (False, True):
        torch.testing.assert_close(cost.at(imagined(is_last)), expected)
        assert cost.step(imagined(is_last)) is None  # the smallest is known at the end
    assert cost.needs_goal and cost.needs_distance_head and not (cost.needs_samples or cost.needs_proprio)
    assert build_cost("closest") == Closest(LatentDistance() + 0.1 * TemporalDistance())  # the default
    assert Closest(Uncertainty()).needs_samples and Closest("proprio").needs_proprio


@pytest.mark.parametrize(
    ("cost", "compared"),
    [
        (TemporalDistance(), [1]),
        (TemporalDistance() + Reward(), [1]),
        (TemporalDistance(summed=True), [3]),
        (Closest(TemporalDistance()), [3]),
        (LatentDistance(), []),
    ],
)
def test_only_steps_that_count_are_given_to_the_distance_head(cost, compared):
    steps, given = torch.randn(3, 2, 6, 5, 6), []  # P of (B, J·K, N, D), with K = 2

    def frames(latents):
        given.append(latents.shape[3])
        return latents.mean(dim=(-2, -1))

    rewards = lambda pairs, actions: actions[..., 0]  # noqa: E731
    actions, present = torch.randn(2, 3, 3, 2), torch.randn(2, 1, 5, 6)
    total = sum_over_steps(cost, iter(steps), actions, present, 2, rewards, None, GOAL, None, frames)
    assert given == compared
    if cost == TemporalDistance():
        torch.testing.assert_close(total, steps[-1].unflatten(1, (3, 2)).mean(dim=(2, 3, 4)))


@pytest.mark.parametrize(
    "cost",
    [
        LatentDistance("cosine", summed=True),
        ProprioDistance([0, 1]),
        ActionPenalty() + 0.25 * Uncertainty() + Reward() + 3 * LatentDistance("l1"),
        TemporalDistance(summed=True),
        Closest(2 * LatentDistance() + TemporalDistance()) + 0.1 * ActionPenalty(),
    ],
)
def test_settings_survive_json(cost):
    assert build_cost(json.loads(json.dumps(cost.to_dict()))) == cost


def test_a_term_of_ones_own():
    class Last(Cost):
        def step(self, imagined):
            return imagined.actions[..., 0] if imagined.is_last else None

    cost = build_cost(Last() + 2.0 * ActionPenalty())
    expected = ACTIONS[..., 0] + 2 * NUMBERS["action"]
    torch.testing.assert_close(cost.step(imagined(True)), expected)
    with pytest.raises(ValueError, match="is none of .*so it cannot be saved"):
        cost.to_dict()


class NoValue(Cost):
    def step(self, imagined):
        return None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LatentDistance("l3"), "distance is 'l3'; expected one of 'l1', 'l2', 'cosine'"),
        (lambda: build_cost("l3"), "Unknown cost 'l3'; did you mean 'l"),
        (lambda: build_cost(None), "cost is None; expected a dict with 'cost', one of"),
        (lambda: build_cost({"cost": "latent", "power": 2}), "Unknown cost setting 'latent.power'"),
        (lambda: float("nan") * Reward(), "the weight of a cost is nan; expected a finite number"),
        (lambda: ProprioDistance([]), "dims is empty"),
        (lambda: ProprioDistance([7]).step(imagined(True)), r"dims are \[7\], but a proprio state has \d numbers"),
        (lambda: WeightedSum([]), "a weighted sum has no terms"),
        (lambda: TemporalDistance(summed=2), "summed is 2; expected True or False"),
        (lambda: Closest(NoValue()).at(imagined(False)), "closest needs a value of every step"),
        (lambda: Closest(Closest("l2") + Reward()), "closest holds another closest"),
        (lambda: build_cost({"cost": "closest", "of": "later"}), "Unknown cost 'later'"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
    with pytest.raises(TypeError):
        LatentDistance() + 1.0
