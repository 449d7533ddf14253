"""Planning costs of the world model: terms against rollouts by hand, gradient, and what is refused."""

import pytest
import torch
from builders import TINY_ENCODER, TINY_PREDICTOR, spread

from vjepa2_hf import VJepa2WorldModel, VJepa2WorldModelConfig
from vjepa2_hf.planning import (
    ActionPenalty,
    Closest,
    GradientDescent,
    LatentDistance,
    ProprioDistance,
    Reward,
    TemporalDistance,
    Uncertainty,
)


CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def build(**fields) -> VJepa2WorldModel:
    torch.manual_seed(0)
    fields = {"action_dim": 2, "context_frames": 2, "predictor_initializer_range": 0.2, **TINY_PREDICTOR, **fields}
    return spread(VJepa2WorldModel(VJepa2WorldModelConfig(encoder_config=TINY_ENCODER, **fields))).eval()


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


LATENTS, GOAL, ACTIONS = numbers(2, 1, 16, 24), numbers(2, 1, 16, 24, seed=1), numbers(2, 5, 3, 2, seed=2)
STATES, GOAL_STATES = numbers(2, 1, 2, seed=3), numbers(2, 2, seed=4)


@torch.no_grad()
@pytest.mark.parametrize("chunk", [None, 2])
def test_terms_are_those_of_the_rollout(chunk):
    model = build(proprio_dim=2, proprio_transition="add", reward_head=True)
    future = model.rollout(LATENTS, ACTIONS, proprio_states=STATES)  # (B, J, P, N, D)
    reached = STATES + ACTIONS.sum(dim=2)
    present = LATENTS.unsqueeze(1).expand(-1, 5, -1, -1, -1)
    rewards = model.predict_rewards(torch.cat([present, future], dim=2), ACTIONS).sum(dim=-1)
    cases = [
        (LatentDistance("cosine"), 1 - torch.cosine_similarity(future[:, :, -1], GOAL, dim=-1).mean(dim=-1)),
        (LatentDistance("l1", summed=True), (future - GOAL.unsqueeze(1)).abs().mean(dim=(3, 4)).sum(dim=2)),
        (ProprioDistance(), (reached - GOAL_STATES.unsqueeze(1)).square().mean(dim=-1)),
        (ActionPenalty(), ACTIONS.square().mean(dim=-1).sum(dim=-1)),
        (Reward(), -rewards),
    ]
    settings = {"proprio_states": STATES, "goal_proprio_states": GOAL_STATES, "candidate_chunk_size": chunk}
    for cost, expected in cases:
        found = model.score(LATENTS, GOAL, ACTIONS, cost=cost, **settings)
        torch.testing.assert_close(found, expected, **CLOSE)
    whole = sum((0.5 * cost for cost, _ in cases[1:]), cases[0][0])
    expected = cases[0][1] + sum(0.5 * value for _, value in cases[1:])
    torch.testing.assert_close(model.score(LATENTS, GOAL, ACTIONS, cost=whole, **settings), expected, **CLOSE)


def test_a_cost_of_the_last_step_projects_every_step():
    """Every step's latents are the next step's input: a plan of P steps projects P times, whatever the cost."""
    model, projected = build(proprio_dim=2, proprio_transition="add"), []
    model.predictor.proj.register_forward_hook(lambda *_: projected.append(1))
    model.score(LATENTS, GOAL, ACTIONS, proprio_states=STATES, candidate_chunk_size=5)
    assert len(projected) == 3


@pytest.mark.parametrize("context_frames", [1, 2, 4])
def test_gradient_is_that_of_small_differences_and_chunks_do_not_matter(context_frames):
    model = build(context_frames=context_frames)
    actions = ACTIONS.clone().requires_grad_()
    costs = model.score(LATENTS, GOAL, actions)
    (gradient,) = torch.autograd.grad(costs.sum(), actions)
    direction = numbers(*ACTIONS.shape, seed=9)
    ahead, behind = (model.score(LATENTS, GOAL, ACTIONS + sign * 1e-2 * direction).sum() for sign in (1, -1))
    torch.testing.assert_close((gradient * direction).sum(), (ahead - behind) / 2e-2, rtol=2e-2, atol=1e-4)
    chunked = model.score(LATENTS, GOAL, actions, candidate_chunk_size=2)
    torch.testing.assert_close(torch.autograd.grad(chunked.sum(), actions)[0], gradient, **CLOSE)


