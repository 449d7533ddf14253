"""Training of the network of a learned state, the first of two stages of a world model's training.

train_state(config, encoder, processor)          # into OUTPUT_DIR/final; resumes like every run

A step predicts the next state of E episodes and looks for it among the F frames of the same episode. These have floor,
colors, light and objects at rest in common, so that none of it helps: the state holds what moves.

Letters: E episodes, F frames of each (consecutive model steps), D width of a state, A action of a model step, k
environment actions of it, R rows.
"""

import copy
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from ..configuration_world_model import VJepa2WorldModelConfig
from ..data.episodes import EpisodeSource, EpisodeStream
from ..data.files import weights_fingerprint
from ..data.typed_fields import check_fields
from ..data.windows import WindowMixture
from ..modeling_embodiments import normalize_actions
from ..modeling_encoder import VJepa2Encoder
from ..modeling_learned_state import VJepa2LearnedState, arranged_latents
from ..modeling_world_model import VJepa2WorldModel
from ..specs import check_at_least, check_number
from ..video_io import ReadLimits
from .augmentation import augment, check_symmetries
from .cached_windows import as_shards, cache_root, common_fps, split_windows, window_loader
from .checkpoints import is_checkpoint
from .config import TrainingConfig
from .episode_latents import (
    NO_DYNAMICS,
    count_views,
    episode_sources,
    latent_layout,
    load_network,
    model_inputs,
    model_state,
    open_caches,
)
from .loop import TrainingLoop
from .run import LATEST_UNDAMAGED, Run
from .schedules import LearningRateSchedule, parameter_groups, set_weight_decay, slow_groups
from .world_model_fields import check_windows, data_fields, embodiments_of, measure_column


TRANSITION_SIZE = 256  # width of the networks that only the losses need
SIGREG_SLICES, SIGREG_POINTS, SIGREG_RANGE = 256, 17, 3.0
# Fields of a world model that its learned state depends on
STAGE_FIELDS = ("state_type", "state_dim", "state_input", "state_stem", "standardize_frames")
STAGE_FIELDS += ("normalize_latents", "state_levels", "frame_skip", "action_type")


@dataclass(kw_only=True)
class StateSettings:
    """Training of the network of a learned state."""

    data: str | list[EpisodeSource] | None = None
    """Episodes that the network is trained on; null: those of `data`. `validation_fraction` holds some out here, too;
    `max_episodes` does not count. With `use_actions=false` also videos: a folder of them, or shards of
    examples/make_video_shards.py."""
    use_actions: bool = True
    """false: predict the next state from the state alone, find it among the other frames, and read no actions. The
    network then learns from videos, and the dynamics from episodes with actions, which may be few."""
    start_from: str | None = None
    """Folder of a world model with the same learned state, whose network is trained further; null: a new network. A
    state that reads tokens needs that model's encoder, too: encoder=FOLDER."""
    train_encoder: bool = False
    """Train the encoder along, whose tokens the network reads; the dynamics are then on the trained one."""
    encoder_learning_rate: float = 0.1
    """Learning rate of the encoder, as a fraction of the learning rate."""
    max_steps: int = 5000
    episodes: int = 16
    """Episodes per step, process and micro-batch."""
    frames: int = 16
    """Consecutive model steps of each episode, among which the next one is looked for."""
    learning_rate: float = 2e-3
    """Of AdamW, after `warmup_steps`; it then falls along half a cosine to 0."""
    warmup_steps: int = 50
    weight_decay: float = 0.01
    gradient_clipping: float | None = 1.0
    augment: bool = False
    """One draw per batch: the environment's `symmetries`, a random order of the channels, inverted colors."""
    symmetries: str | dict[str, list[list[float]]] | None = None
    """Which turns of an image the environment's physics keeps: an environment that declares them, such as
    vjepa2_hf/Pushing-v0, or for each of flip_horizontal, flip_vertical and transpose the matrix that turns an action:
    {flip_horizontal: [[-1, 0], [0, 1]]}. null: none."""

    # Loss terms; a term with weight 0 is not computed
    episode_contrast_weight: float = 1.0
    """Of the same-episode contrast, see `episode_contrast`."""
    episode_contrast_temperature: float = 1.0
    inverse_dynamics_weight: float = 0.0
    """Of the error of the first action between two states 1 to `inverse_dynamics_steps` model steps apart (arXiv
    2207.08229)."""
    inverse_dynamics_steps: int = 4
    prediction_weight: float = 0.0
    """Of the mean squared error of the predicted next state (LeWorldModel, arXiv 2603.19312), with a gradient to both
    sides. A constant state has no error: combine it with `sigreg_weight`, or another term that prevents collapse."""
    sigreg_weight: float = 0.0
    """Of SIGReg, which pulls the distribution of the states to a standard normal one (arXiv 2511.08544)."""

    def __post_init__(self):
        check_fields(self, "state.")
        check_at_least(self, "state.", max_steps=1, episodes=1, frames=3, warmup_steps=0, inverse_dynamics_steps=1)
        weights = [name for name in vars(self) if name.endswith("_weight")]
        for name in ("weight_decay", *weights):
            check_number(f"state.{name}", getattr(self, name), at_least=0)
        for name in ("learning_rate", "encoder_learning_rate", "episode_contrast_temperature"):
            check_number(f"state.{name}", getattr(self, name), above=0)
        if self.gradient_clipping is not None:
            check_number("state.gradient_clipping", self.gradient_clipping, above=0, finite=False)
        if not any(getattr(self, name) for name in weights):
            raise ValueError(f"All of state.{', state.'.join(weights)} are 0: there is no loss.")
        if self.inverse_dynamics_weight and self.inverse_dynamics_steps >= self.frames:
            steps = f"state.inverse_dynamics_steps={self.inverse_dynamics_steps}"
            raise ValueError(f"{steps} needs state.frames above it; got {self.frames}.")
        if self.inverse_dynamics_weight and not self.use_actions:
            raise ValueError(
                f"state.inverse_dynamics_weight={self.inverse_dynamics_weight} infers actions, and "
                "state.use_actions=false reads none: leave one of them out."
            )
        if self.symmetries is not None and not self.augment:
            raise ValueError("state.symmetries are for augmentation: set state.augment=true, or leave them out.")
        if isinstance(self.symmetries, dict):
            check_symmetries(self.symmetries)


