"""Our folders in the hands of transformers: pipelines, Auto classes, exported code, fresh processes, pushing."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from builders import GOAL, LABELS, OBSERVATION, SOLVER, build_classifier, build_l1_planner, run_python, served
from safetensors.torch import load_file
from transformers import pipeline

from vjepa2_hf import VJepa2ForVideoClassification, VJepa2Planner, VJepa2VideoProcessor
from vjepa2_hf.data.video_writing import encode_video
from vjepa2_hf.planning import CEM
from vjepa2_hf.video_io import read_video


FRAMES = np.random.default_rng(0).integers(0, 256, (20, 40, 52, 3), np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A classifier with its processor, and videos."""
    folder = tmp_path_factory.mktemp("classifier")
    build_classifier().save_pretrained(folder)
    VJepa2VideoProcessor(size=32, crop_size=32).save_pretrained(folder)
    for name, frames in (("long", FRAMES), ("odd", FRAMES[:5]), ("short", FRAMES[:3])):
        (folder / f"{name}.mp4").write_bytes(encode_video(frames, fps=10))
    return folder


@pytest.fixture
def log():
    """What transformers logs at WARNING or above (its root logger does not propagate to pytest's)."""
    records = []

    class Collect(logging.Handler):
        def emit(self, record):
            records.append(record.getMessage())

    handler = Collect(logging.WARNING)
    logger, verbosity = logging.getLogger("transformers"), transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_warning()
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)
    transformers.logging.set_verbosity(verbosity)


