"""Shortest paths over stored states, for goals that are farther away than a planner looks ahead.

    nodes = cover(count, between, num_nodes)                  # states that cover the others
    graph = SubgoalGraph.from_distances(distances, max_edge=12, reach=12, seen=seen)
    waypoint, = graph.route(start, end, direct)               # of one problem

The graph knows distances alone, no states and no model. Distances are in frames of the video and have a direction:
the way back may be longer.

Letters: K nodes, B problems.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, dijkstra

from ..specs import check_number, refuse


@dataclass
class Waypoint:
    """What a planner plans for next.

    node: of the graph; `None` for the goal itself.
    reason: "waypoint", "goal within reach" or "no path".
    distance: from the observation to it, in frames.
    goal_distance: from the observation to the goal along the path, in frames; without a path, the direct distance.
    """

    node: int | None
    reason: str
    distance: float
    goal_distance: float


class SubgoalGraph:
    """Shortest paths between nodes.

    Args:
        lengths: (K, K) float32, of the shortest path from the row's node to the column's; infinite without a path.
        predecessors: (K, K) integers, the node before the column's on that path; negative where there is none.
        max_edge: longest distance in frames that is trusted as an edge, also from an observation and to a goal.
        reach: how far ahead on a path the waypoint lies at most, in frames; a goal that is as near needs none.
    """

    def __init__(self, lengths: np.ndarray, predecessors: np.ndarray, max_edge: float, reach: float):
        self.max_edge = float(check_number("max_edge", max_edge, above=0))
        self.reach = float(check_number("reach", reach, above=0))
        shapes = lengths.shape, predecessors.shape
        if lengths.ndim != 2 or not len(lengths) or lengths.shape[0] != lengths.shape[1] or shapes[0] != shapes[1]:
            refuse("lengths and predecessors", shapes, "two arrays (K, K) of at least one node")
        self.lengths, self.predecessors = lengths, predecessors

    def __len__(self) -> int:
        return len(self.lengths)

    @classmethod
    def from_distances(
        cls,
        distances: np.ndarray,
        max_edge: float,
        reach: float,
        seen: Sequence[tuple[int, int, float]] = (),
    ) -> "SubgoalGraph":
        """A graph of two kinds of edges: distances (K, K) up to `max_edge`, and (from, to, frames) of nodes that were
        `seen` one after the other in an episode."""
        kept = np.where(distances <= max_edge, np.maximum(distances, 1e-3), np.inf)  # a zero would be no edge
        np.fill_diagonal(kept, np.inf)
        for before, after, frames in seen:
            kept[before, after] = min(kept[before, after], frames)
        rows, columns = np.nonzero(np.isfinite(kept))
        edges = csr_array((kept[rows, columns], (rows, columns)), shape=kept.shape)
        lengths, predecessors = dijkstra(edges, return_predecessors=True)
        return cls(lengths.astype(np.float32), predecessors.astype(np.int32), max_edge, reach)

    def largest_component(self) -> float:
        """The fraction of the nodes in the largest set whose nodes all reach one another."""
        _, labels = connected_components(csr_array(np.isfinite(self.lengths)), connection="strong")
        return float(np.bincount(labels).max() / len(self))

    def route(self, start: np.ndarray, end: np.ndarray, direct: np.ndarray) -> list[Waypoint]:
        """The next waypoint of each problem: the farthest node of the shortest path within reach.

        A path enters and leaves the graph at nodes within `max_edge`, or at the nearest one.

        Args:
            start: (B, K) distances from the observations to the nodes.
            end: (B, K) distances from the nodes to the goals.
            direct: (B,) distances from the observations to the goals.
        """
        return [self._route(*problem) for problem in zip(start, end, direct, strict=True)]

    def _route(self, start: np.ndarray, end: np.ndarray, direct: float) -> Waypoint:
        if np.isnan(direct) or np.isnan(start).any() or np.isnan(end).any():
            return Waypoint(None, "no path", float(direct), float(direct))
        first, last = (np.flatnonzero(ends <= max(self.max_edge, ends.min())) for ends in (start, end))
        totals = start[first, None] + self.lengths[np.ix_(first, last)] + end[last]
        row, column = np.unravel_index(totals.argmin(), totals.shape)
        first, last, total = first[row], last[column], float(totals[row, column])
        if direct <= self.reach or self.lengths[first, last] <= self.reach:
            return Waypoint(None, "goal within reach", float(direct), min(float(direct), total))
        if not np.isfinite(total):
            return Waypoint(None, "no path", float(direct), float(direct))
        path = [last]
        while path[-1] != first:
            path.append(self.predecessors[first, path[-1]])
            if path[-1] < 0 or len(path) > len(self):
                raise ValueError("the predecessors of the subgoal graph form no path: build the graph again.")
        # Along the path, because edges are trusted and longer distances are not; at least one node ahead
        within = [node for node in path if self.lengths[first, node] <= self.reach and node != first]
        node = int(within[0] if within else path[-2])
        return Waypoint(node, "waypoint", float(start[node]), total)


def connecting_length(distances: np.ndarray, fraction: float = 0.95) -> float:
    """The shortest length for which edges up to it join at least `fraction` of the nodes, each to all others.

    `distances` are (K, K). Edges as short as possible are the safest: a learned distance that is too short leads
    through a wall.
    """
    lengths = np.unique(distances[~np.eye(len(distances), dtype=bool)])
    if not len(lengths) or not 0 < lengths[-1] < np.inf:  # NaN is last
        raise ValueError(
            f"a subgoal graph has {len(distances)} nodes with distances up to {max(lengths, default=0)}; expected two "
            "or more different ones and finite distances: use more episodes, or train the distance head again."
        )
    low, high = 0, len(lengths) - 1
    while low < high:
        middle = (low + high) // 2
        _, labels = connected_components(csr_array(distances <= lengths[middle]), connection="strong")
        if np.bincount(labels).max() >= fraction * len(distances):
            high = middle
        else:
            low = middle + 1
    return float(lengths[low])


def cover(count: int, between: Callable[[int], np.ndarray], num_nodes: int) -> np.ndarray:
    """Farthest-point sampling: indices of `num_nodes` of `count` states, each far from those before it.

    They are fewer if all others are at distance 0 of one.
    `between(index)` gives the distances (count,) of all states from one of them.
    """
    chosen, nearest = [0], between(0)
    for _ in range(min(num_nodes, count) - 1):
        if nearest.max() == 0:
            break
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, between(chosen[-1]))
    return np.array(chosen)
