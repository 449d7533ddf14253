"""Folders that version 0.1.0 saved load with equal outputs, and its stopped runs continue with equal weights."""

import os
import shutil

import pretrain
import pytest
import torch
import train_world_model
from builders import FIXTURES
from packaging.version import Version
from safetensors.torch import load_file
from script_runs import metrics, run_script

from vjepa2_hf import (
    VJepa2Encoder,
    VJepa2ForMaskedLatentPrediction,
    VJepa2ForVideoClassification,
    VJepa2Planner,
    VJepa2WorldModel,
)


pytestmark = pytest.mark.filterwarnings("default")  # renamed settings warn

SAVED = FIXTURES / "v0_1"  # written by make_fixtures.py there
CHANGED = 10**18  # nanoseconds: the data files' time of change, which names the cache of latents
CLOSE = {"atol": 1e-5, "rtol": 1e-4}
same_resize = pytest.mark.skipif(
    Version(torch.__version__) < Version("2.14"), reason="older torch resizes uint8 images to other values"
)


@pytest.fixture(autouse=True)
def no_gradients(request):
    with torch.set_grad_enabled(request.cls is None):
        yield


@pytest.fixture(scope="module")
def expected():
    return load_file(SAVED / "expected.safetensors")


def load(model_class, name: str):
    model, info = model_class.from_pretrained(SAVED / name, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model.eval()


class TestModels:
    def test_encoder(self, expected):
        hidden_states = load(VJepa2Encoder, "encoder")(expected["clips"]).last_hidden_state
        torch.testing.assert_close(hidden_states, expected["encoder"], **CLOSE)

    def test_masked_latent(self, expected):
        model = load(VJepa2ForMaskedLatentPrediction, "masked_latent")
        output = model(expected["clips"], [expected["context_mask"]], [expected["target_mask"]])
        torch.testing.assert_close(output.predicted_latents[0], expected["masked_latent"], **CLOSE)
        torch.testing.assert_close(output.loss, expected["masked_latent.loss"], **CLOSE)
        latents = VJepa2Encoder.from_pretrained(SAVED / "masked_latent").encode(expected["clips"])
        torch.testing.assert_close(latents, expected["masked_latent.encode"], **CLOSE)

    def test_world_model_with_a_stochastic_and_a_reward_head(self, expected):
        model = load(VJepa2WorldModel, "world_model")
        latents, actions, states = model.encode(expected["clips"]), expected["actions"], expected["states"]
        torch.testing.assert_close(latents, expected["latents"], **CLOSE)
        loss = model(latents=latents, actions=actions, proprio_states=states, rewards=torch.ones(2, 3)).loss
        torch.testing.assert_close(loss, expected["world_model.loss"], **CLOSE)
        seen = {"latents": latents[:, :1], "actions": actions, "proprio_states": states[:, :1]}
        torch.testing.assert_close(model.rollout(**seen), expected["world_model"], **CLOSE)
        samples = model.rollout(**seen, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(samples, expected["world_model.samples"], **CLOSE)

    @pytest.mark.parametrize("name", ["probe", "nearest_neighbors"])
    def test_probes(self, expected, name):
        with pytest.warns(FutureWarning, match="num_neighbours is now num_neighbors"):
            model = load(VJepa2ForVideoClassification, name)
        logits = model(expected["clips"]).logits
        torch.testing.assert_close(logits, expected[name], **CLOSE)

    @same_resize
    def test_planner(self, expected):
        planner = VJepa2Planner.from_pretrained(SAVED / "planner", device="cpu")
        assert planner.solver.num_candidates == 8
        plan = planner(*expected["images"].numpy(), seed=0)
        torch.testing.assert_close(torch.from_numpy(plan["actions"]), expected["planner.actions"], **CLOSE)
        assert plan["cost"] == pytest.approx(expected["planner.cost"].item(), rel=1e-4)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy in which the runs' relative paths are right."""
    shutil.copytree(SAVED, tmp_path, dirs_exist_ok=True)
    for path in (tmp_path / "data").rglob("*.parquet"):
        os.utime(path, ns=(CHANGED, CHANGED))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@same_resize
@pytest.mark.parametrize(
    ("script", "name"), [(pretrain, "pretrain"), (train_world_model, "world_model")], ids=["pretrain", "world_model"]
)
def test_a_stopped_run_continues_to_the_end_of_the_uninterrupted_one(monkeypatch, folder, script, name):
    caches = {path: path.stat().st_mtime_ns for path in folder.glob("runs/latents/*/*")}
    settings = ["--config", f"runs/{name}/config.yaml"]
    # A new run has a shuffle buffer, which 0.1 did not know; a resumed one continues without it
    in_order = ["shuffle_buffer=0"] if script is pretrain else []
    run_script(monkeypatch, script, [*settings, *in_order, "output_dir=again"])
    run_script(monkeypatch, script, [*settings, "resume=latest"])
    stored = load_file(folder / "whole" / name / "model.safetensors")
    again, resumed = (load_file(f"{run}/final/model.safetensors") for run in ("again", f"runs/{name}"))
    if not any(key.startswith("chance_head.") for key in again):  # renamed after 0.1.0
        stored = {key.replace("chance_head.", "stochastic_head."): value for key, value in stored.items()}
    fitted_since = {"state_whitening"} if script is train_world_model else set()
    assert again.keys() == resumed.keys() == stored.keys() | fitted_since
    for key in fitted_since:
        torch.testing.assert_close(again[key], resumed[key], **CLOSE)
    for key, value in stored.items():
        torch.testing.assert_close(again[key], value, **CLOSE)
        torch.testing.assert_close(resumed[key], value, **CLOSE)
    if all(torch.equal(again[key], value) for key, value in stored.items()):  # this processor rounds as the fixtures'
        assert all(torch.equal(resumed[key], value) for key, value in stored.items())
    for one, other in zip(metrics(folder / "runs" / name), metrics(folder / "whole" / name), strict=True):
        assert one.keys() == other.keys()
        assert all(
            one[key] == value or one[key] == pytest.approx(value, rel=1e-4, abs=1e-7) for key, value in other.items()
        )
    # the frames are not encoded a second time
    assert {path: path.stat().st_mtime_ns for path in folder.glob("runs/latents/*/*")} == caches


@same_resize
def test_a_stopped_cache_of_latents_continues(monkeypatch, folder):
    shutil.rmtree("runs/latents")
    shutil.move("half/latents", "runs/latents")
    parts = {path: path.stat().st_mtime_ns for path in folder.glob("runs/latents/*/part-*")}
    assert len(parts) == 3
    run_script(monkeypatch, train_world_model, ["--config", "runs/world_model/config.yaml", "output_dir=again"])
    assert {path: path.stat().st_mtime_ns for path in parts} == parts
    assert len(list(folder.glob("runs/latents/*/part-*"))) == 4  # one more, with the other three episodes
    again, whole = (metrics(folder / name)[-1]["loss"] for name in ("again", "whole/world_model"))
    assert again == pytest.approx(whole, rel=1e-4)
