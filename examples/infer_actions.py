# /// script
# requires-python = ">=3.11"
# dependencies = ["vjepa2-hf[demo]"]
# ///
"""Gives videos the actions that a few episodes with actions allow to infer, so that they train a world model.

    python examples/infer_actions.py EPISODES VIDEOS OUT_DIR [--symmetries vjepa2_hf/Pushing-v0] [--max_episodes 60]

An inverse model learns from EPISODES which action leads from a frame to the next, and labels every video of VIDEOS, as
VPT does (arXiv 2206.11795). EPISODES are shards of episodes or a LeRobot dataset. VIDEOS are a folder of video files,
shards of make_video_shards.py, or shards of episodes, whose own actions are not read; they show what the episodes
show, at as many frames per second. OUT_DIR holds the videos as they are, as episodes for train_world_model.py, and
appears only when it is complete:

    python examples/train_world_model.py data=OUT_DIR ...

R² of the inferred actions is measured on held-out episodes, printed, and kept in OUT_DIR/inferred_actions.json. Near 1
they are right. Near 0 they are no better than the mean action: then do not use them. One process, minutes on a laptop.
"""

import argparse
import logging
import vjepa2_cli  # noqa: F401 (a quick --help)

from vjepa2_hf.data.episodes import EpisodeSource
from vjepa2_hf.specs import check_at_least
from vjepa2_hf.training.inverse_dynamics import InverseSettings, infer_actions
from vjepa2_hf.training.processes import build_accelerator
from vjepa2_hf.training.settings import exit_on_user_error
from vjepa2_hf.video_io import ReadLimits


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("episodes", help="episodes with actions: shards, a LeRobot folder, or a dataset on the Hub")
    parser.add_argument("videos", help="folder of videos, or shards of them")
    parser.add_argument("out_dir", help="new folder for the shards")
    parser.add_argument("--symmetries", help="environment whose turns of the image the physics keeps (default: none)")
    parser.add_argument("--max_episodes", type=int, help="the first episodes only (default: all)")
    parser.add_argument("--camera", help="which of several cameras, of the episodes and of the videos")
    defaults = InverseSettings()
    for name in ("steps", "batch_size", "learning_rate", "size", "validation_fraction", "seed"):
        value = getattr(defaults, name)
        parser.add_argument(f"--{name}", type=type(value), default=value, help=f"(default: {value})")
    parser.add_argument("--allow_outside", action="store_true", help="limits.allow_outside=true, see SECURITY.md")
    parser.add_argument("--num_shards", type=int, default=8, help="maximum number of files (default: 8)")
    parsed = parser.parse_args(arguments)
    check_at_least(parsed, "--", max_episodes=1, num_shards=1)
    options = vars(parsed)
    episodes, videos, out_dir = (options.pop(name) for name in ("episodes", "videos", "out_dir"))
    num_shards, max_episodes, camera = (options.pop(name) for name in ("num_shards", "max_episodes", "camera"))
    symmetries, limits = options.pop("symmetries"), ReadLimits(allow_outside=options.pop("allow_outside"))
    if symmetries is not None:
        from vjepa2_hf.environments import find_symmetries  # needs gymnasium

        options["symmetries"] = find_symmetries(symmetries)
    settings = InverseSettings(**options)
    source = EpisodeSource(episodes, camera=camera)
    known = infer_actions(source, videos, out_dir, settings, build_accelerator(), max_episodes, num_shards, limits)
    score = known["r_squared"]
    if score is None:
        reason = "The actions of the held-out episodes never change" if known["held_out"] else "No episode is held out"
        print(f"{reason}: R² of the inferred actions is not known.")
    else:
        print(f"R² of the actions inferred in {known['held_out']} held-out episode(s): {score:.2f}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
