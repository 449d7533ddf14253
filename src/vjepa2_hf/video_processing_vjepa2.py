"""The video processor, and the augmentation of training clips.

Legend: B batch, T frames, C channels, H W pixels.
"""

import functools
import math
import os
from typing import Any

import numpy as np
import PIL.Image
import torch
from torchvision.transforms.v2 import functional as tvf
from transformers.image_processing_utils import get_size_dict
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.models.vjepa2.video_processing_vjepa2 import VJEPA2VideoProcessor
from transformers.processing_utils import VideosKwargs
from transformers.video_utils import VideoMetadata

from .configuration_vjepa2 import check, refuse_missing_folder
from .specs import (
    check_count,
    check_flag,
    check_fraction,
    check_generator,
    check_number,
    check_tensor,
    is_integer,
    is_number,
    refuse,
)


MAX_PIXELS = 2**25  # of a processed frame
_SIZE_KEYS = {"height", "width", "shortest_edge", "longest_edge", "max_height", "max_width"}


class VJepa2VideosKwargs(VideosKwargs, total=False):
    """Options of [`VJepa2VideoProcessor`] that transformers does not have."""

    do_random_resized_crop: bool | None
    random_crop_scale: list[float | int] | tuple[float | int, ...] | None
    random_crop_ratio: list[float | int] | tuple[float | int, ...] | None
    random_flip_probability: float | int | None


