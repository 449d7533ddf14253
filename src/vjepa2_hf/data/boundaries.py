"""Boundaries between episodes in arrays that hold several episodes one after another.

Arrays that mark boundaries are recognized by their names (the last part of a path):

    flags per row     terminals, timeouts, dones, truncated, ... (the last row of an episode), is_last, is_first;
                      discount, not_done (0 in the last row)
    numbers per row   ep_idx, episode_index, ... (of the episode), step_idx, frame_index (within it), step_type (0 in
                      the first row)
    one per episode   ep_len, ep_offset, episode_ends, ...

Marks that disagree, or that have several meanings, are refused: a wrong boundary trains on jumps between episodes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..configuration_vjepa2 import check


NO_ENDS = "none"  # as `ends_key`: a group of actions is one episode, whatever marks there are
_NAMES = {
    "terminated": "terminals terminal terminated terminations is_terminal",
    "truncated": "timeouts timeout truncated truncateds truncations truncation is_truncated",
    "done": "dones done is_done done_flag done_flags",
    "continued": "discount discounts not_done not_dones nonterminals",
    "last": "is_last",
    "first": "is_first episode_start episode_starts",
    "step_type": "step_type",
    "number": "episode ep_idx episode_idx episode_index episode_indices ep_id episode_id episode_ids traj_id traj_idx "
    "trajectory_id trajectory_ids",
    "step": "step_idx step_index frame_index timestep timesteps time_step episode_step",
    "length": "ep_len ep_lens ep_length ep_lengths episode_len episode_lens episode_length episode_lengths traj_len "
    "traj_lens traj_length traj_lengths trajectory_length trajectory_lengths",
    "offset": "ep_offset ep_offsets episode_offset episode_offsets",
    "end": "episode_ends ep_ends traj_ends trajectory_ends",
}
_KINDS = {name: kind for kind, names in _NAMES.items() for name in names.split()}
# Flags that may also be raised before the last row
_ENDED = ("terminated", "truncated", "done", "continued")
# Of arrays that may be marks, of other names
_SUSPECTED = re.compile(r"episode|traj|terminal|timeout|done|trunc|boundar|(^|_)ep(_|$)", re.IGNORECASE)


def kind_of(path: str) -> str | None:
    """What an array marks, by the last part of its path; None if its name is unknown."""
    return _KINDS.get(re.split(r"[/.]", path)[-1].lower())


def may_mark(path: str) -> bool:
    """Whether an array of an unknown name may mark boundaries, by the last part of its path."""
    return kind_of(path) is None and _SUSPECTED.search(re.split(r"[/.]", path)[-1]) is not None


def find_starts(marks: Mapping[str, Any], num_frames: int, ends_key: str | None = None) -> np.ndarray:
    """First frame of every episode, int64 (E,), from arrays by name.

    Args:
        marks: arrays of known names; others are an error unless `ends_key` names them.
        num_frames: rows of all episodes together.
        ends_key: the only array to use; one of an unknown name flags the last row of each episode. "none": use none.

    Raises:
        ValueError: the marks disagree, do not fit `num_frames`, or are ambiguous.
    """
    if ends_key == NO_ENDS:
        return np.zeros(1, np.int64)
    if ends_key is not None:
        return _exact_starts(ends_key, np.asarray(marks[ends_key]), kind_of(ends_key) or "last", num_frames)
    exact, flags = {}, {}
    for name, array in marks.items():
        kind = kind_of(name)
        if kind in _ENDED:
            array = np.asarray(array)
            flags[name] = _flags(name, array == 0 if kind == "continued" else array, num_frames)
        else:
            exact[name] = _exact_starts(name, np.asarray(array), kind, num_frames)
    if not exact:
        return _starts_after(flags, num_frames) if flags else np.zeros(1, np.int64)
    (first, starts), *others = exact.items()
    for name, found in others:
        _check_same(np.array_equal(starts, found), first, name)
    for name, raised in flags.items():
        # Raised from an event on until the episode ends, as success is
        last = np.repeat(np.append(starts[1:], num_frames) - 1, np.diff(np.append(starts, num_frames)))
        held = ~raised[:-1] | raised[1:] | (np.arange(num_frames - 1) == last[:-1])
        _check_same(held.all(), first, name)
    return starts


def _check_same(same: bool, one: str, other: str) -> None:
    advice = "name the right one with --ends_key, or give --ends_key none if all rows are one episode"
    check(same, f"its {one} and {other} disagree about where episodes end; {advice}")


def _column(name: str, array: np.ndarray, num_frames: int) -> tuple[np.ndarray, bool]:
    """An array with a value per frame, (T,), and whether it had a value per step of one episode instead."""
    fits = array.ndim > 0 and array.size == len(array) and num_frames - len(array) in (0, 1)
    check(fits, f"its {name} is {tuple(array.shape)}, but one value for each of {num_frames} frames is expected")
    array = array.reshape(-1)
    if array.dtype.kind == "f":
        check(np.isfinite(array).all(), f"its {name} has values that are not finite (NaN or infinite)")
    return array, len(array) < num_frames


def _flags(name: str, array: np.ndarray, num_frames: int) -> np.ndarray:
    """Flags of all frames, bool (T,); of one episode's steps, the last frame takes the flag of the last step."""
    array, of_steps = _column(name, array, num_frames)
    check(array.dtype.kind in "biuf", f"its {name} are {array.dtype}, but flags or numbers are expected")
    flags = array != 0
    if not of_steps:
        return flags
    ends_early = (flags[:-1] & ~flags[1:]).any()
    check(
        not ends_early, f"its {name} end episodes before the last, but have one row less than the {num_frames} frames"
    )
    return np.append(np.zeros(1, bool), flags)


