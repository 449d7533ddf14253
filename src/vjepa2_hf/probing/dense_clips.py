"""Clips and images with a label image for every frame, and their features on the grid of tokens.

    clips (images with masks, or episodes with rendered labels) -> fill_dense_cache -> a cache: one "episode" per clip

Shapes: B clips, T frames, H W pixels, (T', H', W') grid of tokens, D width.
"""

import dataclasses
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import torch
from tqdm.auto import tqdm

from ..data.feature_cache import CacheWriter
from ..data.shard_files import files_in
from ..data.shard_rows import confined
from ..specs import as_settings
from ..video_io import IMAGE_EXTENSIONS, ReadLimits, VideoDecodeError, read_image, resolve_source
from ..video_processing_vjepa2 import VJepa2VideoProcessor


logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class DenseClip:
    """A clip, or an image as a clip of one frame, with labels of all pixels."""

    name: str
    frames: np.ndarray  # uint8 (T, H, W, 3)
    labels: np.ndarray  # (T, H, W), integers that name classes, or floats such as depths (NaN: unknown)
    group: str = ""  # clips of one group stay on one side of a split; "": its name

    def __post_init__(self):
        if self.labels.shape != self.frames.shape[:3]:
            raise ValueError(
                f"{self.name} has frames of shape {self.frames.shape[:3]} and labels of shape {self.labels.shape}; "
                "expected one shape (T, H, W)."
            )


class LabeledImages:
    """Images with a mask each; iterate over it.

    Args:
        data: what `datasets.load_dataset` takes (a folder of images with `metadata.jsonl` that has `file_name` and
            `mask_file_name`, a folder of parquet files, or an id on the Hub), or a folder of images.
        masks: a folder whose files have the names of the images, apart from their extension; None: a column.
        image_column, mask_column: of a dataset.
        split: of a dataset.
        limits: what rows may cost and reach.

    Attributes:
        names: of the labels; None here: a mask holds numbers.
        skipped: reasons by name of images that could not be read.
    """

    names: tuple[str, ...] | None = None

    def __init__(
        self,
        data: str,
        masks: str | None = None,
        image_column: str = "image",
        mask_column: str = "mask",
        split: str = "train",
        limits: ReadLimits | None = None,
    ):
        self.data, self.limits = data, as_settings("limits", limits, ReadLimits)
        self.columns = (image_column, mask_column)
        self.skipped: dict[str, str] = {}
        self._rows = _paired_files(data, masks) if masks else self._table(split)

    def _table(self, split: str) -> Iterable[dict[str, Any]]:
        # The cache of a folder with a README.md is named after that, and stays when its files change
        anew = {"download_mode": "force_redownload", "verification_mode": "no_checks"}
        table = datasets.load_dataset(self.data, split=split, **(anew if Path(self.data).is_dir() else {}))
        missing = [name for name in self.columns if name not in table.column_names]
        if missing:
            raise ValueError(
                f"{self.data!r} has the columns {table.column_names}, but {missing} are needed: name them with "
                "image_column and mask_column, or give a folder of masks."
            )
        for name in self.columns:
            table = table.cast_column(name, datasets.Image(decode=False))
        return table

    def __iter__(self) -> Iterator[DenseClip]:
        for number, row in enumerate(self._rows):
            image, mask = (row[name] for name in (self.columns if "name" not in row else ("image", "mask")))
            name = row.get("name") or f"{Path((image or {}).get('path') or '').name or 'image'}, row {number}"
            try:
                pixels = read_image(self._allowed(image), self.limits)
                yield DenseClip(name, pixels[None], read_mask(self._allowed(mask), self.limits)[None])
            except (ValueError, OSError) as error:
                self.skipped[name] = str(error)

    def _allowed(self, media: Any) -> Any:
        """Bytes, or a path that a row may name."""
        if isinstance(media, dict) and media.get("bytes") is not None:
            return media["bytes"]
        if isinstance(media, Path):  # of a folder that the user gave
            return media
        path = media.get("path") if isinstance(media, dict) else media
        if not isinstance(path, str):
            raise ValueError("its image or its mask is empty")
        return confined(path, self.data, self.data, self.limits)