NEAREST = Closest(2 * LatentDistance() + TemporalDistance())


@torch.no_grad()
@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("samples", [1, 3])
def test_closest_is_the_smallest_value_over_the_steps_of_the_rollout(chunk, samples):
    model = build(distance_head=True, stochastic_dim=2)
    if samples == 1:
        future = model.rollout(LATENTS, ACTIONS)
        frames = model.temporal_distance(future, GOAL.unsqueeze(1))  # (B, J, P)
        steps = 2 * (future - GOAL.unsqueeze(1)).square().mean(dim=(3, 4)) + frames
        expected = [steps.amin(dim=2), frames[:, :, -1], frames.sum(dim=2)]
        assert (steps.argmin(dim=2) != 2).any()  # some pass the goal before the last step
    else:
        whole = {"num_samples": samples, "candidate_chunk_size": 5 * samples}
        costs = (NEAREST, TemporalDistance(), TemporalDistance(summed=True))
        expected = [model.score(LATENTS, GOAL, ACTIONS, cost=cost, **whole) for cost in costs]
    settings = {"candidate_chunk_size": chunk, "num_samples": samples}
    weighted = 0.5 * NEAREST + ActionPenalty()
    for cost, value in zip((NEAREST, TemporalDistance(), TemporalDistance(summed=True)), expected, strict=True):
        torch.testing.assert_close(model.score(LATENTS, GOAL, ACTIONS, cost=cost, **settings), value, **CLOSE)
    penalty = ACTIONS.square().mean(dim=-1).sum(dim=-1)
    found = model.score(LATENTS, GOAL, ACTIONS, cost=weighted, **settings)
    torch.testing.assert_close(found, 0.5 * expected[0] + penalty, **CLOSE)


def test_the_gradient_of_closest_does_not_depend_on_chunks():
    """With two chunks each is computed again in the backward pass; the minimum then picks the same steps."""
    model, actions = build(distance_head=True), ACTIONS.clone().requires_grad_()
    costs = model.score(LATENTS, GOAL, actions, cost=NEAREST)
    (gradient,) = torch.autograd.grad(costs.sum(), actions)
    direction = numbers(*ACTIONS.shape, seed=9)
    ahead, behind = (
        model.score(LATENTS, GOAL, ACTIONS + sign * 1e-3 * direction, cost=NEAREST).double().sum() for sign in (1, -1)
    )
    torch.testing.assert_close((gradient * direction).sum().double(), (ahead - behind) / 2e-3, rtol=5e-2, atol=1e-2)
    chunked = model.score(LATENTS, GOAL, actions, cost=NEAREST, candidate_chunk_size=2)
    torch.testing.assert_close(torch.autograd.grad(chunked.sum(), actions)[0], gradient, **CLOSE)


def test_the_goal_is_embedded_once_for_all_candidates():
    model, sizes = build(distance_head=True), []
    model.distance_head.register_forward_hook(lambda _, inputs, __: sizes.append(inputs[0].shape[:-2].numel()))
    model.score(LATENTS, GOAL, ACTIONS, cost=NEAREST, candidate_chunk_size=2)
    assert sizes == [2, 12, 12, 6]  # the goals; 3 steps of chunks of 2, 2 and 1 candidates, of both problems


def test_no_gradient_is_kept_where_none_is_asked_for():
    model, actions = build(), ACTIONS.clone().requires_grad_()
    assert not model.score(LATENTS, GOAL, ACTIONS).requires_grad
    assert not build(distance_head=True).score(LATENTS, GOAL, ACTIONS, cost=NEAREST).requires_grad
    with torch.no_grad():
        assert not model.score(LATENTS, GOAL, actions).requires_grad


