"""Two small environments with pictures, for the demo and for tests: pushing a disc, and two rooms with a door.

`import environments` registers them with gymnasium:

    env = gymnasium.make("vjepa2_hf/Pushing-v0", varied_appearance=False)      # or "vjepa2_hf/TwoRooms-v0"
    image, info = env.reset(seed=0)                                            # or options={"state": ..., "goal": ...}
    image, reward, terminated, truncated, info = env.step(action)              # action (2,) in [-1, 1]
    env.unwrapped.goal_image

Closed-loop evaluation of many episodes at once is in `examples/tasks.py`.

Units: positions are in field units, 0 to 1 from the left (x) and from the top (y); the field is the whole picture of
64 x 64 pixels. An action of 1.0 moves the agent by 0.1 of the field. The tasks (25 steps, success within 5 pixels at
any step, how goals are drawn) are frozen: changing one of their numbers changes every figure ever quoted.
Letters: N episodes, S state size, A = 2 action size, P planning horizon, J candidates; leading dimensions are free
where a shape says (..., S).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np


IMAGE_SIZE = 64  # pixels, height and width
STEP_SIZE = 0.1  # field units that an action of 1.0 moves the agent
SUBSTEPS = 4  # 1.6 pixels each at full speed: far below every radius, so nothing tunnels
MAX_STEPS = 25  # steps to reach a goal
EXECUTED_ACTIONS = 2  # of each plan, before planning again
SUCCESS_PIXELS = 5.0  # at any step
FRAMES_PER_SECOND = 10.0

PUSHING = "vjepa2_hf/Pushing-v0"
TWO_ROOMS = "vjepa2_hf/TwoRooms-v0"


# ---------------------------------------------------------------------------------------------------------------------
# Appearance and drawing
# ---------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Appearance:
    """What a picture looks like apart from the state; one per episode.

    Attributes:
        background: float32 (64, 64, 3) in 0..255, floor, distractors and walls.
        colors: float32 (number of discs, 3) in 0..255, in the order of `PlaneEnv.radii`.
        light: float32 (64, 64, 1) factors of brightness, or None for even light.
    """

    background: np.ndarray
    colors: np.ndarray
    light: np.ndarray | None = None


_PIXELS = ((np.arange(IMAGE_SIZE) + 0.5) / IMAGE_SIZE).astype(np.float32)  # pixel centres in field units


def draw_disc(canvas: np.ndarray, center: np.ndarray, radius: float, color: np.ndarray) -> None:
    """Draws an anti-aliased disc in place; only the pixels near it are touched.

    Args:
        canvas: float32 (64, 64, 3).
        center: (2,) x and y in field units; sub-pixel positions show as smooth edges.
        radius: field units.
        color: (3,) in 0..255.
    """
    reach = radius + 1 / IMAGE_SIZE
    left, top = (max(0, int((float(c) - reach) * IMAGE_SIZE)) for c in center)
    right, bottom = (max(0, int((float(c) + reach) * IMAGE_SIZE) + 1) for c in center)
    dx = _PIXELS[left:right] - np.float32(center[0])
    dy = _PIXELS[top:bottom] - np.float32(center[1])
    distance = np.sqrt(dx * dx + (dy * dy)[:, None])
    coverage = np.minimum(np.maximum((np.float32(radius) - distance) * np.float32(IMAGE_SIZE) + 0.5, 0), 1)[..., None]
    patch = canvas[top:bottom, left:right]
    patch += coverage * (color - patch)


def _smooth_noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    """(64, 64) float32 noise of `cells` bilinear cells a side, between -1 and 1."""
    grid = rng.uniform(-1, 1, (cells + 1, cells + 1))
    position = np.linspace(0, cells, IMAGE_SIZE, endpoint=False)
    low = position.astype(int)
    part = position - low
    rows = grid[low] * (1 - part)[:, None] + grid[low + 1] * part[:, None]
    return (rows[:, low] * (1 - part) + rows[:, low + 1] * part).astype(np.float32)


def _distinct_colors(rng: np.random.Generator, taken: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """`count` random colors, each far (in RGB) from the `taken` ones and from each other."""
    colors = list(taken)
    required = 130.0
    while len(colors) < len(taken) + count:
        color = rng.uniform(20, 255, 3)
        if all(np.linalg.norm(color - other) > required for other in colors):
            colors.append(color)
        required *= 0.99  # a crowded color space can not refuse for ever
    return colors[len(taken) :]


def _textured_floor(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A random floor, float32 (64, 64, 3), and its mean color (3,)."""
    mean = rng.uniform(60, 210, 3)
    stripes_at = rng.uniform(0, np.pi)
    phase = (_PIXELS * np.cos(stripes_at) + _PIXELS[:, None] * np.sin(stripes_at)) * rng.uniform(3, 12) * 2 * np.pi
    texture = _smooth_noise(rng, 4)[..., None] * rng.uniform(-25, 25, 3)
    texture = texture + _smooth_noise(rng, 16)[..., None] * rng.uniform(-15, 15, 3)
    texture = texture + np.sin(phase)[..., None] * rng.uniform(-15, 15, 3)
    return (mean + texture).astype(np.float32), mean


