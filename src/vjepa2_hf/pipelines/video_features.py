"""Features of whole videos, as a transformers pipeline.

Shapes: (T', H', W') grid, N = T'·H'·W' tokens, D width.
"""

from typing import Any

import numpy as np
import torch

from ..modeling_encoder import VJepa2Encoder
from ..specs import check_count, check_flag, refuse
from ..video_processing_vjepa2 import VJepa2VideoProcessor
from .base import VideoPipeline


class VJepa2FeatureExtractor(VideoPipeline):
    """Extracts features from videos of any length, chunk by chunk (see [`VJepa2Encoder.encode_long`]).

    Args:
        model: a [`VJepa2Encoder`], or one of our models that contains one (of a masked-latent model its target
            encoder).
        video_processor: a [`VJepa2VideoProcessor`]; needed for all inputs but normalized tensors.
        kwargs: defaults of calls (see `__call__`), and of `transformers.Pipeline`.

    Example:
        >>> extractor = pipeline("video-feature-extraction", model="runs/demo/pretrain/final")
        >>> extractor("clip.mp4")  # (D,)
        >>> extractor(["a.mp4", "b.mp4"], pool="frame")  # [(T', D), (T', D)]
    """

    def __init__(
        self,
        model: Any,
        video_processor: VJepa2VideoProcessor | None = None,
        task="video-feature-extraction",
        **kwargs,
    ):
        super().__init__(find_encoder(model), video_processor, task=task, **kwargs)

    def __call__(self, videos: Any, **kwargs) -> np.ndarray | list[np.ndarray]:
        """Extracts the features of one or several videos.

        Args:
            videos: a video (path, URL, bytes, uint8 array (T, H, W, 3) or tensor (T, 3, H, W), normalized float tensor
                (T, C, H, W)), or a list, generator or dataset of videos. `batch_size` is ignored.
            pool: "clip" (default): the mean over all tokens (D,); "frame": the mean over space (T', D); "none": all
                tokens (N, D).
            chunk_frames: frames encoded together; default: the clip length of the model's config.
            overlap, stride: see [`VJepa2Encoder.encode_long`], also for errors.
            return_tensors: return torch tensors instead of float32 arrays.
        """
        return super().__call__(videos, **kwargs)

    def _sanitize_parameters(
        self, pool=None, chunk_frames=None, overlap=None, stride=None, return_tensors=None, **kwargs
    ):
        super()._sanitize_parameters(**kwargs)
        if not (pool is None or isinstance(pool, str) and pool in ("clip", "frame", "none")):
            refuse("pool", pool, "'clip', 'frame' or 'none'")
        for name, value in {"chunk_frames": chunk_frames, "stride": stride}.items():
            if value is not None:
                check_count(name, value)
        if overlap is not None:
            check_count("overlap", overlap, lowest=0)
        if return_tensors is not None:
            check_flag("return_tensors", return_tensors)
        reading = {} if stride is None else {"stride": stride}
        options = {"pool": pool, "chunk_frames": chunk_frames, "overlap": overlap}
        forward = {name: value for name, value in options.items() if value is not None}
        return reading, forward, {} if return_tensors is None else {"return_tensors": return_tensors}

    def preprocess(self, video: Any, stride: int = 1) -> dict[str, Any]:
        """First step of the pipeline: opens the video."""
        return {"source": self._source(video, stride)}

    def _forward(
        self, inputs: dict[str, Any], pool: str = "clip", chunk_frames: int | None = None, overlap: int = 0
    ) -> dict[str, torch.Tensor]:
        features = self.model.encode_long(
            inputs["source"],
            chunk_frames=chunk_frames or default_chunk_frames(self.model),
            overlap=overlap,
            pool=None if pool == "none" else "frame",
        )
        return {"features": features.mean(dim=1) if pool == "clip" else features}

    def postprocess(self, outputs: dict[str, torch.Tensor], return_tensors: bool = False):
        """Last step of the pipeline: the features that a call returns."""
        features = outputs["features"][0].float()
        return features if return_tensors else features.numpy()


def find_encoder(model: Any) -> VJepa2Encoder:
    """The encoder of a model of ours; for a masked-latent model the target encoder."""
    if isinstance(model, VJepa2Encoder):
        return model
    for name in ("target_encoder", "encoder"):
        if isinstance(getattr(model, name, None), VJepa2Encoder):
            return getattr(model, name)
    raise ValueError(
        f"model is a {type(model).__name__}; expected a VJepa2Encoder or a model of ours that contains one (a "
        "checkpoint of transformers' VJEPA2Model loads with VJepa2Encoder.from_pretrained: give that as the model, "
        "with a VJepa2VideoProcessor as video_processor)."
    )


def default_chunk_frames(encoder: VJepa2Encoder) -> int:
    """The clip length of the encoder's config, in whole tubelets."""
    tubelet = encoder.config.tubelet_size
    return max(encoder.config.frames_per_clip // tubelet, 1) * tubelet
