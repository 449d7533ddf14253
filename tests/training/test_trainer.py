"""Working with what people have: transformers.Trainer with our callback, and PEFT adapters."""

import json

import numpy as np
import pytest
import torch
import transformers
from builders import TINY_ENCODER, TINY_PREDICTOR
from packaging.version import Version
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.peft import MIN_PEFT_VERSION

from vjepa2_hf import (
    VJepa2Encoder,
    VJepa2EncoderConfig,
    VJepa2ForMaskedLatentPrediction,
    VJepa2ForVideoClassification,
    VJepa2MaskedLatentPredictionConfig,
    VJepa2VideoClassificationConfig,
    VJepa2WorldModel,
    VJepa2WorldModelConfig,
)
from vjepa2_hf.masking import MultiBlockMask
from vjepa2_hf.training.schedules import MomentumSchedule
from vjepa2_hf.training.trainer_callback import TargetEncoderCallback


ENCODER = {**TINY_ENCODER, "initializer_range": 0.1, "depth_scaled_init": False}
POOLER = {"pooler_num_attention_heads": 2, "num_pooler_layers": 1, "initializer_range": 0.1}
GRID = (2, 4, 4)
# PEFT 0.21 asks transformers 5.23 by a name that it has renamed
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


def masked_latent():
    torch.manual_seed(0)
    config = VJepa2MaskedLatentPredictionConfig(encoder_config=ENCODER, **TINY_PREDICTOR, initializer_range=0.1)
    return VJepa2ForMaskedLatentPrediction(config)


def clips(count=8):
    generator = torch.Generator().manual_seed(0)
    return [{"pixel_values_videos": torch.randn(4, 3, 32, 32, generator=generator)} for _ in range(count)]


