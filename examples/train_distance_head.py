# /// script
# requires-python = ">=3.11"
# dependencies = ["vjepa2-hf[demo]"]
# ///
"""Trains a distance head for a finished world model: the time that it takes from one frame to another.

    python examples/train_distance_head.py model=runs/demo/world_model/final data=runs/demo/episodes
    output_dir=runs/demo/world_model_distance [key=value ...]

`OUTPUT_DIR/final` is the model with the head, its video processor and its planner settings; nothing else of the model
changes. Only the episodes that the model was trained on are used; `OUTPUT_DIR/distance.json` compares predicted and
true times on held-out ones. The latents are those that `train_world_model.py` has cached, if `cache_dir` is the same.
Planners use the head through their cost (docs/planning.md):

    python examples/plan.py --config examples/configs/demo/plan.yaml "planner={cost: closest}" \\
        "models={mine: runs/demo/world_model_distance/final}"
"""

import dataclasses
import shutil
import vjepa2_cli  # noqa: F401 (a quick --help)
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

from vjepa2_hf import VJepa2VideoProcessor, VJepa2WorldModel
from vjepa2_hf.data.episodes import EpisodeSource
from vjepa2_hf.data.files import staged_folder, write_json, write_text
from vjepa2_hf.specs import check_at_least
from vjepa2_hf.training.episode_latents import held_out_fraction, open_episodes
from vjepa2_hf.training.processes import build_accelerator
from vjepa2_hf.training.settings import dump_yaml, exit_on_user_error, parse_arguments
from vjepa2_hf.training.temporal_distance import DistanceSettings, measure_distance_head, train_distance_head
from vjepa2_hf.video_io import ReadLimits


@dataclass(kw_only=True)
class DistanceHeadConfig:
    """Settings of one run."""

    model: str
    """Folder or Hub id of the world model, with its video processor."""
    data: str | list[EpisodeSource]
    """The episodes that the model was trained on, as for train_world_model.py."""
    output_dir: str
    """New folder of the result."""
    validation_fraction: float | None = None
    """Fraction of the episodes held out, as in the model's training; null: that of its run."""
    max_episodes: int | None = None
    """Episodes of each source; null: all."""
    limits: ReadLimits = field(default_factory=ReadLimits)
    """What rows may cost and reach: SECURITY.md."""
    cache_dir: str | None = None
    """Folder of the encoded episodes; null: `latents` beside output_dir, which the runs there share."""
    cache_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the cached latents."""
    distance: DistanceSettings = field(default_factory=DistanceSettings)
    seed: int = 0
    num_workers: int = 0
    num_threads: int | None = None

    def __post_init__(self):
        check_at_least(self, max_episodes=1, num_workers=0, num_threads=1, seed=0)


def train(config: DistanceHeadConfig) -> None:
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    accelerator = build_accelerator()
    # Only the main process writes; the folder appears when it is complete
    with staged_folder(config.output_dir) if accelerator.is_main_process else nullcontext() as folder:
        model = VJepa2WorldModel.from_pretrained(config.model).to(accelerator.device).eval()
        processor = VJepa2VideoProcessor.from_pretrained(config.model)
        training, held_out = open_episodes(config, accelerator, model, processor)
        losses = train_distance_head(model, training, config.distance, config.seed, accelerator)
        if folder is not None:
            calibration = measure_distance_head(model, held_out, config.seed) if len(held_out) else None
            if model.config.planner:  # subgoals are saved beside a planner, and belong to its distance head
                model.config.planner = {k: v for k, v in model.config.planner.items() if k != "subgoals"}
            model.save_pretrained(folder / "final")
            processor.save_pretrained(folder / "final")
            write_json(folder / "distance.json", {"held_out": calibration, "losses": losses})
            settings = dataclasses.replace(config, validation_fraction=held_out_fraction(config))
            write_text(folder / "config.yaml", dump_yaml(dataclasses.asdict(settings)))
            errors = Path(config.model).parent / "rollout_error.json"  # of the dynamics, which are the same
            if errors.is_file():
                shutil.copy(errors, folder)
    if accelerator.is_main_process:
        tqdm.write(f"saved {Path(config.output_dir) / 'final'}")


@exit_on_user_error
def main() -> None:
    train(parse_arguments(DistanceHeadConfig, __doc__))


if __name__ == "__main__":
    main()
