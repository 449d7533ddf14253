"""What sessions share: models, what runs beside the planner, and what shows latents."""

import re

import numpy as np
import pytest
from builders import build_masked_latent, build_planner

from vjepa2_hf import VJepa2PixelDecoder, VJepa2VideoProcessor
from vjepa2_hf.configuration_decoder import VJepa2PixelDecoderConfig
from vjepa2_hf.environments import PUSHING, make_plain
from vjepa2_hf.environments.goal_policies import GoalPolicy
from vjepa2_hf.environments.live_planning import SQUARED, Episode, PlanSettings, make_task
from vjepa2_hf.environments.run_parts import RunParts
from vjepa2_hf.environments.shared_models import CLONING, DATA, RANDOM, UNIFORM, SharedModels


FIELDS = {"action_dim": 4, "actions_per_step": 2, "frame_skip": 2, "action_low": [-1.0] * 4, "action_high": [1.0] * 4}
SETTINGS = PlanSettings(num_candidates=4, num_iterations=1, horizon=2, cost=SQUARED)


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> RunParts:
    folder = tmp_path_factory.mktemp("run")
    planner = build_planner(options={"device": "cpu"}, **FIELDS)
    planner.save_pretrained(folder / "model")
    model, video = planner.model, build_masked_latent()
    GoalPolicy.from_world_model(model, "a folder that is gone", hidden_size=4).save_pretrained(folder / "cloning")
    video.save_pretrained(folder / "video")
    VJepa2VideoProcessor(size=32, crop_size=32).save_pretrained(folder / "video")
    sizes = {"num_latents": model.tokens_per_frame, "latent_size": model.latent_size, "crop_size": 32, "patch_size": 8}
    width = {"hidden_size": 8, "num_hidden_layers": 0, "num_attention_heads": 1}
    VJepa2PixelDecoder(VJepa2PixelDecoderConfig(**sizes, **width)).save_pretrained(folder / "decoder")
    names = {"video_model": "video", "cloning": "cloning", "random_model": "model"}
    return RunParts(str(folder / "model"), env=PUSHING, **{name: str(folder / path) for name, path in names.items()})


def test_whatever_runs_beside_the_planner_acts_in_its_task(parts):
    models = SharedModels(parts, device="cpu")
    assert models.baselines == [UNIFORM, DATA, CLONING, RANDOM]
    start, goal = models.env.sample_task(0)
    ends = []
    for name in models.baselines:
        episode = Episode(name, make_task(PUSHING, start, goal), models.baseline(name, SETTINGS), 2)
        for _ in range(3):
            episode.advance_step()
        assert episode.steps == 3
        ends.append(episode.tasks.states[0])
    assert len(np.unique(ends, axis=0)) == 4
    assert models.cloning.model is models.planner.model  # the policy's own world model is gone


def test_only_what_there_is_can_be_chosen(parts):
    assert SharedModels(RunParts(parts.model, env=PUSHING), device="cpu").baselines == [UNIFORM, DATA]
    elsewhere = SharedModels(RunParts(parts.model, env="gym_pusht/PushT-v0"), device="cpu")
    assert elsewhere.env is None and elsewhere.baselines == [] and elsewhere.imagery is None


def test_latents_are_drawn_read_or_decoded(parts):
    models = SharedModels(parts, device="cpu")
    models.prepare()
    assert "linear probe" in models.imagery.source and len(models.imagery.frames) > 100
    decoder = parts.model.replace("model", "decoder")
    decoded = SharedModels(RunParts(parts.model, decoder=decoder), device="cpu").imagery
    latents = models.planner.model.encode(build_frames(models))
    assert decoded.source.startswith("decoded") and decoded.images(latents).shape == (1, 2, 32, 32, 3)
    assert models.imagery.images(latents).shape == (1, 2, 64, 64, 3)


def build_frames(models: SharedModels):
    env = make_plain(PUSHING)
    frames = np.stack([env.render_state(state) for state in env.sample_starts(np.random.default_rng(1), 2)])
    return models.planner.video_processor(frames, return_tensors="pt")["pixel_values_videos"]


@pytest.mark.parametrize(
    ("fields", "embodiment", "says"),
    [
        (
            {"num_views": 2, "view_names": ["front", "wrist"]},
            None,
            r"sees 2 cameras \(front, wrist\).* a model of one camera",
        ),
        ({"num_embodiments": 2}, 1, "the actions of 2 robots.* VJepa2Planner takes its name or index as embodiment"),
    ],
)
def test_a_model_of_several_cameras_or_robots_does_not_plan(tmp_path, fields, embodiment, says):
    build_planner(options={"device": "cpu", "embodiment": embodiment}, **fields).save_pretrained(tmp_path / "final")
    models = SharedModels(RunParts(str(tmp_path / "final"), env=PUSHING), device="cpu")
    models.prepare()
    assert re.search(says, models.refusal) and models.planner is None and models.env is None
    assert models.encoder.config.hidden_size == 24  # its other tabs work


def test_a_model_of_videos_alone_does_not_plan(parts):
    models = SharedModels(RunParts(parts.video_model), device="cpu")
    models.prepare()
    assert models.planner is None and models.env is None and models.baselines == []
    assert models.refusal.startswith("This model predicts videos without actions")
    assert models.encoder.config.hidden_size == models.masked_model.encoder.config.hidden_size
    assert SharedModels(RunParts(parts.model), device="cpu").masked_model is None