class MaskedBatches:
    """A collator: clips, and two mask sets drawn for every batch."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)
        self.samplers = [MultiBlockMask(num_blocks=2, spatial_scale=0.3), MultiBlockMask(num_blocks=1)]

    def __call__(self, rows):
        masks = [sampler(len(rows), GRID, self.generator) for sampler in self.samplers]
        return {
            "pixel_values_videos": torch.stack([row["pixel_values_videos"] for row in rows]),
            "context_mask": [context for context, _ in masks],
            "target_mask": [target for _, target in masks],
        }


def train(model, folder, data, resume=None, callbacks=(), collator=None, compute_metrics=None, **arguments):
    settings = {"max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 3e-3, "save_strategy": "no"}
    settings |= {"logging_steps": 1, "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    trainer = Trainer(
        model,
        TrainingArguments(output_dir=str(folder), **{**settings, **arguments}),
        train_dataset=data,
        eval_dataset=data,
        data_collator=collator,
        compute_metrics=compute_metrics,
        callbacks=list(callbacks),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def copies(module):
    return [parameter.detach().clone() for parameter in module.parameters()]


class Recorder(TrainerCallback):
    """Both encoders after every step, and how often the model was asked to move the target."""

    def __init__(self):
        self.encoders, self.targets, self.optimized = [], [], set()

    def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.targets.append(copies(model.target_encoder))
        self.optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.encoders.append(copies(model.encoder))
        self.targets.append(copies(model.target_encoder))


class TestMaskedLatent:
    @pytest.mark.parametrize("accumulation", [1, 2])
    @pytest.mark.parametrize(
        "momentum", [0.9, MomentumSchedule("cosine", start=0.8, final=1.0), MomentumSchedule("linear", start=0.5)]
    )
    def test_target_follows_the_recurrence_exactly(self, tmp_path, momentum, accumulation):
        model, recorder = masked_latent(), Recorder()
        schedule = momentum if isinstance(momentum, MomentumSchedule) else MomentumSchedule("constant", momentum)
        callbacks = [TargetEncoderCallback(momentum), recorder]
        train(model, tmp_path, clips(), None, callbacks, MaskedBatches(), gradient_accumulation_steps=accumulation)
        assert len(recorder.encoders) == 6
        for step, encoder in enumerate(recorder.encoders, start=1):
            tau = schedule.at(step, 6)
            for before, online, after in zip(recorder.targets[step - 1], encoder, recorder.targets[step], strict=True):
                assert torch.equal(torch.lerp(before, online, 1 - tau), after)
        assert any((a != b).any() for a, b in zip(recorder.targets[0], recorder.targets[-1], strict=True))

    def test_target_is_not_trained(self, tmp_path):
        model, recorder = masked_latent(), Recorder()
        train(model, tmp_path, clips(), None, [TargetEncoderCallback(1.0), recorder], MaskedBatches())
        assert not recorder.optimized & {id(p) for p in model.target_encoder.parameters()}
        assert recorder.optimized == {id(p) for p in model.parameters() if p.requires_grad}
        assert all(p.grad is None and not p.requires_grad for p in model.target_encoder.parameters())
        for first, last in zip(recorder.targets[0], recorder.targets[-1], strict=True):
            assert torch.equal(first, last)  # momentum 1

    def test_loss_goes_down_and_accumulated_losses_are_means(self, tmp_path):
        runs = []
        for accumulation, batch_size in ((1, 4), (2, 2)):
            arguments = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": batch_size}
            model = masked_latent()
            callbacks = [TargetEncoderCallback(0.99)]
            trainer = train(model, tmp_path, clips(), None, callbacks, MaskedBatches(), max_steps=30, **arguments)
            runs.append(losses(trainer))
            assert np.mean(runs[-1][-5:]) < 0.97 * np.mean(runs[-1][:5])
        assert runs[0][0] == pytest.approx(runs[1][0], rel=0.1)  # not a sum over micro-batches

    def test_resume_goes_on_with_weights_and_schedule(self, tmp_path, monkeypatch):
        schedule, momenta = MomentumSchedule("linear", start=0.5, final=0.9), []
        update = VJepa2ForMaskedLatentPrediction.update_target_encoder

        def record(self, momentum):
            momenta.append(momentum)
            update(self, momentum)

        model = masked_latent()
        arguments = {"save_strategy": "steps", "save_steps": 3}
        with monkeypatch.context() as patched:
            patched.setattr(VJepa2ForMaskedLatentPrediction, "update_target_encoder", record)
            train(model, tmp_path, clips(), None, [TargetEncoderCallback(schedule)], MaskedBatches(), **arguments)
            assert momenta == [schedule.at(step, 6) for step in range(1, 7)]
            momenta.clear()
            saved = VJepa2ForMaskedLatentPrediction.from_pretrained(tmp_path / "checkpoint-3")
            momenta.clear()  # a new model copies its encoder
            recorder, other = Recorder(), masked_latent()
            momenta.clear()
            callbacks = [TargetEncoderCallback(schedule), recorder]
            train(other, tmp_path, clips(), str(tmp_path / "checkpoint-3"), callbacks, MaskedBatches(), **arguments)
        assert momenta == [schedule.at(step, 6) for step in range(4, 7)]
        for expected, found in zip(copies(saved.target_encoder), recorder.targets[0], strict=True):
            assert torch.equal(expected, found)

    def test_a_checkpoint_of_trainer_loads(self, tmp_path):
        model = masked_latent()
        callbacks = [TargetEncoderCallback(0.9)]
        train(model, tmp_path, clips(), None, callbacks, MaskedBatches(), save_strategy="steps", save_steps=6)
        loaded = VJepa2ForMaskedLatentPrediction.from_pretrained(tmp_path / "checkpoint-6")
        for name, value in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value), name
        encoder = VJepa2Encoder.from_pretrained(tmp_path / "checkpoint-6")
        for expected, found in zip(copies(model.target_encoder), copies(encoder), strict=True):
            assert torch.equal(expected, found)

    def test_evaluation_and_prediction(self, tmp_path):
        callbacks, data = [TargetEncoderCallback(0.9)], clips()
        trainer = train(masked_latent(), tmp_path, data, None, callbacks, MaskedBatches(), label_names=["target_mask"])
        assert np.isfinite(trainer.evaluate()["eval_loss"])
        predicted, target, _ = trainer.predict(data).predictions
        assert predicted[0].shape == target[0].shape and len(predicted[0]) == len(data)

    def test_other_models_and_momenta_are_refused(self, tmp_path):
        model = VJepa2WorldModel(VJepa2WorldModelConfig(encoder_config=ENCODER, action_dim=2, **TINY_PREDICTOR))
        with pytest.raises(ValueError, match="got a VJepa2WorldModel, which has no target encoder"):
            train(model, tmp_path, clips(), None, [TargetEncoderCallback()], MaskedBatches())
        with pytest.raises(ValueError, match="start of an EMA momentum is 1.5"):
            TargetEncoderCallback(1.5)


class TestOtherModels:
    def test_classifier_with_labels(self, tmp_path):
        torch.manual_seed(0)
        config = VJepa2VideoClassificationConfig(encoder_config=ENCODER, num_labels=3, **POOLER)
        model = VJepa2ForVideoClassification(config)
        data = [{**clip, "labels": i % 3} for i, clip in enumerate(clips(6))]

        def accuracy(prediction):
            assert prediction.predictions.shape == (6, 3)
            return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

        trainer = train(model, tmp_path, data, compute_metrics=accuracy, max_steps=25)
        measured = trainer.evaluate()
        assert losses(trainer)[-1] < 0.7 * losses(trainer)[0]
        assert measured["eval_accuracy"] > 0.6 and measured["eval_loss"] < losses(trainer)[0]

    def test_world_model_on_latents(self, tmp_path):
        torch.manual_seed(0)
        sizes = {**TINY_PREDICTOR, "context_frames": 2, "rollout_steps": 2}
        model = VJepa2WorldModel(VJepa2WorldModelConfig(encoder_config=ENCODER, action_dim=2, **sizes))
        encoder = copies(model.encoder)
        data = [{"latents": torch.randn(4, 16, 24), "actions": torch.randn(3, 2)} for _ in range(8)]
        trainer = train(model, tmp_path, data, max_steps=25, label_names=["actions"])
        assert losses(trainer)[-1] < 0.95 * losses(trainer)[0]
        assert np.isfinite(trainer.evaluate()["eval_loss"]) and len(trainer.predict(data).predictions[-1]) == 8
        for before, after in zip(encoder, copies(model.encoder), strict=True):
            assert torch.equal(before, after)


# ---------------------------------------------------------------------------------------------------------------------
# PEFT
# ---------------------------------------------------------------------------------------------------------------------
peft = pytest.importorskip("peft")
# transformers 5.24 asks for peft 0.22 in `add_adapter` and `load_adapter`; peft's own functions work with both
adapters_of_transformers = pytest.mark.skipif(
    Version(peft.__version__) < Version(MIN_PEFT_VERSION),
    reason=f"transformers {transformers.__version__} takes adapters of peft {MIN_PEFT_VERSION} or newer alone",
)
LINEAR = ["qkv", "attention.proj", "fc1", "fc2"]
VIDEOS = torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def new_encoder():
    torch.manual_seed(0)
    return VJepa2Encoder(VJepa2EncoderConfig(**ENCODER))


def new_classifier():
    torch.manual_seed(0)
    return VJepa2ForVideoClassification.from_encoder(new_encoder(), num_labels=3, **POOLER)


def lora(**options):
    return peft.LoraConfig(r=4, lora_alpha=8, **{"target_modules": LINEAR, **options})


def features(encoder):
    with torch.no_grad():
        return encoder.eval()(VIDEOS).last_hidden_state


def few_steps(model, loss):
    """Trains a little; returns the names of the parameters that changed."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for _ in range(3):
        loss(model).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)}


