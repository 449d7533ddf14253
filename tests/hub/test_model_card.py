"""Model cards: what they say, when they are written, and whose README.md wins."""

import json
import logging
import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import write_cards
import yaml
from accelerate import Accelerator
from builders import TINY_2_1, TINY_ENCODER, TINY_PREDICTOR
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import EntryNotFoundError

import vjepa2_hf
from vjepa2_hf import (
    VJepa2Encoder,
    VJepa2EncoderConfig,
    VJepa2ForMaskedLatentPrediction,
    VJepa2ForVideoClassification,
    VJepa2MaskedLatentPredictionConfig,
    VJepa2VideoClassificationConfig,
    VJepa2VideoProcessor,
    VJepa2WorldModel,
    VJepa2WorldModelConfig,
)
from vjepa2_hf.data.video_writing import encode_video
from vjepa2_hf.hub import model_card
from vjepa2_hf.hub.model_card import CardFacts, _setting, parameter_counts, write_model_card
from vjepa2_hf.training.config import TrainingConfig
from vjepa2_hf.training.run import Run


CARDS = Path(__file__).parents[2] / "model_cards"
WORLD_MODEL = {"encoder_config": TINY_ENCODER, "action_dim": 7, "context_frames": 2, **TINY_PREDICTOR}
PLANNER = {"solver": "cem", "horizon": 2, "num_candidates": 20, "num_iterations": 2, "num_elites": 4}
POOLER = {"pooler_num_attention_heads": 2, "num_pooler_layers": 1}
BUILD = {
    "encoder": lambda: VJepa2Encoder(VJepa2EncoderConfig(**TINY_ENCODER)),
    "encoder 2.1": lambda: VJepa2Encoder(VJepa2EncoderConfig(**TINY_2_1)),
    "masked latent": lambda: VJepa2ForMaskedLatentPrediction(
        VJepa2MaskedLatentPredictionConfig(encoder_config=TINY_ENCODER, **TINY_PREDICTOR)
    ),
    "world model": lambda: VJepa2WorldModel(VJepa2WorldModelConfig(**WORLD_MODEL)),
    "world model of an arm": lambda: VJepa2WorldModel(
        VJepa2WorldModelConfig(
            **WORLD_MODEL, proprio_dim=7, extrinsics_dim=6, proprio_transition="pose_delta", planner=PLANNER
        )
    ),
    "world model with a planner": lambda: VJepa2WorldModel(
        VJepa2WorldModelConfig(**WORLD_MODEL, action_low=[-0.25] * 7, action_high=[0.5] * 7, planner=PLANNER)
    ),
    "world model of pixels": lambda: VJepa2WorldModel(
        VJepa2WorldModelConfig(**WORLD_MODEL, state_type="pixels", planner=PLANNER)
    ),
    "world model of robots": lambda: VJepa2WorldModel(
        VJepa2WorldModelConfig(
            **WORLD_MODEL,
            num_views=2,
            view_names=["front", "wrist"],
            num_embodiments=2,
            proprio_dim=3,
            embodiment_names=["arm", "pusher"],
            embodiment_action_dims=[7, 2],
            embodiment_proprio_dims=[3, 0],
            action_low=[[-0.25] * 7, [-1.0, -1.0]],
            action_high=[[0.5] * 7, None],
            planner=PLANNER,
        )
    ),  # fmt: skip
    "classifier": lambda: VJepa2ForVideoClassification(
        VJepa2VideoClassificationConfig(encoder_config=TINY_ENCODER, num_labels=5, **POOLER)
    ),
}
TASKS = {"encoder": "feature-extraction", "masked": "feature-extraction", "world": "robotics"}
USERS = "---\nlicense: cc-by-4.0\n---\n# Mine\n\nWritten by hand.\n"


@pytest.fixture
def encoder():
    return BUILD["encoder"]()


@pytest.fixture
def run_folder(tmp_path):
    """A run's folder as the scripts leave it, before `final/`."""
    folder = tmp_path / "run"
    folder.mkdir()
    rows = [
        {
            "step": step,
            "loss": 1.0 / (step + 0.37),
            "learning_rate": 1e-3,
            "target_std": None if step == 10 else 0.1 * step,
            "effective_rank": 3.25,
            "clips_per_second": 12.0 + step,
        }
        for step in range(10, 130, 10)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"output_dir": str(folder), "data": "runs/episodes", "max_steps": 120, "seeds": [str(Path.home() / "x")]}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def read(folder):
    return (Path(folder) / "README.md").read_text(encoding="utf-8")