@dataclass(kw_only=True)
class StateTrainingConfig(TrainingConfig):
    """Settings of the first stage; `train_world_model.py` fills them from its own."""

    data: str | list[EpisodeSource]
    encoder: str
    encoder_config: dict[str, Any] = field(default_factory=dict)
    crop_size: int | None = None
    max_episodes: int | None = None
    limits: ReadLimits = field(default_factory=ReadLimits)
    validation_fraction: float = 0.07
    cache_dir: str | None = None
    cache_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    normalize_actions: bool = True
    world_model: dict[str, Any] = field(default_factory=dict)
    """The fields of `STAGE_FIELDS`."""
    state: StateSettings = field(default_factory=StateSettings)
    """Its steps, episodes and clipping are those of the run."""

    schedule_settings = ()  # none may change: the cosine depends on all steps

    def __post_init__(self):
        self.max_steps, self.batch_size = self.state.max_steps, self.state.episodes
        self.gradient_clipping = self.state.gradient_clipping
        super().__post_init__()

    def scheduled(self, step: int) -> dict[str, Any]:
        peak, warmup = self.state.learning_rate, min(self.state.warmup_steps, self.max_steps - 1)
        schedule = LearningRateSchedule("warmup_cosine", peak=peak, warmup_steps=warmup)
        return {"learning_rate": schedule.at(step, self.max_steps)}

    def frames_at(self, step: int) -> int:
        """Frames of each episode, the same in every step."""
        return self.state.frames

    @property
    def columns(self) -> list[str]:
        """What is cached of the episodes: frames where they or the encoder change from step to step."""
        fixed = not (self.state.augment or self.state.train_encoder)
        tokens = self.world_model.get("state_input") == "tokens" and fixed
        return ["latents" if tokens else "frames", *([] if self.frames_only else ["actions"])]

    @property
    def frames_only(self) -> bool:
        """Whether the data may be videos without actions."""
        return self.state.data is not None and not self.state.use_actions


def stage_folder(config: Any) -> Path:
    """The folder of the first stage of a run of `train_world_model.py`: OUTPUT_DIR/state, or, where the run continues
    a checkpoint of another one, the folder of that one."""
    other = Path(config.resume or "")
    is_foreign = is_checkpoint(other) and other.parent.resolve() != Path(config.output_dir).resolve()
    return (other.parent if is_foreign else Path(config.output_dir)) / "state"


