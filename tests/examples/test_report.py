"""The demo's report: a tiny made-up run gives one self-contained page; a missing part is refused in one sentence."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import PIL.Image
import pytest
import report
import yaml
from datasets import Features, Video
from report import sign_test, write_report

from vjepa2_hf import (
    VJepa2ForMaskedLatentPrediction,
    VJepa2MaskedLatentPredictionConfig,
    VJepa2VideoProcessor,
    VJepa2WorldModel,
    VJepa2WorldModelConfig,
)
from vjepa2_hf.data.shards import write_shards
from vjepa2_hf.data.video_writing import encode_video
from vjepa2_hf.environments import PUSHING
from vjepa2_hf.environments.animation import GREEN, animate_episodes
from vjepa2_hf.environments.tasks import Tasks
from vjepa2_hf.visualization.curves import read_curves


ROWS = {
    "uniform random": 0,
    "data policy": 1,
    "CEM, random encoder": 2,
    "CEM, pretrained encoder": 3,
    "CEM on the true state and dynamics (oracle)": 4,
}
EPISODES, STEPS = 4, 6


def write_training(folder, names: tuple[str, ...], config: dict) -> None:
    folder.mkdir(parents=True)
    lines = [{"step": 10 * i, "loss": 1 / i, **dict.fromkeys(names, i / 5)} for i in range(1, 6)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def write_plan(folder) -> None:
    """Episodes that stand at the start, or jump to the goal after two steps, as many as `ROWS` says."""
    folder.mkdir(parents=True)
    tasks, rows, states = Tasks(PUSHING, range(EPISODES)), [], {}
    for name, solved in ROWS.items():
        states[name] = np.repeat(tasks.states[:, None], STEPS + 1, axis=1)
        states[name][:solved, 2:] = tasks.goals[:solved, None]
        values = {"success": solved / EPISODES, "low": 0.9 * solved / EPISODES, "high": 1.0, "episodes": EPISODES}
        planned = 12.3 if "encoder" in name else None
        steps = 2.0 if solved else None
        rows.append({"name": name, **values, "steps_to_success": steps, "plan_milliseconds": planned})
    (folder / "results.json").write_text(json.dumps({"env": PUSHING, "rows": rows}))
    (folder / "config.yaml").write_text(yaml.safe_dump({"env": PUSHING, "note": "<b>&"}))
    np.savez(folder / "episodes.npz", seeds=np.arange(EPISODES), **states)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "demo"
    tasks = Tasks(PUSHING, [0])
    frames = np.stack([tasks.env.render_state(tasks.states[0] + 0.004 * i) for i in range(16)])
    rows = ({"video": {"bytes": encode_video(frames[:: 1 - 2 * i], fps=10), "path": None}} for i in range(2))
    write_shards(rows, folder / "episodes", Features({"video": Video(decode=False)}), num_shards=1)

    meters = ("target_std", "effective_rank", "prediction_variation")
    write_training(folder / "pretrain", meters, {"encoder": {"hidden_size": 16}})
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "crop_size": 64}
    predictor = {f"predictor_{name}": sizes[name] for name in list(sizes)[:3]}
    model = VJepa2ForMaskedLatentPrediction(VJepa2MaskedLatentPredictionConfig(encoder_config=sizes, **predictor))
    model.save_pretrained(folder / "pretrain" / "final")
    processor = VJepa2VideoProcessor(size=64, crop_size=64)
    processor.save_pretrained(folder / "pretrain" / "final")

    errors = [{"horizon": h, "error": 0.1 * h, "copy_error": 0.3 * h, "windows": 7} for h in (1, 2, 4)]
    settings = {"rollout_start": 0.5, "max_steps": 50, "world_model": {"frame_skip": 2}}
    for name in ("world_model", "world_model_random"):
        write_training(folder / name, ("rollout_loss",), settings)
        (folder / name / "rollout_error.json").write_text(json.dumps(errors))
    world_model = VJepa2WorldModel(VJepa2WorldModelConfig(encoder_config=sizes, action_dim=4, **predictor))
    world_model.save_pretrained(folder / "world_model" / "final")
    processor.save_pretrained(folder / "world_model" / "final")
    write_plan(folder / "plan")
    (folder / "timings.json").write_text(json.dumps({"recording": 30.0, "planning": 60.0}))
    return folder


@pytest.fixture
def run_folder(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "demo", ignore=shutil.ignore_patterns("report.html"))


class Page(HTMLParser):
    """Counts a page's parts, and checks that its tags close."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.images, self.tables, self.captions = [], [], [], 0
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "img":
            self.images.append(dict(attributes))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        self.captions += tag == "figcaption"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1].append(data)


@pytest.fixture(scope="module")
def page(finished_run):
    return (write_report(finished_run)).read_text(encoding="utf-8")


def test_the_page_is_self_contained(page, finished_run):
    assert "http:" not in page and "https:" not in page and "<script" not in page and "<link" not in page
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources and all(source.startswith("data:image/") for source in sources)
    assert not list(finished_run.glob(".*"))  # nothing half-written


def test_every_figure_says_what_it_shows_and_what_not(page):
    parts = Page(page)
    kinds = [image["src"][:14] for image in parts.images]
    assert kinds == ["data:image/gif"] + ["data:image/png"] * 7  # the task is seen first
    assert all(image["alt"] for image in parts.images)
    assert parts.captions == page.count("<figure>") == 10
    assert page.count("Shows:") == page.count("Does not show:") == 10


