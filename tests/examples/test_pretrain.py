import contextlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pretrain
import pytest
import torch
from builders import EXAMPLES, run_group
from pretrain import PretrainConfig, build_model_config
from script_runs import TINY_PRETRAIN, metrics, pretrain_in_group, run_pretrain, run_processes, write_square_shards

from vjepa2_hf import VJepa2Encoder, VJepa2ForMaskedLatentPrediction, VJepa2VideoProcessor
from vjepa2_hf.masking import build_mask_samplers
from vjepa2_hf.training.run import Run
from vjepa2_hf.training.settings import load_config


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return write_square_shards(tmp_path_factory.mktemp("shards") / "train")


def run_and_stop_after_three(shards: Path, output_dir: Path, *overrides: str) -> None:
    class Stop(Exception):
        pass

    def stop_after_three(self, step, *arguments, save=Run.save_checkpoint):
        save(self, step, *arguments)
        raise Stop

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Run, "save_checkpoint", stop_after_three)
        run_pretrain(patch, shards, output_dir, *overrides)


@pytest.fixture(scope="module")
def stopped(shards, tmp_path_factory) -> Path:
    """The folder of a run that was stopped after step 3 of 6."""
    output_dir = tmp_path_factory.mktemp("stopped")
    run_and_stop_after_three(shards, output_dir)
    return output_dir


def fails(monkeypatch, capsys, shards: Path, output_dir: Path, *overrides: str) -> str:
    with pytest.raises(SystemExit) as exit_:
        run_pretrain(monkeypatch, shards, output_dir, *overrides)
    assert exit_.value.code == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    return error


def test_a_run_leaves_metrics_checkpoints_and_a_model_that_loads(monkeypatch, shards, tmp_path):
    lines = run_pretrain(monkeypatch, shards, tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert set(lines[0]) == {
        "step", "loss", "learning_rate", "ema_momentum", "weight_decay",
        "gradient_norm", "mask_loss_0", "mask_loss_1", "skipped",
        "target_std", "effective_rank", "prediction_variation",
    }  # fmt: skip
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert lines[0]["learning_rate"] == pytest.approx(5e-4) and lines[0]["ema_momentum"] == 0.9
    assert {path.name for path in tmp_path.iterdir()} == {
        ".lock", "config.yaml", "metrics.jsonl", "checkpoint-3", "checkpoint-6", "final",
    }  # fmt: skip

    model = VJepa2ForMaskedLatentPrediction.from_pretrained(tmp_path / "final")
    encoder = VJepa2Encoder.from_pretrained(tmp_path / "final")
    processor = VJepa2VideoProcessor.from_pretrained(tmp_path / "final")
    clip = processor(np.zeros((4, 50, 60, 3), np.uint8), return_tensors="pt")["pixel_values_videos"]
    assert clip.shape == (1, 4, 3, 32, 32)
    torch.testing.assert_close(encoder.encode(clip), model.target_encoder.encode(clip))
    assert load_config(PretrainConfig, tmp_path / "config.yaml").max_steps == 6


@pytest.mark.parametrize(
    "setting",
    [
        "num_workers=0",
        "num_workers=2",
        "gradient_accumulation_steps=2",
        "weight_decay={schedule: cosine, final: 0.4}",
        "gradient_checkpointing=true",
    ],
)
def test_a_resumed_run_repeats_the_uninterrupted_one_to_the_bit(monkeypatch, shards, tmp_path, setting):
    uninterrupted = run_pretrain(monkeypatch, shards, tmp_path / "a", setting)
    run_and_stop_after_three(shards, tmp_path / "b", setting)
    assert not (tmp_path / "b" / "final").exists()
    torch.manual_seed(99)
    assert run_pretrain(monkeypatch, shards, tmp_path / "b", setting, "resume=latest") == uninterrupted
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a/final" / name).read_bytes() == (tmp_path / "b/final" / name).read_bytes()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_run_of_every_kind_of_clip_repeats_the_uninterrupted_one(monkeypatch, shards, tmp_path, num_workers):
    (tmp_path / "images").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 48, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(tmp_path / f"images/{number}.png")
    settings = [
        f"data=[{{path: {shards}, weight: 0.7}}, {{path: {tmp_path}/images, weight: 0.3}}]",
        "frames_per_clip=8", "frames_curriculum=[[0, 4], [2, 6], [4, 8]]", "fps=[4, 8]", "speed=[0.5, 1.5]",
        "frame_jitter=0.3", "motion_weight=0.5", f"num_workers={num_workers}",
    ]  # fmt: skip
    uninterrupted = run_pretrain(monkeypatch, shards, tmp_path / "a", *settings)
    assert [line["frames_per_clip"] for line in uninterrupted] == [4, 4, 6, 6, 8, 8]
    run_and_stop_after_three(shards, tmp_path / "b", *settings)
    assert run_pretrain(monkeypatch, shards, tmp_path / "b", *settings, "resume=latest") == uninterrupted
    weights = [(tmp_path / name / "final/model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


def test_with_constant_schedules_a_run_goes_on_to_another_last_step(monkeypatch, shards, tmp_path):
    constant = ["learning_rate.schedule=constant", "ema.schedule=constant", "resume=latest"]
    run_pretrain(monkeypatch, shards, tmp_path, *constant, "max_steps=3")
    lines = run_pretrain(monkeypatch, shards, tmp_path, *constant, "max_steps=4")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]


@pytest.mark.slow
def test_two_processes_resume_to_the_bit(shards, tmp_path):
    for name, steps in (("a", [6]), ("b", [3, 6])):
        for max_steps in steps:
            settings = [f"data={shards}", f"output_dir={tmp_path / name}", *TINY_PRETRAIN, "resume=latest"]
            settings += [f"max_steps={max_steps}", "learning_rate.schedule=constant", "ema.schedule=constant"]
            run_processes(EXAMPLES / "pretrain.py", settings)
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    assert json.loads((tmp_path / "a/checkpoint-6/progress.json").read_text())["num_processes"] == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("encoder.hidden_size=32", "encoder.hidden_size=32 (was 16)"),
        ("batch_size=1", "batch_size=1 (was 2)"),
        ("seed=5", "seed=5 (was 0)"),
        ("data={shards}/*.parquet", "*.parquet' (was "),
        ("max_steps=12", "max_steps=12 (was 6)"),
        ("ema.start=0.5", "ema.start=0.5 (was 0.9)"),
        ("weight_decay=0.1", "weight_decay=0.1 (was 0.04)"),
        ("masks.0.num_blocks=3", "masks=[{'type': 'multi_block', 'num_blocks': 3"),
    ],
)
def test_a_run_does_not_go_on_in_silence_with_other_settings(stopped, shards, monkeypatch, capsys, override, message):
    override = override.replace("{shards}", str(shards))
    assert message in fails(monkeypatch, capsys, shards, stopped, override, "resume=latest")


