"""Where a token is: rotary tables, fixed sin-cos and learned positions of a clip's grid.

Shapes: B clips, (T', H', W') grid of tokens, N = T'·H'·W' tokens, K tokens kept, L tokens of either kind, D width,
h heads, d channels of a head.
"""

import math

import torch
from torch import nn

from .configuration_vjepa2 import VJepa2EncoderConfig


RotaryTable = tuple[torch.Tensor, ...]  # cosine and signed sine, each (L, d) or (B, L, d), or of `spread_over_heads`


def grid_positions(grid: tuple[int, int, int], device=None) -> torch.Tensor:
    """(time, row, column) of every token of a grid (T', H', W'), in token order: float32 (N, 3)."""
    axes = [torch.arange(size, device=device, dtype=torch.float32) for size in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)


def rotary_table(positions: torch.Tensor, head_dim: int, interleave: bool = False) -> RotaryTable:
    """Cosine and sine of 3-D RoPE, made once a forward for all layers.

    A head's channels are split into depth, height and width, 2·((d // 3) // 2) each, and a rest that is not turned;
    ω_i = 10000^(−i / (size / 2)).

    Args:
        positions: (..., L, 3) time, row and column.
        head_dim: d.
        interleave: `False` tiles the angles ([ω0…ωk, ω0…ωk]) although `rotate_queries_keys` turns neighbouring
            channels as pairs. The released weights were trained so; only with it do they give their numbers. `True`
            gives both channels of a pair the same angle.

    Returns:
        Cosine and sine (..., L, d) in float32, the sine with the sign that `rotate_queries_keys` needs.
    """
    size = 2 * ((head_dim // 3) // 2)
    omega = 10000.0 ** -(torch.arange(size // 2, device=positions.device, dtype=torch.float32) / max(size / 2, 1))
    omega = omega.repeat_interleave(2) if interleave else omega.repeat(2)
    angles = (positions.float().unsqueeze(-1) * omega).flatten(-2)  # (..., L, 3 · size)
    angles = nn.functional.pad(angles, (0, head_dim - angles.shape[-1]))  # angle 0 leaves the rest unturned
    sign = torch.ones(head_dim, device=positions.device)
    sign[0::2] = -1.0
    return angles.cos(), angles.sin() * sign


def spread_over_heads(table: RotaryTable, num_heads: int) -> RotaryTable:
    """A table (L, d) for h heads side by side, as of one head that is h · d wide: cosine (L, h · d), and the factors
    (L, h · d - 1) of a channel's next and previous neighbour.

    Made once for all layers. Its long rows are turned three times as fast as those of one head, but it is as large as
    the queries of one clip: for few tokens that many candidates share.
    """
    cos, (following, preceding) = table[0], _next_and_previous(table[1])
    following, preceding = nn.functional.pad(following, (0, 1)), nn.functional.pad(preceding, (1, 0))
    cos, following, preceding = (part.repeat(1, num_heads) for part in (cos, following, preceding))
    return cos, following[:, :-1], preceding[:, 1:]


def rotate_queries_keys(qkv: torch.Tensor, table: RotaryTable) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries and keys of `qkv` (..., L, 3, h, d) with neighbouring channels turned by the angles of a table
    (..., L, d) or of `spread_over_heads`, and its values: (..., L, h, d) each."""
    heads = qkv.shape[-2:]
    cos, *factors = (part.to(qkv.dtype).unsqueeze(-2) for part in table)  # (..., L, 1, d or h · d)
    if len(table) == 2:
        factors = _next_and_previous(*factors)
    else:
        qkv = qkv.flatten(-2).unsqueeze(-2)
    if torch.is_grad_enabled():
        parts = _RotateQueriesKeys.apply(qkv, cos, *factors)
    else:  # nothing keeps `qkv`, so values may stay where they are
        query, key, value = qkv.unbind(-3)
        parts = _turn(query, cos, *factors), _turn(key, cos, *factors), value
    return tuple(part.flatten(-2).unflatten(-1, heads) for part in parts)


class _RotateQueriesKeys(torch.autograd.Function):
    """Written out because of its backward: autograd's own fills and adds a tensor of the size of `qkv` for every part
    taken from it. Values are copied, so that `qkv` need not be kept for them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(qkv, cos, following, preceding):
        query, key, value = qkv.unbind(-3)
        return _turn(query, cos, following, preceding), _turn(key, cos, following, preceding), value.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx, query, key, value):
        cos, following, preceding = ctx.saved_tensors
        transposed = cos, preceding, following  # of the linear map that `_turn` is
        return torch.stack([_turn(query, *transposed), _turn(key, *transposed), value], dim=-3), None, None, None


def _next_and_previous(sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The signed sine (..., d) as the factors (..., d - 1) of a channel's next and of its previous neighbour."""
    even = torch.arange(sin.shape[-1], device=sin.device) % 2 == 0
    return (sin * even)[..., :-1], (sin * ~even)[..., 1:]


def _turn(states: torch.Tensor, cos: torch.Tensor, following: torch.Tensor, preceding: torch.Tensor) -> torch.Tensor:
    """Adds to channels (..., d) times `cos` the next and the previous one times their factors: three passes over
    memory in order, where swapping neighbours would cost one out of order."""
    turned = states * cos
    turned[..., :-1].addcmul_(states[..., 1:], following)
    turned[..., 1:].addcmul_(states[..., :-1], preceding)
    return turned


def configured_grid(config: VJepa2EncoderConfig) -> tuple[int, int, int]:
    """Grid (T', H', W') of a clip of `frames_per_clip` frames of `crop_size` pixels: what sin-cos and learned
    positions are made for."""
    side = max(config.crop_size // config.patch_size, 1)
    return max(config.frames_per_clip // config.tubelet_size, 1), side, side


def position_parameter(config: VJepa2EncoderConfig, size: int) -> nn.Parameter | None:
    """The table (configured tokens, size) that "learned" positions train; `None` for the other kinds."""
    if config.position_embedding_type != "learned":
        return None
    return nn.Parameter(torch.zeros(math.prod(configured_grid(config)), size))


def sincos_table(
    grid: tuple[int, int, int],
    size: int,
    uniform_power: bool = False,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """V-JEPA 1's fixed positions (`pos_embed` in its checkpoints) of a grid (T', H', W'): (N, D).

    Channels are those of time, then row, then column, each the sines and then the cosines of position · ω_i with
    ω_i = 10000^(−i / (part / 2)).

    Args:
        grid: (T', H', W').
        size: D.
        uniform_power: time, row and column have 2·⌈D / 6⌉ channels each, cut to D together; otherwise time has D / 2,
            row and column D / 4.
        dtype: of the computation; the published files' tables were made in float64.
    """
    parts = [2 * math.ceil(size / 6)] * 3 if uniform_power else [size // 2, size // 4, size // 4]
    channels = []
    for axis, (length, part) in enumerate(zip(grid, parts, strict=True)):
        omega = 10000.0 ** -(torch.arange(part // 2, device=device, dtype=dtype) / (part / 2))
        angles = torch.arange(length, device=device, dtype=dtype).unsqueeze(1) * omega
        encoded = torch.cat([angles.sin(), angles.cos()], dim=-1)  # (length, part), the same along the other two axes
        channels.append(encoded.unflatten(0, [length if i == axis else 1 for i in range(3)]).expand(*grid, -1))
    return torch.cat(channels, dim=-1).flatten(0, 2)[:, :size]


def add_positions(
    hidden_states: torch.Tensor,
    config: VJepa2EncoderConfig,
    grid: tuple[int, int, int],
    ids: torch.Tensor | None = None,
    learned: torch.Tensor | None = None,
) -> torch.Tensor:
    """Adds sin-cos or learned positions to tokens; with "rope" nothing is added.

    A clip of the configured height and width and no more than the configured steps takes the first steps of the table.
    Any other clip takes the whole table interpolated along time, height and width to its grid, as the published code
    does: a longer clip's steps are drawn together, and a short clip of another height or width has its steps spread
    over the configured length.

    Args:
        hidden_states: (B, N, D) of the grid (T', H', W'), or (B, K, D) of its tokens `ids` (B, K).
        learned: the parameter (configured tokens, D) for "learned".
    """
    if config.position_embedding_type == "rope":
        return hidden_states
    size, configured = hidden_states.shape[-1], configured_grid(config)
    cut = grid[1:] == configured[1:] and grid[0] <= configured[0]
    known = grid if cut else configured
    if learned is None:
        table = sincos_table(known, size, config.uniform_power, hidden_states.device)
    else:
        table = learned[: math.prod(known)].float()
    if not cut:
        table = table.unflatten(0, known).permute(3, 0, 1, 2).unsqueeze(0)  # (1, D, T', H', W')
        table = nn.functional.interpolate(table, size=grid, mode="trilinear")[0].permute(1, 2, 3, 0).flatten(0, 2)
    table = table.to(hidden_states)
    return hidden_states + (table if ids is None else table[ids])
