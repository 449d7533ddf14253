"""Subgoals of a second time scale: what they choose, whom they accept, and folders that bring them back."""

import pytest
import torch
from builders import GOAL, OBSERVATION, TINY_ENCODER, TINY_PREDICTOR, build_planner, same_plan, spread

from vjepa2_hf import VJepa2Planner, VJepa2WorldModel, VJepa2WorldModelConfig
from vjepa2_hf.pipelines.two_level import MacroActionSubgoals
from vjepa2_hf.planning import LatentDistance


SEARCH = {"horizon": 2, "num_candidates": 8, "num_iterations": 2}
MACRO = {"action_dim": 8, "frame_skip": 4, "macro_action_dim": 2, "macro_action_low": [-0.5] * 2}


def build_low(**fields) -> VJepa2Planner:
    fields = {"distance_head": True, **fields}
    planner = build_planner(options={"device": "cpu", "cost": "l2"}, **fields)
    planner.model.fit_state(torch.randn(20, planner.model.tokens_per_frame, 24))
    return planner


def build_high(low: VJepa2WorldModel, **fields) -> VJepa2WorldModel:
    """A model of longer steps on the latents of another one."""
    torch.manual_seed(1)
    fields = {
        "context_frames": 1,
        **TINY_PREDICTOR,
        **MACRO,
        "macro_action_high": [0.5] * 2,
        "planner": SEARCH,
    } | fields
    model = spread(VJepa2WorldModel(VJepa2WorldModelConfig(encoder_config=TINY_ENCODER, **fields)))
    model.encoder.load_state_dict(low.encoder.state_dict())
    model.register_buffer("state_mean", low.state_mean.clone())
    model.register_buffer("state_scale", low.state_scale.clone())
    model.config.state_fitted = True
    return model.eval()


@pytest.fixture(scope="module")
def low() -> VJepa2Planner:
    return build_low()


@pytest.fixture(scope="module")
def subgoals(low) -> MacroActionSubgoals:
    return MacroActionSubgoals(build_high(low.model), low.model)


def latents_of(planner, image) -> torch.Tensor:
    frames = planner.video_processor(image, return_tensors="pt")["pixel_values_videos"]
    return planner.model.encode(frames)[:, 0]


def at_distance(frames: float):
    """A temporal distance that is the same for all pairs."""
    return lambda self, latents, goal: latents.new_full((len(latents),), frames)


class TestChosen:
    def test_a_far_goal_is_replaced_by_the_first_imagined_latents_of_the_best_plan(self, low, subgoals, monkeypatch):
        here, there = latents_of(low, OBSERVATION), latents_of(low, GOAL)
        scored, score = [], VJepa2WorldModel.score

        def keep(self, *arguments, **options):
            scored.append((arguments[2], score(self, *arguments, **options)))
            return scored[-1][1]

        monkeypatch.setattr(VJepa2WorldModel, "score", keep)
        monkeypatch.setattr(VJepa2WorldModel, "temporal_distance", at_distance(100.0))
        chosen, facts = subgoals.choose(low.model, here, there)
        assert facts == [{"reason": "macro-action", "distance": 100.0, "goal_distance": 100.0}]
        assert all(actions.abs().max() <= 0.5 for actions, _ in scored)  # the range of training
        plan, cost = scored[-1]  # the plan that the solver returns is scored last
        assert cost.item() <= scored[0][1].median()
        imagined = subgoals.model.rollout(here.unsqueeze(1), plan[:, 0])
        assert torch.equal(chosen, imagined[:, 0]) and not torch.equal(chosen, there)

    def test_a_goal_within_one_step_of_the_larger_scale_is_planned_for_itself(self, low, subgoals, monkeypatch):
        here, there = latents_of(low, OBSERVATION), latents_of(low, GOAL)
        monkeypatch.setattr(VJepa2WorldModel, "temporal_distance", at_distance(4.0))
        chosen, facts = subgoals.choose(low.model, here, there)
        assert torch.equal(chosen, there) and facts[0]["reason"] == "goal within reach"

    def test_a_batch_chooses_for_each_problem(self, low, subgoals):
        low.subgoals = subgoals
        alone = [low(OBSERVATION, GOAL), low(GOAL, GOAL)]
        together = low([OBSERVATION, GOAL], [GOAL, GOAL])
        other_seed = low(OBSERVATION, GOAL, seed=3)
        low.subgoals = None
        assert [plan["subgoal"]["reason"] for plan in alone] == ["macro-action", "goal within reach"]
        for one, other in zip(alone, together, strict=True):
            assert same_plan(one, other) and one["subgoal"]["reason"] == other["subgoal"]["reason"]
            assert one["subgoal"]["distance"] == pytest.approx(other["subgoal"]["distance"], rel=1e-3)
        assert other_seed["subgoal"] == alone[0]["subgoal"]  # it depends on observation and goal alone

    def test_without_a_bottleneck_the_solver_searches_over_all_actions(self, low):
        fields = dict.fromkeys(("macro_action_dim", "macro_action_low", "macro_action_high"))
        subgoals = MacroActionSubgoals(build_high(low.model, **fields), low.model)
        chosen, _ = subgoals.choose(low.model, latents_of(low, OBSERVATION), latents_of(low, GOAL))
        assert subgoals.model.config.action_dim == 8 and chosen.isfinite().all()


