"""examples/train_probe.py at its tiny size: every kind and kind of label, what a run leaves, resuming, the cache."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import train_probe
from builders import TINY_ENCODER, TINY_PREDICTOR
from datasets import Features, List, Value, Video
from script_runs import run_processes
from transformers import pipeline

from vjepa2_hf import (
    VJepa2Encoder,
    VJepa2EncoderConfig,
    VJepa2ForMaskedLatentPrediction,
    VJepa2ForVideoClassification,
    VJepa2MaskedLatentPredictionConfig,
    VJepa2VideoProcessor,
)
from vjepa2_hf.data.feature_cache import FeatureCache
from vjepa2_hf.data.shards import write_shards
from vjepa2_hf.data.video_writing import encode_video
from vjepa2_hf.training.run import Run, read_metrics
from vjepa2_hf.training.settings import load_config


TINY = [
    "max_steps=60",
    "batch_size=8",
    "num_threads=1",
    "log_every=20",
    "save_every=40",
    "frames_per_clip=4",
    "validation_fraction=0.3",
    "selection_fraction=0.2",
    "label=color",
    "head={num_pooler_layers: 1, pooler_num_attention_heads: 2}",
    "learning_rates=[1e-2, 1e-5]",
    "weight_decays=[0.01]",
]
COLORS = ("blue", "green", "red")
FEATURES = Features(
    {
        "video": Video(decode=False),
        "color": Value("string"),
        "tags": List(Value("int64")),
        "level": Value("float32"),
        "bright": List(Value("int64")),
    }
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> tuple[Path, Path]:
    """60 videos of one colour each, with labels of all kinds, and the folder of an encoder that was never trained."""
    folder = tmp_path_factory.mktemp("probe")
    rng = np.random.default_rng(0)

    def rows():
        for number in range(60):
            color, bright = number % 3, rng.integers(2, size=3).repeat(2)
            frames = np.full((6, 32, 40, 3), 20, np.uint8)
            frames[..., 2 - color] = 90 + rng.integers(30)
            frames[bright == 1] += 60
            yield {
                "video": {"bytes": encode_video(frames, fps=10, crf=2), "path": f"{number}.mp4"},
                "color": COLORS[color],
                "tags": [color, 3] if bright.sum() > 3 else [color],
                "level": 100.0 + 50 * float(bright[1:5].mean()),
                "bright": bright.tolist(),
            }

    write_shards(rows(), folder / "data", FEATURES, num_shards=3)
    torch.manual_seed(0)
    VJepa2Encoder(VJepa2EncoderConfig(**TINY_ENCODER, initializer_range=0.1)).save_pretrained(folder / "encoder")
    VJepa2VideoProcessor(size=32, crop_size=32).save_pretrained(folder / "encoder")
    return folder / "data", folder / "encoder"


def run_script(monkeypatch, inputs, output_dir: Path, *overrides: str) -> dict:
    data, encoder = inputs
    arguments = [f"data={data}", f"encoder={encoder}", f"output_dir={output_dir}", *TINY, *overrides]
    monkeypatch.setattr(sys, "argv", ["train_probe.py", *arguments])
    train_probe.main()
    return json.loads((output_dir / "results.json").read_text())


@pytest.mark.parametrize("kind", ["linear", "attentive", "finetune"])
def test_a_run_learns_and_leaves_a_classifier_for_the_stock_pipeline(monkeypatch, inputs, tmp_path, kind):
    single = ["learning_rates=[1e-2]"] if kind == "finetune" else []
    results = run_script(monkeypatch, inputs, tmp_path / "run", f"kind={kind}", *single)
    assert results["validation"]["accuracy"] > 0.9 > 0.6 > results["same_answer_for_all"]
    assert results["chosen_by"] == "accuracy on 0.2 of the training clips, held out"
    assert sum(results["clips"].values()) == 60 and min(results["clips"].values()) > 3
    if kind != "finetune":
        assert [head["learning_rate"] for head in results["heads"]] == [1e-2, 1e-5] and results["chosen"] == 0
    metrics = read_metrics(tmp_path / "run")
    assert [row["step"] for row in metrics] == [20, 40, 60] and metrics[-1]["loss"] < metrics[0]["loss"]
    assert metrics[-1]["learning_rate"] == pytest.approx(0, abs=1e-9)
    with PIL.Image.open(tmp_path / "run" / "confusion.png") as picture:
        assert picture.width > 200

    path = tmp_path / "green.mp4"
    frames = np.full((6, 32, 40, 3), 20, np.uint8)
    frames[..., 1] = 100
    path.write_bytes(encode_video(frames, fps=10, crf=2))
    classify = pipeline("video-classification", model=str(tmp_path / "run" / "final"))
    best = classify(str(path))[0]
    assert best["label"] == "green" and best["score"] > 0.5
    model = VJepa2ForVideoClassification.from_pretrained(tmp_path / "run" / "final")
    assert model.config.num_frames == 4 and model.config.problem_type == "single_label_classification"
    frozen = VJepa2Encoder.from_pretrained(inputs[1]).state_dict()
    same = [torch.equal(value, frozen[name]) for name, value in model.encoder.state_dict().items()]
    assert all(same) if kind != "finetune" else not any(same)


def test_the_final_model_scores_as_the_report_says(monkeypatch, inputs, tmp_path):
    """Standardising is folded into the head, so that pixels through the model give the reported accuracy."""
    overrides = ["kind=linear", "standardize=true", "max_steps=5", "segments=2", "learning_rates=[3e-4]"]
    results = run_script(monkeypatch, inputs, tmp_path / "run", *overrides)
    model = VJepa2ForVideoClassification.from_pretrained(tmp_path / "run" / "final").eval()
    processor = VJepa2VideoProcessor.from_pretrained(tmp_path / "run" / "final")
    config = load_config(train_probe.ProbeConfig, tmp_path / "run" / "config.yaml")
    stream = train_probe.LabeledClips(inputs[0], train_probe.evaluation_views(config), processor)
    right = []
    for clip in stream:
        if config.part_of(clip["name"]) == "validation":
            views = processor.normalize_cropped(clip["frames"]).unsqueeze(0)
            with torch.no_grad():
                guess = model.config.id2label[model(views).logits.argmax().item()]
            right.append(guess == clip["row"]["color"])
    assert len(right) == results["clips"]["validation"]
    assert np.mean(right) == pytest.approx(results["validation"]["accuracy"])


def test_neighbors_need_no_training(monkeypatch, inputs, tmp_path):
    results = run_script(monkeypatch, inputs, tmp_path / "run", "kind=knn", "num_neighbors=[1, 3]", "training_views=2")
    assert results["validation"]["accuracy"] > 0.9 and [head["num_neighbors"] for head in results["heads"]] == [1, 3]
    model = VJepa2ForVideoClassification.from_pretrained(tmp_path / "run" / "final").eval()
    assert model.config.num_neighbors == [1, 3][results["chosen"]]
    assert model.config.num_stored_views == 2 * results["clips"]["training"]
    green = np.full((4, 32, 32, 3), 20, np.uint8)
    green[..., 1] = 100
    pixels = VJepa2VideoProcessor.from_pretrained(tmp_path / "run" / "final")(green, return_tensors="pt")
    assert model.config.id2label[model(**pixels).logits.argmax().item()] == "green"


@pytest.mark.parametrize("kind", ["linear", "attentive", "knn"])
def test_several_labels_a_clip(monkeypatch, inputs, tmp_path, kind):
    overrides = ["label=tags", "problem_type=multi_label_classification", "max_steps=100"]
    results = run_script(monkeypatch, inputs, tmp_path / "run", f"kind={kind}", *overrides)
    assert results["labels"] == 4 and results["score"] == "mean_average_precision"
    assert results["validation"]["mean_average_precision"] > results["same_answer_for_all"] + 0.2


@pytest.mark.parametrize("kind", ["linear", "attentive", "knn", "finetune"])
def test_regression_in_the_units_of_the_labels(monkeypatch, inputs, tmp_path, kind):
    rate = "1e-3" if kind == "finetune" else "1e-2"
    overrides = [f"kind={kind}", "label=level", "problem_type=regression", f"learning_rates=[{rate}]"]
    results = run_script(monkeypatch, inputs, tmp_path / "run", *overrides, "max_steps=150")
    assert results["validation"]["r_squared"] > 0.3 and abs(results["same_answer_for_all"]) < 0.2
    if kind != "knn":  # whose labels are stored
        model = VJepa2ForVideoClassification.from_pretrained(tmp_path / "run" / "final")
        assert 50 < model.classifier.bias.item() < 250  # the labels' mean is about 125


@pytest.mark.parametrize("kind", ["linear", "attentive", "finetune"])
def test_a_label_for_each_frame(monkeypatch, inputs, tmp_path, kind):
    rate = "3e-3" if kind == "finetune" else "1e-2"
    overrides = [f"kind={kind}", "label=bright", "labels_per_frame=true", f"learning_rates=[{rate}]", "segments=2"]
    results = run_script(monkeypatch, inputs, tmp_path / "run", *overrides, "max_steps=150")
    assert results["validation"]["accuracy"] > 0.85 > results["same_answer_for_all"]
    model = VJepa2ForVideoClassification.from_pretrained(tmp_path / "run" / "final")
    assert model(torch.zeros(1, 4, 3, 32, 32)).logits.shape == (1, 2, 2)


def test_images_in_folders_are_still_clips(monkeypatch, inputs, tmp_path):
    rng = np.random.default_rng(0)
    for number in range(40):
        color = int(rng.integers(3))
        picture = np.full((32, 40, 3), 20, np.uint8)
        picture[..., 2 - color] = 100 + rng.integers(40)
        folder = tmp_path / "images" / COLORS[color]
        folder.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(picture).save(folder / f"{number}.png")
    images = (tmp_path / "images", inputs[1])
    results = run_script(monkeypatch, images, tmp_path / "run", "kind=linear", "label=label")
    assert results["validation"]["accuracy"] > 0.9 and results["labels"] == 3


def test_a_probe_of_split_folders_never_trains_on_test_files(monkeypatch, inputs, tmp_path, caplog):
    folder, listed = tmp_path / "images", []
    for number in range(48):
        split, color = ("train", "test", "train", "val")[number % 4], COLORS[number % 3]
        path = folder / split / color / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = np.full((32, 40, 3), 20, np.uint8)
        picture[..., 2 - number % 3] = 100 + number
        PIL.Image.fromarray(picture).save(path)
        listed += [f"{path} {color}"] if split == "test" else []
    shutil.copy(path, folder / "train/loose.png")
    (tmp_path / "list.csv").write_text("\n".join([*listed, listed[0]]))
    options = ["kind=knn", "label=label", "num_neighbors=[1]"]
    data = (folder, inputs[1])
    results = run_script(
        monkeypatch, data, tmp_path / "a", *options, f"evaluate_on={{listed: {tmp_path / 'list.csv'}}}"
    )
    assert results["clips"]["validation"] == 12 and results["clips"]["listed"] == 13 and results["labels"] == 3
    assert results["clips"]["training"] + results["clips"]["held_out"] == 36
    assert results["clips"]["held_out"] >= 12  # the validation split chooses
    assert "have no 'label', like train/loose.png: left out" in caplog.text
    cache = FeatureCache(
        next(path for path in (tmp_path / "features").glob("images-*") if path.is_dir()), ("features",)
    )
    assert {(name.split("/")[0], row.get("split")) for name, row in zip(cache.ids, cache.notes["row"])} == {
        ("train", "train"), ("test", "test"), ("val", "validation")
    }  # fmt: skip
    own = ["validation_fraction=0.5", f"validation_data={folder / 'test'}"]
    again = run_script(monkeypatch, data, tmp_path / "b", *options, *own)
    assert again["clips"] == {name: results["clips"][name] for name in again["clips"]}


def test_a_probe_of_one_class_is_refused(monkeypatch, inputs, tmp_path, capsys):
    for number in range(8):
        (tmp_path / "images").mkdir(exist_ok=True)
        PIL.Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / f"images/{number}.png")
    with pytest.raises(SystemExit):
        run_script(monkeypatch, (tmp_path / "images", inputs[1]), tmp_path / "run", "kind=knn", "label=label")
    assert "All 8 clips have the label 'images', but a probe separates two classes" in capsys.readouterr().err


def test_stopped_run_resumes_to_the_same_heads(monkeypatch, inputs, tmp_path):
    whole = run_script(monkeypatch, inputs, tmp_path / "whole")
    original = Run.check_finite

    def stop(run, step, *numbers):
        if step == 50:
            raise KeyboardInterrupt
        return original(run, step, *numbers)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Run, "check_finite", stop)
        run_script(patch, inputs, tmp_path / "stopped")
    resumed = run_script(monkeypatch, inputs, tmp_path / "stopped", "resume=latest")
    assert resumed["heads"] == whole["heads"]
    weights = [
        VJepa2ForVideoClassification.from_pretrained(tmp_path / name / "final") for name in ("whole", "stopped")
    ]
    assert torch.equal(weights[0].classifier.weight, weights[1].classifier.weight)


def test_two_processes_with_half_the_views_each_learn_as_one(monkeypatch, inputs, tmp_path):
    few = ["max_steps=6", "log_every=1", "learning_rates=[1e-3, 1e-4]"]
    one = run_script(monkeypatch, inputs, tmp_path / "one" / "run", *few)
    arguments = [f"data={inputs[0]}", f"encoder={inputs[1]}", f"output_dir={tmp_path / 'two' / 'run'}", *TINY, *few]
    run_processes(Path(train_probe.__file__), [*arguments, "batch_size=4"])
    two = json.loads((tmp_path / "two" / "run" / "results.json").read_text())
    assert two["clips"] == one["clips"] and two["heads"] == one["heads"]
    losses = [[row["loss"] for row in read_metrics(tmp_path / name / "run")] for name in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    parts = list((tmp_path / "two" / "features").glob("*/part-*.safetensors"))
    assert {path.name[:8] for path in parts} == {"part-000", "part-001"}


def test_features_are_computed_once_for_all_heads_and_labels(monkeypatch, inputs, tmp_path):
    calls = []
    original = train_probe.fill_cache
    monkeypatch.setattr(
        train_probe, "fill_cache", lambda folder, *more: calls.append(folder) or original(folder, *more)
    )
    run_script(monkeypatch, inputs, tmp_path / "a", "kind=linear", "max_steps=1")
    assert len(calls) == 1  # one pass for all three parts
    run_script(monkeypatch, inputs, tmp_path / "b", "kind=knn", "label=bright", "problem_type=regression")
    assert len(calls) == 1
    run_script(monkeypatch, inputs, tmp_path / "c", "kind=linear", "max_steps=1", "random_weights=true", "seed=3")
    run_script(monkeypatch, inputs, tmp_path / "d", "kind=linear", "max_steps=1", "shuffle_time=true")
    assert len(calls) == 3
    augmented = "augmentation={flip_probability: 0.0}"
    run_script(monkeypatch, inputs, tmp_path / "e", "kind=linear", "max_steps=1", augmented, "training_views=3")
    assert len(calls) == 5  # each clip in the views of its own part alone
    caches = [FeatureCache(folder, ("features",)) for folder in calls[-2:]]
    assert [set(cache.lengths.tolist()) for cache in caches] == [{3}, {1}]
    assert sum(len(cache.ids) for cache in caches) == 60 and not set(caches[0].ids) & set(caches[1].ids)


def test_few_labels_are_a_part_of_more(monkeypatch, inputs, tmp_path):
    counts = []
    for share in (0.3, 0.6, 1.0):
        output = tmp_path / str(share)
        results = run_script(monkeypatch, inputs, output, "kind=linear", "max_steps=1", f"label_fraction={share}")
        counts.append(results["clips"]["training"])
        assert set(results["clips"]) == {"training", "held_out", "validation"}
    assert counts[0] < counts[1] < counts[2]


def test_the_published_choice_is_named_in_the_report(monkeypatch, inputs, tmp_path):
    results = run_script(monkeypatch, inputs, tmp_path / "run", "choose_on=validation", "selection_fraction=0.0")
    assert "optimistic" in results["chosen_by"] and "held_out" not in results["clips"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("label=colour", "A row has no label 'colour', only bright, color, level, tags"),
        ("label=level", "set problem_type=regression"),
        ("validation_fraction=1.0", "There is no training and no held_out clip"),
        ("kind=finetune", "give one of learning_rates"),
        ("head={pooler_type: linear}", "head.pooler_type is determined by kind=attentive"),
        ("label_fraction=2.0", "label_fraction is 2.0"),
        ("segments=0", "segments is 0"),
        ("encoder=runs/nothing/final", "There is no folder 'runs/nothing/final'"),
    ],
)
def test_settings_that_do_not_fit_end_in_a_sentence(monkeypatch, capsys, inputs, tmp_path, override, message):
    with pytest.raises(SystemExit) as exit_:
        run_script(monkeypatch, inputs, tmp_path / "run", override)
    assert exit_.value.code == 1
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_finished_run_scores_other_clips_without_training(monkeypatch, inputs, tmp_path):
    first = run_script(monkeypatch, inputs, tmp_path / "run", "kind=linear")
    assert first["evaluate_on"] == {}
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    again = ["kind=linear", f"evaluate_on={{same: {inputs[0]}}}", "resume=latest"]
    results = run_script(monkeypatch, inputs, tmp_path / "run", *again)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before and results["clips"]["same"] == 60
    assert results["validation"] == first["validation"] and results["evaluate_on"]["same"]["accuracy"] > 0.9
    assert results["evaluate_on"]["same"] == results["heads"][results["chosen"]]["same"]


def test_other_clips_with_labels_that_the_probe_does_not_know_are_refused(monkeypatch, inputs, tmp_path, capsys):
    frames = np.full((6, 32, 40, 3), 20, np.uint8)
    row = {"video": {"bytes": encode_video(frames, fps=10), "path": "a.mp4"}, "color": "grey"}
    write_shards([row], tmp_path / "grey", Features({"video": Video(decode=False), "color": Value("string")}), 1)
    with pytest.raises(SystemExit):
        run_script(monkeypatch, inputs, tmp_path / "run", "kind=linear", f"evaluate_on={{grey: {tmp_path / 'grey'}}}")
    assert "'grey', which no clip of the probe's own data has" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_script(monkeypatch, inputs, tmp_path / "run", f"evaluate_on={{training: {inputs[0]}}}")
    assert "evaluate_on has the name 'training'" in capsys.readouterr().err


@pytest.mark.parametrize("overrides", [["kind=linear", "max_steps=1"], ["kind=knn"]])
def test_other_clips_do_not_take_the_name_of_a_heads_setting(monkeypatch, inputs, tmp_path, capsys, overrides):
    results = run_script(monkeypatch, inputs, tmp_path / "run", *overrides)
    settings = set(results["heads"][0]) - {"held_out", "validation"}
    assert settings
    for name in settings:
        with pytest.raises(SystemExit):
            run_script(monkeypatch, inputs, tmp_path / name, *overrides, f"evaluate_on={{{name}: {inputs[0]}}}")
        assert f"evaluate_on has the name '{name}'" in capsys.readouterr().err


@pytest.mark.parametrize("labels", ["color", "bright"])
def test_a_clip_may_be_one_frame(monkeypatch, inputs, tmp_path, labels):
    overrides = ["frames_per_clip=1", "max_steps=100", f"label={labels}"]
    overrides += ["labels_per_frame=true"] if labels == "bright" else []
    head = "head={num_pooler_layers: 1, pooler_num_attention_heads: 2, pooler_time_positions: true}"
    results = run_script(monkeypatch, inputs, tmp_path / "run", *overrides, head)
    assert results["validation"]["accuracy"] > 0.85 > results["same_answer_for_all"]
    model = VJepa2ForVideoClassification.from_pretrained(tmp_path / "run" / "final")
    assert model.config.num_frames == 1


@pytest.fixture(scope="module")
def masked_latent(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("masked")
    torch.manual_seed(0)
    encoder = {**TINY_ENCODER, "initializer_range": 0.1}
    config = VJepa2MaskedLatentPredictionConfig(encoder_config=encoder, **TINY_PREDICTOR, initializer_range=0.1)
    VJepa2ForMaskedLatentPrediction(config).save_pretrained(folder)
    VJepa2VideoProcessor(size=32, crop_size=32).save_pretrained(folder)
    return folder


def test_anticipation_reads_predicted_tokens_of_what_it_does_not_see(monkeypatch, inputs, masked_latent, tmp_path):
    overrides = ["anticipate_frames=2", "predicted_frames=2", f"cache_dir={tmp_path / 'features'}"]
    results = run_script(monkeypatch, (inputs[0], masked_latent), tmp_path / "run", *overrides)
    assert results["validation"]["accuracy"] > 0.9
    (cache,) = (path for path in (tmp_path / "features").iterdir() if path.is_dir())
    rows = FeatureCache(cache, ("features", "frame_indices")).windows(torch.tensor([0]), torch.tensor([0]), 1)
    assert rows["frame_indices"].flatten().tolist() == [0, 1, 2, 3] and rows["features"].shape == (1, 1, 48, 24)
    model = VJepa2ForVideoClassification.from_pretrained(tmp_path / "run" / "final").eval()
    path = tmp_path / "seen.mp4"
    frames = np.full((4, 32, 40, 3), 20, np.uint8)
    frames[..., 1] = 100
    path.write_bytes(encode_video(frames, fps=10, crf=2))
    assert model.config.predicted_frames == 2 and model.config.num_frames == 4
    assert pipeline("video-classification", model=str(tmp_path / "run" / "final"))(str(path))[0]["label"] == "green"


def test_without_predicted_tokens_every_kind_anticipates(monkeypatch, inputs, tmp_path):
    for kind in ("linear", "knn"):
        results = run_script(monkeypatch, inputs, tmp_path / kind, f"kind={kind}", "anticipate_frames=1")
        assert results["validation"]["accuracy"] > 0.9


def test_one_frame_anticipates_too(monkeypatch, inputs, masked_latent, tmp_path):
    overrides = ["frames_per_clip=1", "anticipate_frames=2", "predicted_frames=2", "max_steps=40"]
    head = "head={num_pooler_layers: 1, pooler_num_attention_heads: 2, pooler_time_positions: true}"
    results = run_script(monkeypatch, (inputs[0], masked_latent), tmp_path / "run", *overrides, head)
    assert results["validation"]["accuracy"] > 0.9
    model = VJepa2ForVideoClassification.from_pretrained(tmp_path / "run" / "final")
    config = load_config(train_probe.ProbeConfig, tmp_path / "run" / "config.yaml")
    assert model.encode_tokens(torch.zeros(1, 1, 3, 32, 32))[1] == config.num_tubelets(tubelet_size=2) == 2


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["predicted_frames=2"], "predicted_frames is 2; expected 0 to anticipate_frames (None)"),
        (["predicted_frames=4", "anticipate_frames=2"], "expected 0 to anticipate_frames (2)"),
        (
            ["predicted_frames=2", "anticipate_frames=2", "kind=linear"],
            "other than attentive and finetune (kind=linear)",
        ),
        (["anticipate_frames=2", "segments=2"], "anticipate_frames is 2 and a video has 2 clips"),
        (["anticipate_frames=2", "training_views=3"], "anticipate_frames is 2 and a video has 3 clips"),
    ],
)
def test_settings_of_anticipation_that_cannot_be_are_refused(monkeypatch, inputs, tmp_path, capsys, overrides, said):
    with pytest.raises(SystemExit):
        run_script(monkeypatch, inputs, tmp_path / "run", *overrides)
    assert said in capsys.readouterr().err
