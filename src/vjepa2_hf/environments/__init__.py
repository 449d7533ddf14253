"""Environments of the demo, behavior policies, tasks and closed-loop evaluation. Needs the extra `demo` (gymnasium).

import vjepa2_hf.environments                                              # registers them with gymnasium

env = gymnasium.make("vjepa2_hf/Pushing-v0", varied_appearance=False)      # or "vjepa2_hf/TwoRooms-v0", …
image, info = env.reset(seed=0)                                            # or options={"state": ..., "goal": ...}
image, reward, terminated, truncated, info = env.step(action)              # action (2,) in [-1, 1]
env.unwrapped.goal_image
"""

try:
    import gymnasium
except ImportError as error:
    raise ImportError('vjepa2_hf.environments needs gymnasium: pip install "vjepa2-hf[demo]".') from error

from .appearance import IMAGE_SIZE
from .four_rooms import FOUR_ROOMS, FourRoomsEnv
from .plane import FRAMES_PER_SECOND, MAX_STEPS, STEP_SIZE, SUCCESS_PIXELS, PlaneEnv
from .policies import DATA_POLICY, POLICIES, find_policy
from .pushing import PUSHING, PushingEnv
from .symmetries import find_symmetries
from .tasks import make_plain
from .two_rooms import TWO_ROOMS, TwoRoomsEnv


__all__ = [
    "DATA_POLICY",
    "FOUR_ROOMS",
    "FRAMES_PER_SECOND",
    "IMAGE_SIZE",
    "MAX_STEPS",
    "POLICIES",
    "PUSHING",
    "STEP_SIZE",
    "SUCCESS_PIXELS",
    "TWO_ROOMS",
    "FourRoomsEnv",
    "PlaneEnv",
    "PushingEnv",
    "TwoRoomsEnv",
    "find_policy",
    "find_symmetries",
    "make_plain",
]

for _id, _class in ((PUSHING, PushingEnv), (TWO_ROOMS, TwoRoomsEnv), (FOUR_ROOMS, FourRoomsEnv)):
    if _id not in gymnasium.registry:
        _entry_point = f"{_class.__module__}:{_class.__name__}"
        gymnasium.register(_id, entry_point=_entry_point, max_episode_steps=_class.max_steps)
