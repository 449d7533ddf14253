"""Base class of the environments: spaces, reset, step and rendering.

Units: positions are in field units, 0 to 1 from the left (x) and from the top (y); the field is the whole image of
64 x 64 pixels. An action of 1.0 moves the agent by 0.1 of the field, in four rooms by 0.03. The tasks (25 steps, in
four rooms 150, success within 5 pixels at any step, how goals are sampled) are frozen: every reported number depends
on them.
Letters: N episodes, S state size, A = 2 action size, P planning horizon, J candidates; leading dimensions are free
where a shape says (..., S).
"""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

from ..specs import check_choice, check_known, refuse
from .appearance import (
    IMAGE_SIZE,
    Appearance,
    close_up,
    distinct_colors,
    random_light,
    render_disc,
    textured_floor,
)


STEP_SIZE = 0.1  # field units that an action of 1.0 moves the agent
SUBSTEPS = 4  # 1.6 pixels each at full speed: far below every radius, so nothing tunnels
MAX_STEPS = 25  # steps to reach a goal
EXECUTED_ACTIONS = 2  # of each plan, before planning again
SUCCESS_PIXELS = 5.0  # at any step
FRAMES_PER_SECOND = 10.0
VIEWS = ("top", "agent")  # cameras: the whole field, and a close-up that follows the agent
ZOOM = 2  # of the close-up
GOAL_APPEARANCES = ("same", "other")


