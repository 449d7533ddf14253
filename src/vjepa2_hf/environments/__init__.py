"""Environments of the demo, behavior policies, tasks and closed-loop evaluation. Needs the extra `demo` (gymnasium).

import vjepa2_hf.environments                                              # registers them with gymnasium

env = gymnasium.make("vjepa2_hf/Pushing-v0", varied_appearance=False)      # or "vjepa2_hf/TwoRooms-v0"
image, info = env.reset(seed=0)                                            # or options={"state": ..., "goal": ...}
image, reward, terminated, truncated, info = env.step(action)              # action (2,) in [-1, 1]
env.unwrapped.goal_image
"""

try:
    import gymnasium
except ImportError as error:
    raise ImportError('vjepa2_hf.environments needs gymnasium: pip install "vjepa2-hf[demo]".') from error

from .appearance import IMAGE_SIZE
from .plane import FRAMES_PER_SECOND, MAX_STEPS, STEP_SIZE, SUCCESS_PIXELS, PlaneEnv
from .policies import DATA_POLICY, POLICIES, find_policy
from .pushing import PUSHING, PushingEnv
from .tasks import make_plain
from .two_rooms import TWO_ROOMS, TwoRoomsEnv


__all__ = [
    "DATA_POLICY",
    "FRAMES_PER_SECOND",
    "IMAGE_SIZE",
    "MAX_STEPS",
    "POLICIES",
    "PUSHING",
    "STEP_SIZE",
    "SUCCESS_PIXELS",
    "TWO_ROOMS",
    "PlaneEnv",
    "PushingEnv",
    "TwoRoomsEnv",
    "find_policy",
    "make_plain",
]

for _id, _entry_point in ((PUSHING, "pushing:PushingEnv"), (TWO_ROOMS, "two_rooms:TwoRoomsEnv")):
    if _id not in gymnasium.registry:
        gymnasium.register(_id, entry_point=f"{__name__}.{_entry_point}", max_episode_steps=MAX_STEPS)
