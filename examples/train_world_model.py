# /// script
# requires-python = ">=3.11"
# dependencies = ["vjepa2-hf[demo,hdf5]"]
# ///
"""Trains an action-conditioned world model on episodes, on top of an encoder, and saves it with its processor.

    accelerate launch examples/train_world_model.py --config examples/configs/demo/world_model.yaml [key=value ...]

One process on a CPU, after `examples/record_episodes.py` and `examples/pretrain.py` of the demo:

    python examples/train_world_model.py --config examples/configs/demo/world_model.yaml \\
        encoder=runs/demo/pretrain/final

Several cameras, several robots, and another robot for a finished model whose other predictions stay as they are:

    python examples/train_world_model.py encoder=ENCODER output_dir=runs/two data="[{path: A, camera: [front, wrist]},
        {path: B, camera: [front, wrist], embodiment: 1, weight: 0.5}]"
    python examples/train_world_model.py from_model=runs/two/final train_only=embodiment output_dir=runs/three
        data="[{path: C, camera: [front, wrist], embodiment: 2}]"

Several CPU processes: `torchrun --nproc_per_node 2 examples/train_world_model.py ...`. A frozen encoder encodes each
frame once; later runs on the same encoder and data find the latents in `cache_dir`. You may delete them. Damaged ones
are computed again. Invalid episodes are skipped; every run logs how many its cache lacks. A stopped run continues with
`resume=latest`. `OUTPUT_DIR/rollout_error.json` compares rollouts on held-out episodes with copying the last state.
With `world_model.state_type=learned` a first stage trains the network of the state, in `OUTPUT_DIR/state`
(docs/states.md).
With `world_model.distance_head=true` it then trains a distance head, and `OUTPUT_DIR/distance.json` compares predicted
and true times. The result is `OUTPUT_DIR/final`:

    planner = VJepa2Planner.from_pretrained("runs/demo/world_model/final")
"""

import dataclasses
import functools
import vjepa2_cli  # noqa: F401 (a quick --help)

import torch

from vjepa2_hf import VJepa2VideoProcessor, VJepa2WorldModel
from vjepa2_hf.data.files import write_json
from vjepa2_hf.data.windows import WindowMixture
from vjepa2_hf.metrics.latent_rollout.latent_rollout import RolloutScores
from vjepa2_hf.modeling_world_model import VJepa2WorldModelOutput
from vjepa2_hf.training.cached_windows import log_skipped, measured_horizons, window_loader
from vjepa2_hf.training.episode_latents import model_inputs
from vjepa2_hf.training.loop import TrainingLoop
from vjepa2_hf.training.schedules import parameter_groups, set_weight_decay, slow_groups
from vjepa2_hf.training.settings import exit_on_user_error, parse_arguments
from vjepa2_hf.training.state_learning import train_state
from vjepa2_hf.training.state_settings import first_stage, second_stage
from vjepa2_hf.training.temporal_distance import measure_distance_head, train_distance_head
from vjepa2_hf.training.time_scales import set_macro_range
from vjepa2_hf.training.world_model_building import build_encoder, build_processor, prepare_data
from vjepa2_hf.training.world_model_settings import WorldModelTrainingConfig


EVALUATED_WINDOWS = 1024
# `loss` first, then its parts
LOSSES = [field.name for field in dataclasses.fields(VJepa2WorldModelOutput) if field.name.endswith("loss")]


@torch.no_grad()
def rollout_errors(
    model: VJepa2WorldModel, held_out: WindowMixture, processor, horizons: list[int], batch_size: int = 64
) -> list[dict[str, float]]:
    """Mean squared error and cosine of rollouts on held-out episodes by horizon, next to copying the last state."""
    skip, longest = model.config.frame_skip, max(horizons)
    windows = held_out.tile(longest + 1, skip, longest, EVALUATED_WINDOWS)
    scores = RolloutScores()
    for part in windows.split(batch_size):
        batch = model_inputs(held_out.read(part, longest + 1, skip), model, processor)
        if "latents" in batch:
            seen, true = batch["latents"][:, :1], batch["latents"]
        else:  # predictions start from the online encoder and are compared with the target encoder's latents
            seen = model.encode(batch["pixel_values_videos"][:, :1])
            true = model.encode_targets(batch["pixel_values_videos"])
        states = batch.get("proprio_states")
        states = None if states is None else states[:, :1]  # planning does not know future states either
        given = {"proprio_states": states, "embodiment_ids": batch.get("embodiment_ids")}
        predicted = model.rollout(seen, batch["actions"], **given)
        scores.add(predicted, true[:, 1:], copies=true[:, 0])
    return scores.rows(horizons)


