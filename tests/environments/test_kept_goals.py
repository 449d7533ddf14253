"""Goals are encoded once per episode, anew when their images change, and the actions stay the same."""

import numpy as np
import pytest
import torch
from tqdm import tqdm

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig, VJepa2Planner, VJepa2VideoProcessor, VJepa2WorldModel
from vjepa2_hf.environments import PUSHING
from vjepa2_hf.environments.closed_loop import run_closed_loop
from vjepa2_hf.environments.goal_policies import GoalPolicy, PolicyPlan
from vjepa2_hf.environments.kept_goals import KeptGoals
from vjepa2_hf.environments.planner_policy import PlannerPolicy
from vjepa2_hf.environments.tasks import Tasks


def make_planner(**fields) -> VJepa2Planner:
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "crop_size": 64}
    fields |= {"predictor_hidden_size": 12, "predictor_num_hidden_layers": 1, "predictor_num_attention_heads": 2}
    fields |= {"action_dim": 4, "actions_per_step": 2, "frame_skip": 2}
    torch.manual_seed(0)
    bounds = {"action_low": [-1.0] * 4, "action_high": [1.0] * 4}
    model = VJepa2WorldModel.from_encoder(VJepa2Encoder(VJepa2EncoderConfig(**sizes)), **bounds, **fields)
    solver = {"horizon": 3, "num_candidates": 4, "num_iterations": 1, "num_elites": 2}
    return VJepa2Planner(model, VJepa2VideoProcessor(size=64, crop_size=64), solver="cem", device="cpu", **solver)


def make_plan(kind: str, folder):
    planner = make_planner(**({"num_views": 2, "view_names": ["top", "agent"]} if kind == "views" else {}))
    if kind in ("policy", "proposal"):
        GoalPolicy.from_world_model(planner.model, "nowhere", hidden_size=8).save_pretrained(folder)
    if kind == "policy":
        return PolicyPlan(str(folder), planner=planner)
    return PlannerPolicy(planner, 0, tqdm(disable=True), proposal=str(folder) if kind == "proposal" else None)


@pytest.mark.parametrize("kind", ["planner", "views", "proposal", "policy"])
def test_a_goal_is_encoded_once_per_episode_and_nothing_else_changes(kind, tmp_path, monkeypatch):
    env_kwargs = {"views": ["top", "agent"]} if kind == "views" else {}
    plan, counts = make_plan(kind, tmp_path), []
    encode_targets = VJepa2WorldModel.encode_targets

    def counted(self, pixels, *arguments):
        counts.append(pixels.shape[0] * pixels.shape[1])
        return encode_targets(self, pixels, *arguments)

    monkeypatch.setattr(VJepa2WorldModel, "encode_targets", counted)
    results = {}
    for kept in (True, False):
        if not kept:
            monkeypatch.setattr(KeptGoals, "_holds", lambda *arguments: False)
        counts.clear()
        for number in range(2):  # the second batch has other goals
            policy = plan.begin(number) if hasattr(plan, "begin") else plan
            tasks = Tasks(PUSHING, [3 + number], env_kwargs=env_kwargs)
            results[kept, number] = run_closed_loop(tasks, policy, 2).actions
        assert sum(counts) == (2 if kept else plan.plans // 2)  # `plans` counts both runs
    for number in range(2):
        np.testing.assert_array_equal(results[True, number], results[False, number])


def test_images_are_compared_by_value_and_rows_follow_the_episodes():
    calls, tasks = [], Tasks(PUSHING, range(3))

    def encode(images):
        calls.append(len(images))
        return torch.from_numpy(images[:, 0, 0, 0].astype(np.int64))

    goals = np.stack([np.full((4, 4, 3), value, np.uint8) for value in (10, 20, 30)])
    kept, everyone = KeptGoals(encode), np.arange(3)
    assert kept(tasks, everyone, goals).tolist() == [10, 20, 30] and calls == [3]
    kept(tasks, everyone, goals)
    assert calls == [3, 3]  # no step was taken: other tasks may have begun
    tasks.step(np.zeros((3, 2)))
    assert kept(tasks, everyone, goals.copy()).tolist() == [10, 20, 30] and calls == [3, 3]
    assert kept(tasks, everyone[[0, 2]], goals[[0, 2]]).tolist() == [10, 30] and calls == [3, 3]
    goals[2] = 40  # in place
    assert kept(tasks, everyone[[0, 2]], goals[[0, 2]]).tolist() == [10, 40] and calls == [3, 3, 2]
    assert kept(tasks, everyone, goals).tolist() == [10, 20, 40] and calls == [3, 3, 2, 3]  # 1 was not kept
    views = {"top": goals, "agent": goals + 1}
    by_view = KeptGoals(lambda images: encode(images["agent"]))
    assert by_view(tasks, everyone, views).tolist() == [11, 21, 41]
    views["agent"][0] = 7
    assert by_view(tasks, everyone, views).tolist() == [7, 21, 41]
