"""Models that several threads share, such as the sessions of an app: each is loaded once and used by one at a time."""

import threading
from functools import cached_property

from transformers import AutoConfig

from ..modeling_encoder import VJepa2Encoder
from ..modeling_masked_latent import VJepa2ForMaskedLatentPrediction
from ..modeling_world_model import VJepa2WorldModel
from ..pipelines.latent_planning import VJepa2Planner
from .run_parts import RunParts


class SharedModels:
    """The models of a run.

    Args:
        parts: where they are.
        device: of the world models; `None`: the first accelerator, or the CPU.

    Attributes:
        lock: is held while a model computes: for one plan, one step or one clip, never for a whole task, so that
            sessions take turns. A thread may take it again.
        planner: as saved with the world model, or `None` if `parts.model` is no world model. Nobody changes it: a
            session makes its own from `planner.model` and `planner.video_processor`.
        random_planner: the same of `parts.random_model`.
    """

    def __init__(self, parts: RunParts, device: str | None = None):
        self.parts, self.lock = parts, threading.RLock()
        is_world_model = _model_type(parts.model) == VJepa2WorldModel.config_class.model_type
        self.planner = VJepa2Planner.from_pretrained(parts.model, device=device) if is_world_model else None
        self.random_planner = None
        if is_world_model and parts.random_model is not None:
            self.random_planner = VJepa2Planner.from_pretrained(parts.random_model, device=device)

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


def _model_type(path: str) -> str:
    return AutoConfig.from_pretrained(path).model_type