def _paired_files(images: str, masks: str) -> list[dict[str, Any]]:
    """Images and masks of two folders by the same names."""
    found = []
    for folder in (images, masks):
        if not os.path.isdir(folder):
            raise FileNotFoundError(f"There is no folder {folder!r}; data and masks must be two folders of images.")
        files = [Path(file) for file in files_in(folder) if file.lower().endswith(IMAGE_EXTENSIONS)]
        found.append({file.relative_to(folder).with_suffix("").as_posix(): file for file in sorted(files)})
    pairs = [
        {"name": name, "image": file, "mask": found[1][name]} for name, file in found[0].items() if name in found[1]
    ]
    if not pairs:
        raise ValueError(
            f"None of the {len(found[0])} images in {images!r} has a mask of its name in {masks!r} "
            f"({len(found[1])} images)."
        )
    alone = sorted(found[0].keys() ^ found[1].keys())
    if alone:
        logger.warning("%d files have no partner and are left out, such as %s", len(alone), alone[0])
    return pairs


def read_mask(source: Any, limits: ReadLimits | None = None) -> np.ndarray:
    """A mask or depth image as it is stored: (H, W) integers, also palette indices and 16 bits, or float32.

    The source and limits are as for `read_image`. Color images are refused: they do not say which color is which.
    """
    limits = limits or ReadLimits()
    source, name = resolve_source(source, "image", limits)
    try:
        with PIL.Image.open(source) as image:
            limits.check_pixels(image.height, image.width, name)
            if image.mode not in ("1", "L", "P", "I", "F") and not image.mode.startswith("I;16"):
                raise ValueError(
                    f"{name} has color mode {image.mode}; expected a mask with one number per pixel (mode L, P, I;16 "
                    "or F)."
                )
            pixels = np.array(image)
    except (OSError, SyntaxError, EOFError, MemoryError, PIL.Image.DecompressionBombError) as error:
        raise VideoDecodeError(f"{name} cannot be decoded as a mask ({error}).") from error
    return pixels.astype(np.float32 if pixels.dtype.kind == "f" else np.int64)


def resize_labels(labels: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """Label images (T, H, W) at another size (height, width), the nearest pixel: int64 or float32."""
    values = torch.from_numpy(np.ascontiguousarray(labels))
    values = values.float() if values.is_floating_point() else values.long()
    rows, columns = (
        ((torch.arange(n) + 0.5) * (old / n)).long() for n, old in zip(size, labels.shape[1:], strict=True)
    )
    return values[:, rows][:, :, columns]


def step_frames(num_frames: int, num_steps: int) -> torch.Tensor:
    """The last frame of each of the tubelets of a clip, int64 (T',): the one whose labels a tubelet is given."""
    return (torch.arange(num_steps) + 1) * num_frames // num_steps - 1


def fill_dense_cache(
    folder: str | os.PathLike,
    clips: Any,
    encode: Callable[[torch.Tensor], torch.Tensor],
    processor: VJepa2VideoProcessor,
    label_size: tuple[int, int],
    to_labels: Callable[[np.ndarray], np.ndarray] = lambda labels: labels,
    batch_size: int = 16,
) -> None:
    """Writes the features and labels of clips into an unfinished cache; clips that are there already are left out.

    Args:
        clips: iterable of [`DenseClip`] with `skipped`, reasons by name, filled while it is read.
        encode: pixels (B, T, C, H, W) to features (B, T', H', W', D).
        processor: of the frames.
        label_size: height and width of the cached labels (T', height, width); a tubelet has those of its last frame.
        to_labels: maps stored labels (T, H, W) to classes or numbers.
        batch_size: clips that are encoded at once.
    """
    writer = CacheWriter(folder)
    new = (clip for clip in tqdm(clips, desc="encode", unit="clip") if clip.name not in writer.done)
    for batch in _equal_batches(new, batch_size):
        pixels = processor([clip.frames for clip in batch], return_tensors="pt")["pixel_values_videos"]
        for clip, features in zip(batch, encode(pixels), strict=True):
            kept = clip.labels[step_frames(len(clip.frames), len(features)).numpy()]
            labels = resize_labels(to_labels(kept), label_size)
            labels = labels.to(torch.int32) if not labels.is_floating_point() else labels
            writer.add(clip.name, 0.0, {"features": features, "labels": labels}, group=clip.group or clip.name)
    writer.skip(clips.skipped)
    writer.flush()


def _equal_batches(clips: Iterable[DenseClip], size: int) -> Iterator[list[DenseClip]]:
    """Batches of clips with the same number of frames, in order."""
    for _, group in itertools.groupby(clips, key=lambda clip: len(clip.frames)):
        while batch := list(itertools.islice(group, size)):
            yield batch