def first_stage(config: Any, state: StateSettings) -> StateTrainingConfig:
    """Settings of the first stage of a run with the settings `config` of `train_world_model.py`."""
    shared = {each.name for each in dataclasses.fields(StateTrainingConfig)} & set(vars(config))
    own = {name: getattr(config, name) for name in shared}
    own |= {"output_dir": str(stage_folder(config)), "cache_dir": str(cache_root(config, "latents")), "state": state}
    if state.data is not None:
        own |= {"data": state.data, "max_episodes": None}
    own["resume"] = config.resume if config.resume in (None, "latest", LATEST_UNDAMAGED) else "latest"
    own["world_model"] = {name: config.world_model[name] for name in STAGE_FIELDS if name in config.world_model}
    return StateTrainingConfig(**own)


def learned_network(config: Any, model: VJepa2WorldModel | None) -> VJepa2LearnedState | None:
    """The network of a learned state: of a model to train further, of the model in `config.state_of`, or of the first
    stage; None for other states."""
    if model is None and config.state_type == "learned":
        folder = config.state_of or stage_folder(config) / "final"
        return _network_of(folder, config.world_model)
    return getattr(model, "state_network", None)


def encoder_of_stage(config: Any) -> VJepa2Encoder:
    """The encoder that the first stage of a run trained along."""
    return VJepa2WorldModel.from_pretrained(stage_folder(config) / "final").encoder


def _network_of(folder: str | Path, fields: dict[str, Any]) -> VJepa2LearnedState:
    """The network of the world model in a folder; refuses one whose state is not that of `fields`."""
    model = VJepa2WorldModel.from_pretrained(folder)
    wanted, found = latent_layout("learned", fields), model_state(model.config)
    if found != wanted:
        raise ValueError(f"The state of {folder} is {found}, but world_model asks for {wanted}: use one state.")
    return model.state_network


# --- Losses


def episode_contrast(
    predicted: torch.Tensor, states: torch.Tensor, temperature: float, among_others: bool = False
) -> tuple[torch.Tensor, ...]:
    """The same-episode contrast: cross-entropy of finding z_{t+1} among the F frames of its episode, with logits
    −‖ẑ_{t+1} − z_j‖² / τ, and the fraction that is nearest to its own.

    The energy is that of C-SWM (arXiv 1911.12247), the cross-entropy that of InfoNCE (arXiv 1807.03748). The gradient
    reaches both sides; there is no moving average of the network. A constant that is added to all states of an episode
    changes nothing.

    Args:
        predicted: ẑ, (E, F-1, D), of the frames 1 to F-1.
        states: z, (E, F, D).
        among_others: leave frame t, from which ẑ_{t+1} is predicted, out of the F frames. Without an action nothing
            says in which direction the state moves, and frame t would be the nearest.
    """
    distances = (predicted.unsqueeze(2) - states.unsqueeze(1)).square().sum(dim=-1)  # (E, F-1, F)
    if among_others:
        own = torch.eye(*distances.shape[1:], dtype=torch.bool, device=states.device)
        distances = distances.masked_fill(own, torch.inf)
    logits = (-distances / temperature).flatten(0, 1)
    true = torch.arange(1, states.shape[1], device=states.device).repeat(len(states))
    found = (logits.argmax(dim=-1) == true).float().mean()
    return nn.functional.cross_entropy(logits, true), found


def sigreg(states: torch.Tensor, slices: int = SIGREG_SLICES) -> torch.Tensor:
    """Sketched isotropic Gaussian regularization (LeJEPA, arXiv 2511.08544, sec. 4): the Epps–Pulley statistic
    R ∫ |φ_R(t) − φ(t)|² φ(t) dt of R states (R, D), projected on random directions, averaged over these.

    φ_R is the empirical characteristic function of a projection and φ(t) = exp(−t²/2) that of a standard normal
    variable. The integral from −3 to 3 is twice that from 0, by the trapezoidal rule on 17 points, as in the authors'
    code.
    """
    directions = torch.randn(states.shape[-1], slices, device=states.device, dtype=states.dtype)
    projected = states @ nn.functional.normalize(directions, dim=0)  # (R, slices)
    points = torch.linspace(0, SIGREG_RANGE, SIGREG_POINTS, device=states.device, dtype=states.dtype)
    normal = torch.exp(-points.square() / 2)
    angles = projected.unsqueeze(-1) * points  # (R, slices, points)
    error = (angles.cos().mean(dim=0) - normal).square() + angles.sin().mean(dim=0).square()
    return len(states) * 2 * torch.trapezoid(error * normal, points, dim=-1).mean()