def table_of(card):
    lines = [line for line in card.split("## Training")[1].splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return cells[0], cells[2:]


class TestContent:
    def test_state_actions_and_target_of_a_world_model(self, tmp_path):
        fields = {"action_dim": 6, "actions_per_step": 2, "action_type": "discrete", "freeze_encoder": False}
        fields |= {"state_type": "projected", "state_dim": 5, "state_projection": "slow", "dynamics_type": "mlp"}
        VJepa2WorldModel(VJepa2WorldModelConfig(**{**WORLD_MODEL, **fields})).save_pretrained(tmp_path)
        card = read(tmp_path)
        assert "a frame's tokens, mapped by slow, 5 wide" in card
        assert "mlp, 24 wide, 2 blocks, context of 2 frames" in card
        assert "6 numbers per model step: one-hot, 3 categories" in card
        assert "latents of an EMA copy of the encoder, which was trained along" in card

    def test_masked_latents_of_2_1(self, tmp_path):
        dense = {"predict_context": True, "context_loss_weight": 0.5, "target_type": "teacher"}
        config = VJepa2MaskedLatentPredictionConfig(
            encoder_config=TINY_2_1, **TINY_PREDICTOR, **dense, teacher_hidden_size=80
        )
        VJepa2ForMaskedLatentPrediction(config).save_pretrained(tmp_path)
        card = read(tmp_path)
        assert "10 mask tokens, predicts context tokens too |" in card
        assert "target teacher (80 wide, not in the folder) normalized by layer, context 0.5 |" in card
        assert "# (1, 1, tokens of a frame, 80)" in card

    def test_an_encoder_of_2_1(self, tmp_path):
        BUILD["encoder 2.1"]().save_pretrained(tmp_path)
        card = read(tmp_path)
        assert "as in V-JEPA 2.1 (https://arxiv.org/abs/2603.14482)" in card
        assert "corrected angle table, rows and columns stretched to 16 |" in card
        assert "| Levels | outputs of blocks 0, 1, each with its own norm |" in card
        assert "a clip of one frame has patch embeddings and a modality embedding of its own" in card

    @pytest.mark.parametrize("kind", BUILD)
    def test_facts_are_those_of_config_and_weights(self, kind, tmp_path):
        model = BUILD[kind]()
        model.save_pretrained(tmp_path)
        card = ModelCard.load(tmp_path / "README.md")
        assert card.data.library_name == "transformers" and "vjepa2_hf" in card.data.tags
        assert card.data.pipeline_tag == TASKS.get(kind.split()[0], "video-classification")
        assert f"| Parameters | {sum(p.numel() for p in model.parameters()):,}" in card.text
        assert f"`{type(model).__name__}`" in card.text and vjepa2_hf.__version__ in card.text
        assert "Nothing was measured" in card.text and card.data.license is None and "None is stated" in card.text
        if kind == "world model of pixels":
            assert "no encoder" in card.text and "24 wide, 2 blocks, 2 heads, MLP" not in card.text
        else:
            frames = "| 32 × 32 pixels, each encoded" if "world" in kind else "| 4 frames, 32 × 32 pixels"
            assert "24 wide, 2 blocks, 2 heads" in card.text and frames in card.text

    def test_a_world_models_card_has_no_clip_length(self, tmp_path):
        VJepa2WorldModel(VJepa2WorldModelConfig(**WORLD_MODEL)).save_pretrained(tmp_path)
        assert "4 frames" not in read(tmp_path) and "Clips" not in read(tmp_path)

    @pytest.mark.parametrize("kind", BUILD)
    def test_the_code_block_runs_in_the_folder(self, kind, tmp_path, monkeypatch):
        """With the files that it names: a video of other sizes than the model's, two images."""
        BUILD[kind]().save_pretrained(tmp_path)
        VJepa2VideoProcessor(size=32, crop_size=32).save_pretrained(tmp_path)  # as conversion and runs do
        pixels = np.random.default_rng(0).integers(0, 256, (9, 40, 48, 3), dtype=np.uint8)
        (tmp_path / "clip.mp4").write_bytes(encode_video(pixels, fps=8))
        for name, image in zip(("now.png", "goal.png"), pixels, strict=False):
            PIL.Image.fromarray(image).save(tmp_path / name)
        (code,) = re.findall(r"```python\n(.*?)```", read(tmp_path), flags=re.DOTALL)
        monkeypatch.chdir(tmp_path)
        names = {}
        exec(code, names)
        if "world" in kind:
            assert names["action"].shape == (7,) and np.isfinite(names["action"]).all()
            return
        assert names["videos"].shape == (1, 4, 3, 32, 32)
        result = {"encoder": "tokens", "masked": "future"}.get(kind.split()[0], "logits")
        assert len(names[result]) == 1 and names[result].isfinite().all()
        if kind == "classifier":
            assert names["label"].startswith("LABEL_")

    def test_a_processor_can_be_made_as_the_code_block_says(self, encoder, tmp_path):
        encoder.save_pretrained(tmp_path)
        (code,) = re.findall(r"none was saved\? (.*)", read(tmp_path))
        processor = eval(code, {"VJepa2VideoProcessor": VJepa2VideoProcessor})
        videos = processor(np.zeros((4, 40, 48, 3), np.uint8), return_tensors="pt")["pixel_values_videos"]
        assert encoder.encode(videos).shape[-1] == 24 and videos.shape == (1, 4, 3, 32, 32)

    def test_bounds_and_planner_settings_of_the_config_stand_in_the_table(self, tmp_path):
        BUILD["world model with a planner"]().save_pretrained(tmp_path / "with")
        card = read(tmp_path / "with")
        assert f"| `action_low` | [{', '.join(['-0.25'] * 7)}] |" in card
        assert f"| `action_high` | [{', '.join(['0.5'] * 7)}] |" in card
        assert "| Planner | solver cem, horizon 2, num_candidates 20, num_iterations 2, num_elites 4 |" in card
        assert "has no action bounds" not in card and "action_low=" not in card
        BUILD["world model"]().save_pretrained(tmp_path / "without")
        card = read(tmp_path / "without")
        assert "has no action bounds" in card and "action_low=[-1.0] * 7" in card
        assert "| Planner" not in card and "| `action_low`" not in card

    def test_cameras_and_embodiments_stand_in_the_table(self, tmp_path):
        BUILD["world model of robots"]().save_pretrained(tmp_path)
        card = read(tmp_path)
        assert "| Cameras | front, wrist: their tokens form a frame" in card
        assert f"| Embodiment `arm` | 7 action numbers, action_low [{', '.join(['-0.25'] * 7)}]" in card
        assert "| Embodiment `pusher` | 2 action numbers, action_low [-1, -1]; no proprio state |" in card
        assert "| Action | at most 7 numbers per model step |" in card and "| `action_low` |" not in card
        assert "embodiment='arm'" in card and '{"front": "now.png", "wrist": "now.png"}' in card

    def test_settings_that_are_0_stand_in_the_table(self):
        assert _setting({"constraint": "dead_zone", "dim": 0, "below": 0.25}) == "dead_zone (dim 0, below 0.25)"
        assert _setting({"cost": "latent", "distance": "l1", "summed": False}) == "latent (distance l1)"

    @pytest.mark.parametrize(
        ("folder", "title"),
        [
            ("pusher", "pusher"),
            ("pusher.tmp-123", "pusher"),
            ("pusher/final", "pusher"),
            ("pusher/final.tmp", "pusher"),
            ("pusher/checkpoint-20", "pusher"),
            ("pusher/tmpab12", "VJepa2Encoder"),
            ("tmp/final", "VJepa2Encoder"),
        ],
    )
    def test_the_title_is_the_folders_name_where_it_says_something(self, encoder, tmp_path, folder, title):
        encoder.save_pretrained(tmp_path / folder)
        assert f"\n# {title}\n" in read(tmp_path / folder)

    def test_counts_are_of_the_full_weights_where_a_process_holds_a_part(self, encoder, tmp_path):
        full = {name: value.detach().clone() for name, value in encoder.state_dict().items()}
        expected = sum(value.numel() for value in full.values())
        for parameter in encoder.parameters():
            parameter.data = parameter.data.flatten()[:1]
        encoder.save_pretrained(tmp_path, state_dict=full)
        assert f"| Parameters | {expected:,} |" in read(tmp_path) and parameter_counts(encoder)["encoder"] < expected

    def test_facts_that_the_model_cannot_know(self, encoder, tmp_path):
        encoder.card_facts = CardFacts(license="mit", data="560 episodes of pushing", title="Pusher")
        encoder.save_pretrained(tmp_path)
        card = ModelCard.load(tmp_path / "README.md")
        assert card.data.license == "mit" and "# Pusher" in card.text and "560 episodes of pushing" in card.text

    def test_a_converted_checkpoint_keeps_the_license_of_its_source(self, encoder, tmp_path):
        encoder.card_facts = CardFacts(source="vitl.pt")
        encoder.save_pretrained(tmp_path)
        card = ModelCard.load(tmp_path / "README.md")
        assert card.data.license is None and "converted from vitl.pt" in card.text
        assert "See the source checkpoint" in card.text.split("## License")[1]

    def test_the_license_of_the_folder_it_was_loaded_from_stays(self, encoder, tmp_path):
        encoder.save_pretrained(tmp_path / "a")
        (tmp_path / "a" / "README.md").write_text(USERS)
        VJepa2Encoder.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
        assert ModelCard.load(tmp_path / "b" / "README.md").data.license == "cc-by-4.0"


class TestOrigin:
    def test_a_hub_model_is_named_as_the_base(self, encoder, tmp_path, monkeypatch):
        hub_id = "facebook/vjepa2-vitl-fpc64-256"
        cached = {hub_id: "/cache/config.json"}
        monkeypatch.setattr(model_card, "try_to_load_from_cache", lambda name, file: cached.get(name))
        encoder.name_or_path = hub_id
        encoder.save_pretrained(tmp_path / "a")
        VJepa2Encoder.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
        for name in ("a", "b"):
            assert ModelCard.load(tmp_path / name / "README.md").data.base_model == hub_id
        encoder.name_or_path = "runs/mine"  # a deleted folder looks like a Hub id, and is none
        encoder.save_pretrained(tmp_path / "c")
        assert ModelCard.load(tmp_path / "c" / "README.md").data.base_model is None

    def test_paths_of_the_machine_are_not_published(self, encoder, tmp_path):
        encoder.save_pretrained(tmp_path / "a")
        VJepa2Encoder.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
        assert str(tmp_path) not in read(tmp_path / "b")

    @pytest.mark.parametrize("metadata", ["vjepa2_hf: 3", "vjepa2_hf: [", "- license", "\xff: 1"])
    def test_a_card_with_a_broken_header_does_not_stop_a_save(self, encoder, tmp_path, metadata):
        encoder.save_pretrained(tmp_path / "a")
        (tmp_path / "a" / "README.md").write_bytes(f"---\n{metadata}\n---\n# Mine\n".encode("latin-1"))
        VJepa2Encoder.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
        assert "Nothing was measured" in read(tmp_path / "b")


class TestRun:
    def test_final_quotes_the_run_and_nothing_else(self, encoder, run_folder):
        run = Run(TrainingConfig(output_dir=str(run_folder)), Accelerator(cpu=True))
        final = run.save_final(encoder, VJepa2VideoProcessor(size=32, crop_size=32))
        card = read(final)
        header, rows = table_of(card)
        logged = {row["step"]: row for row in map(json.loads, (run_folder / "metrics.jsonl").read_text().splitlines())}
        assert header == ["step", "loss", "target_std", "effective_rank"]
        assert [row[0] for row in rows] == ["10", "30", "50", "80", "100", "120"] and rows[0][2] == "–"
        for step, *values in rows:
            for name, shown in zip(header[1:], values, strict=True):
                value = logged[int(step)][name]
                assert shown == "–" if value is None else float(shown) == pytest.approx(value, rel=5e-4)
        text = card.split("## Training")[1].split("<details>")[0]
        assert "120 of 120" in text and "`clips_per_second` there: 132" in text and "`runs/episodes`" in text
        prose = re.findall(r"\d[\d.]*", re.sub(r"(?m)^\|.*$", "", text))
        assert {number.rstrip(".") for number in prose} <= {"120", "132"}

    def test_paths_of_the_machine_are_not_published(self, encoder, run_folder):
        encoder.save_pretrained(run_folder / "final")
        assert str(run_folder) not in read(run_folder / "final") and str(Path.home()) not in read(run_folder / "final")
        assert "…/run" in read(run_folder / "final") and "max_steps: 120" in read(run_folder / "final")

    def test_a_model_loaded_from_a_run_quotes_it_as_its_past(self, encoder, run_folder, tmp_path):
        encoder.save_pretrained(run_folder / "final")
        assert "was loaded from" not in read(run_folder / "final")
        VJepa2Encoder.from_pretrained(run_folder / "final").save_pretrained(tmp_path / "copy")
        assert "| 120 |" in read(tmp_path / "copy") and "was loaded from" in read(tmp_path / "copy")

    def test_another_model_in_the_runs_folder_is_not_the_runs(self, encoder, run_folder):
        encoder.save_pretrained(run_folder / "probe")
        assert "Nothing was measured" in read(run_folder / "probe")

    def test_a_run_can_be_named(self, encoder, run_folder, tmp_path):
        encoder.card_facts = CardFacts(run_dir=run_folder)
        encoder.save_pretrained(tmp_path / "elsewhere")
        assert "| 120 |" in read(tmp_path / "elsewhere")
        with pytest.raises(FileNotFoundError, match="run_dir='/nowhere', which holds no metrics.jsonl"):
            CardFacts(run_dir="/nowhere")

    @pytest.mark.parametrize(("content", "measured"), [("", False), ('{"step": 1}\n', True), ('{"loss"', False)])
    def test_broken_or_empty_metrics_do_not_stop_a_save(self, encoder, run_folder, content, measured, caplog):
        (run_folder / "metrics.jsonl").write_text(content)
        (run_folder / "config.yaml").write_text("a: [")
        with caplog.at_level(logging.ERROR):
            encoder.save_pretrained(run_folder / "final")
        assert ("Nothing was measured" in read(run_folder / "final")) != measured


class TestWriting:
    def test_a_users_card_is_never_overwritten(self, encoder, tmp_path, caplog):
        (tmp_path / "README.md").write_text(USERS)
        with caplog.at_level(logging.INFO, logger="vjepa2_hf.hub.model_card"):
            encoder.save_pretrained(tmp_path)
        assert read(tmp_path) == USERS and "stays as it is" in caplog.text

    def test_our_card_is_refreshed_and_keeps_the_license(self, encoder, tmp_path):
        encoder.card_facts = CardFacts(license="mit", title="First")
        encoder.save_pretrained(tmp_path)
        encoder.card_facts = None
        encoder.save_pretrained(tmp_path)
        assert "# First" not in read(tmp_path) and ModelCard.load(tmp_path / "README.md").data.license == "mit"
        (tmp_path / "README.md").write_text(re.sub(r"<!-- Written by.*?-->", "my notes", read(tmp_path)))
        encoder.save_pretrained(tmp_path)
        assert "my notes" in read(tmp_path)

    def test_only_the_main_process_writes(self, encoder, tmp_path):
        encoder.save_pretrained(tmp_path, is_main_process=False)
        assert not (tmp_path / "README.md").exists()

    def test_a_file_in_the_place_of_the_folder_is_left_to_transformers(self, encoder, tmp_path):
        (tmp_path / "file").write_text("")
        encoder.save_pretrained(tmp_path / "file")
        assert write_model_card(encoder, tmp_path / "file") is None


class FakeHub:
    """What `push_to_hub` needs of the Hub: a repository that may hold a card, and the commit it gets."""

    def __init__(self, monkeypatch, card=None):
        self.card, self.pushed = card, {}
        monkeypatch.setattr("transformers.utils.hub.hf_api", lambda: self)
        monkeypatch.setattr("transformers.modeling_utils.hf_api", lambda: self, raising=False)
        monkeypatch.setattr("transformers.utils.hub.ModelCard.load", self.load)

    def load(self, repo_id, token=None):
        if self.card is None:
            raise EntryNotFoundError("no README.md")
        return ModelCard(self.card)

    def create_repo(self, repo_id, **kwargs):
        return SimpleNamespace(repo_id=f"me/{repo_id.rpartition('/')[2]}")

    def create_commit(self, operations, **kwargs):
        self.pushed = {op.path_in_repo: Path(op.path_or_fileobj).read_bytes() for op in operations}


def stock_card(tags=()):
    data = ModelCardData(tags=list(tags), library_name="transformers")
    return str(ModelCard.from_template(data, model_description=model_card._STOCK_DESCRIPTION))


class TestPush:
    def test_a_new_repository_gets_our_card_and_not_the_stock_one(self, encoder, monkeypatch):
        hub = FakeHub(monkeypatch)
        encoder.card_facts = CardFacts(license="mit")
        encoder.push_to_hub("enc", tags=["robots"])
        card = ModelCard(hub.pushed["README.md"].decode())
        assert "model.safetensors" in hub.pushed and card.data.license == "mit" and "robots" in card.data.tags
        assert (
            'from_pretrained("me/enc")' in card.text
            and "\n# enc\n" in card.text
            and "More Information Needed" not in card.text
        )

    @pytest.mark.parametrize("kind", BUILD)
    def test_every_model_pushes_its_card(self, kind, monkeypatch):
        hub = FakeHub(monkeypatch)
        BUILD[kind]().push_to_hub("x")
        assert model_card.MARK in hub.pushed["README.md"].decode()

    def test_a_card_that_somebody_wrote_on_the_hub_stays(self, encoder, monkeypatch):
        hub = FakeHub(monkeypatch, card=USERS)
        encoder.push_to_hub("enc")
        assert "Written by hand." in hub.pushed["README.md"].decode()

    def test_a_generated_card_on_the_hub_is_renewed_with_its_license_and_tags(self, encoder, monkeypatch):
        for remote in (stock_card(["robots"]), f"---\ntags: [robots]\n---\n{model_card.MARK} 0.0.1 -->\nold"):
            hub = FakeHub(monkeypatch, card=remote.replace("---\n", "---\nlicense: mit\n", 1))
            encoder.push_to_hub("enc")
            card = ModelCard(hub.pushed["README.md"].decode())
            assert model_card.MARK in card.text and "old" not in card.text.split() and card.data.license == "mit"
            assert card.data.tags.count("vjepa2_hf") == 1 and "robots" in card.data.tags

    def test_a_run_is_quoted_after_loading_and_pushing(self, encoder, run_folder, monkeypatch):
        encoder.save_pretrained(run_folder / "final")
        hub = FakeHub(monkeypatch)
        VJepa2Encoder.from_pretrained(run_folder / "final").push_to_hub("enc")
        assert "| 120 |" in hub.pushed["README.md"].decode()

    def test_saving_with_push_keeps_the_users_file_here_and_there(self, encoder, tmp_path, monkeypatch):
        hub = FakeHub(monkeypatch)
        (tmp_path / "README.md").write_text(USERS)
        os.utime(tmp_path / "README.md", (1, 1))
        encoder.save_pretrained(tmp_path, push_to_hub=True, repo_id="enc")
        assert read(tmp_path) == USERS and hub.pushed["README.md"].decode() == USERS

    def test_saving_with_push_writes_one_card_for_both(self, encoder, tmp_path, monkeypatch):
        hub = FakeHub(monkeypatch)
        encoder.save_pretrained(tmp_path, push_to_hub=True, repo_id="enc")
        assert read(tmp_path) == hub.pushed["README.md"].decode() and 'from_pretrained("me/enc")' in read(tmp_path)


class TestRepository:
    def test_cards_of_published_models_are_up_to_date(self):
        """Otherwise: python model_cards/write_cards.py"""
        for name, text in write_cards.published_cards().items():
            assert (CARDS / name).read_text(encoding="utf-8") == text, name

    def test_published_sizes(self):
        sizes = {"2_large": 304, "2_huge": 632, "2_giant": 1012}
        sizes |= {"2_1_base": 87, "2_1_large": 305, "2_1_giant": 1013, "2_1_gigantic": 1845}
        for size, millions in sizes.items():
            (count,) = re.findall(r"encoder ([\d,]+), predictor", (CARDS / f"vjepa{size}.md").read_text())
            assert round(int(count.replace(",", "")) / 1e6) == millions

    def test_the_command_writes_the_cards(self, tmp_path, monkeypatch):
        monkeypatch.setattr(write_cards, "published_cards", lambda: {"a.md": "text"})
        write_cards.main(tmp_path)
        assert (tmp_path / "a.md").read_text() == "text"

    def test_the_template_is_the_packages(self):
        assert (CARDS / "template.md").resolve() == model_card.TEMPLATE.resolve() and model_card.TEMPLATE.is_file()
        assert not os.path.isabs(os.readlink(CARDS / "template.md"))
