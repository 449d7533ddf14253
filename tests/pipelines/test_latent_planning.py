"""The planner: plans repeat themselves, batches are single plans, folders keep settings, doubtful pictures warn."""

import warnings

import numpy as np
import PIL.Image
import pytest
import torch
from builders import (
    GOAL,
    OBSERVATION,
    OTHER,
    SOLVER,
    TINY_ENCODER,
    TINY_PREDICTOR,
    build_planner,
    noise_image,
    same_plan,
    spread,
)
from transformers import Pipeline, VJEPA2Config, VJEPA2Model, pipeline

from vjepa2_hf import VJepa2Planner, VJepa2VideoProcessor, VJepa2WorldModel, VJepa2WorldModelConfig
from vjepa2_hf.data.video_writing import encode_video
from vjepa2_hf.planning import CEM, CategoricalCEM, LatentDistance, RandomShooting, Uncertainty


@pytest.fixture(scope="module")
def planner():
    return build_planner(action_low=[-0.5, -1.0], action_high=[0.5, 2.0])


class TestActionsOfAStep:
    """Bounds and deviations of an environment action hold for each of the k of a model step."""

    def test_numbers_of_an_environment_action_are_repeated(self, tmp_path):
        model = build_planner(action_dim=4, actions_per_step=2).model
        processor = VJepa2VideoProcessor(size=32, crop_size=32)
        short = {"action_low": [-0.5, 0.1], "action_high": [0.5, 0.2], "init_std": [0.1, 0.0]}
        each = VJepa2Planner(model, processor, **SOLVER, **short)
        whole = VJepa2Planner(model, processor, **SOLVER, **{name: 2 * value for name, value in short.items()})
        assert each.action_low == [-0.5, 0.1, -0.5, 0.1] and each.solver.init_std == [0.1, 0.0, 0.1, 0.0]
        plan = each(OBSERVATION, GOAL)
        assert np.array_equal(plan["actions"], whole(OBSERVATION, GOAL)["actions"])
        assert (plan["actions"][:, 1::2] == np.float32(0.15)).all()  # no deviation: the middle of the bounds
        each.save_pretrained(tmp_path)
        again = VJepa2Planner.from_pretrained(tmp_path)
        assert again.action_high == each.action_high and again.solver == each.solver

    def test_numbers_of_a_whole_step_stay_as_they_are(self):
        model = build_planner(action_dim=4, actions_per_step=2).model
        low, high = [-1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]
        processor = VJepa2VideoProcessor(size=32, crop_size=32)
        planner = VJepa2Planner(model, processor, action_low=low, action_high=high, init_std=[0.1, 0.2, 0.3, 0.4])
        assert (planner.action_low, planner.action_high) == (low, high)
        assert planner.solver.init_std == [0.1, 0.2, 0.3, 0.4]

    @pytest.mark.parametrize("name", ["action_low", "action_high", "init_std"])
    def test_other_numbers_are_refused_with_both_sizes(self, name):
        model = build_planner(action_dim=4, actions_per_step=2).model
        with pytest.raises(ValueError, match=f"{name} has 3 numbers; expected 2, of an environment action, or 4"):
            VJepa2Planner(model, VJepa2VideoProcessor(size=32, crop_size=32), **{name: [0.5] * 3})

    @pytest.mark.parametrize("name", ["action_low", "action_high"])
    @pytest.mark.parametrize(
        ("value", "message"),
        [(-1, r"is -1; expected a list of 2 numbers"), ([float("nan"), 0], r"is \[nan, 0.0\]; expected numbers that")],
    )
    def test_bounds_that_are_no_numbers_are_refused_before_planning(self, name, value, message):
        with pytest.raises(ValueError, match=f"{name} {message}"):
            VJepa2Planner(build_planner().model, VJepa2VideoProcessor(size=32, crop_size=32), **{name: value})


