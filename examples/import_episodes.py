# /// script
# requires-python = ">=3.11"
# dependencies = ["vjepa2-hf[demo,hdf5]"]
# ///
"""Imports a folder of HDF5 or npz episodes as shards for train_world_model.py.

    python examples/import_episodes.py SOURCE OUT_DIR --fps 20 [--frames_key obs/agentview_image]
        [--actions_key actions] [--states_key obs/robot0_eef_pos obs/robot0_gripper_qpos] [--ends_key terminals]

Files (.hdf5, .h5, .npz) are searched recursively. Unless an option names its key, each array is found by its name:

    actions   `actions` or `action`. The group that holds it is one episode. A file may hold many episodes
              (robomimic, LIBERO: data/demo_0/actions, ...) or one (ACT: action).
    frames    the only array of images in the episode: uint8 (T, H, W, 3) or (T, 3, H, W), or T JPEG or PNG images.
              With several cameras, name one with --frames_key, or all that are to be kept: a row then has a video
              of each, in the columns `video` (the first), `video_KEY` and so on.
    states    the first of `proprio_states`, `observations/qpos`, `qpos`, `proprio`. Several keys are concatenated.
    rewards   `rewards` or `reward`.

Keys are relative to the episode. Action arrays inside of an episode's group belong to it. T frames need T-1 actions
and rewards. Of T actions the last one is dropped, because no frame shows its effect. `--spare_action first` drops the
first one, for files that store each action with the frame it led to (Dreamer).

A group may hold several episodes one after another (OGBench, D4RL, stable-worldmodel). They are split where arrays
such as `terminals`, `timeouts`, `dones`, `truncated`, `is_first`, `is_last`, `ep_len`, `ep_offset`, `episode_ends`,
`ep_idx` or `step_idx` say so, and the spare action, which may be NaN, is dropped from each. If these disagree, name
one with --ends_key; `--ends_key none` keeps a group as one episode.

Invalid episodes are listed in OUT_DIR/skipped.txt. The first valid episode defines the columns. OUT_DIR appears only
when it is complete. HDF5 needs h5py: pip install "vjepa2-hf[hdf5]". Files compressed with Blosc also need hdf5plugin.
"""

import argparse
import logging
import vjepa2_cli  # noqa: F401 (a quick --help)
from pathlib import Path

from vjepa2_hf.data.importers import ImportOptions, import_episodes
from vjepa2_hf.training.settings import exit_on_user_error


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of HDF5 or npz files, searched recursively, or one file")
    parser.add_argument("out_dir", type=Path, help="new folder for the shards")
    parser.add_argument("--fps", type=float, required=True, help="frames per second, which the files do not hold")
    parser.add_argument("--frames_key", nargs="+", help="path of the images within an episode, one per camera")
    parser.add_argument("--actions_key", help="path of the actions within an episode")
    parser.add_argument("--states_key", nargs="+", help="paths of the proprio states within an episode, concatenated")
    ends = "array that flags the last row of each episode, or 'none' if a group is one episode (default: known names)"
    parser.add_argument("--ends_key", help=ends)
    parser.add_argument("--spare_action", choices=("last", "first"), default="last", help="which of T actions to drop")
    parser.add_argument("--height", type=int, help="resize taller images to this height in pixels (default: keep)")
    parser.add_argument("--crf", type=int, default=10, help="x264's quality, 0 (best) to 51 (default: 10)")
    parser.add_argument("--num_shards", type=int, default=8, help="maximum number of files (default: 8)")
    options = vars(parser.parse_args(arguments))
    import_episodes(options.pop("source"), options.pop("out_dir"), ImportOptions(**options))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
