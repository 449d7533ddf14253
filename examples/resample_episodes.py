# /// script
# requires-python = ">=3.11"
# dependencies = ["vjepa2-hf[demo]"]
# ///
"""Resamples episodes to a lower frame rate, with actions that lead from each kept frame to the next.

    python examples/resample_episodes.py SOURCE OUT_DIR --fps 4 --actions pose_delta [--camera NAME] [--num_proc 8]

The published action-conditioned recipe trains at 4 frames per second on changes of an arm's pose. For DROID in the
LeRobot format:

    python examples/resample_episodes.py DROID OUT_DIR --fps 4 --actions pose_delta --camera exterior_1_left
        --states_key observation.state.cartesian_position observation.state.gripper_position

SOURCE is a folder of episode shards (record_episodes.py, import_episodes.py), a LeRobot folder or a dataset on the
Hub. Kept are the frames nearest to the times 0, 1/fps, 2/fps, ... The actions between two of them become one:

    sum         for displacements, such as changes of a position
    mean        for velocities
    last        for absolute targets
    pose_delta  for any action: the change of the proprio state, which must be a pose: x, y, z (m), extrinsic Euler
                angles xyz (rad), gripper. The action is (Δxyz, Euler angles of R1 R0^T, Δgripper).

Rewards are summed; states are those of the kept frames. Invalid episodes are listed in OUT_DIR/skipped.txt. OUT_DIR
appears only when it is complete.
"""

import argparse
import logging
import vjepa2_cli  # noqa: F401 (a quick --help)

from vjepa2_hf.data.resampling import ResampleOptions, resample_episodes
from vjepa2_hf.specs import check_at_least
from vjepa2_hf.training.settings import exit_on_user_error


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="episode shards, a LeRobot folder, or a dataset on the Hub")
    parser.add_argument("out_dir", help="new folder for the shards")
    parser.add_argument("--fps", type=float, required=True, help="frames per second of the result")
    kinds = ("sum", "mean", "last", "pose_delta")
    parser.add_argument("--actions", choices=kinds, required=True, help="how actions between kept frames are joined")
    parser.add_argument("--camera", nargs="+", help="camera of episodes with several, or all that are to be kept")
    parser.add_argument("--actions_key", nargs="+", help="features of a LeRobot dataset that form the action")
    parser.add_argument("--states_key", nargs="+", help="features of a LeRobot dataset that form the proprio state")
    parser.add_argument("--height", type=int, help="resize taller images to this height in pixels (default: keep)")
    parser.add_argument("--crf", type=int, default=10, help="x264's quality, 0 (best) to 51 (default: 10)")
    parser.add_argument("--num_shards", type=int, default=8, help="maximum number of files (default: 8)")
    parser.add_argument("--max_episodes", type=int, help="the first episodes only (default: all)")
    parser.add_argument("--num_proc", type=int, default=0, help="processes that read and encode (default: this one)")
    settings = parser.parse_args(arguments)
    check_at_least(settings, "--", height=2, crf=0, num_shards=1, max_episodes=1, num_proc=0)
    options = vars(settings)
    source, out_dir, num_proc = options.pop("source"), options.pop("out_dir"), options.pop("num_proc")
    resample_episodes(source, out_dir, ResampleOptions(**options), num_proc)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
