"""Models that several threads share, such as the sessions of an app: each is loaded once and used by one at a time."""

import threading
from functools import cached_property
from typing import Any

from transformers import AutoConfig

from ..modeling_decoder import VJepa2PixelDecoder
from ..modeling_encoder import VJepa2Encoder
from ..modeling_masked_latent import VJepa2ForMaskedLatentPrediction
from ..modeling_state import view_names
from ..modeling_world_model import VJepa2WorldModel
from ..pipelines.latent_planning import VJepa2Planner
from ..visualization.imagination import Imagery, check_decoder
from .closed_loop import Plan, policy_plan
from .goal_policies import PolicyPlan
from .known_frames import make_imagery, read_frames, sample_frames
from .live_planning import PlanSettings, WatchedPlanner
from .plane import PlaneEnv
from .policies import DATA_POLICY
from .run_parts import RunParts
from .tasks import make_plain


UNIFORM, DATA, CLONING, RANDOM = "uniform random", "data policy", "behavior cloning", "model on a random encoder"


class SharedModels:
    """The models of a run, and its environment if it is one of the package's.

    Args:
        parts: where they are.
        device: of the world models; `None`: the first accelerator, or the CPU.

    Attributes:
        lock: is held while a model computes: for one plan, one step or one clip, never for a whole task, so that
            sessions take turns. A thread may take it again.
        refusal: why the sessions cannot plan with `parts.model`, and what to do; `None`: they can.
        planner: as saved with the world model, or `None` with a refusal. Nobody changes it: a session makes its own
            from `planner.model` and `planner.video_processor`.
        env: to sample and render states with; `None` if the environment is unknown or another package's.
        baselines: names of what can run a task beside the planner.
    """

    def __init__(self, parts: RunParts, device: str | None = None):
        self.parts, self.lock, self.device = parts, threading.RLock(), device
        self.refusal = _refusal(AutoConfig.from_pretrained(parts.model))
        self.planner = None if self.refusal else VJepa2Planner.from_pretrained(parts.model, device=device)
        self.env: PlaneEnv | None = None
        if self.planner is not None and parts.env in DATA_POLICY:
            self.env = make_plain(parts.env, **parts.env_kwargs)
            config = self.planner.model.config
            if config.action_dim != 2 * config.actions_per_step:
                raise ValueError(
                    f"The environment {parts.env} has actions of 2 numbers, but those of the model have "
                    f"{config.action_dim // config.actions_per_step}: name the environment of this model with --env."
                )
        offered = {UNIFORM: True, DATA: True, CLONING: parts.cloning, RANDOM: parts.random_model}
        self.baselines = [name for name, there in offered.items() if there] if self.env is not None else []

    @cached_property
    def random_planner(self) -> VJepa2Planner:
        """The planner of `parts.random_model`; take the lock."""
        return VJepa2Planner.from_pretrained(self.parts.random_model, device=self.device)

    @cached_property
    def cloning(self) -> PolicyPlan:
        """The policy of `parts.cloning` on the planner's model; take the lock."""
        return PolicyPlan(self.parts.cloning, planner=self.planner)

    @cached_property
    def imagery(self) -> Imagery | None:
        """Shows what the planner imagines: known are random states of the environment, else the recorded episodes;
        `None` without either or a decoder. Take the lock."""
        path, env, episodes = self.parts.decoder, self.env, self.parts.episodes
        decoder = None if path is None else VJepa2PixelDecoder.from_pretrained(path).to(self.planner.device).eval()
        if env is not None:
            return make_imagery(self.planner, *sample_frames(env), env.render_state, decoder)
        if episodes is not None:
            return make_imagery(self.planner, *read_frames(episodes), decoder=decoder)
        if decoder is None:
            return None
        check_decoder(decoder, self.planner.model)
        return Imagery(decoder=decoder)

    def prepare(self) -> None:
        """Computes what the first plan would wait for."""
        if self.planner is not None:
            with self.lock:
                _ = self.imagery

    def baseline(self, name: str, settings: PlanSettings) -> Plan:
        """One of `baselines` as a `plan` for `closed_loop`."""
        if name in (UNIFORM, DATA):
            return policy_plan("uniform" if name == UNIFORM else DATA_POLICY[self.parts.env], settings.seed)
        with self.lock:
            if name == RANDOM:
                return WatchedPlanner(self.random_planner, settings, self.lock)
            policy = self.cloning

        def act(tasks: Any) -> Any:
            with self.lock:
                return policy(tasks)

        return act

    @property
    def video_path(self) -> str:
        """The model that features of videos are computed with."""
        return self.parts.video_model or self.parts.model

    @cached_property
    def encoder(self) -> VJepa2Encoder:
        """The encoder of `video_path`; take the lock."""
        return VJepa2Encoder.from_pretrained(self.video_path).eval()

    @cached_property
    def masked_model(self) -> VJepa2ForMaskedLatentPrediction | None:
        """The masked-latent model of `video_path`, if it is one; take the lock."""
        if _model_type(self.video_path) != VJepa2ForMaskedLatentPrediction.config_class.model_type:
            return None
        return VJepa2ForMaskedLatentPrediction.from_pretrained(self.video_path).eval()


def _refusal(config: Any) -> str | None:
    """Why a session, which shows one image of a start and one of a goal, cannot plan with a model of this config."""
    if config.model_type != VJepa2WorldModel.config_class.model_type:
        return "This model predicts videos without actions, so it does not plan. Start the app with a world model."
    if config.num_views > 1:
        found = f"This model sees {config.num_views} cameras ({', '.join(view_names(config))}), but the app shows one"
        instead = "VJepa2Planner takes an image of each"
        return f"{found}. Start the app with a model of one camera, or plan in Python: {instead}."
    if config.num_embodiments > 1:
        found = (
            f"This model has the actions of {config.num_embodiments} robots, and the app does not know which one acts"
        )
        instead = "VJepa2Planner takes its name or index as embodiment"
        return f"{found}. Start the app with a model of one robot, or plan in Python: {instead}."
    return None


def _model_type(path: str) -> str:
    return AutoConfig.from_pretrained(path).model_type
