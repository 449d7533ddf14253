"""Turned frames and actions are what the environment gives from the turned state."""

import math

import gymnasium
import numpy as np
import pytest
import torch

from vjepa2_hf.environments import FOUR_ROOMS, PUSHING, TWO_ROOMS, find_symmetries
from vjepa2_hf.training.augmentation import TURNS, augment, check_symmetries


TURNED_STATES = {  # positions in field units, x then y
    "flip_horizontal": lambda points: np.stack([1 - points[:, 0], points[:, 1]], axis=1),
    "flip_vertical": lambda points: np.stack([points[:, 0], 1 - points[:, 1]], axis=1),
    "transpose": lambda points: points[:, ::-1],
}
CASES = [(PUSHING, name) for name in TURNS] + [(TWO_ROOMS, name) for name in ("flip_horizontal", "flip_vertical")]


@pytest.mark.parametrize(("env_id", "name"), CASES)
def test_turned_frames_and_actions_are_those_of_the_turned_state(env_id, name):
    env = gymnasium.make(env_id, render_mode="rgb_array", terminate_on_success=False).unwrapped
    matrix = np.array(env.symmetries[name])
    rng = np.random.default_rng(0)
    for start in env.sample_starts(rng, 4):
        actions = rng.uniform(-1, 1, (12, 2))
        frames = []
        for state, moves in ((start, actions), (turned(start, name), actions @ matrix.T)):
            env.reset(seed=0, options={"state": state, "goal": state})
            frames.append([env.render(), *(env.step(move)[0] for move in moves.astype(np.float32))])
        seen, mirrored = (torch.from_numpy(np.stack(part)).movedim(-1, -3).int() for part in frames)
        assert (TURNS[name](seen) - mirrored).abs().max() <= 1  # rounding
        assert (seen - mirrored).abs().max() > 50


def turned(state: np.ndarray, name: str) -> np.ndarray:
    return np.float32(TURNED_STATES[name](state.reshape(-1, 2)).reshape(-1))


def test_environments_declare_their_symmetries_and_one_without_is_refused():
    assert set(find_symmetries(PUSHING)) == set(TURNS)
    assert set(find_symmetries(TWO_ROOMS)) == {
        "flip_horizontal",
        "flip_vertical",
    }  # the wall is not symmetric to x = y
    with pytest.raises(ValueError, match="'vjepa2_hf/FourRooms-v0' declares no symmetries: give matrices by name"):
        find_symmetries(FOUR_ROOMS)
    with pytest.raises(ValueError, match="'vjepa2_hf/Nowhere-v0' of symmetries cannot be made"):
        find_symmetries("vjepa2_hf/Nowhere-v0")
    for env_id in (None, 5):
        with pytest.raises(ValueError, match=f"env_id is {env_id}; expected the id of an environment"):
            find_symmetries(env_id)


def test_every_turn_is_drawn_and_the_actions_follow_it():
    """A frame with one white pixel in each channel says which turn, order and inversion a draw had."""
    symmetries = find_symmetries(PUSHING)
    frames = torch.zeros(1, 2, 3, 4, 4, dtype=torch.uint8)
    frames[:, :, :, 0, 1] = torch.tensor([10, 20, 30], dtype=torch.uint8)  # right of the top left corner
    actions = torch.tensor([[[[0.5, -1.0]]]])
    found = set()
    for seed in range(60):
        changed, moved = augment(frames, actions, symmetries, np.random.default_rng(seed))
        inverted = bool((changed == 255).any())
        changed = 255 - changed if inverted else changed
        rows, columns = changed[0, 0].amax(0).nonzero()[0].tolist()
        colors = tuple(changed[0, 0, :, rows, columns].tolist())
        assert torch.equal(changed[0, 0], changed[0, 1]) and sorted(colors) == [10, 20, 30]
        swapped = bool(moved[0, 0, 0].abs()[0] == 1)
        assert swapped == (columns in (0, 3))
        # the pixel's offset from the center turns as the action does
        matrix = torch.tensor([[0.0, 1.0], [1.0, 0.0]]) if swapped else torch.eye(2)
        offset, action = torch.tensor([columns - 1.5, rows - 1.5]), moved[0, 0, 0]
        original = matrix @ torch.tensor([-0.5, -1.5])
        assert torch.equal(action, matrix @ actions[0, 0, 0] * (offset / original))
        found.add((rows, columns, colors, inverted))
    assert len({(rows, columns) for rows, columns, _, _ in found}) == 8
    assert len({colors for _, _, colors, _ in found}) == 6
    assert {inverted for *_, inverted in found} == {True, False}


