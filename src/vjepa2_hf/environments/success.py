"""When a task counts as reached: levels of success, all judged in one run.

    levels = {"moderate": SuccessLevel(distance=16), "strict": SuccessLevel(distance=8, hold=3)}
    tracker = SuccessTracker(levels, states, goals)
    tracker.update(states, goals, stepped, last)       # after each step; tracker.reached["strict"] (N,)

Letters: N tasks, S state size.
"""

import dataclasses
from dataclasses import dataclass, field

import numpy as np

from ..data.typed_fields import check_field
from ..specs import check_count, check_number


@dataclass
class SuccessLevel:
    """A task is reached if its state is this near to its goal."""

    distance: float
    """Largest Euclidean distance, in the unit of the state; in the frozen tasks of the package in pixels."""
    columns: list[int] | list[list[int]] | None = None
    """Columns of the state that enter the distance; for several lists each distance must be small. null: those of
    gym.distance_columns, in the frozen tasks those that the environment judges."""
    angles: list[int] = field(default_factory=list)
    """Columns that are angles in radians; each must be within `degrees` of the goal's, the short way around."""
    degrees: float | None = None
    hold: int = 1
    """Consecutive steps for which all of it must hold."""
    at_end: bool = False
    """Count the last step of the task alone, with the `hold` - 1 before it."""

    def __post_init__(self):
        for name in ("columns", "angles", "at_end"):
            check_field(self, name)
        check_number("distance of a level of success", self.distance, above=0)
        check_count("hold of a level of success", self.hold)
        if self.degrees is not None:
            check_number("degrees of a level of success", self.degrees, above=0)
        if bool(self.angles) != (self.degrees is not None):
            raise ValueError(
                f"A level of success has angles {self.angles} and degrees {self.degrees}: give both or none."
            )
        if self.columns is not None and not all(self.groups(0)):
            raise ValueError(f"The columns of a level of success are {self.columns}; expected at least one.")

    def with_columns(self, columns: list[int] | None) -> "SuccessLevel":
        """The same with these columns if it names none itself."""
        return self if self.columns is not None else dataclasses.replace(self, columns=columns)

    def groups(self, size: int) -> list[list[int]]:
        """The columns of each distance, for states of `size` numbers."""
        if self.columns is None:
            angles = {angle % size for angle in self.angles}
            return [[column for column in range(size) if column not in angles]]
        return self.columns if self.columns and isinstance(self.columns[0], list) else [self.columns]

    def distances(self, states: np.ndarray, goals: np.ndarray) -> np.ndarray:
        """The largest of the distances: (..., S), (..., S) -> (...)."""
        size = states.shape[-1]
        used = [*self.angles, *(column for group in self.groups(size) for column in group)]
        if not all(-size <= column < size for column in used):
            raise ValueError(f"Success is judged by the columns {used}, but the state has {size} numbers.")
        difference = states - goals
        return np.stack([np.linalg.norm(difference[..., group], axis=-1) for group in self.groups(size)]).max(0)

    def is_met(self, states: np.ndarray, goals: np.ndarray) -> np.ndarray:
        """(..., S), (..., S) -> bool (...)."""
        met = self.distances(states, goals) <= self.distance
        if self.angles:
            turned = (states - goals)[..., self.angles]
            turned = np.abs(np.remainder(turned + np.pi, 2 * np.pi) - np.pi)
            met = met & (turned <= np.deg2rad(self.degrees)).all(axis=-1)
        return met


def check_hold(levels: dict[str, SuccessLevel], max_steps: int) -> None:
    """Refuses a level that no task of `max_steps` steps can reach."""
    for name, level in levels.items():
        if level.hold > max_steps:
            raise ValueError(
                f"The level of success {name!r} must hold {level.hold} steps, but tasks have {max_steps}: lower it."
            )


class SuccessTracker:
    """Which of N tasks have reached which level.

    `solved`: bool (N,), tasks whose start meets a level, which never count as reached. `reached`: bool (N,) by level.
    """

    def __init__(self, levels: dict[str, SuccessLevel], states: np.ndarray, goals: np.ndarray):
        self.levels = levels
        self.solved = np.any([level.is_met(states, goals) for level in levels.values()], axis=0)
        self.reached = {name: np.zeros(len(states), bool) for name in levels}
        self._held = {name: np.zeros(len(states), int) for name in levels}

    @property
    def first(self) -> np.ndarray:
        """Tasks that have reached the first level, which is the one of a row's success."""
        return next(iter(self.reached.values()))

    @property
    def finished(self) -> np.ndarray:
        """Tasks that have reached every level, so that nothing can change."""
        return np.all(list(self.reached.values()), axis=0)

    def update(self, states: np.ndarray, goals: np.ndarray, stepped: np.ndarray, last: np.ndarray) -> None:
        """Judges the states (N, S) after a step: of the tasks that `stepped` (N,), some for the `last` (N,) time."""
        for name, level in self.levels.items():
            met = level.is_met(states, goals)
            self._held[name] = np.where(stepped, np.where(met, self._held[name] + 1, 0), self._held[name])
            reached = self._held[name] >= level.hold
            if level.at_end:
                reached = reached & last
            self.reached[name] = self.reached[name] | (reached & stepped & ~self.solved)