class TestPlan:
    def test_is_plain_numpy_in_environment_units(self, planner):
        plan = planner(OBSERVATION, GOAL)
        assert isinstance(planner, Pipeline)
        assert plan["actions"].shape == (3, 2) and plan["actions"].dtype == np.float32
        assert np.array_equal(plan["action"], plan["actions"][0]) and isinstance(plan["cost"], float)
        assert len(plan["trace"]["cost"]) == 2 and all(isinstance(cost, float) for cost in plan["trace"]["cost"])
        assert (plan["actions"] >= [-0.5, -1]).all() and (plan["actions"] <= [0.5, 2]).all()

    def test_cost_is_the_models_score_of_the_plan(self, planner):
        plan = planner(OBSERVATION, GOAL)
        frames, goal = (
            planner.video_processor(x, return_tensors="pt")["pixel_values_videos"] for x in (OBSERVATION, GOAL)
        )
        score = planner.model.score(frames, goal, torch.from_numpy(plan["actions"])[None, None])
        assert plan["cost"] == pytest.approx(score.item(), rel=1e-5)

    def test_search_is_better_than_chance(self, planner):
        plan = planner(OBSERVATION, GOAL)
        frames, goal = (
            planner.video_processor(x, return_tensors="pt")["pixel_values_videos"] for x in (OBSERVATION, GOAL)
        )
        random = torch.rand(1, 64, 3, 2, generator=torch.Generator().manual_seed(1)) - 0.5
        assert plan["cost"] < planner.model.score(frames, goal, random).mean()

    def test_same_seed_same_plan(self, planner):
        one, two, other = (planner(OBSERVATION, GOAL, seed=seed) for seed in (3, 3, 4))
        assert np.array_equal(one["actions"], two["actions"]) and one["cost"] == two["cost"]
        assert not np.array_equal(one["actions"], other["actions"])

    def test_the_callers_random_state_is_left_alone(self, planner):
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        planner(OBSERVATION, GOAL)
        assert torch.equal(torch.rand(3), expected)

    def test_a_batch_is_single_plans(self, planner):
        batch = planner([OBSERVATION, OTHER, GOAL], [GOAL, OBSERVATION, GOAL], seed=2)
        assert isinstance(batch, list) and len(batch) == 3
        for plan, pair in zip(batch, [(OBSERVATION, GOAL), (OTHER, OBSERVATION), (GOAL, GOAL)], strict=True):
            assert same_plan(plan, planner(*pair, seed=2))

    @pytest.mark.parametrize("settings", [{}, {"proprio_dim": 2, "proprio_transition": "add"}])
    def test_searches_of_a_batch_that_end_one_by_one_are_single_plans(self, settings):
        planner = build_planner(solver=CEM(3, 16, 8, 4, stop_std=0.08), **settings)
        observations, goals = [OBSERVATION, OTHER, GOAL], [GOAL, OBSERVATION, GOAL]
        states = [{"proprio_state": [0.1 * i, -0.2]} if settings else {} for i in range(3)]
        together = {name: [each[name] for each in states] for name in states[0]}
        batch = planner(observations, goals, seed=2, **together)
        assert len({len(plan["trace"]["cost"]) for plan in batch}) > 1
        for plan, pair, state in zip(batch, zip(observations, goals, strict=True), states, strict=True):
            alone = planner(*pair, seed=2, **state)
            assert same_plan(plan, alone) and len(plan["trace"]["cost"]) == len(alone["trace"]["cost"])
            assert np.isfinite(plan["trace"]["std"]).all()

    def test_a_warm_start_is_where_the_search_starts(self):
        planner = build_planner(solver=CEM(3, 4, 1, 4, init_std=0.0))
        start = np.array([[0.1, 0.2], [0.3, -0.4], [0.5, 0.6]])
        np.testing.assert_allclose(planner(OBSERVATION, GOAL, warm_start=start)["actions"], start, atol=1e-6)
        with pytest.raises(ValueError, match=r"warm_start has shape \(1, 2, 2\), expected .* \(1, 3, 2\)"):
            planner(OBSERVATION, GOAL, warm_start=start[:2])

    def test_a_function_proposes_where_the_search_starts(self):
        planner, given = build_planner(solver=CEM(3, 4, 1, 4)), []
        starts = torch.linspace(-0.5, 0.5, 12).reshape(2, 3, 2)

        def propose(latents, goal):
            given.append((latents, goal))
            return starts

        images, goals = [OBSERVATION, GOAL], [GOAL, OBSERVATION]
        found, expected = (planner(images, goals, warm_start=each) for each in (propose, list(starts)))
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one["actions"], other["actions"])
        assert (found[0]["actions"] != planner(images, goals)[0]["actions"]).any()
        ((latents, goal),) = given
        torch.testing.assert_close(latents, goal.flip(0))  # each image is an observation and a goal
        with pytest.raises(ValueError, match="warm_start was given for 2 problems; expected 1"):
            planner(OBSERVATION, GOAL, warm_start=propose)