def test_one_draw_holds_for_all_frames_of_a_batch_and_depends_on_the_generator_alone():
    frames = torch.randint(0, 255, (3, 4, 3, 8, 8), dtype=torch.uint8)
    actions = torch.randn(3, 3, 2, 2)
    draws = [augment(frames, actions, find_symmetries(PUSHING), np.random.default_rng(5)) for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(*draws, strict=True))
    alone, moved = augment(frames[1:2, 2:3], actions[1:2, 1:2], find_symmetries(PUSHING), np.random.default_rng(5))
    assert torch.equal(draws[0][0][1:2, 2:3], alone) and torch.equal(draws[0][1][1:2, 1:2], moved)


class Always:
    """A generator that draws every turn and keeps the channels."""

    def random(self) -> float:
        return 0.0

    def permutation(self, count: int) -> np.ndarray:
        return np.arange(count)


def test_frames_without_actions_are_turned_as_those_with():
    frames, actions = torch.randint(0, 256, (2, 3, 3, 8, 8), dtype=torch.uint8), torch.randn(2, 2, 1, 2)
    for seed in range(8):
        drawn, _ = augment(frames, actions, find_symmetries(PUSHING), np.random.default_rng(seed))
        alone, nothing = augment(frames, None, find_symmetries(PUSHING), np.random.default_rng(seed))
        assert torch.equal(drawn, alone) and nothing is None


def test_integer_actions_are_turned_as_floats():
    frames, actions = torch.zeros(1, 2, 3, 4, 4, dtype=torch.uint8), torch.ones(1, 1, 1, 2, dtype=torch.long)
    _, moved = augment(frames, actions, {"flip_horizontal": [[-0.5, 0], [0, 1]]}, Always())
    assert torch.equal(moved, torch.tensor([[[[-0.5, 1.0]]]]))
    with pytest.raises(ValueError, match="square matrix of 2 rows"):
        augment(frames, actions, {"flip_horizontal": [[-1]]}, Always())


NO_MATRICES = [3, None, "ab", [], [1, 2], [[0, 0], [0, 0]], [[1, 1], [2, 2]], [["a", 0], [0, 1]]]
NO_MATRICES += [[[math.nan, 0], [0, 1]], [[math.inf, 0], [0, 1]], [[None, 0], [0, 1]]]


@pytest.mark.parametrize(
    ("symmetries", "message"),
    [
        ({"turn": [[1.0]]}, "turn"),
        ({"transpose": [[1.0, 0.0]]}, "expected a square matrix that turns an action"),
        ({"transpose": [[1.0]]}, "expected a square matrix of 2 rows that turns an action"),
        *[({"transpose": matrix}, "of finite numbers and invertible") for matrix in NO_MATRICES],
        ({3: [[1.0]]}, "Unknown symmetry '3'"),
        ("vjepa2_hf/Pushing-v0", "symmetries is 'vjepa2_hf/Pushing-v0'; expected matrices by name"),
        ([[1.0]], "expected matrices by name"),
    ],
)
def test_matrices_that_turn_no_action_are_refused(symmetries, message):
    with pytest.raises(ValueError, match=message):
        check_symmetries(symmetries, 2 if "2 rows" in message else None)
