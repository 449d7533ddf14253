"""Videos and animated GIFs of closed-loop episodes, each next to its goal."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..data.video_writing import encode_video
from .closed_loop import ClosedLoopResult
from .tasks import Tasks


GREEN, RED, INK = (22, 163, 74), (220, 38, 38), (71, 85, 105)  # reached, never reached, under way
COLUMNS, SCALE = 3, 2  # episodes per row, enlargement of the images


def animate_episodes(tasks: Tasks, states: np.ndarray, reached: np.ndarray, count: int = 12) -> bytes:
    """The first `count` of E episodes with states (E, T + 1, S) as an animated GIF. Equal inputs, equal bytes.

    An episode stops at its step in `reached` (E,), at which it reached its goal; -1: it did not.
    """
    count, last = min(count, len(states)), states.shape[1] - 1
    frames = []
    for step in range(last + 1):
        cells = []
        for episode in range(count):
            done = 0 < reached[episode] <= step
            shown = reached[episode] if done else step
            image = tasks.env.render_state(states[episode, shown], tasks.appearances[episode])
            pair = np.stack([image, tasks.goal_images[episode]]).repeat(SCALE, axis=1).repeat(SCALE, axis=2)
            title, color = (f"reached at step {shown}", GREEN) if done else (f"step {step}", INK)
            if step == last and not done:
                title, color = "not reached", RED
            cells.append(_frame(*pair, f"{title}   |   goal", color))
        width, height = cells[0].size
        sheet = Image.new("RGB", (width * min(COLUMNS, count), height * -(-count // COLUMNS)), (255, 255, 255))
        for index, cell in enumerate(cells):
            sheet.paste(cell, (index % COLUMNS * width, index // COLUMNS * height))
        frames.append(sheet)
    # One palette for all frames: otherwise colors flicker, and every frame is stored completely
    samples = np.concatenate([np.asarray(frames[index]) for index in (0, len(frames) // 2, -1)])
    palette = Image.fromarray(samples).quantize(192, dither=Image.Dither.NONE)
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [800] + [160] * (len(frames) - 2) + [2500]  # milliseconds
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0, disposal=1)
    return buffer.getvalue()


def _frame(image: np.ndarray, goal: np.ndarray, title: str, color: tuple[int, int, int]) -> Image.Image:
    """An image next to its goal, each (H, W, 3), in a frame with a title."""
    height, width = image.shape[:2]
    cell = Image.new("RGB", (2 * width + 14, height + 26), (255, 255, 255))
    canvas = ImageDraw.Draw(cell)
    canvas.text((4, 2), title, fill=color, font=ImageFont.load_default(size=12))
    canvas.rectangle((2, 18, 2 * width + 11, height + 23), fill=color)
    cell.paste(Image.fromarray(image), (5, 21))
    cell.paste(Image.fromarray(goal), (width + 9, 21))
    return cell


def write_videos(folder: Path, result: ClosedLoopResult, goals: np.ndarray) -> None:
    """Writes episodes next to their goals, uint8 (N, H, W, 3), until their success; small images are enlarged."""
    if result.frames is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for episode, (frames, goal) in enumerate(zip(result.frames, goals, strict=True)):
        frames = frames[: result.steps[episode] + 1] if result.success[episode] else frames
        images = np.concatenate([frames, np.broadcast_to(goal, frames.shape)], axis=2)
        scale = max(1, 192 // goal.shape[0])
        images = images.repeat(scale, axis=1).repeat(scale, axis=2)
        (folder / f"episode-{episode:03d}.mp4").write_bytes(encode_video(images, fps=10))
