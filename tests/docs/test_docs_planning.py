"""Every Python snippet of docs/planning.md runs."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import TINY_ENCODER, TINY_PREDICTOR, build_planner

from vjepa2_hf import VJepa2Planner, VJepa2VideoProcessor, VJepa2WorldModel, VJepa2WorldModelConfig
from vjepa2_hf.environments import PushingEnv


ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "planning.md").read_text(encoding="utf-8")


@pytest.fixture
def taken(monkeypatch):
    """Actions that the demo's environment took."""
    actions, step = [], PushingEnv.step

    def counting(env, action):
        assert action.shape == (2,) and np.isfinite(action).all()
        actions.append(action)
        return step(env, action)

    monkeypatch.setattr(PushingEnv, "step", counting)
    return actions


@pytest.fixture(scope="module", params=[1, 2], ids="k={}".format)
def actions_per_step(request):
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory, actions_per_step):
    folder = tmp_path_factory.mktemp("planner")
    build_planner(action_dim=2 * actions_per_step, actions_per_step=actions_per_step).save_pretrained(folder)
    return folder


def arm_planner() -> VJepa2Planner:
    torch.manual_seed(0)
    arm = {**VJepa2WorldModelConfig.published, "context_frames": 2, **TINY_PREDICTOR}
    model = VJepa2WorldModel(VJepa2WorldModelConfig(encoder_config=TINY_ENCODER, **arm))
    return VJepa2Planner(model, VJepa2VideoProcessor(size=32, crop_size=32), num_candidates=20, num_iterations=2)


def snippets(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def run(text: str, folder: Path, names: dict) -> None:
    """Runs a snippet with another folder in the place of the demo's."""
    exec(compile(text.replace("runs/demo/world_model/final", str(folder)), "a snippet", "exec"), names)


def test_snippets_of_the_page_run_one_after_the_other(folder, actions_per_step, taken, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"arm_planner": arm_planner(), "pose": [0.3, 0.0, 0.4, 0.1, 0.2, 0.3, 0.5]}
    parts = snippets(DOCUMENT)
    assert len(parts) == 11
    for part in parts:
        run(part, folder, names)  # one namespace, as a reader has it
    assert len(taken) == 6 * actions_per_step and (tmp_path / "landscape.png").is_file()
    assert names["landscape"]["costs"].shape == (5, 5)
    assert names["plan"]["actions"][1, 6] == 1.0


def test_every_name_of_the_page_is_there():
    import vjepa2_hf.planning

    for name in re.findall(r"`([A-Z]\w+)\(", DOCUMENT):
        assert hasattr(vjepa2_hf.planning, name) or name in globals(), name
    for name in re.findall(r"^\| `([a-z_]+)` \|", DOCUMENT, flags=re.MULTILINE):
        assert name in vjepa2_hf.planning.SOLVERS, name
