"""Builds the subgoal graph of a world model from the cached latents of its training episodes.

subgoals = build_graph(model, training, GraphSettings(num_nodes=500))

Letters: C candidates, K nodes, N tokens of a frame, D width of a latent, E size of a distance embedding.
"""

from dataclasses import dataclass

import numpy as np
import torch

from ..data.windows import WindowMixture
from ..modeling_world_model import VJepa2WorldModel
from ..planning.subgoal_graph import SubgoalGraph, connecting_length, cover
from ..specs import check_count, check_number
from ..training.temporal_distance import read_latents
from .subgoals import GraphSubgoals


CANDIDATES_PER_NODE = 10
READ_AT_ONCE = 512  # frames
MAX_NODES = 4000  # the shortest paths between all nodes are K² numbers
REACH = 1.5  # times the longest edge


@dataclass
class GraphSettings:
    """Settings of a subgoal graph; lengths are learned distances, in frames."""

    num_nodes: int = 500
    """Stored latents, spread over the training episodes."""
    max_edge: float | None = None
    """Longest distance that is trusted; null: the shortest with which 95 % of the nodes reach one another."""
    reach: float | None = None
    """How far ahead the waypoint lies on the path at most; null: 1.5 times `max_edge`."""
    seed: int = 0

    def __post_init__(self):
        check_count("num_nodes", self.num_nodes, 2, MAX_NODES)
        for name in ("max_edge", "reach"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), above=0)


@torch.no_grad()
def build_graph(model: VJepa2WorldModel, frames: WindowMixture, settings: GraphSettings) -> GraphSubgoals:
    """A graph on frames of training episodes, whose latents are cached before the state's map.

    Candidates are sampled, and only their embeddings are held in memory; nodes are those of them that cover the
    others.
    """
    count = CANDIDATES_PER_NODE * settings.num_nodes
    candidates = frames.sample(count, 1, 1, np.random.default_rng(settings.seed)).unique(dim=0)  # sorted, (C, 3)
    parts = candidates.split(READ_AT_ONCE)
    embeddings = torch.cat([model.distance_embedding(read_latents(model, frames, part)) for part in parts])

    if not embeddings.isfinite().all():
        raise ValueError("some latents of the episodes have no finite embedding: train the distance head again.")

    def between(index: int) -> np.ndarray:
        """Mean distance of the way there and back from a candidate to all: (C,)."""
        ways = model.embedded_distance(embeddings[index], embeddings) + model.embedded_distance(
            embeddings, embeddings[index]
        )
        return (ways / 2).cpu().numpy()

    chosen = torch.from_numpy(np.sort(cover(len(candidates), between, settings.num_nodes)))
    nodes, embeddings = candidates[chosen], embeddings[chosen.to(embeddings.device)]
    latents = torch.cat([read_latents(model, frames, part) for part in nodes.split(READ_AT_ONCE)])
    distances = torch.stack([model.embedded_distance(node, embeddings) for node in embeddings]).cpu().numpy()
    max_edge = connecting_length(distances) if settings.max_edge is None else settings.max_edge
    reach = REACH * max_edge if settings.reach is None else settings.reach
    graph = SubgoalGraph.from_distances(distances, max_edge, reach, seen_edges(nodes))
    return GraphSubgoals(latents.cpu(), embeddings.cpu(), graph)


def seen_edges(nodes: torch.Tensor) -> list[tuple[int, int, float]]:
    """Edges between nodes (K, 3), sorted (cache, episode, frame), that follow one another in an episode."""
    gaps = nodes[1:] - nodes[:-1]
    same = (gaps[:, :2] == 0).all(dim=1).nonzero().flatten().tolist()
    return [(index, index + 1, float(gaps[index, 2])) for index in same]