class TestDiscreteActions:
    def test_plans_are_one_hot_and_keep_their_settings(self, tmp_path):
        planner = build_planner(action_type="discrete", action_dim=6, actions_per_step=2)
        assert isinstance(planner.solver, CategoricalCEM) and planner.solver.actions_per_step == 2
        plan = planner(OBSERVATION, GOAL)
        groups = plan["actions"].reshape(3, 2, 3)
        assert plan["actions"].shape == (3, 6) and ((groups == 0) | (groups == 1)).all()
        assert (groups.sum(axis=-1) == 1).all()
        planner.save_pretrained(tmp_path)
        loaded = VJepa2Planner.from_pretrained(tmp_path)
        assert loaded.solver == planner.solver and same_plan(loaded(OBSERVATION, GOAL), plan)

    def test_solvers_of_the_other_kind_of_actions_are_refused(self):
        with pytest.raises(ValueError, match="solver is 'cem', but the model's actions are discrete: take 'categor"):
            build_planner(solver="cem", action_type="discrete", action_dim=3)
        with pytest.raises(ValueError, match="solver is 'categorical_cem', but the model's actions are continuous"):
            build_planner(solver="categorical_cem")


def test_the_goal_of_an_adapting_encoder_is_its_target_encoders():
    planner = build_planner(freeze_encoder=False)
    plan = planner(OBSERVATION, GOAL)
    assert same_plan(planner(OBSERVATION, GOAL), plan)
    spread(planner.model.target_encoder)
    assert abs(planner(OBSERVATION, GOAL)["cost"] - plan["cost"]) > 1e-3


class TestInputs:
    def test_every_form_of_a_picture_gives_the_same_plan(self, planner, tmp_path):
        expected = planner(OBSERVATION, GOAL)
        image, path = PIL.Image.fromarray(OBSERVATION), tmp_path / "observation.png"
        image.save(path)
        tensor = torch.from_numpy(OBSERVATION).permute(2, 0, 1)
        for form in (image, str(path), OBSERVATION / np.float32(255), tensor, OBSERVATION[None]):
            assert same_plan(planner(form, GOAL), expected)

    def test_processed_tensors_are_a_batch(self, planner):
        frames, goal = (
            planner.video_processor(x, return_tensors="pt")["pixel_values_videos"] for x in (OBSERVATION, GOAL)
        )
        (plan,) = planner(frames, goal)
        assert same_plan(plan, planner(OBSERVATION, GOAL))

    def test_a_clip_of_the_last_frames(self, planner):
        clip, action = np.stack([OTHER, OBSERVATION]), np.array([[0.3, -0.2]])
        one = planner(clip, GOAL, context_actions=action)
        assert one["actions"].shape == (3, 2)
        assert one["cost"] != planner(clip, GOAL, context_actions=-action)["cost"]
        batch = planner([clip, clip], [GOAL, GOAL], context_actions=[action, -action])
        assert same_plan(batch[0], one)

    def test_proprio_states(self):
        planner = build_planner(proprio_dim=2, proprio_transition="add")
        states = np.array([0.4, 0.6]), np.array([0.1, 0.9])
        one, two = (planner(OBSERVATION, GOAL, proprio_state=state) for state in states)
        assert one["cost"] != two["cost"]
        batch = planner([OBSERVATION] * 2, [GOAL] * 2, proprio_state=list(states))
        assert same_plan(batch[0], one) and same_plan(batch[1], two)
        clip, action = np.stack([OTHER, OBSERVATION]), np.zeros((1, 2))
        planner(clip, GOAL, proprio_state=np.stack(states), context_actions=action)

    def test_pictures_of_other_sizes_are_resized(self, planner):
        assert planner(noise_image(0, 64, 64), noise_image(1, 48, 48))["actions"].shape == (3, 2)


