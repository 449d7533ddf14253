"""What a frame is to the dynamics: the encoder, and the way from its tokens to a state.

Shapes: B episodes, T frames, C channels, H W pixels; N tokens of D numbers are a frame's state. Before a fitted map a
frame is *arranged*: n tokens of m numbers.
"""

import warnings
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import nn

from .configuration_vjepa2 import VJepa2EncoderConfig
from .configuration_world_model import VJepa2WorldModelConfig
from .modeling_base import TargetEncoderMixin, VJepa2PreTrainedModel
from .modeling_encoder import VJepa2Encoder, clip_grid


SLOW_WHITENED = 192  # principal components among which slow directions are looked for
SLOW_LAG = 3  # frames over which "slow" is measured
_EXACT_SIZE = 4096  # widest covariance that is decomposed whole
_CHUNK = 1024  # frames at a time
_LARGEST_PIXEL = 20.0  # the usual means and deviations give values of -3 to 3


def token_size(config: VJepa2WorldModelConfig) -> int:
    """Numbers in one token of a frame as the encoder gives it, or in one raw patch."""
    encoder_config: VJepa2EncoderConfig = config.encoder_config
    if config.state_type == "pixels":
        return encoder_config.in_chans * encoder_config.patch_size**2
    return encoder_config.hidden_size


