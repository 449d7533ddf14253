"""Settings of `examples/train_world_model.py`.

config = load_config(WorldModelTrainingConfig, "examples/configs/demo/world_model.yaml")
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..data.episodes import EpisodeSource
from ..video_io import ReadLimits
from .config import TrainingConfig
from .episode_latents import episode_sources
from .schedules import LearningRateSchedule, MomentumSchedule
from .state_settings import StateSettings, stage_folder
from .temporal_distance import DistanceSettings


BASELINES = ("random", "pixels")  # in place of a trained encoder
# Fields that may change when a model is trained further
TRAINING_FIELDS = ("teacher_forcing_weight", "rollout_weight", "rollout_steps", "rollout_discount", "view_dropout")


@dataclass(kw_only=True)
class WorldModelTrainingConfig(TrainingConfig):
    """Settings of one run; published values are in configs/published/action_conditioned.yaml."""

    data: str | list[EpisodeSource]
    """Folder, glob or file of episode shards, a LeRobot folder, or a dataset on the Hub; or several with weights:
    [{path: here, weight: 0.7}, {path: there, weight: 0.3, camera: wrist}]. HDF5 and npz files need their frames per
    second, [{path: robomimic, fps: 20, camera: obs/agentview_image}]; examples/import_episodes.py describes their
    layouts and has more options. `camera: [front, wrist]` takes several cameras of each episode, as views of the
    model. Sources of several robots name their `embodiment`, 0, 1, ...; each has its own size of actions, statistics
    and projections."""
    encoder: str | None = None
    """Folder or Hub id. The baselines are "random" (random weights, sizes in `encoder_config`) and "pixels" (raw
    patches). A learned state that reads pixels takes "pixels", too."""
    from_model: str | None = None
    """Folder or Hub id of a world model to train further, in place of `encoder`. Its encoder, sizes and statistics
    stay. Sources of the embodiment after its last one add a new robot."""
    train_only: Literal["embodiment"] | None = None
    """With from_model: train the projections of the data's one embodiment alone; all other weights stay."""
    new_embodiment: dict[str, Any] = field(default_factory=dict)
    """`name` and `proprio_transition` of the robot that is added to from_model."""
    encoder_config: dict[str, Any] = field(default_factory=dict)
    """Fields of VJepa2EncoderConfig, for "random" and "pixels"."""
    crop_size: int | None = None
    """Height and width in pixels; null: the encoder's."""
    max_episodes: int | None = None
    """Episodes of each source; null: all."""
    limits: ReadLimits = field(default_factory=ReadLimits)
    """What rows may cost and reach: SECURITY.md."""
    validation_fraction: float = 0.07
    """Fraction of the episodes of each source held out, by a hash of their ids; at least one of two or more, see
    `split_episodes`."""
    cache_dir: str | None = None
    """Folder of the encoded episodes; null: `latents` beside output_dir, which the runs there share."""
    cache_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the cached latents."""

    # Length and speed
    max_steps: int = 3000
    batch_size: int = 64
    save_every: int = 1000
    eval_every: int | None = None
    """Steps between two measurements of rollouts on held-out episodes; null: only at the end."""
    horizons: list[int] = field(default_factory=lambda: [1, 2, 4, 5, 8, 10])
    """Model steps after which rollouts are measured."""

    # Model
    world_model: dict[str, Any] = field(default_factory=dict)
    """Fields of VJepa2WorldModelConfig; sizes, statistics and bounds of actions come from the data."""
    fit_state: bool = True
    """Fit the fixed map of the state once, on the training episodes: subtract the mean at every position and divide by
    one global standard deviation; for merged and projected states also fit the linear map."""
    state_of: str | None = None
    """Folder of a world model on the same encoder whose fitted map, and network of a learned state, are used instead,
    so that the latents of both models are equal: for a second time scale (docs/planning.md). Of a first stage alone,
    OUTPUT_DIR/state/final, the network is used, and the map is fitted here."""
    state: StateSettings = field(default_factory=StateSettings)
    """For world_model.state_type=learned: training of the network of the state, before that of the dynamics."""
    normalize_actions: bool = True
    """Standardize actions and proprio states by their statistics."""
    use_proprio: bool = False
    """Add a token for the proprio state."""

    # Objective
    frames_per_window: int = 4
    """Model steps in a window, plus one."""
    rollout_start: float = 0.0
    """Fraction of the steps that use the one-step loss alone, on windows no longer than the model's context needs.
    Then the model's own weights of teacher forcing and rollout apply."""

    # Optimizer: AdamW
    learning_rate: LearningRateSchedule = field(default_factory=LearningRateSchedule)
    weight_decay: float = 0.04

    # For world_model.distance_head=true
    distance: DistanceSettings = field(default_factory=DistanceSettings)
    """Training of the distance head, after that of the dynamics."""

    # For world_model.freeze_encoder=false
    encoder_learning_rate: float = 0.1
    """Learning rate of the encoder, as a fraction of the learning rate."""
    ema: MomentumSchedule = field(default_factory=lambda: MomentumSchedule(start=0.9999))
    """Momentum of the target encoder's moving average (the two-phase recipe: 0.9999)."""

    result_files = ("statistics.json", "rollout_error.json", "distance.json")
    schedule_settings = ("max_steps", "learning_rate", "rollout_start", "ema")

    def __post_init__(self):
        super().__post_init__()
        self.require_positive("max_episodes", "eval_every")
        self.require_fraction("rollout_start", "validation_fraction", "encoder_learning_rate")
        self._check_start()
        self._check_learned_state()
        if self.distance_head and not self.freeze_encoder:
            raise ValueError(
                "world_model.distance_head=true needs cached latents, and world_model.freeze_encoder=false has none: "
                "train the head of the finished model with examples/train_distance_head.py."
            )

    def _check_start(self) -> None:
        """Refuses settings that a model to train further decides itself."""
        if (self.encoder is None) == (self.from_model is None):
            raise ValueError("Give either encoder, for a new world model, or from_model, to train one further.")
        if self.from_model is None:
            for name in ("train_only", "new_embodiment"):
                if getattr(self, name):
                    raise ValueError(f"{name}={getattr(self, name)!r} needs from_model, the model that it is about.")
            return
        refused = {"encoder_config": self.encoder_config, "state_of": self.state_of, "crop_size": self.crop_size}
        refused["state"] = self.state != StateSettings()
        others = set(self.world_model) - set(TRAINING_FIELDS)
        refused |= {f"world_model.{name}": True for name in sorted(others)}
        for name, value in refused.items():
            if value:
                raise ValueError(f"{name} is set, but from_model={self.from_model} brings it: leave it out.")

    def _check_learned_state(self) -> None:
        """Refuses an encoder that the state does not read, and the other way round."""
        learned, reads = self.state_type == "learned", self.world_model.get("state_input", "pixels")
        if not learned and self.state != StateSettings():
            raise ValueError(f"state is for world_model.state_type=learned, not {self.state_type}: leave it out.")
        if self.state_of is not None and self.state != StateSettings():
            raise ValueError(f"state is set, but state_of={self.state_of} brings the network: leave it out.")
        if learned and self.from_model is None and (self.encoder == "pixels") != (reads == "pixels"):
            advice = "a state that reads pixels needs encoder=pixels, one that reads tokens an encoder"
            raise ValueError(f"encoder={self.encoder} with world_model.state_input={reads}: {advice}.")
        if self.state.train_encoder and reads == "pixels":
            raise ValueError("state.train_encoder=true needs world_model.state_input=tokens: pixels have no encoder.")

    @property
    def state_type(self) -> str:
        """What a frame becomes, as VJepa2WorldModelConfig has it."""
        return self.world_model.get("state_type", "pixels" if self.encoder == "pixels" else "tokens")

    @property
    def learns_state(self) -> bool:
        """Whether the run has a first stage."""
        own = stage_folder(self).parent == Path(self.output_dir)
        return self.state_type == "learned" and self.from_model is None and self.state_of is None and own

    @property
    def sources(self) -> list[EpisodeSource]:
        """The datasets in `data`."""
        return episode_sources(self.data)

    @property
    def freeze_encoder(self) -> bool:
        """Whether the encoder keeps its weights."""
        return self.world_model.get("freeze_encoder", True)

    @property
    def distance_head(self) -> bool:
        """Whether a distance head is trained after the dynamics."""
        return self.world_model.get("distance_head", False)

    @property
    def frame_skip(self) -> int:
        """Frames of a model step."""
        return self.world_model.get("frame_skip", 1)

    def scheduled(self, step: int) -> dict[str, Any]:
        """Learning rate, whether the loss is of one step alone, momentum of the target encoder."""
        values = {**super().scheduled(step), "one_step": step <= self.rollout_start * self.max_steps}
        return values if self.freeze_encoder else {**values, "ema_momentum": self.ema.at(step, self.max_steps)}

    def frames_at(self, step: int, context_frames: int) -> int:
        """Frames of a step's windows; while the loss is of one step alone, no more than the model's context needs."""
        one_step = self.scheduled(step)["one_step"]
        return min(self.frames_per_window, context_frames + 1) if one_step else self.frames_per_window