def expected_scores(frames: np.ndarray, num_frames: int) -> dict[str, float]:
    clip = frames[np.arange(num_frames) * len(frames) // num_frames]
    pixels = VJepa2VideoProcessor(size=32, crop_size=32)(clip, return_tensors="pt")
    with torch.no_grad():
        scores = build_classifier()(**pixels).logits[0].softmax(-1)
    return {LABELS[number]: score.item() for number, score in enumerate(scores)}


class TestVideoClassificationPipeline:
    def test_a_video_file_is_classified_and_nothing_is_logged(self, folder, log):
        classify = pipeline("video-classification", model=str(folder), device="cpu")
        assert type(classify.model) is VJepa2ForVideoClassification
        result = classify(str(folder / "long.mp4"))
        expected = expected_scores(read_video(folder / "long.mp4"), num_frames=4)
        assert {entry["label"]: pytest.approx(entry["score"], abs=1e-5) for entry in result} == expected
        assert [entry["score"] for entry in result] == sorted((entry["score"] for entry in result), reverse=True)
        assert log == []

    def test_model_and_processor_as_objects(self, folder, log):
        # Read from the file like the other: on some processors the same weights elsewhere in memory round otherwise
        classify = pipeline(
            "video-classification",
            model=VJepa2ForVideoClassification.from_pretrained(folder),
            video_processor=VJepa2VideoProcessor(size=32, crop_size=32),
            device="cpu",
        )
        loaded = pipeline("video-classification", model=str(folder), device="cpu")
        path = str(folder / "long.mp4")
        assert classify(path) == loaded(path) and log == []

    def test_forms_of_a_video(self, folder):
        classify = pipeline("video-classification", model=str(folder), device="cpu")
        path = folder / "long.mp4"
        expected = classify(str(path))
        assert classify([str(path), str(path)]) == [expected, expected]
        assert classify(path.read_bytes()) == classify(read_video(path)) == expected
        with served(folder) as address:
            assert classify(f"{address}/long.mp4") == expected

    def test_top_k_and_num_frames(self, folder):
        classify = pipeline("video-classification", model=str(folder), device="cpu")
        (best,) = classify(str(folder / "long.mp4"), top_k=1, num_frames=10)
        expected = expected_scores(read_video(folder / "long.mp4"), num_frames=10)
        assert best["label"] == max(expected, key=expected.get)
        assert best["score"] == pytest.approx(expected[best["label"]], abs=1e-5)

    def test_a_video_shorter_than_the_clip_says_what_to_do(self, folder):
        classify = pipeline("video-classification", model=str(folder), device="cpu")
        assert len(classify(str(folder / "odd.mp4"))) == 3  # 5 frames, 4 are taken
        with pytest.raises(ValueError, match="num_frames=4.*exceeds total_num_frames=3.*set num_frames"):
            classify(str(folder / "short.mp4"))
        assert len(classify(str(folder / "short.mp4"), num_frames=2)) == 3
        with pytest.raises(ValueError, match="frames=3.*expected a multiple of 2"):
            classify(str(folder / "short.mp4"), num_frames=3)


EXPORT = """
import sys
import torch
from safetensors.torch import save_file
from builders import TINY_ENCODER, TINY_PREDICTOR, build_classifier, build_l1_planner
import vjepa2_hf
from vjepa2_hf import *

folder = sys.argv[1]
vjepa2_hf.register_custom_code()
torch.manual_seed(0)
processor = VJepa2VideoProcessor(size=40, crop_size=32)
video = torch.randint(0, 256, (4, 3, 48, 60), dtype=torch.uint8)
pixels = processor(video)["pixel_values_videos"]
masks = torch.tensor([[0, 1, 2, 3]]), torch.tensor([[8, 9]])
masked = VJepa2ForMaskedLatentPrediction(
    VJepa2MaskedLatentPredictionConfig(encoder_config=TINY_ENCODER, **TINY_PREDICTOR)
)
encoder = VJepa2Encoder(VJepa2EncoderConfig(**TINY_ENCODER))
models = {"encoder": encoder, "masked": masked, "world": build_l1_planner().model, "classifier": build_classifier()}
for name, model in models.items():
    model.eval().save_pretrained(f"{folder}/{name}")
    processor.save_pretrained(f"{folder}/{name}")
    # Read from the file as others will: on some processors the same weights elsewhere in memory round otherwise
    models[name] = type(model).from_pretrained(f"{folder}/{name}")
encoder, masked = models["encoder"], models["masked"]
with torch.no_grad():
    outputs = {
        "video": video,
        "pixels": pixels,
        "encoder": encoder(pixels).last_hidden_state,
        "masked": masked(pixels, *masks).predicted_latents[0],
        "world": models["world"].rollout(models["world"].encode(pixels[:, :1]), torch.ones(1, 2, 2)),
        "classifier": models["classifier"](pixels).logits,
    }
save_file(outputs, f"{folder}/outputs.safetensors")
build_l1_planner().save_pretrained(f"{folder}/planner")
"""

# Asks for nothing of ours by name
LOAD_WITHOUT = """
import json
import sys
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig, AutoModel, AutoModelForPreTraining, AutoModelForVideoClassification, AutoVideoProcessor, pipeline
)

folder, plain = sys.argv[1:]
try:
    import vjepa2_hf
    sys.exit("the package is there")
except ImportError:
    pass
inputs = load_file(f"{folder}/outputs.safetensors")
pixels, trust = inputs["pixels"], {"trust_remote_code": True}
found = {}
processor = AutoVideoProcessor.from_pretrained(f"{folder}/encoder", **trust)
found["pixels"] = processor(inputs["video"], return_tensors="pt")["pixel_values_videos"]
masks = torch.tensor([[0, 1, 2, 3]]), torch.tensor([[8, 9]])
with torch.no_grad():
    found["encoder"] = AutoModel.from_pretrained(f"{folder}/encoder", **trust)(pixels).last_hidden_state
    masked = AutoModelForPreTraining.from_pretrained(f"{folder}/masked", **trust)
    found["masked"] = masked(pixels, *masks).predicted_latents[0]
    world = AutoModel.from_pretrained(f"{folder}/world", **trust)
    found["world"] = world.rollout(world.encode(pixels[:, :1]), torch.ones(1, 2, 2))
    classifier = AutoModelForVideoClassification.from_pretrained(f"{folder}/classifier", **trust)
    found["classifier"] = classifier(pixels).logits
    for name in ("masked", "classifier"):
        as_auto_model = AutoModel.from_pretrained(f"{folder}/{name}", **trust)
        assert type(as_auto_model).__module__.startswith("transformers_modules")
    classifier.save_pretrained(f"{folder}/again")  # the code goes along
    again = AutoModelForVideoClassification.from_pretrained(f"{folder}/again", **trust)
    assert torch.equal(again(pixels).logits, found["classifier"])
save_file(found, f"{folder}/found.safetensors")
classify = pipeline("video-classification", model=f"{folder}/classifier", device="cpu", **trust)
said = [classify(f"{plain}/long.mp4", top_k=1)[0]["label"]]
for load in (
    lambda: AutoModel.from_pretrained(f"{folder}/encoder"),
    lambda: AutoConfig.from_pretrained(plain),
    lambda: AutoVideoProcessor.from_pretrained(plain),
):
    try:
        load()
    except ValueError as error:
        said.append(str(error).splitlines()[0])
with open(f"{folder}/said.json", "w") as file:
    json.dump(said, file)
"""

# The same folders where the package is installed: its own classes, whatever code the folder holds, and no question
LOAD_WITH = """
import sys
import json
import numpy as np
from transformers import AutoModel, AutoModelForVideoClassification, AutoVideoProcessor, pipeline
from builders import GOAL, OBSERVATION
import vjepa2_hf

folder, plain = sys.argv[1:]
for trust in ({}, {"trust_remote_code": True}):
    assert type(AutoModel.from_pretrained(f"{folder}/encoder", **trust)) is vjepa2_hf.VJepa2Encoder
    classifier = AutoModelForVideoClassification.from_pretrained(f"{folder}/classifier", **trust)
    assert type(classifier) is vjepa2_hf.VJepa2ForVideoClassification
    processor = AutoVideoProcessor.from_pretrained(f"{folder}/encoder", **trust)
    assert type(processor) is vjepa2_hf.VJepa2VideoProcessor
classifier.save_pretrained(f"{folder}/saved_without_code")
processor.save_pretrained(f"{folder}/saved_without_code")
planner = pipeline("latent-planning", model=f"{folder}/planner", device="cpu")
plan = planner(OBSERVATION, GOAL, seed=3)
again = vjepa2_hf.VJepa2Planner.from_pretrained(f"{folder}/planner", device="cpu")(OBSERVATION, GOAL, seed=3)
assert np.array_equal(plan["actions"], again["actions"])
classify = pipeline("video-classification", model=plain, device="cpu")
label = classify(f"{plain}/long.mp4", top_k=1)[0]["label"]
print(json.dumps({
    "actions": plan["actions"].tolist(), "cost": plan["cost"], "solver": planner.solver.to_dict(),
    "cost_term": planner.cost.to_dict(), "chunk": planner.candidate_chunk_size,
    "size": dict(planner.video_processor.size), "label": label,
}))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The four models and a planner, saved after `register_custom_code()`, in a process of its own since that
    holds until its end."""
    exported, cache = tmp_path_factory.mktemp("exported"), tmp_path_factory.mktemp("cache")
    tests = str(Path(__file__).parents[1])
    result = run_python(f"import sys; sys.path.append({tests!r})\n{EXPORT}", exported, package=True, cache=cache)
    assert result.returncode == 0, result.stderr[-2000:]
    return exported


class TestFreshProcesses:
    def test_exported_code_gives_equal_outputs_without_the_package(self, exported, folder, tmp_path):
        result = run_python(LOAD_WITHOUT, exported, folder, package=False, cache=tmp_path)
        assert result.returncode == 0, result.stderr[-2000:]
        expected, found = (load_file(exported / f"{name}.safetensors") for name in ("outputs", "found"))
        assert set(found) == set(expected) - {"video"}
        for name, value in found.items():
            assert torch.equal(value, expected[name]), name
        label, untrusted, config, processor = json.loads((exported / "said.json").read_text())
        assert label in LABELS.values()
        assert "contains custom code which must be executed" in untrusted  # never run unasked
        assert "model type `vjepa2_hf_video_classification`" in config
        assert processor.startswith("Unrecognized video processor")
        assert log_lines(result.stderr) == []

    def test_with_the_package_no_code_is_asked_for_and_the_planner_is_the_same(self, exported, folder, tmp_path):
        tests = str(Path(__file__).parents[1])
        code = f"import sys; sys.path.append({tests!r})\n{LOAD_WITH}"
        result = run_python(code, exported, folder, package=True, cache=tmp_path / "modules")
        assert result.returncode == 0, result.stderr[-2000:]
        assert log_lines(result.stderr) == [] and not (tmp_path / "modules").exists()
        found = json.loads(result.stdout)
        plan = build_l1_planner()(OBSERVATION, GOAL, seed=3)
        np.testing.assert_allclose(found["actions"], plan["actions"], atol=1e-6)
        assert found["cost"] == pytest.approx(plan["cost"], abs=1e-6)
        assert CEM(**{name: value for name, value in found["solver"].items() if name != "solver"}) == CEM(**SOLVER)
        assert (found["cost_term"]["distance"], found["chunk"], found["size"]) == (
            "l1",
            8,
            {"height": 40, "width": 40},
        )
        for file in ("config.json", "video_preprocessor_config.json"):  # loaded from a folder with code, saved without
            assert "auto_map" not in json.loads((exported / "saved_without_code" / file).read_text())
        assert not list((exported / "saved_without_code").glob("*.py"))
        scores = expected_scores(read_video(folder / "long.mp4"), num_frames=4)
        assert found["label"] == max(scores, key=scores.get)

    def test_what_the_folders_hold(self, exported):
        for name, config_file, model_file in (
            ("encoder", "configuration_vjepa2", "modeling_encoder"),
            ("masked", "configuration_vjepa2", "modeling_masked_latent"),
            ("world", "configuration_world_model", "modeling_world_model"),
            ("classifier", "configuration_classification", "modeling_classification"),
        ):
            config = json.loads((exported / name / "config.json").read_text())
            config_class = f"{config['architectures'][0]}Config".replace("VJepa2For", "VJepa2")
            assert config["auto_map"]["AutoModel"].startswith(f"{model_file}.")
            assert config["auto_map"]["AutoConfig"] == f"{config_file}.{config_class}"
            assert (exported / name / f"{model_file}.py").is_file()
            assert not list((exported / name).glob("*card*.py")) + list((exported / name).glob("*format*.py"))
        config = json.loads((exported / "planner" / "config.json").read_text())
        assert "custom_pipelines" not in config and config["planner"]["solver"] == "cem"


def log_lines(stderr: str) -> list[str]:
    """What a process wrote to stderr, progress bars left out."""
    return [line for line in stderr.replace("\r", "\n").splitlines() if line.strip() and "it/s]" not in line]


class TestPushing:
    @pytest.mark.parametrize("way", ["push_to_hub", "save_pretrained"])
    def test_the_planner_is_pushed_whole(self, hub, way, tmp_path):
        planner = build_l1_planner()
        if way == "push_to_hub":
            planner.push_to_hub("someone/planner", private=True)
        else:
            planner.save_pretrained(tmp_path / "planner", push_to_hub=True, repo_id="someone/planner", private=True)
        assert {"config.json", "model.safetensors", "video_preprocessor_config.json", "README.md"} <= set(hub.files)
        assert hub.private == [True] * len(hub.private) and len(hub.private) == (1 if way == "push_to_hub" else 2)
        card = hub.files["README.md"].decode()  # ours, not transformers' empty one
        assert 'VJepa2Planner.from_pretrained("someone/planner"' in card and "| Planner | solver cem" in card
        loaded = VJepa2Planner.from_pretrained(hub.write_to(tmp_path / "there"), device="cpu")
        assert np.array_equal(loaded(OBSERVATION, GOAL)["actions"], planner(OBSERVATION, GOAL)["actions"])