def test_gradient_descent_through_the_rollout_lowers_the_cost():
    model = build()
    goal = model.rollout(LATENTS, numbers(2, 3, 2, seed=5).clamp(-1, 1))[:, -1:].detach()
    solver = GradientDescent(3, 4, 40)
    result = solver(
        lambda actions: model.score(LATENTS, goal, actions, candidate_chunk_size=2),
        2,
        2,
        generator=torch.Generator().manual_seed(0),
    )
    assert (result.cost < 0.2 * result.trace["cost"][0]).all() and result.actions.abs().max() <= 1
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cost": "l1", "distance": "l1"}, "both cost and distance='l1' were given"),
        ({"cost": "reward"}, "the model has no reward head"),
        ({"cost": NEAREST}, "the model has no distance head.*examples/train_distance_head.py"),
        ({"cost": Uncertainty()}, "num_samples is 1; expected 2 or more"),
        ({"cost": "proprio"}, "the cost compares proprio states, but the model has none"),
        ({"goal": None}, "goal is missing"),
        ({"goal": None, "cost": "l2"}, "goal is missing"),
    ],
)
def test_costs_that_a_model_cannot_tell_are_refused(settings, message):
    settings = {"goal": GOAL, **settings}
    with pytest.raises(ValueError, match=message):
        build().score(LATENTS, actions=ACTIONS, **settings)


@torch.no_grad()
def test_states_and_actions_of_a_bfloat16_models_costs_keep_their_digits():
    model = build(proprio_dim=2, proprio_transition="add").to(torch.bfloat16)
    states, actions = 0.5 + 0 * STATES, torch.full((2, 1, 3, 2), 0.0011)  # less than bfloat16 tells from 0.5
    settings = {"proprio_states": states, "goal_proprio_states": torch.full((2, 2), 0.5033)}
    for cost in (ProprioDistance(), ActionPenalty()):
        found = model.score(LATENTS.to(torch.bfloat16), None, actions, cost=cost, **settings)
        expected = 3 * 0.0011**2 if isinstance(cost, ActionPenalty) else 0.0
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, torch.full((2, 1), expected), atol=1e-9, rtol=1e-4)


@torch.no_grad()
def test_states_and_actions_are_standardized_before_bfloat16_rounds_them():
    """Far from 0 and near to each other: in bfloat16 nearly all of these would be one number. All are exact in
    float32, so that the results are equal."""
    statistics = {"mean": [128.0, -64.0], "std": [2**-7, 2**-6]}
    fields = {f"{name}_{key}": value for name in ("proprio", "action") for key, value in statistics.items()}
    raw = build(proprio_dim=2, **fields).to(torch.bfloat16)
    plain = build(proprio_dim=2).to(torch.bfloat16)
    mean, std = (torch.tensor(value, dtype=torch.float64) for value in statistics.values())
    latents = LATENTS.expand(-1, 4, -1, -1).bfloat16()
    actions, states = ((8 * values).round() / 8 for values in (ACTIONS[:, 0], numbers(2, 4, 2, seed=3)))
    found = raw.rollout(latents[:, :1], mean + std * actions, proprio_states=mean + std * states[:, :1])
    expected = plain.rollout(latents[:, :1], actions, proprio_states=states[:, :1])
    assert torch.equal(found, expected)
    assert not torch.equal(expected, plain.rollout(latents[:, :1], actions, proprio_states=states[:, 1:2]))
    loss = raw(latents=latents, actions=mean + std * actions, proprio_states=mean + std * states).loss
    assert loss == plain(latents=latents, actions=actions, proprio_states=states).loss


@pytest.mark.parametrize("size", [0, -1, 1.5])
def test_chunks_of_nothing_are_refused(size):
    message = f"candidate_chunk_size is {size}; expected an integer of at least 1"
    with pytest.raises(ValueError, match=message):
        build().score(LATENTS, GOAL, ACTIONS, candidate_chunk_size=size)
    with pytest.raises(ValueError, match=message):
        build().rollout(LATENTS, ACTIONS, candidate_chunk_size=size)


def test_missing_states_of_the_goal_are_refused():
    model = build(proprio_dim=2)
    for states, found in ((None, "missing"), (torch.zeros(2, 3), r"of shape \(2, 3\)")):
        with pytest.raises(ValueError, match=rf"the goal's proprio states are {found}; the cost needs \(2, 2\)"):
            model.score(LATENTS, None, ACTIONS, proprio_states=STATES, cost="proprio", goal_proprio_states=states)
