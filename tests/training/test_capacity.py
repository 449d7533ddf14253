from pathlib import Path

import pretrain
import pytest
import torch
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode

from vjepa2_hf import (
    VJepa2ForMaskedLatentPrediction,
    VJepa2ForVideoClassification,
    VJepa2MaskedLatentPredictionConfig,
    VJepa2VideoClassificationConfig,
)
from vjepa2_hf.training import capacity, monitor
from vjepa2_hf.training.capacity import plan
from vjepa2_hf.training.flops import DEVICES, batch_flops, peak_flops, step_flops
from vjepa2_hf.training.memory import (
    HELD_BYTES,
    KEPT_BYTES,
    activation_bytes,
    count_parameters,
    forward_bytes,
    probe_bytes,
    state_bytes,
)
from vjepa2_hf.training.monitor import Throughput
from vjepa2_hf.training.pretraining import PretrainConfig
from vjepa2_hf.training.settings import load_config


CONFIGS = Path(pretrain.__file__).parent / "configs"


def tiny_config(**encoder) -> VJepa2MaskedLatentPredictionConfig:
    fields = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "mlp_ratio": 3, "patch_size": 8}
    return VJepa2MaskedLatentPredictionConfig(
        encoder_config={**fields, "crop_size": 32, "frames_per_clip": 4, **encoder},
        predictor_hidden_size=16,
        predictor_num_hidden_layers=2,
        predictor_num_attention_heads=2,
    )


def tiny_batch(clips: int = 2, frames: int = 4) -> dict:
    """Two mask sets, of 10 and 5 context tokens, 20 and 25 targets, on a grid of (2, 4, 4)."""
    ids = torch.arange(32).repeat(clips, 1)
    return {
        "pixel_values_videos": torch.randn(clips, frames, 3, 32, 32),
        "context_mask": [ids[:, :10], ids[:, :5]],
        "target_mask": [ids[:, 12:], ids[:, 7:]],
    }


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"attention_type": "factorized"},
        {"position_embedding_type": "sincos"},
        {"patch_stem": "conv"},
        {"patch_stem": "conv", "tubelet_size": 1, "frames_per_clip": 2},
    ],
)
def test_the_formula_counts_the_operations_that_torch_counts(settings):
    config = tiny_config(**settings)
    model = VJepa2ForMaskedLatentPrediction(config).train()
    model.set_attn_implementation("eager")  # the counter knows no CPU kernel of sdpa
    batch = tiny_batch(frames=config.num_frames)
    with FlopCounterMode(display=False) as counter:
        model(**batch).loss.backward()
    assert batch_flops(config, batch) == counter.get_total_flops()


def test_the_formula_counts_levels_and_predictions_of_the_context():
    config = tiny_config(output_levels=[0, 1, 2])
    config.predictor_levels = config.predict_context = True
    model = VJepa2ForMaskedLatentPrediction(config).train()
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model(**tiny_batch(), context_loss_weight=0.5).loss.backward()
    assert batch_flops(config, tiny_batch()) == counter.get_total_flops()


def test_the_formula_counts_what_checkpointing_repeats():
    config, batch = tiny_config(), tiny_batch(clips=1)
    model = VJepa2ForMaskedLatentPrediction(config).train()
    model.set_attn_implementation("eager")
    model.activation_checkpointing_enable()
    with FlopCounterMode(display=False) as counter:
        model(**batch).loss.backward()
    flops = step_flops(config, (2, 4, 4), [(10, 20), (5, 25)])
    assert sum(flops.values()) == counter.get_total_flops()


def test_a_run_that_predicts_pixels_has_no_target_forward():
    config = tiny_config()
    config.target_type = "pixels"
    model = VJepa2ForMaskedLatentPrediction(config).train()
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model(**tiny_batch()).loss.backward()
    assert batch_flops(config, tiny_batch()) == counter.get_total_flops()


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_block_keeps_the_bytes_of_the_formula(precision):
    """Of two lengths, so that copies of weights, which are counted elsewhere, fall out."""

    def kept(clips: int) -> int:
        encoder = VJepa2ForMaskedLatentPrediction(tiny_config(hidden_size=96, num_attention_heads=8)).encoder
        ids = torch.arange(32).repeat(clips, 1)
        states, rotary = torch.randn(clips, 32, 96, requires_grad=True), encoder.rotary((2, 4, 4), ids, "cpu")
        table = {part.untyped_storage().data_ptr() for part in rotary}
        storages, alive = {}, []

        def pack(tensor):
            alive.append(tensor)
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in table:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            encoder.layer[0](states, rotary)
        return sum(storages.values())

    per_width, per_inside = KEPT_BYTES[precision]
    formula = 32 * (per_width * 96 + per_inside * 288)
    assert (kept(6) - kept(2)) / 4 == pytest.approx(formula, rel=0.05)  # statistics of norms are not in it


