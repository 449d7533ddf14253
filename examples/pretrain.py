# /// script
# requires-python = ">=3.11"
# dependencies = ["vjepa2-hf[demo]"]
# ///
"""Pretrains an encoder on videos by masked latent prediction, and saves it with its processor.

    accelerate launch examples/pretrain.py --config examples/configs/demo/pretrain.yaml [key=value ...]

One process on a CPU, in two minutes (make shards of your own videos first):

    python examples/make_video_shards.py my_videos runs/shards --height 128
    python examples/pretrain.py --config examples/configs/demo/pretrain_videos.yaml data=runs/shards output_dir=runs/a

Several CPU processes: `torchrun --nproc_per_node 2 examples/pretrain.py ...` (docs/launching.md).
A stopped run continues with `resume=latest` and its original settings (`--help` lists them). The result is
`OUTPUT_DIR/final`:

    encoder = VJepa2Encoder.from_pretrained("runs/a/final")                # the target encoder

docs/training_curves.md explains the numbers in `OUTPUT_DIR/metrics.jsonl`.
"""

import contextlib
import logging
import vjepa2_cli  # noqa: F401 (a quick --help)
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device, set_seed
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers.modeling_layers import GradientCheckpointingLayer

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig, VJepa2ForMaskedLatentPrediction, VJepa2VideoProcessor
from vjepa2_hf.data.clips import ClipStream, MaskCollator
from vjepa2_hf.data.elastic import redistribute
from vjepa2_hf.data.sampling import FrameSampler
from vjepa2_hf.data.skip_log import SkipLog
from vjepa2_hf.masking import build_mask_samplers
from vjepa2_hf.probing.pretraining_evaluation import PretrainingEvaluation
from vjepa2_hf.training.flops import batch_flops
from vjepa2_hf.training.loop import TrainingLoop
from vjepa2_hf.training.monitor import CollapseWatch
from vjepa2_hf.training.pretraining import (
    Part,
    PretrainConfig,
    build_model_config,
    check_model,
    freeze_idle_weights,
    objective,
)
from vjepa2_hf.training.run_files import iterate_metrics
from vjepa2_hf.training.schedules import parameter_groups, set_weight_decay
from vjepa2_hf.training.settings import exit_on_user_error, one_sentence, parse_arguments
from vjepa2_hf.training.signals import ignore_stop_signals
from vjepa2_hf.video_processing_vjepa2 import RandomResizedClip


logger = logging.getLogger(__name__)

METERS = ("target_std", "effective_rank", "prediction_variation")


def build_model(config: PretrainConfig) -> VJepa2ForMaskedLatentPrediction:
    """A model with random weights, or the one of `init_from` under this run's objective and for its clips."""
    if config.init_from:
        try:
            model = VJepa2ForMaskedLatentPrediction.from_pretrained(config.init_from, **objective(config))
        except (OSError, ValueError) as error:
            raise ValueError(f"init_from={config.init_from} does not load: {one_sentence(error)}") from error
        for encoder in (model.config.encoder_config, model.encoder.config, model.target_encoder.config):
            encoder.frames_per_clip, encoder.crop_size = config.frames_per_clip, config.crop_size
    else:
        model = VJepa2ForMaskedLatentPrediction(build_model_config(config))
    check_model(config, model.config)
    freeze_idle_weights(model, config)
    return model


def build_loaders(config: PretrainConfig, model, accelerator: Accelerator) -> dict[str, StatefulDataLoader]:
    """By modality, the batches of this process's own clips or images with their masks; their positions are part of the
    checkpoint."""
    parts = config.divide(accelerator.process_index, accelerator.num_processes)
    if len(parts) < len(config.by_modality) and accelerator.is_fsdp2:
        raise ValueError(
            "images.by=process does not work with FSDP, whose processes gather the shards of a block together; set "
            "images.by=batch."
        )
    encoder = model.config.encoder_config
    return {modality: build_loader(config.by_modality[modality], encoder, part) for modality, part in parts.items()}