def _random_light(rng: np.random.Generator) -> np.ndarray:
    """Light that falls off to one side, float32 (64, 64, 1)."""
    direction = rng.uniform(0, 2 * np.pi)
    slope = (_PIXELS - 0.5) * np.cos(direction) + (_PIXELS[:, None] - 0.5) * np.sin(direction)
    return (rng.uniform(0.7, 1.05) + rng.uniform(0, 0.5) * slope)[..., None].astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# Environments
# ---------------------------------------------------------------------------------------------------------------------


class PlaneEnv(gymnasium.Env):
    """What both environments share: spaces, reset, step, drawing. A subclass gives the physics and the tasks.

    Observation: uint8 (64, 64, 3). Action: (2,) in [-1, 1], the agent's move; 1.0 is 0.1 of the field; values outside
    are clipped. Reward: minus the distance to the goal in field units. An episode terminates on success (unless
    `terminate_on_success=False`) and `gymnasium.make` truncates it after 25 steps.
    `info`: `state` float32 (S,), `proprio_state` float32 (2,) the agent's position, `goal_state` float32 (S,),
    `distance_px`, `success`.

    Args:
        varied_appearance: a random textured floor, colors, distractors and light, drawn from the episode's seed.
        terminate_on_success: False goes on after success (recording episodes of a fixed length).
        random_force: chance in the physics of `step`: after every action the agent is pushed once more, as by an
            action that nobody sees, normal with this deviation. 0 leaves nothing to chance.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": FRAMES_PER_SECOND}
    state_dim: int
    radii: tuple[float, ...]  # of the discs, in drawing order
    plain_colors: tuple[tuple[float, float, float], ...]
    target: slice  # the part of a state that has to reach the goal

    def __init__(
        self,
        render_mode: str | None = None,
        varied_appearance: bool = False,
        terminate_on_success: bool = True,
        random_force: float = 0.0,
    ):
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode is {render_mode!r}, but this environment only has 'rgb_array' (or None).")
        if not isinstance(random_force, (int, float)) or not 0 <= random_force <= 1:
            raise ValueError(f"random_force is {random_force!r}, but a share of an action, 0 to 1, is expected.")
        self.render_mode = render_mode
        self.varied_appearance = varied_appearance
        self.terminate_on_success = terminate_on_success
        self.random_force = random_force
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.observation_space = gymnasium.spaces.Box(0, 255, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        self.appearance = self.make_appearance(None)
        self.state = np.zeros(self.state_dim, np.float32)
        self.goal_state = np.zeros(self.state_dim, np.float32)
        self.last_action = np.zeros(2, np.float32)  # zero after a reset; the "wander" policy keeps its heading by it

    # --- gymnasium ---------------------------------------------------------------------------------------------------

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Starts an episode, drawn from the seed unless `options` gives a `state` or a `goal` (a state) to use.

        Raises:
            ValueError: an unknown option, or a state of the wrong size or in which discs overlap or leave the field.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        if unknown := sorted(set(options) - {"state", "goal"}):
            raise ValueError(f"reset got the unknown option {unknown[0]!r}; the known options are 'state' and 'goal'.")
        appearance_seed, task_seed = (int(s) for s in self.np_random.integers(0, 2**31, 2))
        self.appearance = self.make_appearance(appearance_seed if self.varied_appearance else None)
        start, goal = options.get("state"), options.get("goal")
        if start is None or goal is None:
            drawn_start, drawn_goal = self.sample_task(task_seed)
            start, goal = drawn_start if start is None else start, drawn_goal if goal is None else goal
        self.goal_state = self.check_state(goal)
        self.set_state(start)
        return self.render(), self._info()

    def step(self, action: np.ndarray):
        action = np.asarray(action, np.float32)
        if action.shape != (2,) or not np.isfinite(action).all():
            raise ValueError(f"The action is {action.tolist()}, but two finite numbers in [-1, 1] are expected.")
        self.last_action = action
        self.state = self.dynamics(self.state, action)
        if self.random_force:
            self.state = self.dynamics(self.state, self.random_force * self.np_random.standard_normal(2))
        info = self._info()
        terminated = bool(info["success"] and self.terminate_on_success)
        return self.render(), -info["distance_px"] / IMAGE_SIZE, terminated, False, info

    def render(self) -> np.ndarray:
        return self.render_state(self.state)

    def _info(self) -> dict[str, Any]:
        distance = float(self.distance_px(self.state, self.goal_state))
        return {
            "state": self.state.copy(),
            "proprio_state": self.state[:2].copy(),
            "goal_state": self.goal_state.copy(),
            "distance_px": distance,
            "success": distance <= SUCCESS_PIXELS,
        }

    # --- states ------------------------------------------------------------------------------------------------------

    def set_state(self, state: np.ndarray) -> None:
        """Puts the environment in a state (S,); the appearance and the goal stay."""
        self.state = self.check_state(state)
        self.last_action = np.zeros(2, np.float32)

    def check_state(self, state: np.ndarray) -> np.ndarray:
        """A copy of `state` as float32 (S,).

        Raises:
            ValueError: wrong size, not finite, or physically impossible.
        """
        state = np.array(state, np.float32)
        if state.shape != (self.state_dim,):
            raise ValueError(f"The state has shape {state.shape}, but ({self.state_dim},) is expected.")
        if not self.is_free(state):
            raise ValueError(
                f"The state {state.tolist()} is impossible: give positions in field units (0 to 1) with every disc "
                "inside the field and no overlap."
            )
        return state

    def distance_px(self, states: np.ndarray, goals: np.ndarray) -> np.ndarray:
        """Distance that success is judged by: (..., S), (..., S) -> (...) in pixels."""
        difference = states[..., self.target] - goals[..., self.target]
        return np.sqrt((difference * difference).sum(-1)) * IMAGE_SIZE

    def is_free(self, states: np.ndarray) -> np.ndarray:
        """Whether states are physically possible: (..., S) -> bool (...)."""
        raise NotImplementedError

    def dynamics(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """The true physics, without side effect: (..., S), (..., 2) -> float32 (..., S)."""
        raise NotImplementedError

    def state_cost(self, states: np.ndarray, goals: np.ndarray) -> np.ndarray:
        """Squared distance of whole states, as a planner sees it in two pictures: (..., S), (..., S) -> (...)."""
        difference = states - goals
        return (difference * difference).sum(-1)

    def sample_starts(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Uniform free states: (count, S) float32."""
        raise NotImplementedError

    def sample_task(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The frozen task of a seed: start and goal, float32 (S,) each."""
        raise NotImplementedError

    # --- pictures ----------------------------------------------------------------------------------------------------

    @property
    def goal_image(self) -> np.ndarray:
        """The goal as a picture, uint8 (64, 64, 3), in this episode's appearance."""
        return self.render_state(self.goal_state)

    def render_state(self, state: np.ndarray, appearance: Appearance | None = None) -> np.ndarray:
        """A state (S,) as a picture, uint8 (64, 64, 3), in this episode's appearance or the one given."""
        appearance = appearance or self.appearance
        canvas = appearance.background.copy()
        for index, (radius, color) in enumerate(zip(self.radii, appearance.colors, strict=True)):
            draw_disc(canvas, state[2 * index : 2 * index + 2], radius, color)
        if appearance.light is not None:
            canvas *= appearance.light
            np.minimum(np.maximum(canvas, 0, out=canvas), 254.5, out=canvas)  # plain colors need no clipping
        canvas += 0.5
        return canvas.astype(np.uint8)

    def make_appearance(self, seed: int | None) -> Appearance:
        """A random appearance, or with None the plain one."""
        if seed is None:
            background = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), 225.0, np.float32)
            self.draw_walls(background, np.array([70.0, 70.0, 70.0], np.float32))
            return Appearance(background, np.array(self.plain_colors, np.float32))
        rng = np.random.default_rng(seed)
        background, floor_color = _textured_floor(rng)
        wall_color, *colors = _distinct_colors(rng, [floor_color], 1 + len(self.radii))
        for _ in range(rng.integers(2, 5)):
            color = _distinct_colors(rng, [floor_color, *colors], 1)[0].astype(np.float32)
            draw_disc(background, rng.uniform(0.05, 0.95, 2), rng.uniform(2.0, 5.0) / IMAGE_SIZE, color)
        self.draw_walls(background, wall_color.astype(np.float32))
        return Appearance(background, np.array(colors, np.float32), _random_light(rng))

    def draw_walls(self, background: np.ndarray, color: np.ndarray) -> None:
        """Draws what stands still into the background, in place; nothing by default."""


