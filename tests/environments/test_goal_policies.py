"""Policies on latents: bounds, hindsight goals, imagination, and both trainings at their tiny size."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import train_actor
import train_cloning
from builders import TINY_ENCODER
from record_episodes import episode_features

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig, VJepa2VideoProcessor, VJepa2WorldModel
from vjepa2_hf.data.shards import write_shards
from vjepa2_hf.data.video_writing import encode_video
from vjepa2_hf.environments.goal_policies import GoalPolicy, PolicyPlan, imagine, load_policy
from vjepa2_hf.environments.policy_training import HindsightPairs, planned_actions
from vjepa2_hf.environments.tasks import Tasks
from vjepa2_hf.planning import CEM, LatentDistance
from vjepa2_hf.training.run import read_metrics


REQUIRED = {"output_dir": "out", "data": "data", "world_model": "model"}
DYNAMICS = {"predictor_hidden_size": 16, "predictor_num_hidden_layers": 1, "predictor_num_attention_heads": 2}
BOUNDS = {"action_low": [-1.0, 0.0], "action_high": [1.0, 0.5]}
TINY = [
    "max_steps=30",
    "batch_size=16",
    "num_threads=1",
    "log_every=5",
    "save_every=20",
    "validation_fraction=0.4",
    "goal_steps=3",
    "policy={hidden_size: 16}",
    "learning_rate={peak: 3e-3, warmup_steps: 2}",
]


def make_model(**fields) -> VJepa2WorldModel:
    torch.manual_seed(0)
    encoder = VJepa2Encoder(VJepa2EncoderConfig(**TINY_ENCODER))
    # wide dynamics noise, so that actions show in what follows
    fields = {"action_dim": 2, "predictor_initializer_range": 0.3, "residual": True, **BOUNDS, **DYNAMICS, **fields}
    model = VJepa2WorldModel.from_encoder(encoder, **fields).eval()
    with torch.no_grad():
        for parameter in model.predictor.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # the residual's last layer begins at zero
    return model


def save_model(model: VJepa2WorldModel, folder: Path) -> None:
    model.save_pretrained(folder)
    processor = VJepa2VideoProcessor(size=32, crop_size=32, image_mean=[0.4] * 3, image_std=[0.2] * 3)
    processor.save_pretrained(folder)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> tuple[Path, Path]:
    """Episodes whose actions are where the square moves, and a world model that was never trained."""
    folder = tmp_path_factory.mktemp("policies")
    rng = np.random.default_rng(0)

    def rows():
        for number in range(8):
            frames = np.full((7, 32, 32, 3), 40, np.uint8)
            side = 1 if number % 2 else -1
            for step, frame in enumerate(frames):
                x = 16 + side * 2 * step
                frame[10:22, max(0, x - 4) : x + 4] = 220
            actions = np.float32([[side, 0.25]] * 6) + rng.normal(0, 0.01, (6, 2)).astype(np.float32)
            video = {"bytes": encode_video(frames, fps=10), "path": None}
            yield {"video": video, "actions": actions, "fps": 10.0, "episode_id": f"{number:03d}"}

    write_shards(rows(), folder / "data", episode_features([]), num_shards=1)
    save_model(make_model(reward_head=True), folder / "world_model")
    return folder / "data", folder / "world_model"


def train(monkeypatch, script, inputs, output_dir: Path, *overrides: str) -> dict[str, float]:
    data, world_model = inputs
    arguments = [f"data={data}", f"world_model={world_model}", f"output_dir={output_dir}", *TINY, *overrides]
    monkeypatch.setattr(sys, "argv", [script.__name__, *arguments])
    script.main()
    return json.loads((output_dir / "held_out.json").read_text())


class TestPolicy:
    def test_actions_keep_their_bounds(self):
        torch.manual_seed(0)
        policy = GoalPolicy(4, 8, **BOUNDS, world_model="w", hidden_size=8)
        with torch.no_grad():
            policy.action[-1].weight.mul_(1000)
        actions = policy(torch.randn(50, 4, 8), torch.randn(50, 4, 8))
        assert actions.shape == (50, 2)
        assert (actions >= torch.tensor([-1.0, 0.0])).all() and (actions <= torch.tensor([1.0, 0.5])).all()
        assert actions[:, 0].abs().max() > 0.99 and actions.std() > 0.1  # they are reached

    def test_a_saved_policy_acts_the_same(self, tmp_path):
        policy = GoalPolicy(4, 8, **BOUNDS, world_model="somewhere", hidden_size=8, num_hidden_layers=3)
        policy.save_pretrained(tmp_path)
        assert (tmp_path / "model.safetensors").exists()
        loaded = load_policy(str(tmp_path))
        latents = torch.randn(3, 4, 8)
        torch.testing.assert_close(loaded(latents, -latents), policy(latents, -latents))
        assert loaded.world_model == "somewhere"

    def test_the_number_of_steps_left_is_an_input_if_it_has_one(self, tmp_path):
        torch.manual_seed(0)
        policy = GoalPolicy(4, 8, **BOUNDS, world_model="w", hidden_size=8, steps_left=6)
        policy.save_pretrained(tmp_path)
        policy, latents = load_policy(str(tmp_path)), torch.randn(3, 4, 8)
        assert policy.steps_left == 6
        actions = policy(latents, -latents, torch.tensor([6, 3, 9]))
        torch.testing.assert_close(actions[[0, 2]], policy(latents, -latents)[[0, 2]])  # more than 6 counts as 6
        assert (actions[1] - policy(latents, -latents)[1]).abs().max() > 1e-4
        without = GoalPolicy(4, 8, **BOUNDS, world_model="w", hidden_size=8)
        assert torch.equal(without(latents, -latents, torch.ones(3)), without(latents, -latents))
        with pytest.raises(ValueError, match="steps_left is -1"):
            GoalPolicy(4, 8, **BOUNDS, world_model="w", steps_left=-1)

    def test_a_folder_without_one_is_a_sentence(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="train_cloning.py"):
            load_policy(str(tmp_path / "absent"))

    def test_a_damaged_one_is_a_sentence(self, tmp_path):
        GoalPolicy(4, 8, **BOUNDS, world_model="w", hidden_size=8).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"does not load \(RuntimeError.* size mismatch .*: train one with"):
            load_policy(str(tmp_path), hidden_size=16)
        (tmp_path / "model.safetensors").write_bytes(b"half")
        with pytest.raises(ValueError, match=r"does not load \(SafetensorError"):
            load_policy(str(tmp_path))

    def test_it_needs_bounds(self):
        with pytest.raises(ValueError, match="continuous actions with bounds"):
            GoalPolicy.from_world_model(make_model(action_low=None, action_high=None), "there")

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_in_closed_loop_it_acts_where_a_task_is_active(self, tmp_path, dtype):
        bounds = {"action_low": [-1.0] * 4, "action_high": [1.0] * 4}
        model = make_model(action_dim=4, actions_per_step=2, frame_skip=2, **bounds)
        save_model(model.to(dtype), tmp_path / "model")
        GoalPolicy.from_world_model(model, str(tmp_path / "model")).save_pretrained(tmp_path / "policy")
        tasks = Tasks("vjepa2_hf/Pushing-v0", range(3))
        tasks.reached[1] = True
        plan = PolicyPlan(str(tmp_path / "policy"))
        actions = plan(tasks)
        assert actions.shape == (3, 2, 2) and plan.plans == 2
        assert actions[[0, 2]].any(axis=(1, 2)).all() and not actions[1].any()

    def test_in_closed_loop_the_steps_left_count_down_to_one(self, tmp_path, monkeypatch):
        bounds, given = {"action_low": [-1.0] * 4, "action_high": [1.0] * 4}, []
        model = make_model(action_dim=4, actions_per_step=2, frame_skip=2, **bounds)
        save_model(model, tmp_path / "model")
        policy = GoalPolicy.from_world_model(model, str(tmp_path / "model"), steps_left=3)
        policy.save_pretrained(tmp_path / "policy")
        plan, forward = PolicyPlan(str(tmp_path / "policy")), GoalPolicy.forward

        def noted(self, latents, goal, left=None):
            given.append(left.tolist())
            return forward(self, latents, goal, left)

        monkeypatch.setattr(GoalPolicy, "forward", noted)
        for _ in range(2):
            tasks = Tasks("vjepa2_hf/Pushing-v0", range(2))
            for _ in range(4):
                actions = plan(tasks)
                for step in range(2):
                    tasks.step(actions[:, step])
        assert given == 2 * [[3, 3], [2, 2], [1, 1], [1, 1]]


class TestImagination:
    @pytest.mark.parametrize("context_frames", [1, 2])
    def test_it_is_the_rollout_of_its_own_actions(self, context_frames):
        model = make_model(context_frames=context_frames)
        policy = GoalPolicy.from_world_model(model, "w", hidden_size=8)
        latents, goal = torch.randn(2, 3, model.tokens_per_frame, model.latent_size)[:, :2].unbind(1)
        actions, future = imagine(policy, model, latents, goal, steps=3)
        torch.testing.assert_close(future, model.rollout(latents.unsqueeze(1), actions))
        torch.testing.assert_close(actions[:, 1], policy(future[:, 0], goal))

    def test_a_world_model_in_bfloat16_leads_to_nearly_the_same_actions(self):
        model = make_model()
        policy = GoalPolicy.from_world_model(model, "w", hidden_size=8)
        latents, goal = torch.randn(2, 2, model.tokens_per_frame, model.latent_size).unbind()
        expected, _ = imagine(policy, model, latents, goal, steps=2)
        half = model.to(torch.bfloat16)
        actions, future = imagine(policy, half, latents.bfloat16(), goal.bfloat16(), steps=2)
        assert actions.dtype == torch.float32 and future.dtype == torch.bfloat16
        torch.testing.assert_close(actions, expected, atol=0.05, rtol=0)

    def test_the_steps_left_count_down(self):
        model = make_model()
        policy = GoalPolicy.from_world_model(model, "w", hidden_size=8, steps_left=5)
        latents = torch.randn(2, model.tokens_per_frame, model.latent_size)
        actions, future = imagine(policy, model, latents, -latents, 3, torch.tensor([2, 4]))
        for step, left in ((1, [1, 3]), (2, [1, 2])):
            expected = policy(future[:, step - 1], -latents, torch.tensor(left))
            torch.testing.assert_close(actions[:, step], expected)
        first = imagine(policy, model, latents, -latents, 1)[0]
        torch.testing.assert_close(first[:, 0], policy(latents, -latents, torch.tensor([5, 5])))

    def test_gradient_reaches_the_policy_through_the_world_model(self):
        model = make_model().requires_grad_(False)
        policy = GoalPolicy.from_world_model(model, "w", hidden_size=8)
        latents = torch.randn(2, model.tokens_per_frame, model.latent_size)
        _, future = imagine(policy, model, latents, latents, steps=2)
        future.square().mean().backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in policy.parameters())

    def test_models_that_need_states_are_refused(self):
        model = make_model(proprio_dim=2)
        policy = GoalPolicy.from_world_model(model, "w")
        latents = torch.randn(2, model.tokens_per_frame, model.latent_size)
        with pytest.raises(ValueError, match="latents alone"):
            imagine(policy, model, latents, latents, steps=1)


def test_hindsight_goals_lie_ahead_in_the_same_episode():
    # two episodes of 4 and 2 frames; a latent says (episode, frame)
    frames = torch.tensor([[0, 0], [0, 1], [0, 2], [0, 3], [1, 0], [1, 1]]).float().unsqueeze(1)
    pairs = HindsightPairs(frames, frames, torch.arange(6.0).unsqueeze(1), torch.tensor([3, 2, 1, 0, 1, 0]))
    batch = pairs.sample(500, longest=2, generator=torch.Generator().manual_seed(0))
    start, goal = batch["latents"][:, 0], batch["goal"][:, 0]
    assert (start[:, 0] == goal[:, 0]).all()
    assert torch.equal(goal[:, 1] - start[:, 1], batch["steps"].float())
    assert set(batch["steps"].tolist()) == {1, 2}
    assert set(batch["actions"].flatten().tolist()) == {0, 1, 2, 4}  # the last frames have no action


def test_of_several_draws_the_pair_farthest_apart_is_kept():
    # one episode that moves ever faster: frame f lies at f squared
    frames = (torch.arange(6.0) ** 2).view(6, 1, 1)
    pairs = HindsightPairs(frames, frames, torch.arange(6.0).unsqueeze(1), torch.arange(5, -1, -1))

    def drawn(draws: int) -> torch.Tensor:
        batch = pairs.sample(300, 5, torch.Generator().manual_seed(0), draws)
        start, goal = batch["latents"].flatten().sqrt(), batch["goal"].flatten().sqrt()
        assert torch.equal(goal - start, batch["steps"].float())
        assert torch.equal(batch["actions"].flatten(), start)
        return goal**2 - start**2

    one, several = drawn(1), drawn(4)
    assert several.mean() > 1.5 * one.mean()
    # of the same draws in the same order, a group of four has its largest
    four = pairs.sample(1200, 5, torch.Generator().manual_seed(0))
    apart = (four["goal"] - four["latents"]).flatten().view(300, 4)
    assert torch.equal(several, apart.max(dim=1).values)


class TestTraining:
    def test_cloning_learns_the_actions_of_the_data(self, monkeypatch, inputs, tmp_path):
        held_out = train(monkeypatch, train_cloning, inputs, tmp_path)
        assert held_out["after"] < 0.5 * held_out["before"]
        policy = load_policy(str(tmp_path / "final"))
        assert policy.world_model == str(inputs[1])
        losses = [line["loss"] for line in read_metrics(tmp_path)]
        assert losses[-1] < losses[0] and len(losses) == 6

    def test_cloning_learns_with_the_steps_left_as_an_input(self, monkeypatch, inputs, tmp_path):
        policy = "policy={hidden_size: 16, steps_left: 3}"
        held_out = train(monkeypatch, train_cloning, inputs, tmp_path, policy)
        assert held_out["after"] < 0.5 * held_out["before"]
        policy = load_policy(str(tmp_path / "final"))
        assert policy.steps_left == 3 and policy.action[0].in_features == 2 * 16 + 1

    def test_cloning_of_a_planner_learns_its_actions(self, monkeypatch, inputs, tmp_path):
        searches, plan = [], train_cloning.planned_actions

        def noted(*given):
            searches.append(plan(*given))
            return searches[-1]

        monkeypatch.setattr(train_cloning, "planned_actions", noted)
        planner = "planner={name: cem, horizon: 2, num_candidates: 8, num_iterations: 2}"
        settings = [planner, "max_steps=12", "save_every=6"]
        whole = train(monkeypatch, train_cloning, inputs, tmp_path, *settings)
        assert len(searches) == 14 and searches[1].shape == (16, 2)  # 12 steps, and twice the held-out pairs
        assert torch.equal(searches[0], searches[-1]) and whole["after"] < whole["before"]
        for path in ("final", "checkpoint-12"):
            shutil.rmtree(tmp_path / path)
        again = train(monkeypatch, train_cloning, inputs, tmp_path, *settings, "resume=latest")
        assert again == pytest.approx(whole, abs=1e-6)  # the same plans

    def test_planned_actions_are_those_of_single_searches(self):
        model = make_model()
        latents, goal = torch.randn(2, 3, model.tokens_per_frame, model.latent_size).unbind()
        batch = {"latents": latents, "goal": goal, "seeds": torch.tensor([5, 6, 5])}
        solver, cost = CEM(3, 8, 2), LatentDistance()
        actions = planned_actions(model, batch, solver, cost)
        assert (actions >= torch.tensor([-1.0, 0.0])).all() and (actions <= torch.tensor([1.0, 0.5])).all()
        for row in range(3):
            alone = planned_actions(model, {name: part[row : row + 1] for name, part in batch.items()}, solver, cost)
            torch.testing.assert_close(alone[0], actions[row])

    def test_a_planner_that_cannot_be_cloned_is_refused(self):
        with pytest.raises(ValueError, match="planner.cost is 'proprio'; expected terms of latents and actions alone"):
            train_cloning.CloningConfig(**REQUIRED, planner={"cost": "proprio"})
        with pytest.raises(ValueError, match="Unknown solver 'cme'"):
            train_cloning.CloningConfig(**REQUIRED, planner={"name": "cme"})
        with pytest.raises(ValueError, match="planner.solver is 'icem': give the solver's name as planner.name"):
            train_cloning.CloningConfig(**REQUIRED, planner={"solver": "icem"})
        with pytest.raises(ValueError, match="planner.name is 'categorical_cem', for discrete actions.*: cem"):
            train_cloning.CloningConfig(**REQUIRED, planner={"name": "categorical_cem"})

    @pytest.mark.parametrize("script", [train_cloning, train_actor])
    def test_a_world_model_saved_in_bfloat16_trains_in_float32(self, monkeypatch, inputs, tmp_path, script):
        folder, short = tmp_path / "half", ["max_steps=2", "save_every=2"]
        save_model(VJepa2WorldModel.from_pretrained(inputs[1], dtype="bfloat16"), folder)
        half = train(monkeypatch, script, (inputs[0], folder), tmp_path / "run", *short)
        whole = train(monkeypatch, script, inputs, tmp_path / "whole", *short)
        assert half == pytest.approx(whole, rel=0.05)

    @pytest.mark.parametrize("settings", [["cost=summed"], ["cost=final"], ["objective=reward"], ["cost=l1"]])
    def test_the_imagined_cost_of_an_actor_falls(self, monkeypatch, inputs, tmp_path, settings):
        held_out = train(monkeypatch, train_actor, inputs, tmp_path, "horizon=2", *settings)
        assert held_out["after"] < held_out["before"]
        assert isinstance(load_policy(str(tmp_path / "final")), GoalPolicy)

    @pytest.mark.parametrize("cost", [{"cost": "closest", "of": "temporal"}, "l2", {"cost": "latent", "summed": True}])
    def test_a_planners_cost_of_an_actor_is_the_score_of_its_actions(self, cost):
        model = make_model(distance_head=True)
        latents, goal = torch.randn(2, 3, model.tokens_per_frame, model.latent_size).unbind()
        policy = GoalPolicy.from_world_model(model, "there")
        config = train_actor.ActorConfig(**REQUIRED, horizon=3, cost=cost)
        found = train_actor.imagined_cost(policy, model, {"latents": latents, "goal": goal}, config)
        actions, _ = imagine(policy, model, latents, goal, 3)
        expected = model.score(latents.unsqueeze(1), goal, actions.unsqueeze(1), cost=cost).mean()
        torch.testing.assert_close(found, expected)
        found.backward()
        assert any(weights.grad is not None and weights.grad.abs().max() > 0 for weights in policy.parameters())

    def test_a_cost_that_an_actor_cannot_have_is_refused(self):
        with pytest.raises(ValueError, match="expected terms of latents, goals, actions and rewards alone"):
            train_actor.ActorConfig(**REQUIRED, cost="proprio")
        model, config = make_model(), train_actor.ActorConfig(**REQUIRED, cost="temporal")
        latents = torch.randn(2, 3, model.tokens_per_frame, model.latent_size)
        with pytest.raises(ValueError, match="the model has no distance head"):
            batch = dict(zip(("latents", "goal"), latents, strict=True))
            train_actor.imagined_cost(GoalPolicy.from_world_model(model, "there"), model, batch, config)

    def test_an_actor_starts_from_the_policy_it_is_given(self, monkeypatch, inputs, tmp_path):
        train(monkeypatch, train_cloning, inputs, tmp_path / "cloning")
        start = str(tmp_path / "cloning" / "final")
        still = [f"start={start}", "policy={}", "max_steps=1", "learning_rate={peak: 1e-9}"]
        train(monkeypatch, train_actor, inputs, tmp_path / "still", *still)
        cloned, actor = load_policy(start), load_policy(str(tmp_path / "still" / "final"))
        for name, weights in cloned.state_dict().items():
            torch.testing.assert_close(actor.state_dict()[name], weights, atol=1e-6, rtol=0)
        held_out = train(monkeypatch, train_actor, inputs, tmp_path / "actor", f"start={start}", "policy={}")
        assert held_out["after"] < held_out["before"]

    def test_a_start_that_does_not_fit_is_a_sentence(self, monkeypatch, inputs, tmp_path, capsys):
        for name, change, message in (
            ("latents", {"latent_size": 12}, "of size 12, but the world model has"),
            (
                "actions",
                {"action_low": [-1.0], "action_high": [1.0]},
                "has actions of 1 numbers, the world model's have 2",
            ),
        ):
            model = make_model()
            sizes = {"tokens": model.tokens_per_frame, "latent_size": model.latent_size, **BOUNDS, **change}
            GoalPolicy(**sizes, world_model="w", hidden_size=8).save_pretrained(tmp_path / name)
            with pytest.raises(SystemExit):
                train(monkeypatch, train_actor, inputs, tmp_path / "run", f"start={tmp_path / name}", "policy={}")
            assert message in capsys.readouterr().err
        with pytest.raises(ValueError, match="determines the sizes"):
            train_actor.ActorConfig(**REQUIRED, start="there", policy={"hidden_size": 8})

    def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(self, monkeypatch, inputs, tmp_path):
        whole = train(monkeypatch, train_cloning, inputs, tmp_path / "whole", "max_steps=8", "save_every=4")
        train(monkeypatch, train_cloning, inputs, tmp_path / "parts", "max_steps=8", "save_every=4")
        for path in ("final", "checkpoint-8"):
            shutil.rmtree(tmp_path / "parts" / path)
        again = train(
            monkeypatch, train_cloning, inputs, tmp_path / "parts", "max_steps=8", "save_every=4", "resume=latest"
        )
        assert again == pytest.approx(whole, abs=1e-6)

    def test_data_of_other_actions_than_the_models_is_refused(self, monkeypatch, inputs, tmp_path, capsys):
        save_model(make_model(action_dim=1, action_low=[-1.0], action_high=[1.0]), tmp_path / "other")
        with pytest.raises(SystemExit):
            train(monkeypatch, train_cloning, (inputs[0], tmp_path / "other"), tmp_path / "run")
        assert "has actions of 2 numbers per model step, but the world model's have 1" in capsys.readouterr().err

    def test_a_small_share_of_few_episodes_holds_out_one(self, monkeypatch, inputs, tmp_path):
        train(monkeypatch, train_cloning, inputs, tmp_path, "validation_fraction=0.001", "max_steps=1")
        assert (tmp_path / "final").is_dir()  # a run without held-out episodes is refused, see below

    def test_settings_that_do_not_fit_are_a_sentence(self, monkeypatch, inputs, tmp_path, capsys):
        for override, message in (
            ("goal_steps=0", "goal_steps must be"),
            ("goal_candidates=0", "goal_candidates must be"),
            ("validation_fraction=0.0", "0 held-out ones"),
        ):
            with pytest.raises(SystemExit):
                train(monkeypatch, train_cloning, inputs, tmp_path, override)
            assert message in capsys.readouterr().err
        with pytest.raises(ValueError, match="horizon must be"):
            train_actor.ActorConfig(**REQUIRED, horizon=0)
