"""Label images of single frames of a video, from files: PNG masks, folders of them, or polygons drawn by hand.

    masks = read_label_frames("examples/studies/masks/carphone.json")
    masks.frames[0]                  # uint8 (H, W), an index of masks.names

A JSON file of polygons is

    {"size": [144, 176], "names": ["background", "head"],
     "frames": {"0": [{"label": "head", "points": [[x, y], ...]}]}}

with x and y in pixels; later polygons cover earlier ones. Other keys, such as `video` and `license`, are for readers.

Shapes: H W pixels.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageDraw

from ..specs import refuse
from ..video_io import IMAGE_EXTENSIONS, ReadLimits
from .dense_clips import read_mask


class LabelFrames(NamedTuple):
    """Label images by frame number, and the names of their labels, the background first."""

    frames: dict[int, np.ndarray]  # uint8 (H, W)
    names: tuple[str, ...]


def read_label_frames(path: str | Path, limits: ReadLimits | None = None) -> LabelFrames:
    """Label images of the frames of a video.

    Args:
        path: a JSON file of polygons; a mask, which is that of frame 0; or a folder of masks named by the number of
            their frame, such as `00012.png`.
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        return _read_polygons(path)
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_EXTENSIONS)
        wrong = [file.name for file in files if not file.stem.isdecimal()]
        if wrong or not files:
            found = f"files such as {wrong[0]!r}" if wrong else "no image"
            raise ValueError(f"{path} has {found}; expected masks named by the number of their frame, like 00012.png.")
    frames = {int(file.stem) if path.is_dir() else 0: read_mask(file, limits) for file in files}
    sizes = {image.shape for image in frames.values()}
    highest = max(int(image.max()) for image in frames.values())
    if len(sizes) > 1 or highest > 254 or any(image.dtype.kind == "f" for image in frames.values()):
        raise ValueError(
            f"{path} has masks of sizes {sorted(sizes)} with labels up to {highest}; expected one size and "
            "integers up to 254."
        )
    names = ("background", *(f"label {number}" for number in range(1, max(highest, 1) + 1)))
    return LabelFrames({number: image.astype(np.uint8) for number, image in frames.items()}, names)


def _read_polygons(path: Path) -> LabelFrames:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        height, width = map(int, content["size"])
        names = tuple(map(str, content["names"]))
        numbers = {name: number for number, name in enumerate(names)}
        frames = {}
        if len(names) < 2 or not content["frames"]:
            raise ValueError(f"{len(names)} names and {len(content['frames'])} frames")
        for frame, polygons in content["frames"].items():
            image = PIL.Image.new("L", (width, height))
            for polygon in polygons:
                points = [(float(x), float(y)) for x, y in polygon["points"]]
                PIL.ImageDraw.Draw(image).polygon(points, fill=numbers[polygon["label"]])
            frames[int(frame)] = np.array(image)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        expected = (
            "expected size, names of the background and of objects, and frames of polygons with a label and points"
        )
        raise ValueError(f"{path} is not a file of polygons ({type(error).__name__}: {error}); {expected}.") from error
    return LabelFrames(frames, names)


def first_labels(masks: LabelFrames) -> np.ndarray:
    """The label image of frame 0, uint8 (H, W)."""
    if 0 not in masks.frames:
        refuse("the masks", sorted(masks.frames), "one of frame 0, from which labels are propagated")
    return masks.frames[0]


def check_mask_size(masks: LabelFrames, size: tuple[int, int]) -> None:
    """Refuses masks of another size than the frames (H, W) of their video."""
    found = next(iter(masks.frames.values())).shape
    if tuple(found) != tuple(size):
        raise ValueError(
            f"The masks have the size {found}, but the video has frames of {tuple(size)}: draw masks of that size."
        )
