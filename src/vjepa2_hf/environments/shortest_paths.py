"""Shortest paths of a disc around walls.

Positions are centers of the disc in field units, (..., 2). Letters: W walls, V nodes.
"""

import numpy as np
from scipy.sparse.csgraph import shortest_path


CHORD = np.pi / 4  # angle between neighboring nodes on the arc around a corner
CHUNK = 1000  # positions in one piece: fits into the cache


class ShortestPaths:
    """Lengths and next points of shortest paths of a disc's center in a unit square with rectangular walls.

    A shortest path is straight, or turns around corners of walls on arcs of the disc's radius. Nodes on these arcs
    form a visibility graph. Chords replace the arcs: a length is short by at most 2.6 % of the arcs, less than half
    a pixel at every corner of the package's environments.

    Args:
        walls: lowest and highest corner of each wall, (W, 2, 2); they may end outside the square.
        radius: of the disc.
    """

    def __init__(self, walls: np.ndarray, radius: float):
        self.walls = np.asarray(walls, np.float64)
        sides = [(x, y) for x in (0, 1) for y in (0, 1)]
        corners = np.array([[wall[x, 0], wall[y, 1]] for wall in self.walls for x, y in sides])
        outwards = np.array([[2 * x - 1, 2 * y - 1] for _ in self.walls for x, y in sides])
        inside = ((corners > 0) & (corners < 1)).all(-1)
        self.corners, outwards = corners[inside], outwards[inside]
        self._clearance = (radius * np.cos(CHORD / 2)) ** 2 - 1e-9  # squared; chords come as near to a corner
        turns = np.array([[np.cos(angle), np.sin(angle)] for angle in (CHORD / 2, np.pi / 2 - CHORD / 2)])
        nodes = (self.corners[:, None] + radius * outwards[:, None] * turns).reshape(-1, 2)
        nearest = np.clip(nodes[:, None], self.walls[:, 0], self.walls[:, 1])
        free = (np.linalg.norm(nodes[:, None] - nearest, axis=-1) >= radius - 1e-6).all(-1)
        self.nodes = nodes[free & (np.abs(nodes - 0.5) <= 0.5 - radius + 1e-6).all(-1)]
        edges = np.linalg.norm(self.nodes[:, None] - self.nodes, axis=-1)
        self._lengths = shortest_path(np.where(self.sees(self.nodes[:, None], self.nodes), edges, np.inf))

    def sees(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Whether the disc can move straight from starts to ends: (..., 2), (..., 2) -> bool (...)."""
        (x, y), (dx, dy) = np.moveaxis(starts, -1, 0), np.moveaxis(ends - starts, -1, 0)
        of_each = (slice(None), *[None] * dx.ndim)  # corners or walls come first: long inner loops are fast
        squared = np.maximum(dx * dx + dy * dy, 1e-18)
        to_x, to_y = self.corners[:, 0][of_each] - x, self.corners[:, 1][of_each] - y
        along = np.minimum(np.maximum((to_x * dx + to_y * dy) / squared, 0), 1)
        clear = ((along * dx - to_x) ** 2 + (along * dy - to_y) ** 2 >= self._clearance).all(0)
        enters, leaves = 0.0, 1.0  # the part of the line within x and y of a wall, which is empty if it passes by
        for axis, (start, step) in enumerate(((x, dx), (y, dy))):
            step = 1 / np.where(np.abs(step) < 1e-12, 1e-12, step)
            first, last = ((side[of_each] - start) * step for side in self.walls[:, :, axis].T)
            enters = np.maximum(enters, np.minimum(first, last))
            leaves = np.minimum(leaves, np.maximum(first, last))
        return clear & (enters > leaves).all(0)

    def distance(self, positions: np.ndarray, goals: np.ndarray) -> np.ndarray:
        """Lengths of the paths: (..., 2), (..., 2) -> float64 (...), which broadcast; inf where there is none."""
        return self._search(positions, goals)[0]

    def next_points(self, positions: np.ndarray, goals: np.ndarray) -> np.ndarray:
        """Where the paths turn first, or their goals: (..., 2), (..., 2) -> (..., 2)."""
        nodes = self._search(positions, goals)[1]
        return np.where((nodes < 0)[..., None], goals, self.nodes[nodes])

    def _search(self, positions: np.ndarray, goals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lengths (...) and first nodes (...) of the paths, -1 for a straight path."""
        positions, goals = np.asarray(positions, np.float64), np.asarray(goals, np.float64)
        last = np.linalg.norm(goals[..., None, :] - self.nodes, axis=-1)  # (..., V)
        last = np.where(self.sees(self.nodes, goals[..., None, :]), last, np.inf)
        remaining = (last[..., None, :] + self._lengths).min(-1)  # from every node to the goal
        lengths = np.asarray(np.linalg.norm(goals - positions, axis=-1))
        turning = ~self.sees(positions, goals)
        starts = np.broadcast_to(positions, (*lengths.shape, 2))[turning]
        remaining = np.broadcast_to(remaining, (*lengths.shape, len(self.nodes)))[turning]
        best, first = np.empty(len(starts)), np.empty(len(starts), int)
        for part in np.array_split(np.arange(len(starts)), 1 + len(starts) // CHUNK):
            found = np.linalg.norm(starts[part] - self.nodes[:, None], axis=-1) + remaining[part].T
            found = np.where(self.sees(starts[part], self.nodes[:, None]), found, np.inf)
            best[part], first[part] = found.min(0), found.argmin(0)
        nodes = np.full(lengths.shape, -1)
        lengths[turning], nodes[turning] = best, first
        return lengths, nodes