class VJepa2VideoProcessor(VJEPA2VideoProcessor):
    """Resizes, center-crops, rescales and normalizes videos, bit-equal to transformers' `VJEPA2VideoProcessor`.

    Differences: `size` and `crop_size` are used as given (transformers always replaces `size` by 256/224 of the crop,
    which is only the default here). Files are decoded with PyAV. Floats in 0-1 are accepted. Invalid videos are
    refused. One mode applies the published training augmentation.

    ```python
    processor = VJepa2VideoProcessor(size=64, crop_size=64)       # exactly 64 x 64, nothing cropped
    processor("clip.mp4")["pixel_values_videos"]                  # (1, T, 3, 64, 64) float32
    processor = VJepa2VideoProcessor(crop_size=256, do_random_resized_crop=True)
    processor(clips, generator=torch.Generator().manual_seed(0))  # a different crop for every clip
    ```

    A video is a path, URL, bytes, PIL images, or an array or tensor (T, H, W, 3) or (T, 3, H, W): uint8, other
    integers in 0-255, or floats (0-1; values above 1 are read as 0-255, as in transformers). An image is a video of
    one frame; a list of images is one video; a list of videos is a batch. The result is one tensor (B, T, C, H, W), or
    a list if the videos' shapes differ and `return_tensors` is not set.

    Args:
        kwargs: transformers' options (`size`, `crop_size`, `do_resize`, `do_center_crop`, `resample`, `do_rescale`,
            `do_normalize`, `image_mean`, `image_std`, `do_sample_frames`, …), and those of the training augmentation.
            A call can override all of them.

    Training augmentation:
        do_random_resized_crop (`False`): sample a crop and a flip ([`RandomResizedClip`]) and resize to `crop_size`,
            instead of resize and center crop; all frames of a clip are treated alike.
        random_crop_scale ((0.3, 1.0)), random_crop_ratio ((0.75, 1.35)), random_flip_probability (0.5): as published.

    Raises:
        ValueError: no frame, a wrong number of channels, pixels or settings that are not finite or out of range.
        FileNotFoundError: a path that does not exist.
    """

    valid_kwargs = VJepa2VideosKwargs
    do_random_resized_crop = False
    random_crop_scale = (0.3, 1.0)
    random_crop_ratio = (0.75, 1.35)
    random_flip_probability = 0.5

    def __init__(self, **kwargs):
        _check_options(kwargs)
        kwargs.setdefault("size", _default_size(kwargs.get("crop_size", type(self).crop_size)))
        clip = self._random_resized_clip(kwargs)
        kwargs.update(random_crop_scale=clip.scale, random_crop_ratio=clip.ratio)  # tuples, where a file has lists
        # VJEPA2VideoProcessor.__init__ only overwrites `size`, so it is skipped
        super(VJEPA2VideoProcessor, self).__init__(**kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs):
        """Loads settings of ours or of transformers from a folder, file or Hub id, with `size` as the file has it.

        `kwargs` are settings to replace; `crop_size` alone also changes `size` if that was the default. A local folder
        that does not exist is a `FileNotFoundError`.
        """
        refuse_missing_folder(pretrained_model_name_or_path)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_dict(cls, video_processor_dict: dict[str, Any], **kwargs):
        """As transformers' method; `crop_size` alone also changes `size` if that was the default."""
        size, crop_size = (video_processor_dict.get(name) for name in ("size", "crop_size"))
        if kwargs.get("crop_size") and not kwargs.get("size") and crop_size and size == _default_size(crop_size):
            video_processor_dict = {**video_processor_dict, "size": None}
        return super().from_dict(video_processor_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, for `preprocessor_config.json`."""
        settings = super().to_dict()
        if self._auto_class is None:
            settings.pop("auto_map", None)  # of a loaded file: names code that is not saved with it
        return settings

    def preprocess(self, videos: Any, generator: torch.Generator | None = None, **kwargs):
        """One video or a batch, see the class -> `{"pixel_values_videos": (B, T, C, H, W)}`.

        `generator` (on the CPU) is of the random crops; `None` is torch's global one. `kwargs` are settings for this
        call, and `return_tensors`.
        """
        _check_options(kwargs)
        check_generator("generator", generator)
        layout = kwargs.pop("input_data_format", None)
        layout = getattr(layout, "value", layout)
        sample = kwargs.get("do_sample_frames", self.do_sample_frames)
        sample_options = {name: kwargs.get(name) for name in ("num_frames", "fps")} if sample else None
        metadata, tensors = [], []
        for video in _split_batch(videos):
            frames, video_metadata = self._load(video, layout, sample_options)
            tensors.append(_to_pixel_range(frames, kwargs.get("do_rescale", self.do_rescale)))
            metadata.append(video_metadata)
        check(tensors, "The batch of videos is empty; give at least one video.")
        if all(video_metadata is not None for video_metadata in metadata):
            kwargs.setdefault("video_metadata", metadata)
            kwargs["do_sample_frames"] = False  # only the sampled frames were decoded
        if _setting(kwargs, self, "do_random_resized_crop"):
            clip = self._random_resized_clip(kwargs)
            tensors = [clip.crop_and_flip(frames, generator) for frames in tensors]
            size = {"height": clip.crop_size[0], "width": clip.crop_size[1]}
            kwargs.update(do_resize=True, size=size, do_center_crop=False)
        wants_type = "return_tensors" in kwargs
        batch = super().preprocess(tensors, input_data_format="channels_first", **kwargs)
        clips = batch["pixel_values_videos"]
        if not wants_type and len({clip.shape for clip in clips}) == 1:
            batch["pixel_values_videos"] = torch.stack(list(clips))
        return batch

    def normalize_cropped(self, frames: torch.Tensor) -> torch.Tensor:
        """Rescales and normalizes cropped uint8 frames (..., C, H, W), bit-equal to `preprocess`."""
        return self.rescale_and_normalize(
            frames, self.do_rescale, self.rescale_factor, self.do_normalize, self.image_mean, self.image_std
        )

    def to_images(self, pixel_values_videos: torch.Tensor) -> np.ndarray:
        """Inverts normalization: pixels (..., C, H, W) -> viewable images, uint8 (..., H, W, C)."""
        check_tensor("pixel_values_videos", pixel_values_videos, floating=False)
        if pixel_values_videos.ndim < 3 or pixel_values_videos.shape[-3] != 3:
            refuse("pixel_values_videos", pixel_values_videos, "processed pixels (..., 3, H, W)")
        pixels = pixel_values_videos.detach().float().cpu()
        if self.do_normalize:
            mean, std = (torch.tensor(values)[:, None, None] for values in (self.image_mean, self.image_std))
            pixels = pixels * std + mean
        if self.do_rescale:
            pixels = pixels / self.rescale_factor
        return pixels.round().clamp(0, 255).byte().movedim(-3, -1).numpy()

    def _random_resized_clip(self, kwargs: dict[str, Any]) -> "RandomResizedClip":
        """The augmentation with the options of a call, completed by those of the processor."""
        options = ("crop_size", "random_crop_scale", "random_crop_ratio", "random_flip_probability")
        crop_size, *random = (_setting(kwargs, self, name) for name in options)
        size = get_size_dict(crop_size, param_name="crop_size")
        height = size.get("height", size.get("shortest_edge"))
        return RandomResizedClip((height, size.get("width", height)), *random)

    def _load(self, video: Any, layout: str | None, sample_options: dict | None):
        """One video as a tensor (T, 3, H, W), and its metadata if it is a file."""
        if not _is_encoded(video):
            return _to_frames(video, layout), None
        image = _open_image(video)
        if image is not None:
            return _to_frames(image, None), VideoMetadata(total_num_frames=1, fps=1.0, frames_indices=[0])
        from .video_io import VideoReader  # PyAV only where a file is decoded

        with VideoReader(video) as reader:
            metadata = VideoMetadata(
                total_num_frames=len(reader), fps=reader.fps, duration=reader.duration, video_backend="pyav"
            )
            indices = np.arange(len(reader))
            if sample_options is not None:
                indices = np.asarray(self.sample_frames(metadata=metadata, **sample_options))
            metadata.frames_indices = indices
            return torch.from_numpy(reader.frames(indices)).permute(0, 3, 1, 2).contiguous(), metadata


def _check_options(options: dict[str, Any]) -> None:
    """Refuses settings that give no image or numbers that are not finite; `None` is the processor's own."""
    for name in OPTION_CHECKS.keys() & options.keys():
        value = options.pop(name)
        if value is not None:
            options[name] = OPTION_CHECKS[name](name, value)


def check_size(name: str, size: Any) -> Any:
    """A size as it is stored; refuses sizes in pixels that are not positive, or larger than MAX_PIXELS in all."""
    named = dict(size) if hasattr(size, "keys") else {}  # transformers' SizeDict, too
    sides = [side for side in named.values() if side is not None] if named else size
    sides = [sides] if is_integer(sides) else sides
    fits = named.keys() <= _SIZE_KEYS and isinstance(sides, (list, tuple)) and 0 < len(sides) <= 2
    if not fits or not all(is_integer(side) and side > 0 for side in sides) or sides[0] * sides[-1] > MAX_PIXELS:
        expected = f"or a dict of {', '.join(sorted(_SIZE_KEYS))}; at most {MAX_PIXELS} pixels in all"
        refuse(name, size, f"a positive number of pixels, height and width, {expected}")
    return int(size) if is_integer(size) else size


def _three_numbers(name: str, values: Any) -> list[float]:
    """A mean or standard deviation for each of three channels."""
    values = values.tolist() if isinstance(values, (np.ndarray, torch.Tensor)) else values
    values = values if isinstance(values, (list, tuple)) else [values] * 3
    if len(values) != 3:
        refuse(name, values, "3 numbers, one per channel")
    return [check_number(f"a number of {name}", value, above=0 if name == "image_std" else None) for value in values]


def _check_resample(name: str, value: Any) -> PIL.Image.Resampling:
    if not is_integer(value) or value not in list(PIL.Image.Resampling):
        refuse(name, value, ", ".join(f"{each.value} ({each.name.lower()})" for each in PIL.Image.Resampling))
    return PIL.Image.Resampling(int(value))


OPTION_CHECKS = {
    **dict.fromkeys(("size", "crop_size"), check_size),
    **dict.fromkeys(("image_mean", "image_std"), _three_numbers),
    **dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize"), check_flag),
    **dict.fromkeys(("rescale_factor", "fps"), functools.partial(check_number, above=0)),
    **{"do_random_resized_crop": check_flag, "resample": _check_resample, "num_frames": check_count},
}


def _setting(options: dict[str, Any], processor: VJepa2VideoProcessor, name: str) -> Any:
    value = options.get(name)
    return getattr(processor, name) if value is None else value


def _default_size(crop_size: Any) -> dict[str, int]:
    """The default size of a crop: the published ratio, 256 / 224."""
    crop_size = get_size_dict(crop_size, param_name="crop_size")
    return {"shortest_edge": int(crop_size.get("height", crop_size.get("shortest_edge")) * 256 / 224)}


class RandomResizedClip:
    """Random resized crop, horizontal flip and normalization of a training clip, equal for all its frames.

    The crop is torchvision's `RandomResizedCrop` (area `scale`, aspect log-uniform in `ratio`, ten tries), sampled
    with a given generator, so that a resumed run sees the same crops. The defaults are the published values.

    Args:
        crop_size: height and width of the result, or one number for both, in pixels.
        scale: range of the area as a fraction of the frame; (1, 1) keeps the whole frame.
        ratio: range of the crop's width / height.
        flip_probability: of the horizontal flip.
    """

    def __init__(
        self,
        crop_size: int | tuple[int, int],
        scale: tuple[float, float] = (0.3, 1.0),
        ratio: tuple[float, float] = (0.75, 1.35),
        flip_probability: float = 0.5,
    ):
        crop_size = check_size("crop_size", crop_size)
        self.crop_size = (crop_size, crop_size) if is_integer(crop_size) else tuple(crop_size)
        for name, value in (("scale", scale), ("ratio", ratio)):
            are_two = isinstance(value, (list, tuple)) and len(value) == 2 and all(map(is_number, value))
            check(are_two, f"{name} is {value!r}, but it must be two numbers, low and high.")
        is_range = 0 < scale[0] <= scale[1] <= 1
        check(is_range, f"scale is {scale}, but it must be two fractions of the area, 0 < low <= high <= 1.")
        check(
            0 < ratio[0] <= ratio[1] < math.inf,
            f"ratio is {ratio}, but it must be two aspect ratios, 0 < low <= high.",
        )
        flip_probability = check_fraction("flip_probability", flip_probability)
        self.scale, self.ratio, self.flip_probability = tuple(scale), tuple(ratio), flip_probability

    def __call__(self, frames: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """uint8 (T, C, H, W) -> float32 (T, C, *crop_size), normalized."""
        check_tensor("frames", frames, "(T, C, H, W)", floating=False)
        check_generator("generator", generator)
        frames = self.crop_and_flip(frames, generator)
        if frames.shape[-2:] != self.crop_size:
            frames = tvf.resize(frames, list(self.crop_size), antialias=True)
        # (x / 255 - mean) / std as one multiplication and one addition per pixel
        mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
        return frames.float().mul_(1 / (255 * std)).sub_(mean / std)

    def crop_and_flip(self, frames: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Frames (T, C, H, W) -> (T, C, height, width) of the sampled crop, before resizing."""
        top, left, height, width = self.sample_crop(*frames.shape[-2:], generator)
        flip = torch.rand((), generator=generator).item() < self.flip_probability
        frames = frames[..., top : top + height, left : left + width]
        return frames.flip(-1) if flip else frames

    def sample_crop(self, height: int, width: int, generator: torch.Generator | None) -> tuple[int, int, int, int]:
        """Top, left, height and width of the crop, in pixels."""
        if self.scale == (1.0, 1.0) and self.ratio[0] <= width / height <= self.ratio[1]:
            return 0, 0, height, width
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for scale, aspect, vertical, horizontal in torch.rand(10, 4, generator=generator).tolist():
            area = height * width * (self.scale[0] + scale * (self.scale[1] - self.scale[0]))
            aspect = math.exp(low + aspect * (high - low))
            crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                top = int(vertical * (height - crop_height + 1))
                return top, int(horizontal * (width - crop_width + 1)), crop_height, crop_width
        # No try fits a very long frame: the largest centered crop of an allowed aspect
        aspect = min(max(width / height, self.ratio[0]), self.ratio[1])
        crop_width = max(1, min(width, round(height * aspect)))
        crop_height = max(1, min(height, round(width / aspect)))
        return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def _is_encoded(video: Any) -> bool:
    return isinstance(video, (str, os.PathLike, bytes, bytearray, dict))


def _dimensions(value: Any) -> int | None:
    """Number of dimensions of an image, array or tensor; None for anything else."""
    if isinstance(value, PIL.Image.Image):
        return 3
    return value.ndim if isinstance(value, (np.ndarray, torch.Tensor)) else None


def _split_batch(videos: Any) -> list:
    """Splits an input (a video, a batch of videos, or the frames of a video) into videos."""
    dimensions = _dimensions(videos)
    if _is_encoded(videos) or dimensions in (2, 3, 4):
        return [videos]
    if dimensions is not None:
        expected = "an image has 3 dimensions, a video 4 and a batch 5"
        check(dimensions == 5, f"The array has shape {tuple(videos.shape)}, but {expected}.")
        return list(videos)
    expected = "give a path, URL, bytes, PIL image, array, tensor, or a list"
    check(isinstance(videos, (list, tuple)), f"The video is a {type(videos).__name__}; {expected}.")
    if videos and all(_dimensions(item) in (2, 3) for item in videos):
        return [videos]  # the frames of one video
    batch = []
    for item in videos:
        if isinstance(item, (list, tuple)) and (not item or all(_is_encoded(frame) for frame in item)):
            batch.append(item)  # the frames of one video as image files
        else:
            batch.extend(_split_batch(item))
    return batch


def _open_image(source: Any) -> PIL.Image.Image | None:
    """The image in a file, URL or bytes; None if it is not a still image."""
    from .video_io import IMAGE_EXTENSIONS, resolve_source  # imports PyAV

    path = source.get("path") if isinstance(source, dict) and source.get("bytes") is None else source
    if isinstance(path, (str, os.PathLike)) and not os.fspath(path).split("?")[0].lower().endswith(IMAGE_EXTENSIONS):
        return None
    source, name = resolve_source(source, "image")
    try:
        image = PIL.Image.open(source)
        if getattr(image, "n_frames", 1) > 1:
            return None  # an animation is a video
        return image.convert("RGB")
    except (PIL.UnidentifiedImageError, TypeError):
        return None
    except OSError as error:
        raise ValueError(f"{name} cannot be decoded as an image ({error}).") from error


def _to_frames(video: Any, layout: str | None) -> torch.Tensor:
    """An array, tensor, image or list of frames as a tensor (T, 3, H, W) of its own dtype."""
    if isinstance(video, (list, tuple)):
        check(video, "The video is empty: it has no frame; give at least one.")
        frames = [_to_frames(_open_image(frame) if _is_encoded(frame) else frame, layout) for frame in video]
        sizes = sorted({tuple(frame.shape[2:]) for frame in frames})
        check(len(sizes) == 1, f"The frames of the video have different sizes {sizes}; give frames of one size.")
        return torch.cat(frames)
    if isinstance(video, PIL.Image.Image):
        # Palettes, gray and alpha become RGB, as PIL defines it
        video, layout = np.asarray(video.convert("RGB")), "channels_last"
    kind = type(video).__name__
    check(_dimensions(video) is not None, f"A frame is a {kind}; give images, arrays or tensors.")
    prefer_last = isinstance(video, np.ndarray)
    if prefer_last:  # torch cannot share PIL's read-only arrays
        video = video if video.flags.writeable and video.flags.c_contiguous else video.copy()
        frames = torch.from_numpy(video)
    else:
        frames = video.detach()
    if frames.ndim == 3:
        frames = frames[None]
    shape = tuple(video.shape)
    check(frames.ndim == 4, f"A frame has shape {shape}, but it needs height, width and 3 channels.")
    check(frames.numel() > 0, f"The video is empty: its shape is {shape}; give at least one frame.")
    if layout is None:
        last, first = frames.shape[3] == 3, frames.shape[1] == 3
        layout = "channels_last" if last and (prefer_last or not first) else "channels_first"
    if layout in ("channels_last", "last"):
        frames = frames.permute(0, 3, 1, 2)
    has_colors = frames.shape[1] == 3
    check(has_colors, f"The video has shape {shape}, but no axis holds the 3 channels of RGB; convert it.")
    return frames.contiguous()


def _to_pixel_range(frames: torch.Tensor, do_rescale: bool) -> torch.Tensor:
    """Checks the pixels, and scales floats in 0-1 to 0-255 if rescaling follows.

    The dtype is kept, because transformers resizes each dtype differently.
    """
    if frames.dtype == torch.uint8:
        return frames
    is_numeric = frames.dtype != torch.bool and not frames.is_complex()
    check(is_numeric, f"The video's pixels are {frames.dtype}, but uint8 or floats are needed.")
    if frames.dtype in (torch.uint16, torch.uint32, torch.uint64):
        frames = frames.long()  # torch has no minimum of these
    low, high = (bound.item() for bound in torch.aminmax(frames))
    is_finite = math.isfinite(low) and math.isfinite(high)
    check(is_finite, "The video has pixels that are not finite (NaN or infinite); give finite values.")
    if not do_rescale:
        return frames
    in_range = low >= 0 and high <= 255
    check(in_range, f"The video's pixels lie in {low:g} to {high:g}; give 0-255 or 0-1, before normalization.")
    return frames * 255 if frames.is_floating_point() and high <= 1 else frames