class StateLearner(nn.Module):
    """The network of a world model's learned state, and what only its losses need: for the contrast and the prediction
    error a transition ẑ_{t+1} = z_t + MLP(z_t, a_t), or MLP(z_t) without actions, which starts at no change, and for
    inverse dynamics an inverse model.

    The transition of the contrast is unfit for rollouts: it must only be nearer to the next frame than to the others.
    """

    def __init__(self, model: VJepa2WorldModel, settings: StateSettings):
        super().__init__()
        config = model.config
        self.settings, self.network, self.config = settings, model.state_network.requires_grad_(True), config
        if settings.train_encoder:
            self.encoder = model.encoder.requires_grad_(True)
        # parts without a loss are left out: in several processes all parameters must have gradients
        if settings.episode_contrast_weight or settings.prediction_weight:
            inputs = config.state_dim + (config.action_dim if settings.use_actions else 0)
            self.transition = _mlp(inputs, config.state_dim)
            nn.init.zeros_(self.transition[-1].weight)
            nn.init.zeros_(self.transition[-1].bias)
        if settings.inverse_dynamics_weight:
            inputs = 2 * config.state_dim + settings.inverse_dynamics_steps
            self.inverse = _mlp(inputs, config.action_dim)

    def forward(self, frames: torch.Tensor, actions: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Losses by name, `loss` first, of what the network reads of frames, (E, F, …), or of the pixels of an encoder
        that learns, and of standardized actions (E, F-1, A), None if the settings read none."""
        if self.settings.train_encoder:
            frames = _tokens(self.config, self.encoder, frames)
        states = self.network(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).float()
        settings, losses = self.settings, {}
        if settings.episode_contrast_weight or settings.prediction_weight:
            inputs = states[:, :-1] if actions is None else torch.cat([states[:, :-1], actions], dim=-1)
            predicted = states[:, :-1] + self.transition(inputs).float()
        if settings.episode_contrast_weight:
            how = (settings.episode_contrast_temperature, not settings.use_actions)
            losses["episode_contrast_loss"], losses["found_frames"] = episode_contrast(predicted, states, *how)
        if settings.prediction_weight:  # L_pred of arXiv 2603.19312
            losses["prediction_loss"] = nn.functional.mse_loss(predicted, states[:, 1:])
        if settings.inverse_dynamics_weight:
            losses["inverse_dynamics_loss"] = self._inverse_loss(states, actions)
        if settings.sigreg_weight:
            losses["sigreg_loss"] = sigreg(states.flatten(0, 1))
        names = [name.removesuffix("_loss") for name in losses if name.endswith("_loss")]
        total = sum(getattr(settings, f"{name}_weight") * losses[f"{name}_loss"] for name in names)
        return {"loss": total, **losses}

    def _inverse_loss(self, states: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Mean squared error of a_t from z_t, z_{t+n} and n, over n = 1 to `inverse_dynamics_steps`."""
        losses, steps = [], self.settings.inverse_dynamics_steps
        for n in range(1, steps + 1):
            before, after = states[:, :-n], states[:, n:]
            apart = nn.functional.one_hot(torch.tensor(n - 1, device=states.device), steps).to(states)
            inputs = torch.cat([before, after, apart.expand(*before.shape[:2], -1)], dim=-1)
            losses.append((self.inverse(inputs).float() - actions[:, : before.shape[1]]).square().mean())
        return torch.stack(losses).mean()


def _mlp(inputs: int, outputs: int) -> nn.Sequential:
    size = TRANSITION_SIZE
    hidden = (nn.Linear(inputs, size), nn.GELU(), nn.Linear(size, size), nn.GELU())
    return nn.Sequential(*hidden, nn.Linear(size, outputs))


# --- Training


def train_state(
    config: StateTrainingConfig, encoder: VJepa2Encoder, processor: Any, following: Any | None = None
) -> None:
    """The whole run: from an empty or interrupted `output_dir` to `final/`, a world model with the trained network and
    without dynamics.

    Args:
        encoder: of a state that reads tokens; of one that reads pixels, only its sizes count.
        following: settings of the run of `train_world_model.py` that comes next; its folder and what it makes of the
            data are checked before the first step of this one.

    Raises:
        ValueError: the folders or settings do not allow this run or the next one, or the episodes are of several
            robots or cameras.
    """
    loop = TrainingLoop(config, "state")
    if following is not None:
        Run(following, loop.accelerator).check(following.resume)  # before the hours of this run
    model, training = _prepare(config, loop, encoder, processor, following)
    learner = StateLearner(model, config.state).to(loop.accelerator.device).train()
    groups = parameter_groups(learner, config.state.weight_decay)
    if config.state.train_encoder:
        groups = slow_groups(groups, learner.encoder, config.state.encoder_learning_rate)
    optimizer = torch.optim.AdamW(groups, lr=config.state.learning_rate, fused=True)
    prepared, optimizer = loop.prepare(learner, optimizer, processor)
    set_weight_decay(optimizer, config.state.weight_decay)  # a checkpoint of another run may bring its own

    def forward_backward(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        losses = prepared(**batch)
        loop.accelerator.backward(losses["loss"])
        return losses

    loop.run_steps(_batches(config, loop, model, processor, training), forward_backward)
    loop.finish_stage(model.eval(), processor)


def _prepare(
    config: StateTrainingConfig, loop: TrainingLoop, encoder: VJepa2Encoder, processor: Any, following: Any | None
) -> tuple[VJepa2WorldModel, WindowMixture]:
    """A world model whose network is new, and the training episodes."""
    sources = episode_sources(config.data)
    if embodiments_of(sources) is not None:
        raise ValueError("state_type='learned' learns from the actions of one robot; data names several embodiments.")
    if count_views(sources) > 1:
        raise ValueError(f"state_type='learned' reads one camera; camera is {sources[0].views}: name one of them.")
    tokens, columns = latent_layout("tokens", config.world_model), config.columns
    if following is not None and config.state.data is not None:
        _check_other_data(following, encoder, processor, loop.accelerator)
        following = None
    if following is not None:
        columns = columns + _further_columns(following)
    caches = open_caches(config, loop.accelerator, encoder, processor, tokens, columns, frames_only=config.frames_only)
    training, _ = split_windows(caches, [source.weight for source in sources], config.validation_fraction)
    skip, discrete = config.world_model.get("frame_skip", 1), config.world_model.get("action_type") == "discrete"
    statistics = {name: measure_column(training, name) for name in columns if name not in ("latents", "frames")}
    fields: dict[str, Any] = {"action_dim": skip, "actions_per_step": skip, "fps": common_fps(training)}
    if not config.frames_only:
        fields |= data_fields({"actions": statistics["actions"]}, skip, discrete, config.normalize_actions)
    if config.state.symmetries is not None and config.state.use_actions:
        check_symmetries(config.state.symmetries, fields["action_dim"] // skip)
    torch.manual_seed(config.seed)
    model = VJepa2WorldModel.from_encoder(encoder, **{**fields, **config.world_model, **NO_DYNAMICS})
    if config.state.start_from is not None:
        _start_from(model, config)
    training.sample(1, config.state.frames, skip, np.random.default_rng(0))  # raises if no episode is long enough
    if following is not None:
        fields |= data_fields(statistics, skip, discrete, config.normalize_actions)
        _check_following(following, encoder, fields)
        training.sample(1, following.frames_per_window, skip, np.random.default_rng(0))
    return model.to(loop.accelerator.device).eval(), training


def _start_from(model: VJepa2WorldModel, config: StateTrainingConfig) -> None:
    """Takes over the network of another model, on the same encoder."""
    folder = config.state.start_from
    load_network(model, _network_of(folder, config.world_model))
    if not model.config.reads_pixels:
        other = VJepa2WorldModel.from_pretrained(folder).encoder
        if weights_fingerprint(other) != weights_fingerprint(model.encoder):
            found = f"state.start_from={folder} has another encoder than encoder={config.encoder}"
            raise ValueError(f"{found}: give encoder={folder}, and leave encoder_config out.")


def _further_columns(following: Any) -> list[str]:
    """Columns that the next run reads besides actions."""
    wanted = {"proprio_states": following.use_proprio, "rewards": following.world_model.get("reward_head")}
    return [name for name, is_wanted in wanted.items() if is_wanted]


def _check_other_data(following: Any, encoder: VJepa2Encoder, processor: Any, accelerator: Accelerator) -> None:
    """`_check_following` for a next run on other data, by the first readable episode of every source."""
    sources, columns, found = following.sources, ["actions", *_further_columns(following)], []
    for source in sources:
        shards = as_shards(source, cache_root(following, "latents"), accelerator)
        stream = EpisodeStream(shards, processor, limits=following.limits)
        found.append(next((episode for episode in stream if "skipped" not in episode), None))
        if found[-1] is None:
            raise ValueError(f"No episode could be read from {source.path!r}.")
    fields = {"num_views": count_views(sources)}
    if embodiments_of(sources) is None:
        for name in columns:
            if name not in found[0]:
                raise ValueError(f"The episodes of {sources[0].path!r} have no {name!r}.")
        values = {name: found[0][name].numpy() for name in columns}
        statistics = {
            name: {"mean": each.mean(0).tolist(), "low": each.min(0).tolist(), "high": each.max(0).tolist()}
            | {"std": [1.0] * each.shape[1]}
            for name, each in values.items()
        }
        discrete = following.world_model.get("action_type") == "discrete"
        fields |= data_fields(statistics, following.frame_skip, discrete, normalize=False)
    _check_following(following, encoder, fields)


def _check_following(following: Any, encoder: VJepa2Encoder, fields: dict[str, Any]) -> None:
    """Refuses settings of the next run that its model or its windows do not allow; `fields` are those of the data."""
    fields = {**fields, **following.world_model}
    config = VJepa2WorldModelConfig(encoder_config=encoder.config.to_dict(), **fields)
    check_windows(config, following.frames_per_window, following.rollout_start)


def _batches(
    config: StateTrainingConfig, loop: TrainingLoop, model: VJepa2WorldModel, processor: Any, training: WindowMixture
) -> Iterator[tuple[list[str], dict[str, torch.Tensor]]]:
    """Names and inputs of a [`StateLearner`] of every micro-batch that is left. An augmentation depends on the seed
    and on the micro-batch alone."""
    first, rank = loop.first_micro_batch, loop.accelerator.process_index
    loader = window_loader(training, config, config.frames_at, model.config.frame_skip, loop.accelerator, first)
    for number, batch in enumerate(loader, start=first):
        names = training.names(batch.pop("windows"))
        if not config.state.use_actions:
            batch.pop("actions", None)
        if config.state.augment:
            rng = np.random.default_rng((config.seed, number, rank))
            drawn = augment(batch["frames"], batch.get("actions"), config.state.symmetries or {}, rng)
            batch |= {name: values for name, values in zip(("frames", "actions"), drawn) if values is not None}
        yield names, _learner_inputs(model, processor, batch, config.state.train_encoder)


def _learner_inputs(
    model: VJepa2WorldModel, processor: Any, batch: dict[str, torch.Tensor], train_encoder: bool
) -> dict[str, torch.Tensor]:
    """What a [`StateLearner`] reads of a batch of windows, and standardized actions if it has them."""
    inputs = model_inputs(batch, model, processor)
    frames = inputs["latents"] if "latents" in inputs else inputs["pixel_values_videos"]
    if "latents" not in inputs and not model.config.reads_pixels and not train_encoder:
        with torch.no_grad():
            frames = _tokens(model.config, model.encoder, frames)
    if "actions" not in inputs:
        return {"frames": frames}
    return {"frames": frames, "actions": normalize_actions(model.config, frames, inputs["actions"])}


def _tokens(config: VJepa2WorldModelConfig, encoder: VJepa2Encoder, pixel_values_videos: torch.Tensor) -> torch.Tensor:
    """What a learned state reads of frames (E, F, C, H, W): (E, F, tokens, width)."""
    config = copy.copy(config)
    config.state_type = "tokens"
    return arranged_latents(config, encoder, None, pixel_values_videos)