def _starts_after(flags: dict[str, np.ndarray], num_frames: int) -> np.ndarray:
    """Starts after the rows that any flag ends."""
    _check_done(flags)
    names, raised = " and ".join(flags), np.any(list(flags.values()), axis=0)
    # From here on all are raised: one end, for example a success that lasts
    tail = 0 if raised.all() else num_frames - int(np.argmin(raised[::-1]))
    inner = raised[:tail]
    repeated = (inner[:-1] & inner[1:]).any() if tail else num_frames > 1
    meaning = "either episodes of one frame, or a state that lasts"
    advice = "name the array of the ends with --ends_key, or give --ends_key none if all rows are one episode"
    check(not repeated, f"its {names} end an episode in several rows in a row, which is {meaning}; {advice}")
    return np.concatenate([[0], np.flatnonzero(inner[: num_frames - 1]) + 1]).astype(np.int64)


def _check_done(flags: dict[str, np.ndarray]) -> None:
    """Refuses `dones` that lack an end, or have another one although both of its reasons are there."""
    done = {name: raised for name, raised in flags.items() if kind_of(name) == "done"}
    reasons = {name: raised for name, raised in flags.items() if name not in done}
    if not done or not reasons:
        return
    ended, explained = (np.any(list(part.values()), axis=0) for part in (done, reasons))
    complete = {kind_of(name) for name in reasons} == {"terminated", "truncated"}
    agree = np.array_equal(ended, explained) if complete else not (explained & ~ended).any()
    _check_same(agree, next(iter(done)), " and ".join(reasons))


def _exact_starts(name: str, array: np.ndarray, kind: str, num_frames: int) -> np.ndarray:
    """Starts by an array that marks every boundary, and nothing else."""
    if kind in ("length", "offset", "end"):
        return _listed_starts(name, array, kind, num_frames)
    column, of_steps = _column(name, array, num_frames)
    if kind == "number":
        begins = column[1:] != column[:-1]
        count = begins.sum() + 1
        check(len(np.unique(column)) == count, f"its {name} come back after another episode: sort the rows by episode")
    elif kind == "step":
        begins = column[1:] <= column[:-1]
    elif kind == "first":
        begins = column[1:] != 0
    elif kind == "step_type":
        begins = column[1:] == 0
    else:
        begins = column[:-1] != 0
    problem = f"its {name} have one row less than the {num_frames} frames, but boundaries between them"
    check(not (of_steps and begins.any()), problem)
    return np.concatenate([[0], np.flatnonzero(begins) + 1]).astype(np.int64)


def _listed_starts(name: str, array: np.ndarray, kind: str, num_frames: int) -> np.ndarray:
    """Starts by an array with one number per episode."""
    check(array.dtype.kind in "iuf" and array.size > 0, f"its {name} is {array.dtype} {array.shape}, expected counts")
    values = array.reshape(-1).astype(np.int64)
    if kind == "offset":
        fits = values[0] == 0 and (np.diff(values) > 0).all() and values[-1] < num_frames
        check(fits, f"its {name} must rise from 0 and stay below the {num_frames} frames")
        return values
    lengths = np.diff(values, prepend=0) if kind == "end" else values
    check((lengths > 0).all(), f"its {name} have an episode of no frame")
    if lengths.sum() == num_frames - len(lengths):  # of steps, one less than frames
        lengths = lengths + 1
    fits = lengths.sum() == num_frames
    advice = f"give --ends_key {NO_ENDS} if all rows are one episode"
    check(fits, f"its {name} add up to {lengths.sum()} frames, but there are {num_frames}; {advice}")
    return np.cumsum(lengths) - lengths
