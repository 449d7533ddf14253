"""Every Python snippet of docs/planning.md and of README's "Plan" section runs."""

import re
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from published import TINY_ENCODER, TINY_PREDICTOR
from test_pipeline_latent_planning import GOAL, OBSERVATION, OTHER, build

from vjepa2_hf import VJepa2Planner, VJepa2VideoProcessor, VJepa2WorldModel, VJepa2WorldModelConfig


ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = (ROOT / "docs" / "planning.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


class Pictures(gymnasium.Env):
    """Draws its observation."""

    observation_space = gymnasium.spaces.Box(0, 255, (32, 32, 3), np.uint8)
    action_space = gymnasium.spaces.Box(-1, 1, (2,))
    taken = 0

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return OBSERVATION, {}

    def step(self, action):
        assert action.shape == (2,) and np.isfinite(action).all()
        self.taken += 1
        return OTHER, 0.0, False, False, {}

    def render(self):
        return OTHER


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planner")
    build().save_pretrained(folder)
    return folder


def arm_planner() -> VJepa2Planner:
    torch.manual_seed(0)
    arm = {**VJepa2WorldModelConfig.published, "context_frames": 2, **TINY_PREDICTOR}
    model = VJepa2WorldModel(VJepa2WorldModelConfig(encoder_config=TINY_ENCODER, **arm))
    return VJepa2Planner(model, VJepa2VideoProcessor(size=32, crop_size=32), num_candidates=20, num_iterations=2)


def snippets(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def test_snippets_of_the_page_run_one_after_the_other(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"folder": folder, "env": Pictures(), "goal": GOAL, "first_goal": OTHER}
    names |= {"arm_planner": arm_planner(), "pose": [0.3, 0.0, 0.4, 0.1, 0.2, 0.3, 0.5]}
    parts = snippets(DOCUMENT)
    assert len(parts) == 8
    for part in parts:
        exec(compile(part, "docs/planning.md", "exec"), names)  # one namespace, as a reader has it
    assert names["env"].taken == 6 and (tmp_path / "landscape.png").is_file()
    assert names["landscape"]["costs"].shape == (5, 5)
    assert names["plan"]["actions"][1, 6] == 1.0


def test_the_lines_of_readme_run_an_environment(folder, monkeypatch):
    section = README.split("**Plan**")[1].split("**Understand**")[0]
    names = {"env": Pictures(), "goal": GOAL, "observation": OBSERVATION}
    (loop,) = [part for part in snippets(section) if "env.step" in part]
    assert len([line for line in loop.splitlines() if line and not line.startswith(("from", "import"))]) <= 5
    path = re.search(r'model="(runs/[^"]+)"', loop).group(1)
    names["env"].reset()
    exec(compile(loop.replace(path, str(folder)), "README.md", "exec"), names)
    assert names["env"].taken >= 2 and names["plan"]["actions"].shape == (3, 2)


def test_every_name_of_the_page_is_there():
    import vjepa2_hf.planning

    for name in re.findall(r"`([A-Z]\w+)\(", DOCUMENT):
        assert hasattr(vjepa2_hf.planning, name) or name in globals(), name
    for name in re.findall(r"^\| `([a-z_]+)` \|", DOCUMENT, flags=re.MULTILINE):
        assert name in vjepa2_hf.planning.SOLVERS, name