class TestFolders:
    def test_pipeline_loads_what_was_saved(self, planner, tmp_path):
        planner.save_pretrained(tmp_path)
        loaded = pipeline("latent-planning", model=str(tmp_path))
        assert (
            type(loaded) is VJepa2Planner and loaded.solver == planner.solver and loaded.cost == LatentDistance("l2")
        )
        assert same_plan(loaded(OBSERVATION, GOAL), planner(OBSERVATION, GOAL))
        again = VJepa2Planner.from_pretrained(tmp_path)
        assert same_plan(again(OBSERVATION, GOAL), planner(OBSERVATION, GOAL))

        overridden = VJepa2Planner.from_pretrained(tmp_path, horizon=2, distance="l1", candidate_chunk_size=4)
        assert overridden.solver == CEM(**{**SOLVER, "horizon": 2})
        assert (overridden.cost, overridden.candidate_chunk_size) == (LatentDistance("l1"), 4)
        overridden.save_pretrained(tmp_path / "b")
        twice = VJepa2Planner.from_pretrained(tmp_path / "b", candidate_chunk_size=2)
        assert (twice.cost, twice.candidate_chunk_size, twice.solver.horizon) == (LatentDistance("l1"), 2, 2)

        shooting = VJepa2Planner.from_pretrained(tmp_path, solver="random", horizon=2, num_candidates=8)
        assert shooting.solver == RandomShooting(2, 8)
        by_hand = VJepa2Planner.from_pretrained(tmp_path, solver=CEM(4, 8, 1, 2))
        assert by_hand.solver.horizon == 4

    def test_a_model_that_was_saved_alone_starts_from_the_solvers_defaults(self, planner, tmp_path):
        config = planner.model.config.planner
        planner.model.config.planner = None
        planner.model.save_pretrained(tmp_path)
        planner.video_processor.save_pretrained(tmp_path)
        planner.model.config.planner = config
        assert VJepa2Planner.from_pretrained(tmp_path).solver == CEM()

    def test_pipeline_takes_objects(self, planner):
        made = pipeline("latent-planning", model=planner.model, video_processor=planner.video_processor, **SOLVER)
        assert same_plan(made(OBSERVATION, GOAL), planner(OBSERVATION, GOAL))

    def test_a_processor_saved_in_its_training_mode_plans_without_random_crops(self, planner, tmp_path):
        planner.save_pretrained(tmp_path)
        VJepa2VideoProcessor(size=32, crop_size=32, do_random_resized_crop=True).save_pretrained(tmp_path)
        trained = VJepa2Planner.from_pretrained(tmp_path)
        assert trained.video_processor.do_random_resized_crop
        assert same_plan(trained(OBSERVATION, GOAL), planner(OBSERVATION, GOAL))

    def test_a_model_without_a_processor(self, planner, tmp_path):
        planner.model.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="no video processor loads from .*: save one beside the model, or give"):
            VJepa2Planner.from_pretrained(tmp_path)
        given = VJepa2Planner.from_pretrained(tmp_path, video_processor=planner.video_processor, **SOLVER)
        assert same_plan(given(OBSERVATION, GOAL), planner(OBSERVATION, GOAL))

    @pytest.mark.parametrize("make", ["ours", "transformers", "nothing"])
    def test_folders_that_hold_no_world_model(self, planner, make, tmp_path):
        if make == "ours":
            planner.model.encoder.save_pretrained(tmp_path)
        elif make == "transformers":
            sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "crop_size": 32}
            sizes |= {"pred_hidden_size": 24, "pred_num_hidden_layers": 1, "pred_num_attention_heads": 2}
            VJEPA2Model(VJEPA2Config(**sizes)).save_pretrained(tmp_path)
        planner.video_processor.save_pretrained(tmp_path)
        held = {"ours": "'vjepa2_hf_encoder'", "transformers": "'vjepa2'", "nothing": "None"}[make]
        with pytest.raises(ValueError, match=f"holds a model of type {held}; VJepa2WorldModel loads") as caught:
            VJepa2Planner.from_pretrained(tmp_path)
        assert "\n" not in str(caught.value)
        if make == "nothing":
            (tmp_path / "final").mkdir()
            with pytest.raises(ValueError, match="load .*final"):
                VJepa2WorldModel.from_pretrained(tmp_path)
        else:
            with pytest.raises(ValueError, match="the planner needs a VJepa2WorldModel; got VJ"):
                pipeline("latent-planning", model=str(tmp_path))

    @pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "runs/demo/nowhere"])
    def test_a_folder_that_is_not_there(self, path):
        with pytest.raises(FileNotFoundError, match=f"There is no folder '{path}'"):
            VJepa2Planner.from_pretrained(path)

    def test_a_saved_setting_that_clashes_is_named_as_saved(self, tmp_path):
        planner = build_planner()
        planner.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="only 3 candidates.*; num_elites=4 was saved with the model.$"):
            VJepa2Planner.from_pretrained(tmp_path, num_candidates=3)
        planner.model.config.planner["future"] = 1
        planner.model.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="Unknown solver setting 'cem.future'.*; future=1 was saved with the m"):
            VJepa2Planner.from_pretrained(tmp_path)
        del planner.model.config.planner["future"]
        planner.model.config.planner["solver"] = "mine"
        planner.model.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="Unknown solver 'mine'.*; solver='mine' was saved with the model.$"):
            VJepa2Planner.from_pretrained(tmp_path)
        assert VJepa2Planner.from_pretrained(tmp_path, solver=CEM(2, 8, 1, 2)).solver.horizon == 2
        assert VJepa2Planner.from_pretrained(tmp_path, solver="random").solver == RandomShooting()

    def test_chunks_do_not_change_the_plan(self, planner):
        chunked = VJepa2Planner(planner.model, planner.video_processor, candidate_chunk_size=3, **SOLVER)
        assert same_plan(chunked(OBSERVATION, GOAL), planner(OBSERVATION, GOAL))


