"""The app's tabs Look and Model, on tiny models: figures, tables, refusals, no path on the page."""

import asyncio
import json
import re
from pathlib import Path

import numpy as np
import pytest


gr = pytest.importorskip("gradio")

import look_tab  # noqa: E402
import model_tab  # noqa: E402
import yaml  # noqa: E402
from builders import build_masked_latent, noise_frames  # noqa: E402
from look_tab import FIGURES, Looks  # noqa: E402
from uploads import Clip, Refused, SessionFiles  # noqa: E402

from vjepa2_hf import VJepa2VideoProcessor  # noqa: E402
from vjepa2_hf.environments import PUSHING  # noqa: E402
from vjepa2_hf.environments.run_parts import RunParts  # noqa: E402
from vjepa2_hf.environments.shared_models import SharedModels  # noqa: E402


ROLLOUT = [
    {"horizon": 1, "error": 0.1, "cosine": 0.9, "copy_error": 0.2, "copy_cosine": 0.8, "windows": 7},
    {"horizon": 2, "error": 0.3, "cosine": 0.8, "copy_error": 0.4, "copy_cosine": 0.7, "windows": 7},
]
DISTANCE = {
    "held_out": {
        "rank_correlation": 0.5,
        "pairs": 30,
        "rows": [
            {"from": 1, "to": 1, "predicted": 1.5, "pairs": 10},
            {"from": 2, "to": 3, "predicted": 2.25, "pairs": 20},
        ],
    },
    "losses": [{"step": 1, "loss": 0.5}],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A masked-latent model with everything that a run leaves, and its encoder alone."""
    folder = tmp_path_factory.mktemp("runs")
    model = build_masked_latent(frames_per_clip=4, normalize_targets="clip")
    model.save_pretrained(folder / "run" / "final")
    model.encoder.save_pretrained(folder / "encoder")
    for path in (folder / "run" / "final", folder / "encoder"):
        VJepa2VideoProcessor(size=32, crop_size=32).save_pretrained(path)
    (folder / "run" / "config.yaml").write_text(yaml.safe_dump({"masks": [{"type": "future"}]}), encoding="utf-8")
    (folder / "encoder" / "README.md").unlink()
    lines = [{"step": step, "loss": 1 / step, "gradient_norm": None} for step in range(1, 5)]
    (folder / "run" / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    (folder / "run" / "rollout_error.json").write_text(json.dumps(ROLLOUT), encoding="utf-8")
    (folder / "run" / "distance.json").write_text(json.dumps(DISTANCE), encoding="utf-8")
    card = folder / "run" / "final" / "README.md"
    card.write_text(card.read_text(encoding="utf-8") + f"\nTrained on `{folder}/episodes`.\n", encoding="utf-8")
    return folder


def looks(folder: Path, **parts) -> Looks:
    return Looks(SharedModels(RunParts(str(folder), **parts)))


@pytest.fixture(scope="module")
def pushing(runs) -> Looks:
    return looks(runs / "run" / "final", env=PUSHING)


@pytest.mark.parametrize("figure", FIGURES)
def test_each_figure_of_a_bundled_clip_is_an_image_with_a_label(pushing, figure, monkeypatch):
    monkeypatch.setattr(look_tab, "NORMAL_CLIPS", range(2))
    assert list(pushing.bundled) == ["Pushing", "Pushing with a cut", "Two rooms", "Four rooms"]
    image, status = FIGURES[figure](pushing, pushing.clip("Pushing with a cut"), "Pushing with a cut")
    assert re.search(r'<img src="data:image/(png|webp);base64,[\w+/=]{2000,}" alt="[^"]*Pushing with a cut', image)
    assert status.endswith(".") and len(status) < 400
    if figure == "Anomaly curve":
        assert "99 % of the frames of 2 new episodes of vjepa2_hf/Pushing-v0" in status


def test_a_cut_is_where_the_episode_changes(pushing):
    frames = pushing.clip("Pushing with a cut").frames.astype(int)
    changes = np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3))
    assert changes.argmax() + 1 == look_tab.CUT


@pytest.mark.parametrize("figure", ["Loss by position", "Anomaly curve"])
def test_an_encoder_says_what_it_lacks(runs, figure):
    alone = looks(runs / "encoder")
    assert list(alone.bundled) == ["Pushing", "Two rooms", "Four rooms"]
    with pytest.raises(Refused, match="predicts no masked features"):
        FIGURES[figure](alone, alone.clip("Two rooms"), "Two rooms")
    assert FIGURES["Features as colors"](alone, alone.clip("Two rooms"), "Two rooms")[0]


def test_what_cannot_be_computed_is_one_sentence(runs, pushing):
    with pytest.raises(Refused, match="has 1 frames; this model needs at least 2"):
        pushing.features(Clip(noise_frames(1), 10.0, 0.1), "x")
    with pytest.raises(Refused, match="an anomaly curve needs at least"):
        pushing.anomalies(Clip(noise_frames(2), 10.0, 0.2), "x")
    with pytest.raises(Refused, match="start the app with --env"):
        looks(runs / "run" / "final").anomalies(pushing.clip("Pushing"), "x")


def test_labels_cannot_leave_their_attribute():
    shown = look_tab.show(b"x", "png", '"><script>alert(1)</script>')
    assert shown.count("<") == shown.count(">") == 3  # div, img, end of div


def components(build, *arguments) -> tuple[gr.Blocks, str]:
    """A page with one tab, and what browsers get of it."""

    async def make():  # outside of a running loop, gradio leaves event loops open
        with gr.Blocks() as page:
            build(*arguments)
        return page, json.dumps(page.get_config_file(), default=str, ensure_ascii=False)

    return asyncio.run(make())


def test_the_tab_of_a_run_shows_what_it_measured_and_no_path(runs):
    models = SharedModels(RunParts(str(runs / "run" / "final")))
    _, config = components(model_tab.build, models)
    assert '"elem_id": "model-card"' in config and "Trained on `…/episodes`" in config
    assert "| 2 | 0.300 | 0.400 | 0.75 | 0.800 |" in config and "7 held-out windows" in config
    assert "2–3 | 2.2 | 20 |" in config and "0.50, on 30 held-out pairs" in config
    assert config.count("data:image/png") == 4  # loss, two of rollouts, distance
    assert "Not measured" not in config
    assert str(runs) not in config and "Traceback" not in config


def test_the_tab_of_a_model_without_a_run_says_what_is_missing(runs):
    _, config = components(model_tab.build, SharedModels(RunParts(str(runs / "encoder"))))
    assert "This model has no card" in config and "rollout error (rollout_error.json)" in config


def test_a_broken_measurement_is_one_sentence(runs, tmp_path, caplog):
    (tmp_path / "final").symlink_to(runs / "run" / "final")
    for name in ("config.yaml", "metrics.jsonl", "distance.json"):
        (tmp_path / name).symlink_to(runs / "run" / name)
    (tmp_path / "rollout_error.json").write_text("[", encoding="utf-8")
    _, config = components(model_tab.build, SharedModels(RunParts(str(tmp_path / "final"))))
    assert "Something went wrong" in config and config.count("data:image/png") == 2
    assert "JSONDecodeError" in caplog.text and str(tmp_path) not in config


class Request:
    session_hash = "someone"


def handler(page: gr.Blocks, name: str):
    return next(block.fn for block in page.fns.values() if getattr(block.fn, "__name__", "") == name)


def test_uploads_of_the_tab(runs, pushing, tmp_path, video):
    files = SessionFiles()
    page, _ = components(look_tab.build, pushing.models, files)
    take, look = handler(page, "take"), handler(page, "look")
    assert "upload one first" in look(look_tab.UPLOADED, "Features as colors", Request)[1]
    evil = tmp_path / "<script>.mp4"
    evil.write_text("<script>")
    reading, (choice, status, cleared) = take(str(evil), Request)
    assert "Reading the video" in reading[1]
    assert "is not a video" in status and cleared is None and "value" not in choice
    _, (choice, status, cleared) = take(str(video), Request)
    assert "Your video has 2.3 seconds, at 10 frames per second." in status
    assert choice["value"] == look_tab.UPLOADED and cleared is None
    image, status = look(look_tab.UPLOADED, "Features as colors", Request)
    assert "your video" in image and str(tmp_path) not in image + status
    assert look(None, "Features as colors", Request) == ("", look_tab.say("Choose a clip, or upload a video."))
    files.close()