def write_results(
    config: WorldModelTrainingConfig,
    loop: TrainingLoop,
    model: VJepa2WorldModel,
    processor: VJepa2VideoProcessor,
    training: WindowMixture,
    held_out: WindowMixture,
    horizons: list[int],
) -> None:
    """The range of macro-actions, rollout errors on held-out episodes, and a distance head."""
    accelerator, output_dir = loop.accelerator, loop.run.output_dir
    if model.config.macro_action_dim is not None:
        set_macro_range(model.eval(), training)
    if accelerator.is_main_process and len(held_out):
        write_json(output_dir / "rollout_error.json", rollout_errors(model.eval(), held_out, processor, horizons))
    if config.distance_head and not loop.run.is_complete:
        losses = train_distance_head(model, training, config.distance, config.seed, accelerator)
        if accelerator.is_main_process:
            calibration = measure_distance_head(model, held_out, config.seed) if len(held_out) else None
            write_json(output_dir / "distance.json", {"held_out": calibration, "losses": losses})


def learn_state(config: WorldModelTrainingConfig) -> WorldModelTrainingConfig:
    """The first of two stages, in OUTPUT_DIR/state: the network of a learned state. Returns the second's settings."""
    state = config.state
    if isinstance(state.symmetries, str):
        from vjepa2_hf.environments import find_symmetries  # needs gymnasium

        state = dataclasses.replace(state, symmetries=find_symmetries(state.symmetries))
    encoder = build_encoder(config)
    processor, following = build_processor(config, encoder), second_stage(config)
    train_state(first_stage(config, state), encoder, processor, following)
    return following


def train(config: WorldModelTrainingConfig) -> None:
    """The whole run: from an empty or interrupted `output_dir` to `final/`."""
    if config.learns_state:
        config = learn_state(config)
    loop = TrainingLoop(config, "world_model")
    accelerator, run = loop.accelerator, loop.run

    # Encode the data, then build a model for it
    model, processor, training, held_out, statistics = prepare_data(config, accelerator)
    horizons = measured_horizons(config.horizons, held_out, model.config.frame_skip)  # warns before training
    groups = parameter_groups(model, config.weight_decay)
    if not config.freeze_encoder:
        groups = slow_groups(groups, model.encoder, config.encoder_learning_rate)
    optimizer, plain = torch.optim.AdamW(groups, lr=config.learning_rate.peak, fused=True), model.train()
    # With several processes this gives all of them the weights and the fitted state of the first
    frozen = getattr(plain, "encoder", None) if config.freeze_encoder else None
    model, optimizer = loop.prepare(model, optimizer, processor, encoder=frozen)
    set_weight_decay(optimizer, config.weight_decay)  # a checkpoint of another run may bring its own
    if accelerator.is_main_process:
        write_json(run.output_dir / "statistics.json", statistics)
        log_skipped(training.caches, config.sources, run.output_dir)

    # Windows of random episodes
    frames = functools.partial(config.frames_at, context_frames=plain.config.context_frames)
    loader = window_loader(training, config, frames, plain.config.frame_skip, accelerator, loop.first_micro_batch)
    batches = ((training.names(batch.pop("windows")), model_inputs(batch, plain, processor)) for batch in loader)

    def forward_backward(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weights = {"teacher_forcing_weight": 1.0, "rollout_weight": 0.0}
        if not loop.scheduled["one_step"]:
            weights = {name: getattr(plain.config, name) for name in weights}
        output = model(**batch, **weights)
        accelerator.backward(output.loss)
        return {name: output[name] for name in LOSSES if name in output}

    for step in loop.steps():
        metrics = dict.fromkeys(LOSSES) | loop.update(batches, forward_backward)
        if not config.freeze_encoder:
            plain.update_target_encoder(loop.scheduled["ema_momentum"])
        measured = {}
        if config.eval_every and step % config.eval_every == 0 and accelerator.is_main_process and len(held_out):
            rows = rollout_errors(plain.eval(), held_out, processor, horizons)
            measured = {f"validation_error_{row['horizon']}": row["error"] for row in rows}
            plain.train()
        if measured or loop.is_logged(step):
            speed = loop.throughput.read("windows")["windows_per_second"]
            loop.log({**metrics, **measured, "windows_per_second": speed})
        loop.save_checkpoint()

    write_results(config, loop, plain, processor, training, held_out, horizons)
    loop.finish(model, processor)


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    train(parse_arguments(WorldModelTrainingConfig, __doc__, arguments))


if __name__ == "__main__":
    main()