def test_the_tables_hold_the_results(page):
    fractions, success, *_, times = Page(page).tables
    assert [len(line) for line in fractions] == [4] * 5 and fractions[0][1:] == ["position", "time", "rest"]
    assert [line[0] for line in success[1:]] == list(ROWS)
    assert success[4] == ["CEM, pretrained encoder", "0.75", "0.68–1.00", "4", "2.0", "12"]
    assert success[1] == ["uniform random", "0.00", "0.00–1.00", "4", "–", "–"]
    assert times[1:] == [["recording", "30"], ["planning", "60"]]
    assert "1.5 min" in page


def test_an_unproven_gain_is_called_so(page):
    assert "random encoder: 0.75 and 0.50." in page
    assert "Tasks solved with the pretrained one only: 1, with the random one only: 0" in page
    assert "This run does not show a gain of pretraining" in page


def test_settings_are_escaped(page):
    assert "&lt;b&gt;&amp;" in page and "plan/config.yaml" in page


def test_the_animation_is_small_and_runs_to_the_end(page):
    source = next(image["src"] for image in Page(page).images if "gif" in image["src"][:14])
    data = base64.b64decode(source.split(",")[1])
    animation = PIL.Image.open(io.BytesIO(data))
    assert animation.n_frames == STEPS + 1
    assert len(data) < 2_000_000


def test_the_small_animation_is_deterministic(page, finished_run):
    data = (finished_run / "demo.gif").read_bytes()
    assert PIL.Image.open(io.BytesIO(data)).n_frames > 1 and len(data) < 400_000
    write_report(finished_run)
    assert (finished_run / "demo.gif").read_bytes() == data


def test_an_animation_of_real_length_stays_small():
    rng = np.random.default_rng(0)
    tasks = Tasks(PUSHING, range(12))
    states = [tasks.states]
    for _ in range(25):
        tasks.step(rng.uniform(-1, 1, (12, 2)))
        states.append(tasks.states)
    reached = np.where(np.arange(12) % 2, 7, -1)
    data = animate_episodes(tasks, np.stack(states, axis=1), reached)
    animation = PIL.Image.open(io.BytesIO(data))
    assert animation.n_frames == 26 and len(data) < 2_000_000
    marked = []
    for frame in (0, 25):
        animation.seek(frame)
        pixels = np.asarray(animation.convert("RGB")).astype(int)
        marked.append(int((np.abs(pixels - GREEN).max(axis=-1) < 30).sum()))
    assert marked[0] == 0 and marked[1] > 1000  # success shows from its step on


def test_sign_test():
    assert sign_test(0, 0) == sign_test(5, 5) == 1
    assert sign_test(6, 0) == sign_test(0, 6) == pytest.approx(2 / 64)
    assert sign_test(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 1024)


@pytest.mark.parametrize(
    ("wins", "losses", "sentence"),
    [(20, 2, "pretraining improved planning"), (2, 20, "did harm"), (5, 4, "does not show a gain")],
)
def test_the_verdict_follows_the_episodes(wins, losses, sentence):
    reached = {report.PRETRAINED: [3] * wins + [-1] * losses, report.RANDOM: [-1] * wins + [3] * losses}
    run = type("Run", (), {"find_row": lambda self, encoder: {"success": 0.5}})()
    assert sentence in report.compare_encoders(run, {name: np.array(steps) for name, steps in reached.items()})


def test_null_in_metrics_is_a_gap(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": null}\n{"step": 2, "loss": 0.5}\n')
    metrics = read_curves(tmp_path, "pretrain.py")
    assert np.isnan(metrics["loss"][0]) and metrics["loss"][1] == 0.5


def test_a_warning_in_metrics_is_no_curve(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0, "warning": "collapse"}\n'
    )
    assert set(read_curves(tmp_path, "pretrain.py")) == {"step", "loss"}


def test_times_are_optional(run_folder):
    (run_folder / "timings.json").unlink()
    assert "<summary>times" not in write_report(run_folder).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("missing", "script"),
    [
        ("episodes", "record_episodes.py"),
        ("pretrain/metrics.jsonl", "pretrain.py"),
        ("pretrain/final", "pretrain.py"),
        ("world_model/rollout_error.json", "train_world_model.py"),
        ("world_model/final", "train_world_model.py"),
        ("world_model_random", "train_world_model.py"),
        ("plan/results.json", "plan.py"),
        ("plan/episodes.npz", "plan.py"),
        ("", "demo.py"),
    ],
)
def test_a_missing_part_is_refused_in_one_sentence(run_folder, capsys, missing, script):
    path = run_folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(SystemExit) as ended:
        report.main([str(run_folder)])
    assert ended.value.code == 1
    errors = capsys.readouterr().err
    assert len(errors.strip().splitlines()) == 1
    assert str(path) in errors and f"examples/{script}" in errors
    assert not (run_folder / "report.html").exists()


def test_episodes_of_another_run_are_refused(run_folder):
    results = json.loads((run_folder / "plan" / "results.json").read_text())
    results["rows"][3]["success"] = 1.0
    (run_folder / "plan" / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match="different runs"):
        write_report(run_folder)


def test_a_table_without_the_pretrained_row_is_refused(run_folder):
    results = json.loads((run_folder / "plan" / "results.json").read_text())
    del results["rows"][3]
    (run_folder / "plan" / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match="has no row 'CEM, pretrained encoder'"):
        write_report(run_folder)


def test_main_prints_where_the_report_is(run_folder, capsys, monkeypatch):
    monkeypatch.setattr(report, "write_report", lambda folder: folder / "report.html")
    report.main([str(run_folder)])
    assert str(run_folder / "report.html") in capsys.readouterr().out