def build_loader(config: PretrainConfig, encoder: VJepa2EncoderConfig, part: Part) -> StatefulDataLoader:
    """The batches of one modality, whose settings `config` holds."""
    crop = asdict(config.augmentation) if config.augmentation else {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    crop.setdefault("flip_probability", 0.0)
    tubelet_size = min(encoder.tubelet_size, config.frames_per_clip)  # an image is one step of time
    stream = ClipStream(
        config.data,
        frames_per_clip=config.curriculum if config.frames_curriculum else config.frames_per_clip,
        frame_sampler=FrameSampler(
            fps=config.fps,
            speed=config.speed,
            frame_jitter=config.frame_jitter,
            motion_weight=config.motion_weight,
            short_videos=config.short_videos,
            min_frames=tubelet_size,
        ),
        transform=RandomResizedClip(config.crop_size, **crop),
        clips_per_video=config.clips_per_video,
        max_skipped_fraction=config.max_skipped_fraction,
        seed=config.seed,
        rank=part.rank,
        world_size=part.processes,
        limits=config.limits,
        shuffle_buffer=config.shuffle_buffer,
        shuffle_bytes=config.shuffle_bytes,
        video_cache_bytes=config.video_cache_bytes,
    )
    samplers = build_mask_samplers(config.masks)
    collator = MaskCollator(samplers, encoder.patch_size, tubelet_size, seed=config.seed, with_names=True)
    return StatefulDataLoader(
        stream,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        worker_init_fn=ignore_stop_signals,
        collate_fn=collator,
        drop_last=True,
        pin_memory=torch.cuda.is_available(),
        # Its own generator: starting the loader must not shift the random state that a checkpoint has restored
        generator=torch.Generator().manual_seed(config.seed),
    )


def read_batches(
    loop: TrainingLoop, loaders: dict[str, StatefulDataLoader], skipped: SkipLog
) -> Iterator[tuple[list[str], dict[str, dict[str, Any]]]]:
    """Names and, by modality, tensors of the loaders' batches; unreadable rows before each batch are added to
    `skipped`."""
    for number, batches in enumerate(zip(*loaders.values(), strict=False)):
        step = loop.start + 1 + number // loop.config.gradient_accumulation_steps
        names = []
        for batch in batches:
            skipped.add(step, batch.pop("skipped"))
            names += batch.pop("clip_names")
        inputs = [send_to_device(batch, loop.accelerator.device, non_blocking=True) for batch in batches]
        yield names, dict(zip(loaders, inputs, strict=True))
    raise ValueError("A process got no clips: the data has fewer shards and rows than processes and workers.")


class Objective:
    """The losses of batches and their gradient, one mask set after the other: memory holds the activations of one.

    `meters` are the `METERS` of the first mask set in the last micro-batch of a logged step, of clips where there are.
    """

    def __init__(self, loop: TrainingLoop):
        self.loop, self.meters = loop, {}
        config, accelerator = loop.config, loop.accelerator
        parts = config.divide(accelerator.process_index, accelerator.num_processes)
        self.weights = {modality: part.weight for modality, part in parts.items()}
        self.num_masks = {modality: len(settings.masks) for modality, settings in config.by_modality.items()}

    def __call__(self, batches: dict[str, dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Adds the gradient of this process's batches, which are given by modality. Returns `loss`, the mean over mask
        sets, `mask_loss_<i>` by mask set, and `<term>_loss` without its weight if the loss has several terms.

        With images, loss and terms are weighted means over both modalities, `mask_loss_<i>` are of clips, and there
        are `video_loss`, `image_loss` and `image_mask_loss_<i>`.
        """
        config = self.loop.accelerator.unwrap_model(self.loop.model).config
        self.loop.throughput.flops += sum(batch_flops(config, batch) for batch in batches.values())
        first, last = list(batches)[0], list(batches)[-1]
        found = {
            modality: self._add_gradient(batch, self.weights[modality], modality == first, modality == last)
            for modality, batch in batches.items()
        }
        return found["video"] if self.loop.config.images is None else self._combine(found)

    def _combine(self, found: dict[str, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """The losses of one or both modalities under names that all processes have, for the mean over processes."""
        of_images = self.loop.config.images.fraction
        masks = [f"mask_loss_{i}" for i in range(self.num_masks["video"])]
        masks += [f"image_mask_loss_{i}" for i in range(self.num_masks["image"])]
        nothing = torch.zeros_like(next(iter(found.values()))["loss"])
        means = dict.fromkeys(["loss", "video_loss", "image_loss", *masks], nothing)
        for modality, losses in found.items():
            weight, fraction, prefix = self.weights[modality], of_images, "image_"
            if modality == "video":
                fraction, prefix = 1 - of_images, ""
            # Nothing in a process without the modality: the mean over all is then that over those that have it
            means[f"{modality}_loss"] = losses["loss"] * weight / fraction
            for name, value in losses.items():
                if name.startswith("mask_loss_"):
                    means[prefix + name] = value * weight / fraction
                else:
                    means[name] = means.get(name, 0.0) + weight * value
        return means

    def _add_gradient(
        self, batch: dict[str, Any], weight: float, has_meters: bool, is_last: bool
    ) -> dict[str, torch.Tensor]:
        """Adds the gradient of the weighted loss of one batch. Returns the losses as `__call__` does."""
        accelerator, model, config = self.loop.accelerator, self.loop.model, self.loop.config
        clips, targets, parts = batch["pixel_values_videos"], None, []
        masks = list(zip(batch["context_mask"], batch["target_mask"], strict=True))
        for i, (context, target) in enumerate(masks):
            with_meters = has_meters and i == 0 and accelerator.sync_gradients and self.loop.is_logged(self.loop.step)
            # DDP exchanges gradients after the last set; FSDP cannot wait, it holds no whole gradients
            wait = not (is_last and i + 1 == len(masks)) and not accelerator.is_fsdp2
            with accelerator.no_sync(model) if wait else contextlib.nullcontext():
                token = i if config.mask_token_index is None else config.mask_token_index
                options = {"targets": targets, "context_loss_weight": self.loop.scheduled.get("context_loss_weight")}
                output = model(clips, context, target, token, with_meters, output_targets=True, **options)
                accelerator.backward(weight * output.loss / len(masks))
            targets = output.targets
            if with_meters:
                self.meters = {name: output[name].item() for name in METERS}
            parts.append((output.loss.detach(), output.mask_losses, output.losses or {}))
        losses, mask_losses, terms = zip(*parts, strict=True)
        return {
            "loss": torch.stack(losses).mean(),
            **{f"mask_loss_{i}": value for i, value in enumerate(torch.cat(mask_losses))},
            **{f"{name}_loss": torch.stack([of_set[name] for of_set in terms]).mean() for name in terms[0]},
        }


LOADER_KEYS = {"video": "loader", "image": "image_loader"}  # in the state of a process
SOURCE_KEYS = {"video": "sources", "image": "image_sources"}  # in its readers


def restore_loaders(loaders: dict[str, StatefulDataLoader], loop: TrainingLoop) -> None:
    """Restores the positions of a checkpoint's loaders, also with other processes or workers. With other sources the
    data starts again from the beginning; a frames curriculum does not allow this, because it counts batches."""
    config, elastic = loop.config, "processes" in loop.rank_state
    state = loop.rank_state["processes"][0] if elastic else loop.rank_state
    was, now = state.get("readers", {}), describe_readers(config)
    for modality, loader in loaders.items():
        key, sources, stream = LOADER_KEYS[modality], SOURCE_KEYS[modality], loader.dataset
        if was == now and not elastic:
            loader.load_state_dict(loop.rank_state[key])
        elif sources in was and was[sources] == now[sources]:
            saved = [state[key] for state in loop.run.read_rank_states() if key in state]
            if was["num_workers"] == now["num_workers"] and len(saved) == stream.world_size:
                loader.load_state_dict(saved[stream.rank])
            else:  # every reader of this run needs the states of all
                stream.load_state_dict(redistribute(saved))
        elif config.frames_curriculum and modality == "video" and was:
            raise ValueError(
                f"frames_curriculum is counted in the batches of {was} and would restart with {now}; set these back, "
                "or frames_curriculum=null."
            )
        elif sources in was:
            logger.warning("the data starts again from the beginning: it was read by %s, now by %s", was, now)


def open_skip_log(loop: TrainingLoop) -> SkipLog:
    """The list of what this process has skipped. Processes that this run lacks leave theirs to the main one."""
    rank, processes = loop.accelerator.process_index, loop.accelerator.num_processes
    if "processes" in loop.rank_state:
        if loop.accelerator.is_main_process:
            SkipLog(loop.config.output_dir, loop.start).merge()
        loop.accelerator.wait_for_everyone()
    return SkipLog(loop.config.output_dir, loop.start, rank, processes)


def describe_readers(config: PretrainConfig) -> dict[str, Any]:
    """The settings that the state of the loaders depends on."""
    sources = {
        SOURCE_KEYS[modality]: 1 if isinstance(settings.data, str) else len(settings.data)
        for modality, settings in config.by_modality.items()
    }
    split = {"images_by": config.images.by, "images_fraction": config.images.fraction} if config.images else {}
    return {"num_workers": config.num_workers, **sources, **split}


def describe_position(loaders: dict[str, StatefulDataLoader], config: PretrainConfig) -> dict[str, Any]:
    """What a checkpoint holds for this process, for `restore_loaders`."""
    states = {LOADER_KEYS[modality]: loader.state_dict() for modality, loader in loaders.items()}
    return {**states, "readers": describe_readers(config)}


def train(config: PretrainConfig) -> None:
    """The whole run: from an empty or interrupted `output_dir` to `final/`."""
    loop = TrainingLoop(config, "pretrain")
    accelerator = loop.accelerator

    # Every process starts from the same weights; processes differ in their data
    set_seed(config.seed)
    model = build_model(config)
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable()
    # For users: the published center crop, or the whole square if nothing was augmented
    size = {} if config.augmentation else {"size": config.crop_size}
    processor = VJepa2VideoProcessor(crop_size=config.crop_size, **size)
    loaders = build_loaders(config, model, accelerator)
    if config.torch_compile is not None:
        # One by one, so that DDP and FSDP may wrap them; token counts differ by batch
        for block in model.modules():
            if isinstance(block, GradientCheckpointingLayer):
                block.compile(backend=config.torch_compile, dynamic=True)
    groups = parameter_groups(model, config.scheduled(1)["weight_decay"], config.decay_mask_tokens)
    optimizer = torch.optim.AdamW(groups, betas=config.adam_betas, fused=True)
    # The loaders are not prepared: a stream splits itself among the processes, and Accelerate would write the
    # positions of all processes to one file
    model, optimizer = loop.prepare(model.train(), optimizer, processor)
    plain = accelerator.unwrap_model(model)
    if config.teacher is not None:
        plain.set_teacher(VJepa2Encoder.from_pretrained(config.teacher).to(accelerator.device))

    # Restore what Accelerate does not
    for group in optimizer.param_groups:
        group["betas"] = config.adam_betas  # a checkpoint of another run may bring its own
    restore_loaders(loaders, loop)
    skipped = open_skip_log(loop)
    watch = CollapseWatch()
    if loop.start and loop.run.metrics_path.exists():
        watch.replay(iterate_metrics(config.output_dir), config.normalize_targets)

    batches, objective = read_batches(loop, loaders, skipped), Objective(loop)
    evaluation = PretrainingEvaluation(loop, processor)
    for step in loop.steps():
        set_weight_decay(optimizer, loop.scheduled["weight_decay"])
        metrics = loop.update(batches, objective)
        if not loop.is_skipped:
            plain.update_target_encoder(loop.scheduled["ema_momentum"])
        if loop.is_logged(step):
            everyones = accelerator.reduce(torch.tensor(len(skipped), device=accelerator.device), "sum").item()
            metrics |= {**objective.meters, "skipped": everyones, **loop.throughput.read("clips")}
            metrics |= evaluation(plain)
            warning = watch.update({"step": step, **metrics}, config.normalize_targets, metrics["ema_momentum"])
            if warning and config.target_type != "pixels" and accelerator.is_main_process:
                logger.warning(warning)
                metrics["warning"] = warning
            loop.log(metrics, "loss", "target_std")
        loop.save_checkpoint(lambda: describe_position(loaders, config))

    loop.finish(model, processor)
    if accelerator.is_main_process:
        skipped.merge()


@exit_on_user_error
def main() -> None:
    warnings.filterwarnings("ignore", "'set_vital' is deprecated", module="torchdata")  # 0.11 under torch 2.14
    train(parse_arguments(PretrainConfig, __doc__))


if __name__ == "__main__":
    main()