def test_started_from_a_saved_model(monkeypatch, shards, tmp_path):
    run_pretrain(monkeypatch, shards, tmp_path / "a")
    sizes = ["encoder={}", "predictor={}", "frames_per_clip=8", "max_steps=1", "loss_exponent=2"]
    run_pretrain(monkeypatch, shards, tmp_path / "b", f"init_from={tmp_path / 'a/final'}", *sizes)
    model = VJepa2ForMaskedLatentPrediction.from_pretrained(tmp_path / "b" / "final")
    assert model.config.encoder_config.hidden_size == 16 and model.config.loss_exponent == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=nowhere"], "nowhere"),
        (["data=runs/nothing/here"], "There is no data at 'runs/nothing/here': no such folder or file"),
        (
            ["init_from=runs/nothing/final", "encoder={}", "predictor={}"],
            "init_from=runs/nothing/final does not load: There is no folder 'runs/nothing/final'",
        ),
        (["batch_sze=3"], "'batch_sze'; did you mean 'batch_size'"),
        (["encoder.hiden_size=3"], "hidden_size"),
        (["predictor.hidden_sise=3"], "did you mean 'predictor.hidden_size'"),
        (["masks=[{type: multi_blok}]"], "multi_block"),
        (["masks=[]"], "masks is empty"),
        (["frames_curriculum=[[0, 2], [9, 3]]"], "ends with 3 frames, but frames_per_clip is 4"),
        (["frames_curriculum=[[1, 4]]"], "begin at 0"),
        (["fps=[4, 0]"], "fps is [4.0, 0.0]"),
        (["data=[{path: nowhere}]"], "nowhere"),
        (["data=[{path: x, wieght: 2}]"], "data"),
        (["max_skipped_fraction=2.0"], "max_skipped_fraction is 2.0"),
        (["batch_size=0"], "batch_size must be at least 1, got 0"),
        (["resume=checkpoint-9"], "There is no checkpoint folder 'checkpoint-9'"),
        (["weight_decay=-1.0"], "A weight decay is a number of at least 0"),
        (["weight_decay={schedule: cosine, final: -1.0}"], "final of a weight decay is -1.0"),
        (["weight_decay={finale: 1.0}"], "did you mean 'weight_decay.final'"),
        (["gradient_clipping=0.0"], "gradient_clipping must be above 0, got 0.0"),
        (["gradient_clipping=-1.0"], "gradient_clipping must be above 0, got -1.0"),
        (["keep_last=-1"], "keep_last is -1, expected at least 1"),
        (["num_threads=0"], "num_threads must be at least 1, got 0"),
        (["seed=-1"], "seed must lie in 0 to 4294967295, got -1"),
        (["crop_size=4"], "crop_size=4 must be a multiple of the encoder's 8"),
        (["frames_per_clip=1"], "frames_per_clip=1 must be a multiple of the encoder's 2"),
        (["frames_per_clip=2", "normalize_targets=position"], "leaves nothing of clips of 1 time step"),
        (["encoder.crop_size=64"], "set crop_size=64 alone"),
        (["encoder.frames_per_clip=8"], "set frames_per_clip=8 alone"),
        (["mask_token_index=10"], "mask_token_index=10 is not one of the predictor's 10 mask tokens"),
        (["predictor.num_mask_tokens=1"], "2 mask sets are more than the predictor's 1 mask tokens"),
        (["torch_compile=inductr"], "did you mean 'inductor'"),
        (["log_with=mlflow"], "log_with"),
        (["init_from=x"], "init_from determines the model's sizes"),
        (["crop_size=33"], "33"),
        (["--config", "missing.yaml"], "'missing.yaml' does not exist"),
    ],
)
def test_bad_settings_end_in_one_sentence(monkeypatch, capsys, shards, tmp_path, overrides, message):
    assert message in fails(monkeypatch, capsys, shards, tmp_path, *overrides)


