"""Appearance of the environments: floors, colors, lighting and anti-aliased discs."""

import dataclasses
from collections.abc import Sequence

import numpy as np


IMAGE_SIZE = 64  # pixels, height and width


@dataclasses.dataclass(frozen=True)
class Appearance:
    """How an image looks apart from the state; one per episode."""

    background: np.ndarray  # float32 (64, 64, 3) in 0 to 255: floor, distractors and walls
    colors: np.ndarray  # float32 (number of discs, 3) in 0 to 255, in the order of `PlaneEnv.radii`
    light: np.ndarray | None = None  # brightness factors, float32 (64, 64, 1); None: uniform light


_OUTSIDE = 40.0  # gray outside of the field
_PIXELS = ((np.arange(IMAGE_SIZE) + 0.5) / IMAGE_SIZE).astype(np.float32)  # pixel centers in field units


def render_disc(canvas: np.ndarray, center: np.ndarray, radius: float, color: np.ndarray) -> None:
    """Renders an anti-aliased disc in place, so that sub-pixel positions are visible.

    The canvas is float32 (64, 64, 3), the color (3,) in 0 to 255; center (2,) and radius are in field units.
    """
    reach = radius + 1 / IMAGE_SIZE
    left, top = (max(0, int((float(c) - reach) * IMAGE_SIZE)) for c in center)
    right, bottom = (max(0, int((float(c) + reach) * IMAGE_SIZE) + 1) for c in center)
    dx = _PIXELS[left:right] - np.float32(center[0])
    dy = _PIXELS[top:bottom] - np.float32(center[1])
    distance = np.sqrt(dx * dx + (dy * dy)[:, None])
    coverage = np.minimum(np.maximum((np.float32(radius) - distance) * np.float32(IMAGE_SIZE) + 0.5, 0), 1)[..., None]
    patch = canvas[top:bottom, left:right]
    patch += coverage * (color - patch)


def close_up(appearance: Appearance, corner: np.ndarray, zoom: float) -> Appearance:
    """The appearance of a part of the field, enlarged by `zoom`, whose top left corner (2,) is in field units."""
    columns, rows = (np.floor((float(start) + _PIXELS / zoom) * IMAGE_SIZE).astype(int) for start in corner)
    inside = [(part >= 0) & (part < IMAGE_SIZE) for part in (columns, rows)]
    grid = np.ix_(*(part.clip(0, IMAGE_SIZE - 1) for part in (rows, columns)))
    shown = (inside[1][:, None] & inside[0])[..., None]
    background = np.where(shown, appearance.background[grid], np.float32(_OUTSIDE))
    light = None if appearance.light is None else appearance.light[grid]
    return Appearance(background, appearance.colors, light)


def _smooth_noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Bilinear noise on `cells` x `cells` cells, float32 (64, 64) between -1 and 1."""
    grid = rng.uniform(-1, 1, (cells + 1, cells + 1))
    position = np.linspace(0, cells, IMAGE_SIZE, endpoint=False)
    low = position.astype(int)
    part = position - low
    rows = grid[low] * (1 - part)[:, None] + grid[low + 1] * part[:, None]
    return (rows[:, low] * (1 - part) + rows[:, low + 1] * part).astype(np.float32)


def distinct_colors(rng: np.random.Generator, taken: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """`count` random RGB colors (3,), 0 to 255, each far from the `taken` ones and from each other."""
    colors = list(taken)
    required = 130.0
    while len(colors) < len(taken) + count:
        color = rng.uniform(20, 255, 3)
        if all(np.linalg.norm(color - other) > required for other in colors):
            colors.append(color)
        required *= 0.99  # terminates even if the color space is crowded
    return colors[len(taken) :]


def textured_floor(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A random floor, float32 (64, 64, 3), and its mean color (3,)."""
    mean = rng.uniform(60, 210, 3)
    stripes_at = rng.uniform(0, np.pi)
    phase = (_PIXELS * np.cos(stripes_at) + _PIXELS[:, None] * np.sin(stripes_at)) * rng.uniform(3, 12) * 2 * np.pi
    texture = _smooth_noise(rng, 4)[..., None] * rng.uniform(-25, 25, 3)
    texture = texture + _smooth_noise(rng, 16)[..., None] * rng.uniform(-15, 15, 3)
    texture = texture + np.sin(phase)[..., None] * rng.uniform(-15, 15, 3)
    return (mean + texture).astype(np.float32), mean


def random_light(rng: np.random.Generator) -> np.ndarray:
    """Brightness factors that fall off to one side, float32 (64, 64, 1)."""
    direction = rng.uniform(0, 2 * np.pi)
    slope = (_PIXELS - 0.5) * np.cos(direction) + (_PIXELS[:, None] - 0.5) * np.sin(direction)
    return (rng.uniform(0.7, 1.05) + rng.uniform(0, 0.5) * slope)[..., None].astype(np.float32)
