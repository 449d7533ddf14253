"""Base of the pipelines: a model with its video processor, loaded and saved together."""

from pathlib import Path
from typing import Any

import torch
from transformers import Pipeline

from ..data.frame_source import FrameSource
from ..modeling_base import check_dtype, warn_if_bfloat16_is_slow
from ..specs import refuse
from ..video_processing_vjepa2 import VJepa2VideoProcessor


UPLOAD_ARGUMENTS = ("push_to_hub", "repo_id", "token", "private", "commit_message")


class VideoPipeline(Pipeline):
    """A pipeline of a model, in evaluation mode, and a [`VJepa2VideoProcessor`], which is needed for all inputs but
    normalized tensors. Each video goes through the model by itself."""

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False
    _load_video_processor = True

    def __init__(self, model: Any, video_processor: VJepa2VideoProcessor | None, dtype: Any = None, **kwargs):
        check_dtype(dtype)
        if dtype is not None and dtype != "auto":  # "auto": as it is
            model = model.to(getattr(torch, str(dtype).removeprefix("torch.")))
        super().__init__(model=model.eval(), video_processor=video_processor, **kwargs)
        warn_if_bfloat16_is_slow(self.device, self.model.dtype)

    def __call__(self, videos: Any, **kwargs) -> Any:
        if videos is None or isinstance(videos, (list, tuple)) and not videos:
            refuse("videos", videos, "a video, or a list of at least one")
        return super().__call__(videos, **{**kwargs, "batch_size": 1})

    def save_pretrained(self, save_directory: str | Path, **kwargs) -> None:
        """Saves the model and the video processor; `pipeline(task, model=save_directory)` loads them.

        Args:
            save_directory: folder.
            kwargs: of the model's `save_pretrained`, such as `push_to_hub` and `repo_id`.
        """
        self.model.save_pretrained(str(save_directory), **kwargs)
        if self.video_processor is not None:
            upload = {name: kwargs[name] for name in UPLOAD_ARGUMENTS if name in kwargs}
            self.video_processor.save_pretrained(str(save_directory), **upload)

    def _upload_modified_files(self, *args, **kwargs):
        """The last step of `push_to_hub`: the model does it, so that its card replaces the one of transformers."""
        return self.model._upload_modified_files(*args, **kwargs)

    def _sanitize_parameters(self, **kwargs) -> tuple[dict, dict, dict]:
        if kwargs:
            raise ValueError(f"a call of {self.task} has no setting {', '.join(map(repr, kwargs))}.")
        return {}, {}, {}

    def _source(self, video: Any, stride: int) -> FrameSource:
        return FrameSource(video, fallback=self.video_processor, stride=stride)