def test_a_loss_that_is_not_finite_stops_the_run_before_the_weights_are_lost(monkeypatch, capsys, shards, tmp_path):
    settings = ["learning_rate={schedule: constant, peak: 1e30}", "normalize_targets=none", "log_every=100"]
    error = fails(monkeypatch, capsys, shards, tmp_path, *settings, "save_every=1", "gradient_accumulation_steps=2")
    found = json.loads((tmp_path / "offending_batch.json").read_text())
    last = tmp_path / f"checkpoint-{found['step'] - 1}"
    assert last.is_dir() and not (tmp_path / f"checkpoint-{found['step']}").exists()
    assert "lower the learning rate" in error and str(tmp_path / "offending_batch.json") in error
    assert f"continue in another output_dir with resume={last}" in error
    assert found["loss"] is None and [len(batch["clips"]) for batch in found["batches"]] == [2, 2]
    assert all(".mp4" in name and batch["process"] == 0 for batch in found["batches"] for name in batch["clips"])
    assert not (tmp_path / "final").exists()


def test_the_mask_losses_are_the_parts_of_the_loss_and_the_gradient_norm_is_logged(monkeypatch, shards, tmp_path):
    for line in run_pretrain(monkeypatch, shards, tmp_path, "max_steps=2", "gradient_accumulation_steps=2"):
        assert line["loss"] == pytest.approx((line["mask_loss_0"] + line["mask_loss_1"]) / 2)
        assert 0 < line["gradient_norm"] < 1e3


def test_the_terms_of_the_loss_are_means_over_micro_batches_as_the_loss_is(monkeypatch, shards, tmp_path):
    settings = ["max_steps=2", "gradient_accumulation_steps=2", "variance_weight=0.5", "covariance_weight=0.25"]
    for line in run_pretrain(monkeypatch, shards, tmp_path, *settings):
        terms = line["prediction_loss"] + 0.5 * line["variance_loss"] + 0.25 * line["covariance_loss"]
        assert line["loss"] == pytest.approx(terms)


def test_what_was_skipped_is_summed_over_processes(monkeypatch, shards, tmp_path):
    monkeypatch.setattr(pretrain.SkipLog, "__len__", lambda self: 3)
    as_of_two = {"sum": 2, "mean": 1}
    monkeypatch.setattr(pretrain.Accelerator, "reduce", lambda self, part, how: part * as_of_two[how])
    assert run_pretrain(monkeypatch, shards, tmp_path, "max_steps=1")[0]["skipped"] == 6


@pytest.mark.parametrize(("setting", "learnt"), [("null", [True, True, False]), ("0", [True, False, False])])
def test_mask_sets_have_tokens_of_their_own_or_share_one_as_published(monkeypatch, shards, tmp_path, setting, learnt):
    run_pretrain(monkeypatch, shards, tmp_path, "max_steps=1", f"mask_token_index={setting}")
    model = VJepa2ForMaskedLatentPrediction.from_pretrained(tmp_path / "final")
    moved = [bool(token.any()) for token in model.predictor.mask_tokens]  # they begin at zero
    assert moved == learnt + [False] * 7