def test_a_stem_keeps_the_bytes_of_the_formula():
    plain, stem = tiny_config(hidden_size=96), tiny_config(hidden_size=96, patch_stem="conv")
    found = [activation_bytes(config, (2, 4, 4), [(10, 20)], "no", False) for config in (plain, stem)]
    embed, ids = VJepa2ForMaskedLatentPrediction(stem).encoder.patch_embeddings, torch.arange(10)[None]
    storages, alive = {}, list(embed.parameters())
    weights = {parameter.untyped_storage().data_ptr() for parameter in alive}

    def pack(tensor):
        alive.append(tensor)
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        embed(torch.randn(1, 4, 3, 32, 32), ids)
    pixels = 4 * 10 * 3 * 2 * 8 * 8  # of the visible patches, which every embedding keeps
    assert found[1] - found[0] == pytest.approx(sum(storages.values()) - pixels, rel=0.05)  # statistics of norms
    assert forward_bytes(stem.encoder_config, (2, 4, 4), "no") > forward_bytes(plain.encoder_config, (2, 4, 4), "no")


def test_a_forward_without_a_backward_holds_less_than_one_block_keeps():
    encoder = tiny_config(hidden_size=96, num_attention_heads=8).encoder_config
    pixels = 4 * 3 * 2 * 8 * 8
    found = {name: forward_bytes(encoder, (2, 4, 4), name) for name in HELD_BYTES}
    assert found["no"] == 32 * (pixels + 32 * 96)
    assert found["bfloat16"] == 32 * (pixels + 16 * 96) < found["bf16"] == found["fp16"] < found["no"]
    encoder.mlp_ratio = 16  # the MLP's inside is then what is widest
    assert forward_bytes(encoder, (2, 4, 4), "no") == 32 * (pixels + 12 * 96 + 4 * 16 * 96)


def test_a_probe_pays_for_gradients_of_its_own_weights_alone():
    config = VJepa2VideoClassificationConfig(
        encoder_config=tiny_config().encoder_config.to_dict(), pooler_num_attention_heads=2, num_labels=3
    )
    model = VJepa2ForVideoClassification(config)
    frozen = sum(p.numel() for p in model.encoder.parameters())
    head = sum(p.numel() for p in model.parameters()) - frozen
    found = {precision: probe_bytes(config, (2, 4, 4), precision) for precision in ("no", "bf16")}
    assert found["no"]["state"] == 4 * frozen + 16 * head and found["bf16"]["state"] == 4 * frozen + 18 * head
    assert found["bf16"]["clip"] < found["no"]["clip"]


def test_state_is_shared_under_fsdp_and_whole_under_ddp():
    parameters = count_parameters(tiny_config())
    model = VJepa2ForMaskedLatentPrediction(tiny_config())
    assert parameters["encoder"] == sum(p.numel() for p in model.encoder.parameters())
    assert parameters["predictor"] == sum(p.numel() for p in model.predictor.parameters())
    whole, shared = state_bytes(parameters, "no"), state_bytes(parameters, "no", shards=4)
    for name in ("weights", "gradients", "AdamW", "EMA"):
        assert shared[name] == whole[name] / 4
    assert whole["AdamW"] == 8 * (parameters["encoder"] + parameters["predictor"])


def test_checkpointing_keeps_less():
    masks = [(500, 1500), (150, 1800)]
    config = VJepa2MaskedLatentPredictionConfig()
    whole, checkpointed = (activation_bytes(config, (8, 16, 16), masks, "bf16", kept) for kept in (False, True))
    assert 0 < checkpointed < whole / 3


@pytest.mark.parametrize("size", ["l", "h", "g"])
def test_published_models_have_their_published_sizes(size):
    run = load_config(PretrainConfig, CONFIGS / "published" / f"pretrain_vit{size}.yaml")
    found = plan(run, DEVICES["h100"], 64, 3072, 0.4)
    encoder = {"l": 304e6, "h": 632e6, "g": 1012e6}[size]
    assert found["parameters"]["encoder"] == pytest.approx(encoder, rel=0.01)
    assert found["parameters"]["predictor"] == pytest.approx(22e6, rel=0.03)
    assert found["accumulation"] == 2
    assert found["model_flops_utilization"] < 0.4  # checkpointing repeats forwards


