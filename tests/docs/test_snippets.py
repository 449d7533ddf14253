"""The Python snippets of README and of the pages that have no test of their own run, with small models.

Models in the released format have random weights; the folders have the names of the Hub.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import ROOT, TINY_ENCODER, TINY_PREDICTOR, build_planner, moving_square, noise_image
from script_runs import blocks
from transformers import VJEPA2Config, VJEPA2ForVideoClassification, VJEPA2Model

from vjepa2_hf import (
    VJepa2ForMaskedLatentPrediction,
    VJepa2ForVideoClassification,
    VJepa2PixelDecoder,
    VJepa2Planner,
    VJepa2VideoProcessor,
    VJepa2WorldModel,
    VJepa2WorldModelConfig,
)
from vjepa2_hf import VJepa2MaskedLatentPredictionConfig as MaskedConfig


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder with what the pages name."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    Path("clip.mp4").write_bytes(moving_square(20))
    model = VJepa2ForMaskedLatentPrediction(MaskedConfig(encoder_config=TINY_ENCODER, **TINY_PREDICTOR))
    for folder in ("runs/mine/final", "runs/digits/pretrain/final"):
        model.save_pretrained(folder)
        VJepa2VideoProcessor(size=32, crop_size=32).save_pretrained(folder)
    return tmp_path


@pytest.fixture
def probes(work):
    fields = {"num_labels": 3, "num_pooler_layers": 1, "pooler_num_attention_heads": 2}
    model = VJepa2ForVideoClassification.from_encoder("runs/mine/final", **fields)
    for name in ("mine", "anticipation"):
        model.save_pretrained(f"runs/probes/{name}/final")
        VJepa2VideoProcessor(size=32, crop_size=32).save_pretrained(f"runs/probes/{name}/final")


def run(block: str, names: dict | None = None) -> dict:
    names = {} if names is None else names
    exec(compile(block, "a snippet", "exec"), names)
    return names


def readme(section: str) -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return block


def test_released_weights_of_readme(work):
    sizes = {f"pred_{name.removeprefix('predictor_')}": value for name, value in TINY_PREDICTOR.items()}
    released = VJEPA2Config(**TINY_ENCODER, **sizes, pred_num_mask_tokens=2)
    VJEPA2Model(released).save_pretrained("facebook/vjepa2-vitl-fpc64-256")
    VJepa2VideoProcessor(size=32, crop_size=32).save_pretrained("facebook/vjepa2-vitl-fpc64-256")
    classifier = VJEPA2ForVideoClassification(VJEPA2Config(**TINY_ENCODER, **sizes, num_labels=3))
    classifier.save_pretrained("facebook/vjepa2-vitl-fpc16-256-ssv2")
    build_planner().save_pretrained("runs/ac")
    names = run(readme("Released weights"))
    assert names["clip"]["pixel_values_videos"].shape == (1, 16, 3, 32, 32)
    assert names["features"].shape == (1, 8 * 16, 24) and names["probe"].config.num_labels == 3


def test_a_robots_episodes_of_readme(work):
    build_planner(action_dim=4, actions_per_step=2).save_pretrained("runs/mine_world_model/final")
    names = run(readme("Use it on your own data"), {"observation": noise_image(0), "goal": noise_image(1)})
    assert names["plan"]["action"].shape == (4,)


def test_ecosystem(work, probes):
    first, *_, reading = blocks("ecosystem.md", "python")  # the others: test_docs_ecosystem.py
    assert type(run(first)["model"]) is VJepa2ForMaskedLatentPrediction
    assert run(reading)["frames"].shape[::3] == (3, 3)


def test_probes(work, probes):
    (block,) = blocks("probes.md", "python")
    run(block)


def test_future_prediction(work, probes):
    predict, anticipate = blocks("future_prediction.md", "python")
    names = run(predict)
    assert names["clip"].shape == (1, 8, 3, 32, 32)
    assert names["future"].shape == names["step_by_step"].shape == (1, 4, 16, 24)
    run(anticipate)


def test_planning_evaluation(work):
    metric, policy = blocks("planning_evaluation.md", "python")
    Path("runs/demo/plan").mkdir(parents=True)
    episodes = {"successes": [True, False, True], "steps": [4, 0, 6], "distances": [3.0, 9.0, 5.0]}
    Path("runs/demo/plan/by_episode.json").write_text(json.dumps({"CEM, pretrained encoder": episodes}))
    run(metric)

    class SomeExpert:
        def get_action(self, info):
            return np.float32([info["x"], 0])

    class Env:
        def _get_info(self):
            return {"x": 0.5}

    expert = run(policy, {"SomeExpert": SomeExpert})["Expert"]()
    assert expert(Env(), np.random.default_rng(0)).tolist() == [0.5, 0]


def test_world_model(work):
    """Each snippet has the `wm` of its section."""
    first, cameras, robots, preset, rewards, distance, samples, decode = blocks("world_model.md", "python")
    names = run(first)
    assert names["latents"].shape == (2, 4, 64, 24) and names["future"].shape == (2, 3, 64, 24)
    package = {"torch": torch, "VJepa2WorldModel": VJepa2WorldModel, "VJepa2WorldModelConfig": VJepa2WorldModelConfig}
    names = run(cameras, dict(package))
    assert names["views"].shape == (2, 4, 2, 64, 24) and names["cost"].shape == (2, 8)
    assert names["future"].shape == (2, 8, 5, 64, 24)
    names = run(robots, {**package, "VJepa2Planner": VJepa2Planner, "VJepa2VideoProcessor": VJepa2VideoProcessor})
    assert names["arm"] == 1 and names["planner"].action_high == [0.05] * 7
    assert run(preset, dict(package))["config"].predictor_num_hidden_layers == 7

    latents, actions = torch.randn(2, 1, 16, 24), torch.zeros(2, 3, 2)
    given = {"torch": torch, "latents": latents, "actions": actions, "VJepa2Planner": VJepa2Planner}
    given |= {"VJepa2PixelDecoder": VJepa2PixelDecoder, "candidates": torch.zeros(2, 5, 3, 2), "folder": "stochastic"}
    given["goal"] = torch.randn(2, 1, 16, 24)

    def model(**fields):
        return build_planner(context_frames=1, **fields)

    names = run(rewards, {**given, "wm": model(reward_head=True).model})
    assert names["rewards"].shape == (2, 3) and names["cost"].shape == (2, 5)
    names = run(distance, {**given, "wm": model(distance_head=True).model})
    assert names["frames"].shape == (2, 1) and names["pairs"].shape[:2] == (2, 2)
    stochastic = model(stochastic_dim=2)
    stochastic.save_pretrained("stochastic")
    names = run(samples, {**given, "wm": stochastic.model})
    assert names["uncertainty"].shape == (2, 3, 16, 24) and names["planner"].num_samples == 8
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    plain = model().model
    VJepa2PixelDecoder.from_world_model(plain, **sizes).save_pretrained("runs/demo/decoder/final")
    assert run(decode, {**given, "wm": plain})["images"].shape == (2, 3, 3, 32, 32)


def test_every_page_with_snippets_is_named_by_a_test():
    """A page with Python in it that no test reads would rot."""
    tests = "".join(
        path.read_text(encoding="utf-8")
        for path in (ROOT / "tests").rglob("test_*.py")
        if path.name not in ("test_readme.py", "test_links.py", "test_site.py")
    )
    for page in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]:
        if "```python" in page.read_text(encoding="utf-8"):
            assert re.search(rf"""["/]{re.escape(page.name)}["']""", tests), (
                f"no test runs the snippets of {page.name}"
            )