class TestWarnings:
    @pytest.mark.parametrize(
        "form", [lambda x: x, PIL.Image.fromarray, lambda x: torch.from_numpy(x).permute(2, 0, 1)]
    )
    def test_aspect_ratios_that_differ(self, planner, form):
        with pytest.warns(UserWarning, match="aspect ratios 1.00 and 1.50"):
            planner(OBSERVATION, form(noise_image(1, 32, 48)))
        with pytest.warns(UserWarning, match="aspect ratios"):
            planner([OBSERVATION, OBSERVATION], [GOAL, form(noise_image(1, 48, 32))])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            planner(OBSERVATION, form(noise_image(1, 50, 54)))  # less than 10 %

    def test_frame_rates_that_differ(self, tmp_path):
        planner, action = build_planner(fps=10, frame_skip=2), np.zeros((1, 2))
        for fps in (5, 10):
            (tmp_path / f"{fps}.mp4").write_bytes(encode_video(np.stack([OTHER, OBSERVATION]), fps=fps))
        with pytest.warns(
            UserWarning, match="the observation has 10 frames per second, the model's steps are 5 per second"
        ):
            planner(str(tmp_path / "10.mp4"), GOAL, context_actions=action)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            planner(str(tmp_path / "5.mp4"), GOAL, context_actions=action)


