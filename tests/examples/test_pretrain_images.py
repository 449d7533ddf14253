"""Pretraining on images and videos in one run."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pretrain
import pytest
import torch
from accelerate.utils import set_seed
from builders import run_group
from pretrain import PretrainConfig
from safetensors.torch import load_file
from script_runs import TINY_PRETRAIN, metrics, pretrain_in_group, run_pretrain, write_square_shards

from vjepa2_hf.training.loop import TrainingLoop
from vjepa2_hf.training.run import Run
from vjepa2_hf.training.settings import load_config


OWN_TOKENS = ["encoder.image_tubelet_size=1", "encoder.modality_embeddings=true"]  # of V-JEPA 2.1
EQUAL = ["encoder.drop_path_rate=0.0", "images.batch_size=3"]  # no random numbers of a process's own


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> tuple[Path, list[str]]:
    """Shards of videos, and the settings of a folder of five images beside them."""
    folder = tmp_path_factory.mktemp("mixed")
    write_square_shards(folder / "shards")
    (folder / "images").mkdir()
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 48, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"images/{number}.png")
    masks = "images.masks=[{type: multi_block, num_blocks: 3, spatial_scale: 0.15}]"
    return folder / "shards", [f"images.data={folder}/images", masks]


def weights(output_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(output_dir / "final" / "model.safetensors")


def run_and_stop_after_three(rank: int, shards: Path, output_dir: Path, *overrides: str) -> None:
    class Stop(Exception):
        pass

    def stop(self, step, *arguments, save=Run.save_checkpoint):
        save(self, step, *arguments)
        raise Stop

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Run, "save_checkpoint", stop)
        run_pretrain(patch, shards, output_dir, *overrides)


def test_one_process_trains_on_both_in_every_step(monkeypatch, data, tmp_path):
    shards, images = data
    shapes = []

    def read_batches(*arguments, read=pretrain.read_batches):
        for names, batches in read(*arguments):
            shapes.append({modality: tuple(batch["pixel_values_videos"].shape) for modality, batch in batches.items()})
            assert len(names) == 5 and sum(".png" in name for name in names) == 3
            yield names, batches

    monkeypatch.setattr(pretrain, "read_batches", read_batches)
    settings = ["images.batch_size=3", "images.crop_size=24", "images.fraction=0.25"]
    lines = run_pretrain(monkeypatch, shards, tmp_path, *images, *settings)
    assert shapes == [{"video": (2, 4, 3, 32, 32), "image": (3, 1, 3, 24, 24)}] * 6
    for line in lines:
        assert line["loss"] == pytest.approx(0.75 * line["video_loss"] + 0.25 * line["image_loss"])
        assert line["video_loss"] == pytest.approx((line["mask_loss_0"] + line["mask_loss_1"]) / 2)
        assert line["image_loss"] == pytest.approx(line["image_mask_loss_0"])
    progress = json.loads((tmp_path / "checkpoint-6/progress.json").read_text())
    assert progress["global_batch_size"] == 5


def test_terms_of_the_loss_are_weighted_over_both(monkeypatch, data, tmp_path):
    shards, images = data
    settings = ["images.fraction=0.25", "variance_weight=0.5", "max_steps=2", "gradient_accumulation_steps=2"]
    for line in run_pretrain(monkeypatch, shards, tmp_path, *images, *settings):
        assert line["loss"] == pytest.approx(line["prediction_loss"] + 0.5 * line["variance_loss"])


@pytest.mark.parametrize("encoder", [[], OWN_TOKENS], ids=["repeated frame", "own tokens"])
def test_two_processes_of_one_modality_each_learn_what_one_process_of_both_learns(
    monkeypatch, data, tmp_path, encoder
):
    shards, images = data
    settings = [*images, *EQUAL, *encoder]
    run_group(pretrain_in_group, shards, tmp_path / "two", *settings)
    one = run_pretrain(monkeypatch, shards, tmp_path / "one", *settings)
    for line, other in zip(one, metrics(tmp_path / "two"), strict=True):
        assert line.keys() == other.keys()
        for name in line.keys() - {"step"}:
            assert other[name] == pytest.approx(line[name], rel=1e-4, abs=1e-6), name
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=0, atol=1e-5, msg=name)


def test_videos_alone_leave_the_tokenizer_of_images_as_it_was(monkeypatch, data, tmp_path):
    settings = [*OWN_TOKENS, "max_steps=3"]
    run_group(pretrain_in_group, data[0], tmp_path / "two", *settings)
    run_pretrain(monkeypatch, data[0], tmp_path / "one", *settings, "max_steps=1")
    two, one = weights(tmp_path / "two"), weights(tmp_path / "one")
    for name in ("encoder.image_patch_embeddings.proj.weight", "encoder.image_modality_embedding"):
        assert torch.equal(two[name], one[name]), name
    assert not torch.equal(two["encoder.video_modality_embedding"], one["encoder.video_modality_embedding"])


def batches(config: PretrainConfig) -> dict[str, dict]:
    """The first batch of each modality."""
    encoder = pretrain.build_model(config).config.encoder_config
    parts = config.divide(0, 1)
    loaders = {name: pretrain.build_loader(config.by_modality[name], encoder, parts[name]) for name in parts}
    found = {modality: next(iter(loader)) for modality, loader in loaders.items()}
    return {
        modality: {k: v for k, v in batch.items() if "mask" in k or "pixel" in k} for modality, batch in found.items()
    }


def gradients(rank: int, output_dir: Path, settings: list[str]) -> None:
    """Writes the gradients that two processes have exchanged, at their second step."""
    config = load_config(PretrainConfig, None, [*settings, f"output_dir={output_dir}"])
    loop = TrainingLoop(config, "pretrain")
    set_seed(0)
    model = pretrain.build_model(config).train()
    loop.prepare(model, torch.optim.SGD(model.parameters(), lr=0.0))
    objective, found = pretrain.Objective(loop), batches(config)
    loop.step = 1
    for _ in range(2):  # a second step meets what the first one has left in DDP
        loop.optimizer.zero_grad()
        objective({modality: found[modality] for modality in objective.weights})
    torch.save({name: p.grad for name, p in model.named_parameters() if p.grad is not None}, output_dir / f"{rank}.pt")
    loop.signals.restore()
    loop.accelerator.end_training()


@pytest.mark.parametrize("by", ["process", "batch"])
@pytest.mark.parametrize("encoder", [[], OWN_TOKENS], ids=["repeated frame", "own tokens"])
def test_gradients_of_two_processes_are_the_average_of_those_of_each(data, tmp_path, by, encoder):
    shards, images = data
    settings = [f"data={shards}", *TINY_PRETRAIN, *images, *EQUAL, *encoder, f"images.by={by}"]
    (tmp_path / "group").mkdir()
    run_group(gradients, tmp_path / "group", settings)

    config = load_config(PretrainConfig, None, [*settings, f"output_dir={tmp_path}"])
    expected = {}
    for inputs in batches(config).values():
        set_seed(0)
        model = pretrain.build_model(config).train()
        model(**inputs).loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                expected[name] = expected.get(name, 0) + parameter.grad / 2
    for rank in range(2):
        found = torch.load(tmp_path / f"group/{rank}.pt")
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            assert gradient.abs().max() > 0, name
            torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("setting", ["num_workers=0", "num_workers=2", "gradient_accumulation_steps=2"])
def test_a_resumed_run_of_one_process_repeats_the_uninterrupted_one(monkeypatch, data, tmp_path, setting):
    shards, images = data
    uninterrupted = run_pretrain(monkeypatch, shards, tmp_path / "a", *images, setting)
    run_and_stop_after_three(0, shards, tmp_path / "b", *images, setting)
    assert run_pretrain(monkeypatch, shards, tmp_path / "b", *images, setting, "resume=latest") == uninterrupted
    one, other = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("by", "encoder"), [("process", OWN_TOKENS), ("batch", [])])
def test_resumed_processes_repeat_the_uninterrupted_ones(data, tmp_path, by, encoder):
    shards, images = data
    settings = [*images, *encoder, f"images.by={by}", "resume=latest"]
    run_group(pretrain_in_group, shards, tmp_path / "a", *settings)
    run_group(run_and_stop_after_three, shards, tmp_path / "b", *settings)
    run_group(pretrain_in_group, shards, tmp_path / "b", *settings)
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b") and len(metrics(tmp_path / "a")) == 6
    one, other = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_of_two_processes_goes_on_with_one_at_the_same_clips_and_images(monkeypatch, data, tmp_path, caplog):
    shards, images = data
    whole = run_pretrain(monkeypatch, shards, tmp_path / "one", *images, *EQUAL)
    run_group(run_and_stop_after_three, shards, tmp_path / "two", *images, *EQUAL)
    lines = run_pretrain(monkeypatch, shards, tmp_path / "two", *images, *EQUAL, "resume=latest")
    assert "was written by 2 processes and continues with 1" in caplog.text and "stays 5 samples" in caplog.text
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in whole], rel=1e-4)


def test_processes_of_one_modality_go_on_with_batches_of_both(data, tmp_path):
    shards, images = data
    settings = [*images, "batch_size=4", "resume=latest"]
    run_group(run_and_stop_after_three, shards, tmp_path, *settings)
    run_group(pretrain_in_group, shards, tmp_path, *settings, "images.by=batch", "batch_size=2")
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_single_frames_of_videos_are_images(monkeypatch, data, tmp_path):
    shards, (_, masks) = data
    config = load_config(
        PretrainConfig,
        None,
        [f"data={shards}", "output_dir=x", *TINY_PRETRAIN, masks, f"images.data={shards}", "images.batch_size=12"],
    )
    frames = batches(config)["image"]["pixel_values_videos"]
    assert frames.shape == (12, 1, 3, 32, 32)
    assert len({frame.sum().item() for frame in frames}) == 12
    run_pretrain(monkeypatch, shards, tmp_path, masks, f"images.data={shards}", "max_steps=1")


def test_the_loss_on_held_out_clips_is_measured_beside_images(monkeypatch, data, tmp_path):
    shards, images = data
    lines = run_pretrain(monkeypatch, shards, tmp_path, *images, "eval_every=3", f"eval_data={shards}")
    assert [line["step"] for line in lines if line.get("eval_loss")] == [3, 6]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["images.fraction=0.0"], "images.fraction is 0.0, expected a fraction above 0 and below 1"),
        (["images.fraction=1.0"], "images.fraction is 1.0"),
        (["images.batch_size=0"], "images.batch_size must be at least 1, got 0"),
        (["images.masks=[]"], "images.masks is empty"),
        (["images.masks=[{type: future}]"], "FutureMask needs at least 2 tubelets but the grid is (1, 4, 4)"),
        (["normalize_targets=position"], "subtracts the mean over time, which leaves nothing of images"),
        (["images.crop_size=33"], "images.crop_size=33 must be a multiple of the encoder's 8"),
        (["images.by=step"], "'images.by' must be one of 'process', 'batch', got 'step'"),
        (["images.fractions=0.5"], "did you mean 'images.fraction'"),
        (["images.data=nowhere"], "nowhere"),
        (["predictor.num_mask_tokens=1", "masks=[{type: future}]", "images.masks=[{type: multi_block}, {}]"],
         "2 mask sets are more than the predictor's 1 mask tokens"),
    ],
)  # fmt: skip
def test_bad_settings_end_in_one_sentence(monkeypatch, capsys, data, tmp_path, overrides, message):
    shards, images = data
    with pytest.raises(SystemExit):
        run_pretrain(monkeypatch, shards, tmp_path, *images, *overrides)
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def images_of(fraction: float, by: str = "process") -> PretrainConfig:
    settings = ["output_dir=x", "data=x", "batch_size=3", "gradient_accumulation_steps=2", "images.data=y"]
    settings += [f"images.fraction={fraction}", f"images.by={by}", "images.batch_size=5"]
    return load_config(PretrainConfig, None, settings)


def test_processes_are_divided_by_the_fraction():
    config = images_of(0.25)
    parts = [config.divide(rank, 8) for rank in range(8)]
    assert [list(part) for part in parts] == [["video"]] * 6 + [["image"]] * 2
    assert [(part.rank, part.processes, part.weight) for each in parts for part in each.values()] == [
        *((rank, 6, 1.0) for rank in range(6)), (0, 2, 1.0), (1, 2, 1.0),
    ]  # fmt: skip
    assert config.samples_per_step(8) == 2 * (6 * 3 + 2 * 5)
    both = images_of(0.25, "batch")
    assert {name: (part.rank, part.processes, part.weight) for name, part in both.divide(1, 2).items()} == {
        "video": (1, 2, 0.75), "image": (1, 2, 0.25),
    }  # fmt: skip
    assert both.samples_per_step(2) == 2 * 2 * 8
    assert config.divide(0, 1) == both.divide(0, 1)  # a single process does both
    assert [len(images_of(0.1).divide(rank, 30)) for rank in range(30)] == [1] * 30  # 0.1 * 30 is not quite 3


@pytest.mark.parametrize(("fraction", "processes", "found"), [(0.5, 3, "1.5"), (0.3, 2, "0.6"), (0.9, 2, "1.8")])
def test_a_fraction_that_is_no_number_of_processes_is_refused(fraction, processes, found):
    message = rf"images.fraction={fraction} of {processes} processes is {found}, expected a whole number.*by=batch"
    with pytest.raises(ValueError, match=message):
        images_of(fraction).divide(0, processes)


def test_sharded_processes_of_one_modality_are_refused():
    accelerator = SimpleNamespace(process_index=0, num_processes=2, is_fsdp2=True)
    with pytest.raises(ValueError, match=r"images.by=process does not work with FSDP.*images.by=batch"):
        pretrain.build_loaders(images_of(0.5), None, accelerator)


def test_images_get_random_numbers_of_their_own():
    config = images_of(0.5)
    assert config.by_modality["image"].seed != config.seed == config.by_modality["video"].seed
