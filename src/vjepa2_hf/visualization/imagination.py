"""What a world model imagines, as images and as positions.

    imagery = Imagery(known_frames, known_latents, states)
    imagery.images(wm.rollout(latents, actions))      # (B, P, N, D) -> uint8 (B, P, H, W, 3)

Letters: F known frames, V views, N tokens and D width of a latent, H W pixels, S state, E candidates, P planning
horizon.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..modeling_decoder import VJepa2PixelDecoder
from ..modeling_world_model import VJepa2WorldModel
from .measures import nearest_frames
from .state_probe import LinearProbe, choose_probe


PROBE_GROUPS = 10  # parts of the known frames, of which every fifth chooses the probe's strength
SMOOTH = 4  # paths are drawn at this multiple of the size and reduced


class Imagery:
    """Shows latents as images: by a pixel decoder; or, where states can be rendered, by the state that a linear probe
    reads from them; else by the known frame with the nearest latents.

    Args:
        frames: known frames, uint8 (F, H, W, 3); `None` with a decoder only.
        latents: of the known frames, (F, N, D), by the target encoder.
        states: of the known frames, (F, S), from which the probe learns.
        render: the image uint8 (H, W, 3) of a state (S,).
        decoder: of the model's latents.

    Attributes:
        source: where the images are from, in words.
    """

    def __init__(
        self,
        frames: np.ndarray | None = None,
        latents: torch.Tensor | None = None,
        states: np.ndarray | None = None,
        render: Callable[[np.ndarray], np.ndarray] | None = None,
        decoder: VJepa2PixelDecoder | None = None,
    ):
        if frames is None and decoder is None:
            raise ValueError("There are neither known frames nor a decoder, so latents cannot be shown: give one.")
        self.frames, self.decoder, self.render = frames, decoder, render
        self.latents = None if latents is None else latents.flatten(1).cpu()
        self.probe: LinearProbe | None = None
        if states is not None:
            groups = min(PROBE_GROUPS, len(frames))
            targets = torch.as_tensor(states, dtype=torch.float32)
            self.probe, _ = choose_probe(self.latents.tensor_split(groups), targets.tensor_split(groups))
        if decoder is not None:
            self.source = "decoded from predicted latents"
        elif render is not None and states is not None:
            self.source = "drawn at positions that a linear probe reads from predicted latents"
        else:
            self.source = f"the nearest of {len(frames)} known images"

    @torch.no_grad()
    def images(self, latents: torch.Tensor) -> np.ndarray:
        """(..., N, D) -> uint8 (..., H, W, 3). Views that a decoder decodes from (..., V·N, D) are side by side,
        (..., H, V·W, 3)."""
        leading = latents.shape[:-2]
        if self.decoder is not None:
            pixels = self.decoder.decode_views(latents.to(self.decoder.device)).movedim(-3, -1)
            return (255 * pixels).round().byte().cpu().numpy()
        if self.render is not None and self.probe is not None:
            states = self.states(latents)
            images = np.stack([self.render(state) for state in states.reshape(-1, states.shape[-1])])
        else:
            queries = latents.flatten(-2).reshape(-1, self.latents.shape[1])
            _, index = nearest_frames(queries, self.latents, 1, "l2")
            images = self.frames[index[:, 0].numpy()]
        return images.reshape(*leading, *images.shape[1:])

    @torch.no_grad()
    def states(self, latents: torch.Tensor) -> np.ndarray | None:
        """(..., N, D) -> float32 (..., S), read by the probe; `None` without states of the known frames."""
        return None if self.probe is None else self.probe(latents.cpu()).numpy()


def check_decoder(decoder: VJepa2PixelDecoder, model: VJepa2WorldModel) -> None:
    """Refuses a decoder of latents of another size; of several views it decodes each."""
    sizes = (decoder.config.num_latents, decoder.config.latent_size)
    if sizes != (model.tokens_per_view, model.latent_size):
        raise ValueError(
            f"The decoder takes {sizes[0]} latents of size {sizes[1]}, but the world model has "
            f"{model.tokens_per_view} of size {model.latent_size}: give a decoder that was trained on this model."
        )


def enlarge(image: np.ndarray, size: int) -> Image.Image:
    """A small image (H, W, 3) in blocks of pixels, at least `size` wide."""
    scale = max(1, -(-size // image.shape[1]))
    return Image.fromarray(image.repeat(scale, axis=0).repeat(scale, axis=1))


def draw_paths(
    image: np.ndarray, paths: Sequence[np.ndarray], colors: Sequence[tuple[int, int, int]], size: int = 384
) -> np.ndarray:
    """Paths (P, 2) in field units, 0 to 1 from the left and from the top, on an enlarged image: uint8 (h, w, 3).

    A path becomes wider towards its end, which has a dot. The last path lies on top.
    """
    base = enlarge(image, size)
    width, height = (SMOOTH * side for side in base.size)
    canvas = base.resize((width, height), Image.Resampling.NEAREST)
    brush = ImageDraw.Draw(canvas)
    for path, color in zip(paths, colors, strict=True):
        points = [tuple(map(float, point)) for point in np.asarray(path) * (width, height)]
        for number, pair in enumerate(zip(points, points[1:], strict=False), 1):
            thick = SMOOTH * (2 + 2 * number / len(points))
            brush.line(pair, fill=color, width=round(thick))
        x, y = points[-1]
        radius = 5 * SMOOTH
        brush.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
    return np.asarray(canvas.resize(base.size, Image.Resampling.BOX))


def overlay(images: np.ndarray) -> np.ndarray:
    """The mean of images (E, H, W, 3), uint8: what they agree on is sharp."""
    return images.mean(axis=0).round().astype(np.uint8)