class TestRefusals:
    @pytest.mark.parametrize(
        ("observation", "goal", "extra", "message"),
        [
            ([OBSERVATION], GOAL, {}, "must both be single, or both be a batch"),
            ([OBSERVATION], [GOAL, GOAL], {}, "1 observations and 2 goals"),
            ([], [], {}, "the observation is an empty list"),
            (np.stack([OBSERVATION] * 3), GOAL, {}, "the observation has 3 frames; the model looks back over 2"),
            (OBSERVATION, np.stack([GOAL] * 2), {}, "the goal has 2 frames; expected one image"),
            (np.stack([OBSERVATION] * 2), GOAL, {}, "2 frames of context need context_actions"),
            (OBSERVATION, GOAL, {"proprio_state": [0.1, 0.2]}, "proprio_state was given, but the model has none"),
            ([OBSERVATION] * 2, [GOAL] * 2, {"warm_start": [np.zeros((3, 2))]}, "warm_start was given for 1 problems"),
            (
                OBSERVATION,
                GOAL,
                {"warm_start": np.full((3, 2), np.nan)},
                "warm_start holds numbers that are not finite",
            ),
            (
                [OBSERVATION] * 2,
                [GOAL] * 2,
                {"warm_start": [np.zeros((3, 2)), np.zeros((2, 3, 2))]},
                r"warm_start has shapes \[\(2, 3, 2\), \(3, 2\)\] in one batch",
            ),
            (
                [OBSERVATION] * 2,
                [GOAL] * 2,
                {"warm_start": [None, np.zeros((3, 2))]},
                "warm_start is, or holds, None; expected numbers",
            ),
            (OBSERVATION, GOAL, {"warm_start": "last"}, "warm_start is, or holds, 'last'; expected"),
            ([OBSERVATION], [GOAL], {"proprio_state": 0.5}, "proprio_state is 0.5; expected a list"),
            (OBSERVATION, GOAL, {"cost": Uncertainty()}, "this model is deterministic"),
            ([OBSERVATION, np.stack([OBSERVATION] * 2)], [GOAL] * 2, {}, "observations of the batch differ in shape"),
        ],
    )
    def test_calls(self, planner, observation, goal, extra, message):
        with pytest.raises(ValueError, match=message):
            planner(observation, goal, **extra)

    def test_settings(self, planner):
        model, processor = planner.model, planner.video_processor
        for settings, message in [
            ({"solver": "cme"}, "Unknown solver 'cme'"),
            ({"horizn": 3}, "Unknown solver setting 'cem.horizn'.*horizon"),
            ({"distance": "l3"}, "distance is 'l3'; expected one of 'l1', 'l2', 'cosine'"),
            ({"solver": CEM(), "horizon": 3}, "were given beside a solver object"),
            ({"candidate_chunk_size": 0}, "candidate_chunk_size is 0; expected an integer of at least 1"),
            ({"solver": CategoricalCEM()}, "the model's actions are continuous: take 'cem'"),
        ]:
            with pytest.raises(ValueError, match=message):
                VJepa2Planner(model, processor, **settings)
        with pytest.raises(ValueError, match="the planner needs a video processor"):
            VJepa2Planner(model)
        with pytest.raises(ValueError, match="the planner needs a VJepa2WorldModel; got VJepa2Encoder"):
            VJepa2Planner(model.encoder, processor)

    def test_a_solver_without_settings_cannot_be_saved(self, planner, tmp_path):
        nameless = VJepa2Planner(planner.model, planner.video_processor, solver=lambda cost, **kwargs: None)
        with pytest.raises(ValueError, match="has no to_dict, so its settings cannot be saved"):
            nameless.save_pretrained(tmp_path)