def arranged_shape(config: VJepa2WorldModelConfig) -> tuple[int, int]:
    """(n, m) of a square frame of the configured size before a fitted map."""
    places, size = (config.encoder_config.crop_size // config.encoder_config.patch_size) ** 2, token_size(config)
    return {"merged": (places // 4, 4 * size), "pooled": (1, size)}.get(config.state_type, (places, size))


def state_shape(config: VJepa2WorldModelConfig) -> tuple[int, int]:
    """(N, D) of a square frame of the configured size."""
    places, size = arranged_shape(config)
    return 1 if config.state_type == "projected" else places, config.state_dim or size


class VJepa2StateModel(TargetEncoderMixin, VJepa2PreTrainedModel):
    """Encoder and states of the world model.

    ::

        frame ──► encoder ──► LayerNorm ──► arranged: tokens as they are, 2×2 merged, or pooled
              ──► fitted by `fit_state`: minus the mean at every place, a linear map (`state_dim`), over one deviation
    """

    config: VJepa2WorldModelConfig

    def __init__(self, config: VJepa2WorldModelConfig):
        super().__init__(config)
        self._has_seen_pixels = False
        if config.state_type != "pixels":
            self.encoder = VJepa2Encoder(config.encoder_config).requires_grad_(not config.freeze_encoder)
        if not config.freeze_encoder:
            self.target_encoder = VJepa2Encoder(config.encoder_config).requires_grad_(False)
        if config.state_fitted:
            shape = arranged_shape(config)
            inputs = shape[0] * shape[1] if config.state_type == "projected" else shape[1]
            linear_map = None if config.state_dim is None else torch.eye(inputs, config.state_dim)
            self._register_state(torch.zeros(shape), linear_map, torch.ones(()))

    def train(self, mode: bool = True):
        super().train(mode)
        if self.config.freeze_encoder and self.config.state_type != "pixels":
            self.encoder.eval().requires_grad_(False)  # `from_pretrained` makes new parameters
        if not self.config.freeze_encoder:
            self.target_encoder.eval().requires_grad_(False)
        return self

    @property
    def tokens_per_frame(self) -> int:
        """N of a square frame of the configured size."""
        return state_shape(self.config)[0]

    @property
    def latent_size(self) -> int:
        """D."""
        return state_shape(self.config)[1]

    @torch.no_grad()
    def encode(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        """Frames (B, T, C, H, W) as the video processor gives them, each on its own -> latents (B, T, N, D); where a
        map is still to be fitted (`fit_state`), arranged latents (B, T, n, m), of which it is fitted."""
        return self._encode_with(getattr(self, "encoder", None), pixel_values_videos)

    @torch.no_grad()
    def encode_targets(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        """Latents that predictions are compared with, in training and as goals: those of the EMA encoder with
        `freeze_encoder=False`, otherwise what `encode` gives. Shapes as there."""
        encoder = getattr(self, "encoder", None) if self.config.freeze_encoder else self.target_encoder
        return self._encode_with(encoder, pixel_values_videos)

    def _encode_with(self, encoder: VJepa2Encoder | None, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        batch_size, config = len(pixel_values_videos), self.config
        _, rows, columns = clip_grid(config.encoder_config, pixel_values_videos[:, :1])  # refuses wrong shapes
        if rows != columns:
            raise ValueError(
                f"frames are {tuple(pixel_values_videos.shape[-2:])} pixels; the world model takes squares: crop or "
                "resize."
            )
        self._check_range(pixel_values_videos)
        if config.state_type == "pixels":
            patch = config.encoder_config.patch_size
            latents = rearrange(pixel_values_videos, "b t c (h p) (w q) -> (b t) (h w) (c p q)", p=patch, q=patch)
        else:
            latents = encoder(pixel_values_videos.flatten(0, 1).unsqueeze(1)).last_hidden_state
        if config.normalize_latents == "layer":
            latents = nn.functional.layer_norm(latents, latents.shape[-1:])
        return self.standardize(self._arrange(latents, rows).unflatten(0, (batch_size, -1)))

    def _check_range(self, pixel_values_videos: torch.Tensor) -> None:
        """Warns of frames that no processor has normalised. Looks at the first call alone: later ones do not wait."""
        if self._has_seen_pixels or torch.compiler.is_compiling() or pixel_values_videos.is_meta:
            return
        self._has_seen_pixels = True
        largest = pixel_values_videos.detach().abs().amax().item() if pixel_values_videos.numel() else 0.0
        if largest > _LARGEST_PIXEL:
            warnings.warn(
                f"pixel_values_videos reach {largest:.4g}, far outside what a video processor gives (about -3 to 3): "
                "put frames through the VJepa2VideoProcessor that the model was saved with, not floats of 0 to 255.",
                stacklevel=4,
            )

    def _arrange(self, latents: torch.Tensor, rows: int) -> torch.Tensor:
        """Tokens (frames, rows², D) -> (frames, n, m)."""
        if self.config.state_type == "pooled":
            return latents.mean(dim=1, keepdim=True)
        if self.config.state_type != "merged":
            return latents
        if rows % 2:
            raise ValueError(
                f"a frame has {rows}×{rows} tokens, which 2×2 merging does not divide: resize frames to a multiple of "
                f"{2 * self.config.encoder_config.patch_size} pixels."
            )
        return rearrange(latents, "f (h p w q) d -> f (h w) (p q d)", p=2, q=2, w=rows // 2)

    @torch.no_grad()
    def fit_state(self, latents: torch.Tensor | Sequence[torch.Tensor]) -> None:
        """Fits the fixed map of the state, which is saved with the weights: minus the mean at every place and channel,
        with `state_dim` a linear map, divided by one deviation of all.

        Args:
            latents: (..., n, m) as `encode` gave them before, or a list of episodes (T, n, m); put them through
                `standardize` afterwards. With `state_projection="slow"` episodes (E, T, n, m), or a list of them.

        Raises:
            ValueError: when the state is fitted already, the latents have another shape, or they are too few or vary
                too little for `state_dim` directions.
        """
        if self.config.state_fitted:
            raise ValueError("the state is fitted already: start from a new world model to fit it on other latents.")
        episodes = self._as_episodes(latents)
        count = sum(map(len, episodes))
        mean = (sum(part.sum(dim=0, dtype=torch.float64) for part in _chunks(episodes)) / count).float()
        linear_map = None if self.config.state_dim is None else self._fit_map([part - mean for part in episodes])
        squares = size = 0
        for part in _chunks(episodes):
            mapped = self._map(part - mean, linear_map)
            squares, size = squares + mapped.square().sum(dtype=torch.float64), size + mapped.numel()
        parts = (mean, linear_map, (squares / size).sqrt())
        # contiguous, as they load back: another layout rounds differently
        self._register_state(*(None if part is None else part.to(episodes[0]).contiguous() for part in parts))
        self.config.state_fitted = True

    def _as_episodes(self, latents: torch.Tensor | Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Episodes (T, n, m) each; one of all frames where time does not matter."""
        parts = [latents] if isinstance(latents, torch.Tensor) else list(latents)
        expected = arranged_shape(self.config)
        for part in parts:
            if tuple(part.shape[-2:]) != expected or part.ndim < 3 or not part.numel():
                raise ValueError(
                    f"latents have shape {tuple(part.shape)}; expected (..., {expected[0]}, {expected[1]})."
                )
        if not parts:
            raise ValueError("latents are an empty list; expected episodes (T, N, D).")
        if self.config.state_projection != "slow":
            return [part.flatten(0, -3) for part in parts]
        if isinstance(latents, torch.Tensor) and latents.ndim != 4:
            raise ValueError(
                f"latents have shape {tuple(latents.shape)}; state_projection='slow' needs to know the episodes: give "
                f"(E, T, {expected[0]}, {expected[1]}), or a list of (T, {expected[0]}, {expected[1]})."
            )
        return [episode for part in parts for episode in (part if part.ndim == 4 else [part])]

    def _fit_map(self, episodes: list[torch.Tensor]) -> torch.Tensor:
        """Centred episodes (T, n, m) -> the linear map to `state_dim`."""
        count = self.config.state_dim
        if self.config.state_type == "merged":  # one map for all places
            return principal_directions(torch.cat([part.flatten(0, 1) for part in episodes]), count)[1]
        episodes = [part.flatten(1) for part in episodes]
        if self.config.state_projection == "slow":
            return slow_directions(episodes, count)
        return principal_directions(torch.cat(episodes), count)[1]

    def _map(self, centred: torch.Tensor, linear_map: torch.Tensor | None) -> torch.Tensor:
        if linear_map is None:
            return centred
        if self.config.state_type == "projected":
            centred = centred.flatten(-2).unsqueeze(-2)
        return centred @ linear_map.to(centred)

    def standardize(self, latents: torch.Tensor) -> torch.Tensor:
        """Arranged latents (..., n, m) -> the state (..., N, D) that the dynamics works on. Unchanged before
        `fit_state`."""
        if not self.config.state_fitted:
            return latents
        if latents.shape[-2] != len(self.state_mean):
            raise ValueError(
                f"the frame has {latents.shape[-2]} tokens, but the state was fitted on {len(self.state_mean)}: "
                f"resize frames to {self.config.encoder_config.crop_size} pixels."
            )
        return self._map(latents - self.state_mean, getattr(self, "state_map", None)) / self.state_scale

    def _register_state(self, mean: torch.Tensor, linear_map: torch.Tensor | None, scale: torch.Tensor) -> None:
        self.register_buffer("state_mean", mean)
        if linear_map is not None:
            self.register_buffer("state_map", linear_map)
        self.register_buffer("state_scale", scale)


def principal_directions(
    rows: torch.Tensor, count: int, at_least: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The directions of largest variance of centred rows (r, m).

    Up to 4096 columns the covariance is decomposed whole; beyond, the randomised method of `torch.svd_lowrank` finds
    them, always from the same seed.

    Args:
        rows: float32.
        count: directions to find.
        at_least: fewest that will do where the rows vary in no more; `None`: `count`.

    Returns:
        Variances (k,), descending, and orthonormal directions (m, k), the largest entry of each positive.

    Raises:
        ValueError: the rows vary in fewer directions than needed.
    """
    number, size = rows.shape
    if size <= _EXACT_SIZE:
        covariance = sum((part.T @ part).double() for part in rows.split(_CHUNK)) / number
        values, vectors = torch.linalg.eigh(covariance)
        values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count]
    else:
        with torch.random.fork_rng(devices=[rows.device] if rows.is_cuda else []):
            torch.manual_seed(0)
            _, singular, vectors = torch.svd_lowrank(rows, q=min(count + 32, number), niter=4)
        values, vectors = (singular.square() / number)[:count], vectors[:, :count]
    known = int((values > 1e-6 * values[0]).sum())  # beyond lies float32's rounding
    needed = count if at_least is None else at_least
    if known < needed:
        raise ValueError(
            f"{number} latents of {size} numbers vary in {known} directions, and the state needs {needed}: give "
            "latents of more frames, or lower state_dim."
        )
    return values[:known].to(rows), _with_fixed_signs(vectors[:, :known]).to(rows)


def slow_directions(episodes: list[torch.Tensor], count: int) -> torch.Tensor:
    """The directions that change least over 3 frames, relative to how much they vary within an episode.

    Slow feature analysis (Wiskott & Sejnowski 2002), without labels: the first 192 principal components of the
    within-episode covariance are whitened, and of the covariance of differences in that space the directions of
    smallest variance are kept. Taking variance within episodes alone leaves out what tells episodes apart and never
    changes, such as a background.

    Args:
        episodes: centred, (T, m) each.
        count: directions to keep.

    Returns:
        (m, count), the slowest first.
    """
    within = torch.cat([episode - episode.mean(dim=0) for episode in episodes])
    variances, directions = principal_directions(within, max(count, SLOW_WHITENED), at_least=count)
    whitening = directions / variances.sqrt()
    moving = [episode for episode in episodes if len(episode) > SLOW_LAG]
    if not moving:
        raise ValueError(
            f"no episode has more than {SLOW_LAG} frames, over which state_projection='slow' measures change: give "
            "longer ones, or use 'pca'."
        )
    steps = torch.cat([(episode[SLOW_LAG:] - episode[:-SLOW_LAG]) @ whitening for episode in moving])
    _, rotations = torch.linalg.eigh((steps.T @ steps).double())  # ascending: the slowest first
    return _with_fixed_signs(whitening @ rotations[:, :count].to(whitening))


def _with_fixed_signs(directions: torch.Tensor) -> torch.Tensor:
    """Directions (m, k) with the largest entry of each positive: a decomposition leaves the sign to chance."""
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    return directions * largest.sign()


def _chunks(episodes: list[torch.Tensor]):
    return (part for episode in episodes for part in episode.split(_CHUNK))


__all__ = ["VJepa2StateModel", "principal_directions", "slow_directions"]