class TestPairing:
    def test_encoder_and_distance_are_those_of_the_planner(self, low, subgoals):
        for name in ("encoder", "distance_head"):
            assert getattr(subgoals.model, name) is getattr(low.model, name)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda low, high: high.state_mean.add_(0.1), "has another fitted state: train it with state_of=FOLDER"),
            (lambda low, high: high.encoder.layernorm.weight.data.add_(0.1), "has another encoder"),
            (lambda low, high: setattr(high.config, "frame_skip", 1), "has frame_skip=1, the planner's 1"),
            (lambda low, high: setattr(low.config, "distance_head", False), "a planner's model with a distance head"),
            (lambda low, high: setattr(high.config, "proprio_dim", 2), "needs proprio states or extrinsics"),
            (
                lambda low, high: setattr(high.config, "normalize_latents", "none"),
                "normalize_latents is 'none' in one",
            ),
        ],
    )
    def test_models_that_do_not_fit_are_refused(self, change, message):
        low = build_low().model
        high = build_high(low)
        change(low, high)
        with pytest.raises(ValueError, match=message):
            MacroActionSubgoals(high, low)


class TestSaving:
    def test_a_planner_brings_its_second_scale_back_without_a_second_encoder(self, tmp_path):
        planner = build_low()
        high = build_high(planner.model, planner={**SEARCH, "cost": {"cost": "latent", "distance": "l1"}})
        planner.subgoals = MacroActionSubgoals(high, planner.model)
        planner.save_pretrained(tmp_path / "planner")
        loaded = VJepa2Planner.from_pretrained(tmp_path / "planner", device="cpu")
        assert same_plan(loaded(OBSERVATION, GOAL), planner(OBSERVATION, GOAL))
        found, expected = (one(OBSERVATION, GOAL)["subgoal"] for one in (loaded, planner))
        assert found.keys() == expected.keys()
        for name, value in expected.items():  # the alignment of loaded weights may change the last bit
            assert found[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-6))
        assert loaded.subgoals.solver == planner.subgoals.solver and loaded.subgoals.cost == LatentDistance("l1")
        weights = (tmp_path / "planner" / "subgoals" / "macro_model.safetensors").stat().st_size
        assert weights < (tmp_path / "planner" / "model.safetensors").stat().st_size

    def test_the_folder_of_a_trained_model_is_enough(self, low, subgoals, tmp_path):
        build_high(low.model).save_pretrained(tmp_path / "high")
        planner = VJepa2Planner(low.model, low.video_processor, device="cpu", subgoals=tmp_path / "high")
        arguments = (low.model, latents_of(low, OBSERVATION), latents_of(low, GOAL))
        assert torch.equal(planner.subgoals.choose(*arguments)[0], subgoals.choose(*arguments)[0])

    def test_settings_of_a_planner_that_its_search_does_not_have_are_left_out(self, low, tmp_path):
        high = build_high(low.model)
        VJepa2Planner(high, low.video_processor, device="cpu", **SEARCH).save_pretrained(tmp_path)
        assert (
            VJepa2Planner(low.model, low.video_processor, device="cpu", subgoals=tmp_path).subgoals.solver.horizon == 2
        )

    @pytest.mark.parametrize("name", ["config.json", "missing/final", "../x"])
    def test_a_folder_that_is_not_there_is_named(self, low, tmp_path, name):
        (tmp_path / "config.json").touch()
        with pytest.raises(FileNotFoundError, match="There are no subgoals at .*: no such folder"):
            VJepa2Planner(low.model, low.video_processor, device="cpu", subgoals=tmp_path / name)

    def test_damage_and_other_planners_are_one_sentence(self, tmp_path):
        planner = build_low()
        planner.subgoals = MacroActionSubgoals(build_high(planner.model), planner.model)
        planner.save_pretrained(tmp_path / "planner")
        folder = tmp_path / "planner" / "subgoals"
        other = build_low(predictor_hidden_size=16)
        other.model.state_scale.mul_(2)
        with pytest.raises(ValueError, match="has another fitted state"):
            VJepa2Planner(other.model, other.video_processor, device="cpu", subgoals=folder)
        path = folder / "macro_model.safetensors"
        path.write_bytes(path.read_bytes()[:-4] + b"abcd")
        with pytest.raises(ValueError, match="holds damaged subgoals, .* save the planner") as error:
            VJepa2Planner.from_pretrained(tmp_path / "planner", device="cpu")
        assert "\n" not in str(error.value)
