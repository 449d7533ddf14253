# /// script
# requires-python = ">=3.11"
# dependencies = ["vjepa2-hf[demo]"]
# ///
"""Builds a graph of stored latents, whose shortest paths give a planner subgoals where its goal is far.

    python examples/build_subgoal_graph.py model=runs/four_rooms/world_model/final data=runs/four_rooms/episodes
    output_dir=runs/four_rooms/graph [key=value ...]

The world model needs a distance head (docs/world_model.md). Nodes are latents of the episodes that it was trained on,
edges are learned distances between them. `OUTPUT_DIR` is the planner with its subgoals, in `subgoals/` beside the
model; `OUTPUT_DIR/graph.json` describes the graph. docs/planning.md, "Far goals", explains it:

    planner = VJepa2Planner.from_pretrained("runs/four_rooms/graph")
    plan = planner(observation, goal)
    plan["subgoal"]  # what the solver planned for
"""

import logging
import vjepa2_cli  # noqa: F401 (a quick --help)
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from tqdm import tqdm

from vjepa2_hf import VJepa2Planner
from vjepa2_hf.data.episodes import EpisodeSource
from vjepa2_hf.data.files import staged_folder, write_json
from vjepa2_hf.pipelines.subgoal_building import GraphSettings, build_graph
from vjepa2_hf.specs import check_at_least
from vjepa2_hf.training.episode_latents import open_episodes
from vjepa2_hf.training.processes import build_accelerator
from vjepa2_hf.training.settings import exit_on_user_error, parse_arguments
from vjepa2_hf.video_io import ReadLimits


logger = logging.getLogger("build_subgoal_graph")


@dataclass(kw_only=True)
class SubgoalGraphConfig(GraphSettings):
    """Settings of one graph."""

    model: str
    """Folder or Hub id of the world model, with its video processor and planner settings."""
    data: str | list[EpisodeSource]
    """The episodes that the model was trained on, as for train_world_model.py."""
    output_dir: str
    """New folder of the result."""
    planner: dict[str, Any] = field(default_factory=dict)
    """Settings of VJepa2Planner that replace the saved ones and are saved with the graph, such as horizon and cost."""
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
    num_workers: int = 0
    num_threads: int | None = None

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, max_episodes=1, num_workers=0, num_threads=1, seed=0)


def build(config: SubgoalGraphConfig) -> None:
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    accelerator = build_accelerator()
    if accelerator.num_processes > 1:
        raise ValueError(f"a graph is built by one process, got {accelerator.num_processes}: run without a launcher.")
    with staged_folder(config.output_dir) as folder:
        planner = VJepa2Planner.from_pretrained(
            config.model, device=accelerator.device, **{**config.planner, "subgoals": False}
        )
        model = planner.model
        training, _ = open_episodes(config, accelerator, model, planner.video_processor)
        planner.subgoals = build_graph(model, training, config)
        graph = planner.subgoals.graph
        facts = {"nodes": len(graph), "max_edge": graph.max_edge, "reach": graph.reach}
        facts["connected"] = graph.largest_component()
        planner.save_pretrained(folder)
        write_json(folder / "graph.json", facts)
    described = "{nodes} nodes, {connected:.0%} of them connected by edges of up to {max_edge:.1f} frames"
    tqdm.write(f"saved {config.output_dir}: {described.format(**facts)}")
    if facts["connected"] < 0.9:
        logger.warning(
            "only %.0f %% of the nodes reach one another: from others there is no path, and the planner plans for the "
            "goal itself; raise num_nodes or max_edge", 100 * facts["connected"],
        )  # fmt: skip


@exit_on_user_error
def main() -> None:
    build(parse_arguments(SubgoalGraphConfig, __doc__))


if __name__ == "__main__":
    main()