def test_a_target_without_an_average_has_momentum_zero():
    settings = ["output_dir=a", "data=b", "target_type=online", "ema.start=0.9"]
    assert load_config(PretrainConfig, None, settings).scheduled(1)["ema_momentum"] == 0


def test_a_run_elsewhere_with_another_number_of_sources_reads_its_data_anew(
    stopped, shards, monkeypatch, caplog, tmp_path
):
    two = f"data=[{{path: {shards}}}, {{path: {shards}}}]"
    lines = run_pretrain(monkeypatch, shards, tmp_path, two, f"resume={stopped / 'checkpoint-3'}")
    assert [line["step"] for line in lines] == [4, 5, 6]
    assert "the data starts again from the beginning: it was read by {'num_workers': 0, 'sources': 1}" in caplog.text


def test_a_curriculum_does_not_go_on_with_other_sources():
    config = load_config(PretrainConfig, None, ["output_dir=a", "data=b", "frames_curriculum=[[0, 8], [5, 16]]"])
    loop = SimpleNamespace(config=config, rank_state={"loader": {}, "readers": {"num_workers": 0, "sources": 2}})
    with pytest.raises(ValueError, match="frames_curriculum is counted in the batches of .*'sources': 2"):
        pretrain.restore_loaders({"video": SimpleNamespace(dataset=None)}, loop)


def test_a_run_goes_on_with_other_workers(stopped, shards, monkeypatch, caplog, tmp_path):
    folder = shutil.copytree(stopped, tmp_path / "run")
    lines = run_pretrain(monkeypatch, shards, folder, "num_workers=2", "resume=latest")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert caplog.text.count("processes or workers reads the data") == 1


def test_a_curriculum_goes_on_with_other_workers_at_its_step(shards, monkeypatch, tmp_path):
    settings = ["frames_per_clip=8", "frames_curriculum=[[0, 4], [2, 6], [4, 8]]"]
    run_and_stop_after_three(shards, tmp_path, *settings)
    seen = []

    def read_batches(*arguments, read=pretrain.read_batches):
        for names, batch in read(*arguments):
            seen.append(batch["video"]["pixel_values_videos"].shape[1])
            yield names, batch

    monkeypatch.setattr(pretrain, "read_batches", read_batches)
    run_pretrain(monkeypatch, shards, tmp_path, *settings, "num_workers=2", "resume=latest")
    assert seen == [6, 8, 8]


def test_a_run_of_two_processes_goes_on_with_one_and_one_with_two(shards, tmp_path, monkeypatch, caplog):
    schedule = ["learning_rate.schedule=constant", "ema.schedule=constant", "resume=latest", "keep_last=null"]
    run_group(pretrain_in_group, shards, tmp_path, *schedule, "max_steps=2")
    with caplog.at_level("WARNING"):  # a step keeps its four clips
        run_pretrain(monkeypatch, shards, tmp_path, *schedule, "max_steps=4", "gradient_accumulation_steps=2")
    assert "was written by 2 processes and continues with 1" in caplog.text
    assert "the global batch stays 4 samples" in caplog.text
    weights = [torch.load(tmp_path / f"checkpoint-{step}/optimizer.bin")["state"][0]["step"] for step in (2, 4)]
    assert weights == [2, 4]
    run_group(pretrain_in_group, shards, tmp_path, *schedule, "max_steps=5")
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3, 4, 5]
    progress = json.loads((tmp_path / "checkpoint-5/progress.json").read_text())
    names = ("step", "num_processes", "global_batch_size")
    assert [progress[name] for name in names] == [5, 2, 4]


def test_an_optimizer_with_other_groups_ends_in_one_sentence(stopped, shards, monkeypatch, capsys, tmp_path):
    settings = ["decay_mask_tokens=false", f"resume={stopped / 'checkpoint-3'}"]
    error = fails(monkeypatch, capsys, shards, tmp_path, *settings)
    assert "does not fit the configured model or its optimizer's groups" in error


def test_a_run_that_had_ended_leaves_its_final_model_when_it_is_resumed(monkeypatch, shards, tmp_path, capsys):
    lines = run_pretrain(monkeypatch, shards, tmp_path, "max_steps=1")
    (tmp_path / "final" / "README.md").write_text("a card")
    assert run_pretrain(monkeypatch, shards, tmp_path, "max_steps=1", "resume=latest") == lines
    assert (tmp_path / "final" / "README.md").read_text() == "a card"
    assert "complete: " in capsys.readouterr().out


