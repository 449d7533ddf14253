"""Pose arithmetic against the published numbers, near the poles too, and against turns that are known by heart."""

import math

import torch
from builders import golden

from vjepa2_hf.pose import euler_from_rotation, move_pose, pose_difference, rotation_from_euler


def test_published_poses():
    data = golden("pose")
    moved = move_pose(data["pose"], data["action"])
    torch.testing.assert_close(moved[:, [0, 1, 2, 6]], data["new"][:, [0, 1, 2, 6]], atol=1e-6, rtol=0)
    rotations = [rotation_from_euler(poses[:, 3:6].double()) for poses in (moved, data["new"])]
    torch.testing.assert_close(*rotations, atol=1e-5, rtol=0)
    away = data["new"][:, 4].cos() > 0.01  # at a pole many angles are one rotation
    assert away.sum() > 30
    torch.testing.assert_close(moved[away], data["new"][away], atol=1e-5, rtol=0)


def test_published_differences():
    data = golden("pose")
    action = pose_difference(data["pose"], data["new"])
    torch.testing.assert_close(action.double(), data["difference"], atol=1e-6, rtol=0)
    moved = move_pose(data["pose"], action)
    rotations = [rotation_from_euler(each[:, 3:6].double()) for each in (moved, data["new"])]
    torch.testing.assert_close(*rotations, atol=1e-5, rtol=0)  # the difference leads back to the new pose


def test_rotations_of_a_right_angle():
    turn = math.pi / 2
    x, y, z = (rotation_from_euler(turn * axis) for axis in torch.eye(3))
    torch.testing.assert_close(x @ torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.0, 0.0, 1.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(y @ torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(z @ torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0]), atol=1e-6, rtol=0)
    angles = torch.tensor([0.3, -0.8, 1.9])
    matrices = [rotation_from_euler(angle * axis) for angle, axis in zip(angles, torch.eye(3))]
    torch.testing.assert_close(rotation_from_euler(angles), matrices[2] @ matrices[1] @ matrices[0])


def test_angles_come_back():
    angles = (torch.rand(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5) * 2
    angles = angles * torch.tensor([math.pi, math.pi / 2, math.pi])
    torch.testing.assert_close(euler_from_rotation(rotation_from_euler(angles)), angles, atol=1e-9, rtol=0)


def test_at_a_pole_the_rotation_comes_back():
    for pole in (math.pi / 2, -math.pi / 2):
        angles = torch.tensor([0.4, pole, -1.1], dtype=torch.float64)
        back = euler_from_rotation(rotation_from_euler(angles))
        assert back[2] == 0
        torch.testing.assert_close(rotation_from_euler(back), rotation_from_euler(angles), atol=1e-7, rtol=0)


def test_the_actions_rotation_is_applied_on_the_left():
    turn = math.pi / 2
    pose = torch.tensor([1.0, 2.0, 3.0, turn, 0, 0, 0.5])
    moved = move_pose(pose, torch.tensor([0.1, 0.0, -0.1, 0, 0, turn, 0.25]))
    torch.testing.assert_close(moved[:3], torch.tensor([1.1, 2.0, 2.9]))
    expected = rotation_from_euler(torch.tensor([0, 0, turn])) @ rotation_from_euler(torch.tensor([turn, 0, 0]))
    torch.testing.assert_close(rotation_from_euler(moved[3:6]), expected, atol=1e-6, rtol=0)
    assert moved[6] == 0.75 and moved.dtype == torch.float32


def test_the_gripper_stays_between_open_and_closed():
    pose = torch.zeros(2, 3, 7)  # any leading dimensions
    action = torch.zeros(2, 3, 7)
    action[0, :, 6], action[1, :, 6] = 2.0, -2.0
    moved = move_pose(pose, action)
    assert (moved[0, :, 6] == 1).all() and (moved[1, :, 6] == 0).all() and moved.shape == (2, 3, 7)