def _length(vectors: np.ndarray) -> np.ndarray:
    """(..., 2) -> (..., 1)."""
    return np.hypot(vectors[..., :1], vectors[..., 1:])


def _keep_inside(positions: np.ndarray, radius: float) -> np.ndarray:
    return np.minimum(np.maximum(positions, radius), 1 - radius)  # np.clip takes three times as long on two numbers


def _inside(positions: np.ndarray, radius: float) -> np.ndarray:
    return (np.abs(positions - 0.5) <= 0.5 - radius + 1e-5).all(-1)  # False for nan


class PushingEnv(PlaneEnv):
    """A disc (the pusher, the agent) pushes a larger disc (the block) to a place; `vjepa2_hf/Pushing-v0`.

    State (4,): pusher x, y, block x, y. The block gives way along the line between the centres and stays where it is
    left; at the edge of the field it stops, and the pusher with it. Success is the block within 5 pixels of its place.
    Task of a seed: a random start; the goal is the state after 20 steps of the data policy `drawn_to_block`, kept only
    if the block moved by at least 0.2 of the field.
    """

    PUSHER_RADIUS = 6 / IMAGE_SIZE
    BLOCK_RADIUS = 12 / IMAGE_SIZE
    CONTACT = PUSHER_RADIUS + BLOCK_RADIUS
    GOAL_STEPS = 20
    MIN_BLOCK_MOVE = 0.2

    state_dim = 4
    radii = (PUSHER_RADIUS, BLOCK_RADIUS)
    plain_colors = ((215.0, 50.0, 45.0), (45.0, 90.0, 200.0))
    target = slice(2, 4)

    def is_free(self, states: np.ndarray) -> np.ndarray:
        pusher, block = states[..., :2], states[..., 2:]
        apart = _length(block - pusher)[..., 0] >= self.CONTACT - 1e-4
        return apart & _inside(pusher, self.PUSHER_RADIUS) & _inside(block, self.BLOCK_RADIUS)

    def dynamics(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        pusher, block = (np.asarray(part, np.float64) for part in (states[..., :2], states[..., 2:]))
        move = np.minimum(np.maximum(np.asarray(actions, np.float64), -1), 1) * (STEP_SIZE / SUBSTEPS)
        for _ in range(SUBSTEPS):
            pusher, block = self._push(pusher, block, move)
        pusher, block = np.broadcast_arrays(pusher, block)
        return np.concatenate([pusher, block], axis=-1).astype(np.float32)

    def _push(self, pusher: np.ndarray, block: np.ndarray, move: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One substep, (..., 2) each: the block yields to the pusher, the pusher to a block that can not."""
        moved = _keep_inside(pusher + move, self.PUSHER_RADIUS)
        offset = block - moved
        distance = _length(offset)
        overlap = np.maximum(self.CONTACT - distance, 0)
        if not overlap.any():
            return moved, block
        pushed = _keep_inside(block + offset * (overlap / np.maximum(distance, 1e-9)), self.BLOCK_RADIUS)
        offset = pushed - moved
        distance = _length(offset)
        overlap = np.maximum(self.CONTACT - distance, 0)
        moved = _keep_inside(moved - offset * (overlap / np.maximum(distance, 1e-9)), self.PUSHER_RADIUS)
        jammed = _length(pushed - moved) < self.CONTACT - 1e-5  # both in a corner: nothing moves
        return np.where(jammed, pusher, moved), np.where(jammed, block, pushed)

    def sample_starts(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Uniform states in which the discs do not overlap: (count, 4) float32."""
        starts = np.empty((0, 4), np.float32)
        while len(starts) < count:
            pusher = rng.uniform(self.PUSHER_RADIUS, 1 - self.PUSHER_RADIUS, (2 * count, 2))
            block = rng.uniform(self.BLOCK_RADIUS, 1 - self.BLOCK_RADIUS, (2 * count, 2))
            states = np.concatenate([pusher, block], axis=-1).astype(np.float32)
            starts = np.concatenate([starts, states[self.is_free(states)]])
        return starts[:count]

    def sample_task(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        while True:
            starts = states = self.sample_starts(rng, 16)  # a batch costs what a single one does
            for _ in range(self.GOAL_STEPS):
                states = self.dynamics(states, drawn_to_block_actions(states, rng))
            kept = _length(states[:, 2:] - starts[:, 2:])[:, 0] >= self.MIN_BLOCK_MOVE
            if kept.any():
                first = int(np.argmax(kept))
                return starts[first], states[first]


class TwoRoomsEnv(PlaneEnv):
    """A disc (the agent) goes from room to room through a door in the wall between; `vjepa2_hf/TwoRooms-v0`.

    State (2,): x, y. The wall stops the disc, which slides along it. Success is the agent within 5 pixels of its
    place. Task of a seed: start and goal uniform in the rooms and at least 0.1 of the field apart; the goal of an even
    seed lies in the other room, that of an odd seed in either, so at least half of the goals are behind the door.
    """

    RADIUS = 6 / IMAGE_SIZE
    WALL = (30 / IMAGE_SIZE, 34 / IMAGE_SIZE)  # x
    DOOR = (22 / IMAGE_SIZE, 42 / IMAGE_SIZE)  # y
    MIN_DISTANCE = 0.1  # beyond the 5 pixels of success

    state_dim = 2
    radii = (RADIUS,)
    plain_colors = ((215.0, 50.0, 45.0),)
    target = slice(0, 2)
    _wall_parts = np.array([[[WALL[0], -1.0], [WALL[1], DOOR[0]]], [[WALL[0], DOOR[1]], [WALL[1], 2.0]]])

    def is_free(self, states: np.ndarray) -> np.ndarray:
        apart = _inside(states, self.RADIUS)
        for low, high in self._wall_parts:
            nearest = np.minimum(np.maximum(states, low), high)
            apart = apart & (_length(states - nearest)[..., 0] >= self.RADIUS - 1e-4)
        return apart

    def dynamics(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        agent = np.asarray(states, np.float64)
        move = np.minimum(np.maximum(np.asarray(actions, np.float64), -1), 1) * (STEP_SIZE / SUBSTEPS)
        for _ in range(SUBSTEPS):
            agent = self._slide(agent, _keep_inside(agent + move, self.RADIUS))
        return agent.astype(np.float32)

    def _slide(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """One substep, (..., 2): pushes the disc out of the wall along the line to the wall's nearest point."""
        for low, high in self._wall_parts:
            offset = after - np.minimum(np.maximum(after, low), high)
            distance = _length(offset)
            overlap = np.maximum(self.RADIUS - distance, 0)
            after = after + offset * (overlap / np.maximum(distance, 1e-9))
        jammed = ~self.is_free(after)
        return np.where(jammed[..., None], before, after)

    def sample_positions(self, rng: np.random.Generator, right: bool) -> np.ndarray:
        """A uniform place in the left or the right room, float32 (2,)."""
        low, high = (
            (self.WALL[1] + self.RADIUS, 1 - self.RADIUS) if right else (self.RADIUS, self.WALL[0] - self.RADIUS)
        )
        return np.array([rng.uniform(low, high), rng.uniform(self.RADIUS, 1 - self.RADIUS)], np.float32)

    def sample_starts(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return np.stack([self.sample_positions(rng, right) for right in rng.random(count) < 0.5])

    def sample_task(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        while True:
            start_right, goal_right = rng.random(2) < 0.5
            if seed % 2 == 0:
                goal_right = not start_right
            start, goal = self.sample_positions(rng, start_right), self.sample_positions(rng, goal_right)
            if np.linalg.norm(goal - start) >= self.MIN_DISTANCE:
                return start, goal

    def draw_walls(self, background: np.ndarray, color: np.ndarray) -> None:
        left, right = (round(x * IMAGE_SIZE) for x in self.WALL)
        top, bottom = (round(y * IMAGE_SIZE) for y in self.DOOR)
        background[:top, left:right] = color
        background[bottom:, left:right] = color


for _id, _class in ((PUSHING, PushingEnv), (TWO_ROOMS, TwoRoomsEnv)):
    if _id not in gymnasium.registry:
        gymnasium.register(_id, entry_point=_class, max_episode_steps=MAX_STEPS)


# ---------------------------------------------------------------------------------------------------------------------
# Policies
# ---------------------------------------------------------------------------------------------------------------------

# Set once so that the policies succeed as often as the project's prototypes did (0.38 and 0.14); pushing's goals
# depend on them.
PULL, NOISE = 0.5, 0.9
PERSISTENCE, WANDER = 0.8, 1.0


def drawn_to_block_actions(states: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random actions with a pull towards the block: states (..., 4) -> float32 (..., 2)."""
    offset = states[..., 2:] - states[..., :2]
    pull = offset / np.maximum(_length(offset), 1e-6)
    return np.clip(PULL * pull + NOISE * rng.standard_normal(pull.shape), -1, 1).astype(np.float32)


def wandering_actions(last_actions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random actions that keep their heading for a few steps: last actions (..., 2) -> float32 (..., 2)."""
    noise = rng.standard_normal(last_actions.shape)
    return np.clip(PERSISTENCE * last_actions + WANDER * noise, -1, 1).astype(np.float32)


def uniform(env: gymnasium.Env, rng: np.random.Generator) -> np.ndarray:
    """Uniform random actions; for any environment with a bounded Box action space."""
    space = env.action_space
    return rng.uniform(space.low, space.high).astype(space.dtype)


class Held:
    """Uniform random actions, each kept for as long as `KEEP` says, so that they lead somewhere; for any bounded Box.

    It remembers its action: `find_policy` makes one for each episode.
    """

    KEEP = 0.8  # probability of going on with the last action

    def __init__(self):
        self.action = None

    def __call__(self, env: gymnasium.Env, rng: np.random.Generator) -> np.ndarray:
        if self.action is None or rng.random() >= self.KEEP:
            self.action = uniform(env, rng)
        return self.action


def drawn_to_block(env: PushingEnv, rng: np.random.Generator) -> np.ndarray:
    """The data policy of pushing: random, drawn to the block."""
    return drawn_to_block_actions(env.state, rng)


def wander(env: PlaneEnv, rng: np.random.Generator) -> np.ndarray:
    """The data policy of two rooms: random, keeping its heading for a few steps."""
    return wandering_actions(env.last_action, rng)


Policy = Callable[[gymnasium.Env, np.random.Generator], np.ndarray]
POLICIES: dict[str, Policy | type[Held]] = {
    "uniform": uniform,
    "held": Held,
    "drawn_to_block": drawn_to_block,
    "wander": wander,
}
_POLICY_ENVIRONMENT = {"drawn_to_block": PushingEnv, "wander": PlaneEnv}  # others act anywhere
DATA_POLICY = {PUSHING: "drawn_to_block", TWO_ROOMS: "wander"}


def find_policy(name: str, env: gymnasium.Env) -> Policy:
    """The policy of this name, after checking that it can act in `env`.

    Raises:
        ValueError: an unknown name, a policy written for another environment, or actions it can not draw.
    """
    if name not in POLICIES:
        raise ValueError(f"The policy is {name!r}, but the known policies are {', '.join(POLICIES)}.")
    space = env.action_space
    if not isinstance(space, gymnasium.spaces.Box) or not space.is_bounded():
        raise ValueError(f"The environment's action space is {space}, but a bounded Box is expected.")
    needed = _POLICY_ENVIRONMENT.get(name, gymnasium.Env)
    if not isinstance(env.unwrapped, needed):
        raise ValueError(
            f"The policy {name!r} needs {needed.__name__}, but the environment is {type(env.unwrapped).__name__}; use "
            "the policy 'uniform' or 'held'."
        )
    policy = POLICIES[name]
    return policy() if isinstance(policy, type) else policy


def make_plain(env_id: str, **settings: Any) -> PlaneEnv:
    """One of this module's environments without gymnasium's wrappers.

    Raises:
        ValueError: another id.
    """
    classes = {PUSHING: PushingEnv, TWO_ROOMS: TwoRoomsEnv}
    if env_id not in classes:
        raise ValueError(f"The environment is {env_id!r}, but only {' and '.join(classes)} are known here.")
    return classes[env_id](**settings)


def sample_task(env: gymnasium.Env, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The frozen task of a seed: start and goal states, float32 (S,) each."""
    return env.unwrapped.sample_task(seed)
