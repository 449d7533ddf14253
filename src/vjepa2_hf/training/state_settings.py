"""Settings of the first stage of a world model's training: the network of a learned state.

config = first_stage(world_model_config, StateSettings())    # of a run of train_world_model.py
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..data.episodes import EpisodeSource
from ..data.typed_fields import check_fields
from ..specs import check_at_least, check_number
from ..video_io import ReadLimits
from .augmentation import check_symmetries
from .cached_windows import cache_root
from .checkpoints import is_checkpoint
from .config import TrainingConfig
from .run import LATEST_UNDAMAGED
from .run_files import CONFIG
from .schedules import LearningRateSchedule
from .settings import read_yaml


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


def state_checkpoint(config: Any) -> Path | None:
    """The checkpoint of a first stage, of this run or of another one, if `config.resume` names such."""
    for path in (Path(config.output_dir, config.resume or ""), Path(config.resume or "")):
        settings = path.parent / CONFIG
        if is_checkpoint(path) and settings.is_file():
            names = {each.name for each in dataclasses.fields(StateTrainingConfig)}
            return path if read_yaml(settings).keys() <= names else None
    return None


def stage_folder(config: Any) -> Path:
    """The folder of the first stage of a run of `train_world_model.py`: OUTPUT_DIR/state, or, where the dynamics
    continue a checkpoint of another run, the folder of that one."""
    other = Path(config.resume or "")
    is_foreign = is_checkpoint(other) and other.parent.resolve() != Path(config.output_dir).resolve()
    goes_on = is_foreign and state_checkpoint(config) is None
    return (other.parent if goes_on else Path(config.output_dir)) / "state"


def finished_stage(config: Any) -> Path:
    """The model of the first stage that the dynamics of a run are on.

    Raises:
        FileNotFoundError: the dynamics continue a checkpoint that was copied without the folder of its run.
    """
    final = stage_folder(config) / "final"
    if final.parents[1] != Path(config.output_dir) and not final.is_dir():
        raise FileNotFoundError(
            f"resume={config.resume} was copied without the folder of its run: a checkpoint of the dynamics needs "
            f"{str(final)!r}, one of the first stage the config.yaml beside it. Give the one in the folder of its run."
        )
    return final


def first_stage(config: Any, state: StateSettings) -> StateTrainingConfig:
    """Settings of the first stage of a run with the settings `config` of `train_world_model.py`."""
    shared = {each.name for each in dataclasses.fields(StateTrainingConfig)} & set(vars(config))
    own = {name: getattr(config, name) for name in shared}
    own |= {"output_dir": str(stage_folder(config)), "cache_dir": str(cache_root(config, "latents")), "state": state}
    if state.data is not None:
        own |= {"data": state.data, "max_episodes": None}
    checkpoint = state_checkpoint(config)
    if checkpoint is not None:
        own["resume"] = str(checkpoint)
    elif config.resume not in (None, "latest", LATEST_UNDAMAGED):
        own["resume"] = "latest"
    own["world_model"] = {name: config.world_model[name] for name in STAGE_FIELDS if name in config.world_model}
    return StateTrainingConfig(**own)


def second_stage(config: Any) -> Any:
    """Settings of the dynamics after a first stage: they start anew where it continues a checkpoint."""
    return config if state_checkpoint(config) is None else dataclasses.replace(config, resume=None)