class PlaneEnv(gymnasium.Env):
    """Base class; a subclass adds the physics and the tasks.

    Observation: uint8 (64, 64, 3), or with several `views` a dict of them by name.
    Action: (2,) in [-1, 1], the agent's move, clipped; 1.0 is `step_size`.
    Reward: minus the distance to the goal in field units. `gymnasium.make` truncates an episode after `max_steps`.
    `info`: `state` float32 (S,), `proprio_state` float32 (2,) the agent's position, `goal_state` float32 (S,),
    `distance_px`, `success`.

    Args:
        radii: radius in pixels and the largest one possible, by argument, in the order of a state.
        varied_appearance: appearance randomization: a random textured floor, colors, distractors and light per episode
            seed.
        goal_appearance: of the goal image: "same" as the observations, or with varied_appearance an "other" random
            one, from the same seed.
        terminate_on_success: False continues after success, to record episodes of a fixed length.
        random_force: process noise: standard deviation of a normal action that follows every action; 0: none.
        views: cameras, of "top" (the whole field) and "agent" (a quarter of it, twice as large, around the agent).
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": FRAMES_PER_SECOND}
    state_dim: int
    step_size = STEP_SIZE
    max_steps = MAX_STEPS
    layers: tuple[int, ...] | None = None  # the discs from the bottom to the top; None: in the order of a state
    plain_colors: tuple[tuple[float, float, float], ...]
    discs: tuple[str, ...]  # their names, in the order of a state
    target: slice  # the columns of a state that must reach the goal
    controlled: slice  # the columns of a state that depend on actions
    # Turns of the image (`vjepa2_hf.training.augmentation.TURNS`) under which the physics is the same, with the matrix
    # (2, 2) that turns an action
    symmetries: dict[str, list[list[float]]] = {}

    def __init__(
        self,
        render_mode: str | None,
        radii: dict[str, tuple[float, float]],
        varied_appearance: bool = False,
        terminate_on_success: bool = True,
        random_force: float = 0.0,
        views: Sequence[str] = VIEWS[:1],
        goal_appearance: str = "same",
    ):
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode is {render_mode!r}, but 'rgb_array' or None is expected.")
        if not isinstance(random_force, (int, float)) or not 0 <= random_force <= 1:
            raise ValueError(f"random_force is {random_force!r}; expected a standard deviation in actions, 0 to 1.")
        for name, (radius, largest) in radii.items():
            if not isinstance(radius, (int, float)) or not 1 <= radius <= largest:
                raise ValueError(f"{name} is {radius!r}; expected pixels from 1 to {largest:g}.")
        if not isinstance(views, (list, tuple)) or not views or len(set(views)) < len(views):
            refuse("views", views, f"a list of {' and '.join(VIEWS)}, each once")
        for view in views:
            check_known(view, VIEWS, "view")
        check_choice("goal_appearance", goal_appearance, GOAL_APPEARANCES)
        if goal_appearance == "other" and not varied_appearance:
            raise ValueError("goal_appearance is 'other', but every appearance is the plain one: vary the appearance.")
        self.views, self.goal_appearance = tuple(views), goal_appearance
        self.radii = tuple(radius / IMAGE_SIZE for radius, _ in radii.values())  # in field units
        self.render_mode, self.varied_appearance = render_mode, varied_appearance
        self.terminate_on_success, self.random_force = terminate_on_success, random_force
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        image = gymnasium.spaces.Box(0, 255, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        several = len(self.views) > 1
        self.observation_space = gymnasium.spaces.Dict(dict.fromkeys(self.views, image)) if several else image
        self.appearance, self.appearance_of_goal = self.make_appearance(None), self.make_appearance(None)
        self.state = self.goal_state = np.zeros(self.state_dim, np.float32)
        self.last_action = np.zeros(2, np.float32)  # zero after a reset; the policy "wander" continues it

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Starts an episode, sampled from the seed unless `options` gives a `state` or a `goal` (a state).

        Raises:
            ValueError: an unknown option, or an impossible state.
        """
        super().reset(seed=seed)
        options = options or {}
        for name in options:
            check_known(name, ("state", "goal"), "option of reset")
        appearance_seed, task_seed = (int(s) for s in self.np_random.integers(0, 2**31, 2))
        appearances = self.make_appearances(appearance_seed if self.varied_appearance else None)
        self.appearance, self.appearance_of_goal = appearances
        start, goal = options.get("state"), options.get("goal")
        if start is None or goal is None:
            sampled_start, sampled_goal = self.sample_task(task_seed)
            start, goal = sampled_start if start is None else start, sampled_goal if goal is None else goal
        self.goal_state = self.check_state(goal)
        self.set_state(start)
        return self._observe(), self._info()

    def step(self, action: np.ndarray):
        """Takes an action (2,) in [-1, 1]. The reward is minus the distance to the goal in widths of the field."""
        action = np.asarray(action, np.float32)
        if action.shape != (2,) or not np.isfinite(action).all():
            raise ValueError(f"The action is {action.tolist()}, but two finite numbers in [-1, 1] are expected.")
        self.last_action = action
        self.state = self.dynamics(self.state, action)
        if self.random_force:
            self.state = self.disturbed(self.state, self.random_force * self.np_random.standard_normal(2))
        info = self._info()
        terminated = bool(info["success"] and self.terminate_on_success)
        return self._observe(), -info["distance_px"] / IMAGE_SIZE, terminated, False, info

    def render(self) -> np.ndarray:
        """The image of the current state, uint8 (H, W, 3), in the first view."""
        return self.render_state(self.state)

    def _observe(self) -> np.ndarray | dict[str, np.ndarray]:
        if len(self.views) == 1:
            return self.render()
        return {view: self.render_state(self.state, view=view) for view in self.views}

    def _info(self) -> dict[str, Any]:
        distance = float(self.distance_px(self.state, self.goal_state))
        return {
            "state": self.state.copy(),
            "proprio_state": self.state[:2].copy(),
            "goal_state": self.goal_state.copy(),
            "distance_px": distance,
            "success": distance <= SUCCESS_PIXELS,
        }

    def set_state(self, state: np.ndarray) -> None:
        """Sets the state (S,); appearance and goal stay. An impossible state is a ValueError."""
        self.state = self.check_state(state)
        self.last_action = np.zeros(2, np.float32)

    def place(self, state: np.ndarray, disc: int, position: np.ndarray) -> np.ndarray:
        """The state (S,) with one of its discs at a position (2,), or at the nearest free one."""
        sides = np.linspace(0, 1, 2 * IMAGE_SIZE + 1)
        positions = np.stack(np.meshgrid(sides, sides), axis=-1).reshape(-1, 2)
        states = np.tile(np.asarray(state, np.float32), (1 + len(positions), 1))
        states[:, 2 * disc : 2 * disc + 2] = np.concatenate([np.reshape(position, (1, 2)), positions])
        states = states[self.is_free(states)]
        if not len(states):
            raise ValueError(f"There is no free position for the {self.discs[disc]}: move another disc first.")
        away = length(states[:, 2 * disc : 2 * disc + 2] - np.asarray(position))
        return states[np.argmin(away)]

    def check_state(self, state: np.ndarray) -> np.ndarray:
        """A copy of a possible state, float32 (S,)."""
        state = np.array(state, np.float32)
        if state.shape != (self.state_dim,):
            raise ValueError(f"The state has shape {state.shape}, but ({self.state_dim},) is expected.")
        if not self.is_free(state):
            raise ValueError(
                f"The state {state.tolist()} is impossible: expected positions in field units (0 to 1) with every "
                "disc inside the field and no overlap."
            )
        return state

    def distance_px(self, states: np.ndarray, goals: np.ndarray) -> np.ndarray:
        """Distance in pixels that decides success: (..., S), (..., S) -> (...)."""
        difference = states[..., self.target] - goals[..., self.target]
        return np.sqrt((difference * difference).sum(-1)) * IMAGE_SIZE

    def path_distance(self, states: np.ndarray, goals: np.ndarray, whole_state: bool = False) -> np.ndarray:
        """Length in pixels of the shortest path that success needs, (..., S), (..., S) -> (...), which broadcast.

        Around walls for the agent of environments with rooms ([`ShortestPaths`]), else Euclidean; `whole_state` counts
        all discs that actions can move.
        """
        columns = self.controlled if whole_state else self.target
        return np.linalg.norm(states[..., columns] - goals[..., columns], axis=-1) * IMAGE_SIZE

    def cost_to_go(self, states: np.ndarray, goals: np.ndarray, whole_state: bool = False) -> np.ndarray:
        """Pixels that an oracle minimizes, (..., S), (..., S) -> (...): by default the path distance."""
        return self.path_distance(states, goals, whole_state)

    def is_free(self, states: np.ndarray) -> np.ndarray:
        """Whether states are physically possible: (..., S) -> bool (...)."""
        raise NotImplementedError

    def dynamics(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """The true physics, without side effects: (..., S), (..., 2) -> float32 (..., S)."""
        raise NotImplementedError

    def disturbed(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """States after a random force in the same step: (..., S), (..., 2) -> float32 (..., S)."""
        return self.dynamics(states, actions)

    def sample_starts(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Uniform free states: (count, S) float32."""
        raise NotImplementedError

    def sample_task(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The frozen task of a seed: start and goal, float32 (S,) each."""
        raise NotImplementedError

    @property
    def goal_image(self) -> np.ndarray:
        """The goal as an image, uint8 (64, 64, 3), in this episode's `goal_appearance` and the first view."""
        return self.render_state(self.goal_state, self.appearance_of_goal)

    def render_state(
        self, state: np.ndarray, appearance: Appearance | None = None, view: str | None = None
    ) -> np.ndarray:
        """A state (S,) as an image, uint8 (64, 64, 3), in this episode's appearance or the one given, and in the first
        of the `views` or the one given."""
        if view is not None:
            check_known(view, VIEWS, "view")
        appearance, zoom, shift = appearance or self.appearance, 1, np.zeros(2)
        if (view or self.views[0]) == "agent":
            zoom, shift = ZOOM, state[:2] - 0.5 / ZOOM  # the top left corner
            appearance = close_up(appearance, shift, zoom)
        canvas = appearance.background.copy()
        for index in self.layers or range(len(self.radii)):
            center = state[2 * index : 2 * index + 2]
            if zoom > 1:
                center = (center - shift) * zoom
            render_disc(canvas, center, self.radii[index] * zoom, appearance.colors[index])
        if appearance.light is not None:
            canvas *= appearance.light
            np.minimum(np.maximum(canvas, 0, out=canvas), 254.5, out=canvas)  # plain colors need no clipping
        canvas += 0.5
        return canvas.astype(np.uint8)

    def make_appearances(self, seed: int | None) -> tuple[Appearance, Appearance]:
        """The appearances of an episode and of its goal image; the plain one for None."""
        own = self.make_appearance(seed)
        return own, own if seed is None or self.goal_appearance == "same" else self.make_appearance((seed, 1))

    def make_appearance(self, seed: int | Sequence[int] | None) -> Appearance:
        """A random appearance; the plain one for None."""
        if seed is None:
            background = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), 225.0, np.float32)
            self.render_walls(background, np.array([70.0, 70.0, 70.0], np.float32))
            return Appearance(background, np.array(self.plain_colors, np.float32))
        rng = np.random.default_rng(seed)
        background, floor_color = textured_floor(rng)
        wall_color, *colors = distinct_colors(rng, [floor_color], 1 + len(self.radii))
        for _ in range(rng.integers(2, 5)):
            color = distinct_colors(rng, [floor_color, *colors], 1)[0].astype(np.float32)
            render_disc(background, rng.uniform(0.05, 0.95, 2), rng.uniform(2.0, 5.0) / IMAGE_SIZE, color)
        self.render_walls(background, wall_color.astype(np.float32))
        return Appearance(background, np.array(colors, np.float32), random_light(rng))

    def render_walls(self, background: np.ndarray, color: np.ndarray) -> None:
        """Renders static parts in a color (3,) into the background (H, W, 3), in place; by default there are none."""


def length(vectors: np.ndarray) -> np.ndarray:
    """(..., 2) -> (..., 1)."""
    return np.hypot(vectors[..., :1], vectors[..., 1:])


def keep_inside(positions: np.ndarray, radius: float) -> np.ndarray:
    """Positions (..., 2) moved to where a disc of this radius is inside the field, float (..., 2)."""
    return np.minimum(np.maximum(positions, radius), 1 - radius)  # np.clip takes three times as long on two numbers


def is_inside(positions: np.ndarray, radius: float) -> np.ndarray:
    """Whether a disc of this radius at positions (..., 2) is inside the field, bool (...)."""
    return (np.abs(positions - 0.5) <= 0.5 - radius + 1e-5).all(-1)  # False for nan