def test_published_runs_share_one_mask_token():
    paths = [path for name in ("pretrain", "cooldown") for path in EXAMPLES.glob(f"configs/published/{name}_*.yaml")]
    assert len(paths) == 6 and all(load_config(PretrainConfig, path).mask_token_index == 0 for path in paths)


def test_a_collapse_is_told_once_with_its_likely_cause_also_across_a_resume(monkeypatch, caplog, shards, tmp_path):
    # a momentum of 0 and updates that flatten everything
    settings = ["ema={start: 0.0}", "learning_rate={schedule: constant, peak: 0.3}", "weight_decay=3.0"]
    settings += ["max_steps=20", "save_every=10", "encoder.drop_path_rate=0.0"]
    lines = run_pretrain(monkeypatch, shards, tmp_path, *settings)
    (told,) = [line for line in lines if "warning" in line]
    assert told["warning"].startswith(f"The targets collapse at step {told['step']}: ")
    assert "follows the encoder too closely (momentum 0)" in told["warning"] and told["warning"] in caplog.text
    shutil.rmtree(tmp_path / "final")
    shutil.rmtree(tmp_path / "checkpoint-20")
    assert run_pretrain(monkeypatch, shards, tmp_path, *settings, "resume=latest") == lines


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # of dynamo's
def test_compiled_blocks_learn_the_same(monkeypatch, shards, tmp_path):
    # One block of each: what is compiled is the same for all
    settings = ["max_steps=2", "encoder.drop_path_rate=0.0", "encoder.num_hidden_layers=1"]
    plain = run_pretrain(monkeypatch, shards, tmp_path / "a", *settings)
    with patched_compile(monkeypatch) as compiled:
        lines = run_pretrain(monkeypatch, shards, tmp_path / "b", *settings, "torch_compile=aot_eager")
    assert compiled == [{"backend": "aot_eager", "dynamic": True}] * 3  # encoder, target encoder, predictor
    for before, after in zip(plain, lines, strict=True):
        assert after["loss"] == pytest.approx(before["loss"], rel=1e-5)
    assert VJepa2Encoder.from_pretrained(tmp_path / "b" / "final").config.hidden_size == 16


@contextlib.contextmanager
def patched_compile(monkeypatch):
    calls, compile_module = [], torch.nn.Module.compile
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.Module, "compile", lambda m, **how: (calls.append(how), compile_module(m, **how))[1])
        yield calls


def test_tensorboard_gets_the_numbers(monkeypatch, shards, tmp_path):
    run_pretrain(monkeypatch, shards, tmp_path, "max_steps=1", "log_with=tensorboard")
    assert list(tmp_path.rglob("events.out.tfevents.*"))


def test_trackio_gets_the_numbers_of_a_run_and_of_its_continuation(monkeypatch, shards, tmp_path):
    """On this machine, without the network; `metrics.jsonl` is the same as without it."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    def refuse(*address):
        raise OSError(f"a connection to {address}")

    monkeypatch.setattr("socket.create_connection", refuse)
    rows = run_pretrain(monkeypatch, shards, tmp_path / "run", "log_with=trackio")
    for name in ("final", "checkpoint-6"):  # as after a kill at step 5
        shutil.rmtree(tmp_path / "run" / name)
    run_pretrain(monkeypatch, shards, tmp_path / "run", "log_with=trackio", "resume=latest")
    (run,) = trackio.Api().runs("pretrain")
    assert run.name == str(tmp_path / "run") and run.config["encoder"]["hidden_size"] == 16
    tracked = SQLiteStorage.get_logs("pretrain", run.name)
    assert [row["step"] for row in tracked] == [1, 2, 3, 4, 5, 6, 4, 5, 6]
    assert [row["loss"] for row in tracked] == [rows[row["step"] - 1]["loss"] for row in tracked]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("configs/*/*pretrain*.yaml")), ids=lambda path: path.parent.name)
def test_every_pretraining_config_describes_a_model_and_masks_of_its_grid(path):
    config = load_config(PretrainConfig, path)
    encoder = build_model_config(config).encoder_config
    side = config.crop_size // encoder.patch_size
    grid = (config.frames_per_clip // encoder.tubelet_size, side, side)
    for sampler in build_mask_samplers(config.masks):
        context, target = sampler(2, grid, torch.Generator().manual_seed(0))
        assert context.numel() and target.numel()
    assert config.learning_rate.at(config.max_steps, config.max_steps) >= 0
