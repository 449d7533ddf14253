"""The planner's cost on true futures: what a candidate costs, and planners that true dynamics do not support."""

import numpy as np
import pytest
import torch
from tqdm import tqdm

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig, VJepa2Planner, VJepa2VideoProcessor, VJepa2WorldModel
from vjepa2_hf.environments import TWO_ROOMS
from vjepa2_hf.environments.tasks import Tasks
from vjepa2_hf.environments.true_dynamics import TrueDynamicsPolicy
from vjepa2_hf.planning import CEM
from vjepa2_hf.visualization.rollout_windows import encode_frames


CLOSEST = {"cost": "closest", "of": {"cost": "sum", "parts": [[2.0, "l2"], [1.0, "temporal"]]}}


def make_policy(cost="l2", solver="cem", **settings) -> TrueDynamicsPolicy:
    """Random weights; model steps of two environment actions."""
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "crop_size": 64}
    dynamics = {"predictor_hidden_size": 12, "predictor_num_hidden_layers": 1, "predictor_num_attention_heads": 2}
    torch.manual_seed(0)
    fields = {"action_dim": 4, "actions_per_step": 2, "frame_skip": 2, "distance_head": True, **dynamics}
    model = VJepa2WorldModel.from_encoder(VJepa2Encoder(VJepa2EncoderConfig(**sizes)), **fields)
    settings = {"horizon": 2, "num_candidates": 6, "num_iterations": 2, **settings}
    settings |= {"num_elites": 2} if solver == "cem" else {}
    processor = VJepa2VideoProcessor(size=64, crop_size=64)
    planner = VJepa2Planner(model, processor, solver=solver, cost=cost, device="cpu", **settings)
    return TrueDynamicsPolicy(planner, 0, tqdm(disable=True))


@pytest.mark.parametrize("cost", ["l2", CLOSEST])
def test_candidates_cost_what_the_images_after_their_actions_cost(cost):
    policy, tasks = make_policy(cost), Tasks(TWO_ROOMS, range(3))
    tasks.reached[1] = True
    actions = torch.rand(2, 2, 2, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1  # of tasks 0 and 2
    found = policy._true_cost(tasks)(actions)
    model, processor = policy.planner.model, policy.planner.video_processor
    goals = encode_frames(model, processor, tasks.goal_images)
    for candidate in range(2):
        played, values = Tasks(TWO_ROOMS, range(3)), []
        for step in range(2):
            for half in (slice(0, 2), slice(2, 4)):
                moves = np.zeros((3, 2))
                moves[[0, 2]] = actions[:, candidate, step, half].numpy()
                played.step(moves)
            latents = encode_frames(model, processor, played.render())
            apart = (latents - goals).square().mean((-2, -1))
            values.append(apart if cost == "l2" else 2 * apart + model.temporal_distance(latents, goals).detach())
        expected = values[-1] if cost == "l2" else torch.minimum(*values)
        torch.testing.assert_close(found[:, candidate], expected[[0, 2]])


def test_plans_are_those_of_the_best_candidates_and_the_solver_stays():
    policy, tasks = make_policy(num_candidates=32), Tasks(TWO_ROOMS, range(2))
    solver = policy.planner.solver
    plans = policy(tasks)
    assert plans.shape == (2, 4, 2) and policy.planner.solver is solver and isinstance(solver, CEM)
    cost = policy._true_cost(tasks)
    planned = cost(torch.from_numpy(plans).reshape(2, 1, 2, 4))[:, 0]
    others = cost(torch.rand(2, 50, 2, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    assert (planned < others.median(dim=1).values).all()
    tasks.reached[:] = True
    assert not policy(tasks).any()


def test_planners_that_need_the_models_dynamics_are_refused():
    with pytest.raises(ValueError, match="a solver by gradient"):
        make_policy(solver="gradient")
    planner = make_policy().planner
    planner.subgoals = object()
    with pytest.raises(ValueError, match="subgoals"):
        TrueDynamicsPolicy(planner, 0, tqdm(disable=True))
