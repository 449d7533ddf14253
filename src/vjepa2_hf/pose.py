"""Proprio states under actions: poses of an arm, batched, and the transitions of a rollout.

A pose is position (m), extrinsic Euler angles xyz (rad) and gripper (0 to 1). An action (published) is Δxyz, the Euler
angles of a rotation Δ that is applied on the left, and Δgripper.
"""

from collections.abc import Iterator

import torch

from .specs import refuse


def rotation_from_euler(angles: torch.Tensor) -> torch.Tensor:
    """Extrinsic Euler angles xyz (..., 3) -> rotation matrices Rz·Ry·Rx (..., 3, 3)."""
    (cx, cy, cz), (sx, sy, sz) = angles.cos().unbind(-1), angles.sin().unbind(-1)
    rows = [
        cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx,
        sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx,
        -sy, cy * sx, cy * cx,
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def euler_from_rotation(rotation: torch.Tensor) -> torch.Tensor:
    """Rotation matrices (..., 3, 3) -> extrinsic Euler angles xyz (..., 3); at a pole the third angle is 0."""
    cy = torch.hypot(rotation[..., 0, 0], rotation[..., 1, 0])
    at_pole = cy < 1e-7 if rotation.dtype == torch.float64 else cy < 1e-6
    y = torch.atan2(-rotation[..., 2, 0], cy)
    x = torch.atan2(rotation[..., 2, 1], rotation[..., 2, 2])
    z = torch.atan2(rotation[..., 1, 0], rotation[..., 0, 0])
    x_at_pole = torch.atan2(-rotation[..., 1, 2], rotation[..., 1, 1])
    return torch.stack([torch.where(at_pole, x_at_pole, x), y, torch.where(at_pole, torch.zeros_like(z), z)], dim=-1)


def _check_poses(**given: torch.Tensor) -> None:
    for name, value in given.items():
        is_tensor = isinstance(value, torch.Tensor) and not value.is_complex()
        if not is_tensor or not value.ndim or value.shape[-1] != 7:
            refuse(name, value, "a tensor (..., 7): xyz, Euler angles and gripper")
    (one, first), (other, second) = given.items()
    try:
        torch.broadcast_shapes(first.shape, second.shape)
    except RuntimeError:
        found = f"{one} has shape {tuple(first.shape)} and {other} {tuple(second.shape)}"
        raise ValueError(f"{found}; expected equal shapes (..., 7).") from None


def move_pose(pose: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    """Pose (..., 7) after an action (..., 7): xyz + Δxyz, Δ·R (in float64, for the poles), gripper + Δgripper within 0
    and 1."""
    _check_poses(pose=pose, action=action)
    rotation = rotation_from_euler(action[..., 3:6].double()) @ rotation_from_euler(pose[..., 3:6].double())
    gripper = (pose[..., 6:] + action[..., 6:]).clamp(0, 1)
    return torch.cat([pose[..., :3] + action[..., :3], euler_from_rotation(rotation).to(pose.dtype), gripper], dim=-1)


def pose_difference(pose: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """The action (..., 7) that leads from a pose (..., 7) to a new one: Δxyz, Euler angles of R₁·R₀ᵀ, Δgripper."""
    _check_poses(pose=pose, new=new)
    before, after = (rotation_from_euler(each[..., 3:6].double()) for each in (pose, new))
    angles = euler_from_rotation(after @ before.transpose(-1, -2)).to(pose.dtype)
    return torch.cat([new[..., :3] - pose[..., :3], angles, new[..., 6:] - pose[..., 6:]], dim=-1)


def next_proprio_state(
    transition: str, states: torch.Tensor | None, action: torch.Tensor, index: int
) -> torch.Tensor | None:
    """Proprio states (B, `index` or more, S) with the one at `index` appended if missing: the result of an action
    (B, A) under a `proprio_transition` of [`VJepa2WorldModelConfig`]."""
    if states is None or states.shape[1] > index:
        return states
    last = states[:, -1]
    if transition == "add":
        last = last + action
    elif transition == "pose_delta":
        last = move_pose(last, action)
    return torch.cat([states, last.unsqueeze(1)], dim=1)


def proprio_states_after(
    transition: str, states: torch.Tensor, actions: torch.Tensor, frames: int, device: torch.device
) -> Iterator[torch.Tensor]:
    """Proprio states (B, j, S), float32, after each of actions (B, j, P, A), from states (B, `frames` or more, S)."""
    candidates = actions.shape[1]
    states, actions = (part.to(device, torch.float32) for part in (states, actions))
    states = states.repeat_interleave(candidates, dim=0)
    for step in range(actions.shape[2]):
        states = next_proprio_state(transition, states, actions[:, :, step].flatten(0, 1), frames + step)
        yield states[:, frames + step].unflatten(0, (-1, candidates))