class TestArm:
    """What a converted action-conditioned checkpoint needs: bounds, poses, extrinsics."""

    POSE = [0.3, 0.0, 0.4, 0.1, 0.2, 0.3, 0.5]

    def config(self, **fields):
        arm = {**VJepa2WorldModelConfig.published, "context_frames": 2, **TINY_PREDICTOR, **fields}
        return VJepa2WorldModelConfig(encoder_config=TINY_ENCODER, **arm)

    def planner(self, **settings):
        torch.manual_seed(0)
        fields = settings.pop("fields", {})
        processor = VJepa2VideoProcessor(size=32, crop_size=32)
        return VJepa2Planner(VJepa2WorldModel(self.config(**fields)), processor, **settings)

    def pictures(self):
        return np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)

    def test_published_settings_hold_the_rotation_still_and_keep_the_bounds(self):
        planner = self.planner(num_candidates=20, num_iterations=2)
        assert (planner.solver.horizon, planner.solver.num_elites, planner.cost) == (2, 10, LatentDistance("l1"))
        actions = planner(*self.pictures(), proprio_state=self.POSE)["actions"]
        assert actions.shape == (2, 7) and (actions[:, 3:6] == 0).all() and np.abs(actions[:, :3]).max() > 0
        assert np.abs(actions[:, :3]).max() <= 0.05 + 1e-6 and np.abs(actions[:, 6]).max() <= 0.75

    def test_an_arm_without_bounds_is_refused(self):
        with pytest.raises(ValueError, match="action_low is missing.*no safe default"):
            self.planner(fields={"action_low": None})

    def test_bounds_are_arguments_and_are_saved(self, tmp_path):
        low, high = [-0.01] * 3 + [0.0] * 4, [0.01] * 3 + [0.0] * 4
        planner = self.planner(
            fields={"action_low": None, "action_high": None}, action_low=low, action_high=high, num_candidates=20
        )
        expected = planner(*self.pictures(), proprio_state=self.POSE)["actions"]
        assert 0 < np.abs(expected).max() <= 0.01 + 1e-6
        planner.save_pretrained(tmp_path)
        again = VJepa2Planner.from_pretrained(tmp_path)
        assert again.action_low == low and again.action_high == high
        np.testing.assert_allclose(again(*self.pictures(), proprio_state=self.POSE)["actions"], expected, atol=1e-6)

    @pytest.mark.parametrize(
        ("bounds", "message"),
        [({"action_low": [0.0] * 3}, "action_low has 3 numbers; expected 7"), ({"action_low": [1.0] * 7}, "above")],
    )
    def test_bounds_that_do_not_fit(self, bounds, message):
        with pytest.raises(ValueError, match=message):
            self.planner(**bounds)

    def test_missing_pose_is_named_as_the_argument_is(self):
        with pytest.raises(ValueError, match=r"proprio_state is missing.* shape \(7,\)"):
            self.planner()(*self.pictures())
        with pytest.raises(ValueError, match=r"proprio_state has shape \(1, 3\); expected \(7,\)"):
            self.planner()(*self.pictures(), proprio_state=[0.0] * 3)

    def test_extrinsics_reach_the_dynamics(self):
        planner = self.planner(fields={"extrinsics_dim": 6}, num_candidates=20, num_iterations=2)
        with pytest.raises(ValueError, match="extrinsics is missing"):
            planner(*self.pictures(), proprio_state=self.POSE)
        plans = [planner(*self.pictures(), proprio_state=self.POSE, extrinsics=[float(i)] * 6) for i in (0, 3)]
        assert plans[0]["cost"] != plans[1]["cost"]
