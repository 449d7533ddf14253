"""Where episodes begin in arrays that hold several one after another: split, or refused with the names seen."""

import numpy as np
import pytest

from vjepa2_hf.data.boundaries import find_starts


N = 10  # frames: episodes 0-3, 4-8, 9 unless a test says otherwise


def flags(*rows: int, count: int = N) -> np.ndarray:
    array = np.zeros(count, np.float32)
    array[list(rows)] = 1
    return array


@pytest.mark.parametrize(
    ("marks", "starts"),
    [
        ({}, [0]),
        ({"terminals": flags(3, 8, 9)}, [0, 4]),  # raised to the end: one end
        ({"terminals": flags(3, 9)}, [0, 4]),
        ({"terminals": flags(3)}, [0, 4]),  # the last episode was cut
        ({"terminals": flags()}, [0]),
        ({"terminals": flags(3)[:, None].astype(bool)}, [0, 4]),
        ({"terminals": flags(3), "timeouts": flags(8)}, [0, 4, 9]),  # D4RL
        ({"info/terminals": flags(3)}, [0, 4]),
        ({"next.done": flags(3, 9)}, [0, 4]),
        ({"terminated": flags(3), "truncated": flags(8), "dones": flags(3, 8)}, [0, 4, 9]),
        ({"terminals": flags(3), "dones": flags(3, 8)}, [0, 4, 9]),
        ({"dones": flags(6, 7, 8, 9)}, [0]),  # success lasts to the end of a demonstration
        ({"terminations": flags(8, count=9)}, [0]),  # one row per step (Minari)
        ({"is_first": flags(0, 4)}, [0, 4]),  # Dreamer
        ({"is_first": flags(4), "is_last": flags(3, 9), "is_terminal": flags(9)}, [0, 4]),  # RLDS
        ({"is_last": flags(3, 9), "is_terminal": flags(2, 3, 8, 9)}, [0, 4]),
        ({"ep_len": np.array([4, 6]), "ep_offset": np.array([0, 4])}, [0, 4]),  # stable-worldmodel
        ({"ep_len": np.array([3, 5])}, [0, 4]),  # of steps
        ({"ep_len": np.array(10)}, [0]),
        ({"ep_offset": np.array([0, 4])}, [0, 4]),
        ({"meta/episode_ends": np.array([4, 10])}, [0, 4]),  # diffusion policy
        ({"episode_index": np.repeat([7, 3], [4, 6])}, [0, 4]),
        ({"episode_id": np.repeat([b"a", b"b"], [4, 6]).astype(object)}, [0, 4]),
        ({"step_idx": np.array([0, 1, 2, 3, 0, 1, 2, 3, 4, 5])}, [0, 4]),
        ({"timestep": np.array([0, 1, 2, 3, 0, 1, 2, 3, 4, 5])}, [0, 4]),
        ({"Terminals": flags(3, 9)}, [0, 4]),
        ({"done_flags": flags(3, 9)}, [0, 4]),
        ({"episode": np.repeat([0, 1], [4, 6])}, [0, 4]),
        ({"discount": 0.99 * (1 - flags(3, 9))}, [0, 4]),  # dm_env
        ({"discount": np.ones(N)}, [0]),
        ({"not_done": 1 - flags(3), "timeouts": flags(9)}, [0, 4]),
        ({"step_type": np.array([0, 1, 1, 2, 0, 1, 1, 1, 1, 2])}, [0, 4]),
        ({"episode_start": flags(0, 4)}, [0, 4]),
        ({"traj_ends": np.array([4, 10])}, [0, 4]),
    ],
)
def test_episodes_begin_where_the_marks_say(marks, starts):
    assert find_starts(marks, N).tolist() == starts


@pytest.mark.parametrize(
    ("marks", "message"),
    [
        ({"ep_len": np.array([4, 6]), "terminals": flags(2, 9)}, "its ep_len and terminals disagree"),
        ({"is_first": flags(0, 4), "is_last": flags(4, 9)}, "its is_first and is_last disagree"),
        ({"ep_len": np.array([4, 6]), "ep_offset": np.array([0, 5])}, "its ep_len and ep_offset disagree"),
        ({"terminals": flags(3), "dones": flags(8)}, "its dones and terminals disagree"),
        (
            {"terminals": flags(3), "timeouts": flags(8), "dones": flags(3, 5, 8)},
            "its dones and terminals and timeouts",
        ),
        ({"terminals": flags(3, 4, 5)}, "its terminals end an episode in several rows in a row"),
        ({"terminals": flags(3), "timeouts": flags(4)}, "its terminals and timeouts end an episode in several rows"),
        ({"dones": np.ones(N)}, "its dones end an episode in several rows in a row"),
        ({"terminals": flags(3, count=7)}, r"its terminals is \(7,\), but one value for each of 10 frames"),
        ({"dones": np.zeros((N, 2))}, r"its dones is \(10, 2\), but one value"),
        (
            {"terminations": flags(3, 8, count=9)},
            "its terminations end episodes before the last, but have one row less",
        ),
        ({"is_first": flags(4, count=9)}, "its is_first have one row less than the 10 frames, but boundaries"),
        ({"terminals": np.full(N, np.nan)}, "its terminals has values that are not finite"),
        ({"terminals": np.array(["no"] * N)}, "its terminals are <U2, but flags or numbers"),
        ({"ep_len": np.array([4, 7])}, "its ep_len add up to 11 frames, but there are 10"),
        ({"ep_len": np.array(7)}, "its ep_len add up to 7 frames, but there are 10; give --ends_key none"),  # padded
        ({"ep_len": np.array([10, 0])}, "its ep_len have an episode of no frame"),
        ({"ep_offset": np.array([1, 4])}, "its ep_offset must rise from 0"),
        ({"episode_ends": np.array([4, 4, 10])}, "its episode_ends have an episode of no frame"),
        ({"ep_idx": np.array([0, 0, 1, 1, 0, 0, 2, 2, 2, 2])}, "its ep_idx come back after another episode"),
    ],
)
def test_marks_that_do_not_fit_are_refused_with_their_names(marks, message):
    with pytest.raises(ValueError, match=message):
        find_starts(marks, N)


def test_a_named_array_decides():
    marks = {"terminals": flags(3, 4, 5), "segment_over": flags(3, 4)}
    assert find_starts(marks, N, "segment_over").tolist() == [0, 4, 5]
    assert find_starts(marks, N, "terminals").tolist() == [0, 4, 5, 6]
    assert find_starts(marks, N, "none").tolist() == [0]