def test_eight_times_the_devices_take_an_eighth_of_the_time():
    run = PretrainConfig(output_dir="", data="", batch_size=24)
    few, many = (plan(run, DEVICES["a100"], number, 1536, 0.5) for number in (8, 64))
    assert few["step_seconds"] == pytest.approx(8 * many["step_seconds"])
    with pytest.raises(ValueError, match="global_batch=100 must be a multiple of num_devices=8 times batch_size=24"):
        plan(run, DEVICES["a100"], 8, 100, 0.5)


def test_the_command_prints_a_table_for_a_config_with_settings_changed(capsys):
    config = str(CONFIGS / "demo" / "pretrain.yaml")
    capacity.main(["--config", config, "batch_size=2", "--device", "h100", "--num_devices", "1", "8"])
    printed = capsys.readouterr().out
    assert "pretrain.yaml, 16 clips per step" in printed and "| 1 | 8 |" in printed and "| 8 | 1 |" in printed
    assert printed.count("| DDP |") == printed.count("| FSDP |") == 2
    assert capacity.IMAGES not in printed
    capacity.main(["--config", config, "images.data=images", "--device", "h100", "--num_devices", "1"])
    assert capacity.IMAGES in capsys.readouterr().out


@pytest.mark.parametrize(("checkpointing", "said"), [("true", "with"), ("false", "without")])
def test_the_total_says_which_activations_it_counts(capsys, checkpointing, said):
    config = str(CONFIGS / "published" / "pretrain_vitl.yaml")
    setting = f"gradient_checkpointing={checkpointing}"
    capacity.main(["--config", config, setting, "batch_size=1", "--device", "h100", "--num_devices", "1"])
    header, _, ddp, _ = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert f"| GB in all, {said} checkpointing (of 80) |" in header
    cells = [cell.strip() for cell in ddp.strip("|").split("|")]
    state, (plain, checkpointed, total) = cells[6:11], map(float, cells[11:])
    counted = checkpointed if checkpointing == "true" else plain
    assert total == pytest.approx(sum(map(float, state)) + counted, abs=0.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--utilization", "2"], "utilization must be above 0 and at most 1, got 2.0"),
        (["--num_devices", "0"], "num_devices are whole numbers of at least 1, got '0'"),
        (["--num_devices", "8.5"], "num_devices are whole numbers of at least 1, got '8.5'"),
        (["--num_devices", "8", "batch_sze=2"], "did you mean 'batch_size'"),
        (["batch_sze=2"], "did you mean 'batch_size'"),
        (["--global_batch", "5"], "global_batch=5 must be a multiple"),
        (
            ["init_from=nowhere", "encoder={}", "predictor={}"],
            "init_from=nowhere does not exist, so the model's sizes are unknown",
        ),
    ],
)
def test_what_does_not_fit_ends_in_one_sentence(capsys, arguments, message):
    with pytest.raises(SystemExit):
        capacity.main(["--config", str(CONFIGS / "demo" / "pretrain.yaml"), "--device", "h100", *arguments])
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12),
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("NVIDIA A100-SXM4-40GB", "no", 19.5e12),
        ("NVIDIA L4", "fp16", 121e12),
        ("NVIDIA L40S", "bf16", 362e12),
        ("NVIDIA L40", "bf16", None),
        ("NVIDIA B200", "bf16", None),
    ],
)
def test_a_peak_is_known_or_not_given(monkeypatch, name, precision, expected):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda"), precision) == expected
    assert peak_flops(torch.device("cpu"), precision) is None


def test_a_run_logs_the_utilization_where_the_peak_is_known(monkeypatch):
    throughput, batch = Throughput(Accelerator(cpu=True)), tiny_batch()
    throughput.flops += batch_flops(tiny_config(), batch)
    assert "model_flops_utilization" not in throughput.read("clips")
    throughput.flops += batch_flops(tiny_config(), batch)
    monkeypatch.setattr(monitor.time, "perf_counter", lambda: throughput.started + 10)
    monkeypatch.setattr(monitor, "peak_flops", lambda device, precision: 1e9)
    expected = batch_flops(tiny_config(), batch) / 10 / 1e9
    assert throughput.read("clips")["model_flops_utilization"] == pytest.approx(expected, rel=0.01)