def encoder_loss(encoder):
    return encoder(VIDEOS).last_hidden_state[:, :, ::2].square().mean()


def classifier_loss(model):
    return model(VIDEOS, labels=torch.tensor([0, 1])).loss


class TestAdapterOfAnEncoder:
    def test_trains_saves_loads_and_merges(self, tmp_path):
        base = new_encoder()
        base.save_pretrained(tmp_path / "base")
        model = peft.get_peft_model(base, lora())
        plain = features(model)
        changed = few_steps(model, encoder_loss)
        adapted = features(model)
        assert changed == {name for name, _ in model.named_parameters() if "lora_" in name}
        assert len(changed) == 2 * 4 * ENCODER["num_hidden_layers"] and (adapted - plain).abs().max() > 1e-3
        model.save_pretrained(tmp_path / "adapter")
        loaded = peft.PeftModel.from_pretrained(VJepa2Encoder.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
        torch.testing.assert_close(features(loaded), adapted, rtol=0, atol=0)
        merged = model.merge_and_unload()
        assert type(merged) is VJepa2Encoder and set(merged.state_dict()) == set(new_encoder().state_dict())
        torch.testing.assert_close(features(merged), adapted, rtol=0, atol=1e-5)
        merged.save_pretrained(tmp_path / "merged")
        torch.testing.assert_close(features(VJepa2Encoder.from_pretrained(tmp_path / "merged")), features(merged))

    @adapters_of_transformers
    def test_add_adapter_and_loading_the_adapters_folder(self, tmp_path):
        new_encoder().save_pretrained(tmp_path / "base")
        encoder = VJepa2Encoder.from_pretrained(tmp_path / "base")
        encoder.add_adapter(lora())
        changed = few_steps(encoder, encoder_loss)
        adapted = features(encoder)
        assert changed == {name for name, _ in encoder.named_parameters() if "lora_" in name}
        encoder.save_pretrained(tmp_path / "adapter")
        files = {path.name for path in (tmp_path / "adapter").iterdir()}
        assert files == {"adapter_config.json", "adapter_model.safetensors"}  # no model, so no card of one
        other = new_encoder()
        other.load_adapter(str(tmp_path / "adapter"))
        torch.testing.assert_close(features(other), adapted, rtol=0, atol=0)
        at_once = VJepa2Encoder.from_pretrained(str(tmp_path / "adapter"))  # the base, by the adapter's config
        torch.testing.assert_close(features(at_once), adapted, rtol=0, atol=0)
        at_once.disable_adapters()
        torch.testing.assert_close(features(at_once), features(new_encoder()), rtol=0, atol=0)

    @adapters_of_transformers
    @pytest.mark.parametrize("part", ["base/model", "adapter/adapter_model"])
    def test_missing_weights_of_the_base_and_of_the_adapter_are_refused(self, tmp_path, part):
        new_encoder().save_pretrained(tmp_path / "base")
        encoder = VJepa2Encoder.from_pretrained(tmp_path / "base")
        encoder.add_adapter(lora())
        encoder.save_pretrained(tmp_path / "adapter")
        path = tmp_path / f"{part}.safetensors"
        kept = {name: value for name, value in load_file(path).items() if "layer.0.mlp." not in name}
        save_file(kept, path, metadata={"format": "pt"})
        with pytest.raises(
            ValueError, match=r"adapter lacks 4 weights of VJepa2Encoder, the first of them layer\.0\.mlp"
        ):
            VJepa2Encoder.from_pretrained(tmp_path / "adapter")
        VJepa2Encoder.from_pretrained(tmp_path / "adapter", allow_missing=True)

    def test_an_adapter_of_the_patch_embedding_is_not_ignored(self):
        model = peft.get_peft_model(new_encoder(), lora(target_modules=["proj"]))  # the convolution's name, too
        changed = few_steps(model, encoder_loss)
        assert any("patch_embeddings.proj.lora_B" in name for name in changed)
        ids = torch.tensor([[0, 5, 17], [3, 30, 31]])
        with torch.no_grad():
            adapted = [model(VIDEOS), model(VIDEOS, context_mask=ids), model(VIDEOS[:, :1])]
            merged = model.merge_and_unload()
            plain = [merged(VIDEOS), merged(VIDEOS, context_mask=ids), merged(VIDEOS[:, :1])]
        for a, b in zip(adapted, plain, strict=True):
            torch.testing.assert_close(a.last_hidden_state, b.last_hidden_state, rtol=0, atol=1e-5)


class TestAdapterInAClassifier:
    def test_probe_and_lora(self, tmp_path):
        config = lora(
            target_modules=r"encoder\.layer\.\d+\.(attention\.(qkv|proj)|mlp\.fc[12])",
            modules_to_save=["pooler", "classifier"],
        )
        model = peft.get_peft_model(new_classifier(), config)
        changed = few_steps(model, classifier_loss)
        assert any("encoder" in name for name in changed) and any("classifier" in name for name in changed)
        assert all("lora_" in name or "modules_to_save" in name for name in changed)
        with torch.no_grad():
            logits = model.eval()(VIDEOS).logits
            model.save_pretrained(tmp_path)
            loaded = peft.PeftModel.from_pretrained(new_classifier(), tmp_path).eval()
            torch.testing.assert_close(loaded(VIDEOS).logits, logits, rtol=0, atol=1e-6)
            merged = model.merge_and_unload()
            assert set(merged.state_dict()) == set(new_classifier().state_dict())
            torch.testing.assert_close(merged(VIDEOS).logits, logits, rtol=0, atol=1e-5)

    @pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
    def test_reentrant_checkpointing_gives_the_same_gradients(self):
        gradients = []
        for checkpointed in (False, True):
            base = new_classifier()
            if checkpointed:  # before PEFT, which then makes the embeddings require gradients
                base.gradient_checkpointing_enable({"use_reentrant": True})
            torch.manual_seed(0)
            model = peft.get_peft_model(base, lora(modules_to_save=["classifier"], init_lora_weights=False))
            classifier_loss(model.train()).backward()
            gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
        assert any("encoder.layer.0" in name for name in gradients[0])
        for name, expected in gradients[0].items():
            assert expected.abs().sum() > 0 and gradients[1][name] is not None, name
            torch.testing.assert_close(gradients[1][name], expected)

    @adapters_of_transformers
    def test_add_adapter_saves_and_loads(self, tmp_path):
        new_classifier().save_pretrained(tmp_path / "base")
        model = VJepa2ForVideoClassification.from_pretrained(tmp_path / "base")
        model.add_adapter(lora())
        few_steps(model, classifier_loss)
        model.save_pretrained(tmp_path / "adapter")
        base = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
        assert base == str(tmp_path / "base")
        loaded = VJepa2ForVideoClassification.from_pretrained(str(tmp_path / "adapter"))
        with torch.no_grad():
            torch.testing.assert_close(loaded.eval()(VIDEOS).logits, model.eval()(VIDEOS).logits, rtol=0, atol=0)


class TestFromEncoder:
    BUILD = (
        lambda encoder: VJepa2WorldModel.from_encoder(encoder, action_dim=2, **TINY_PREDICTOR),
        lambda encoder: VJepa2ForVideoClassification.from_encoder(encoder, num_labels=3, **POOLER),
    )

    @pytest.mark.parametrize("build", BUILD)
    def test_a_merged_adapter_comes_along(self, build):
        model = peft.get_peft_model(new_encoder(), lora())
        few_steps(model, encoder_loss)
        adapted = features(model)
        torch.testing.assert_close(features(build(model.merge_and_unload()).encoder), adapted, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("build", BUILD)
    def test_an_adapter_that_would_be_lost_is_refused(self, build):
        encoder = new_encoder()
        model = peft.get_peft_model(encoder, lora())
        with pytest.raises(ValueError, match="encoder is a PeftModel.*merge_and_unload"):
            build(model)
        with pytest.raises(ValueError, match="unmerged PEFT adapter"):
            build(encoder)
        with pytest.raises(ValueError, match="is a VJepa2ForMaskedLatentPrediction"):
            build(masked_latent())
