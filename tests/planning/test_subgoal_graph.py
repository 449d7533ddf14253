"""The subgoal graph: shortest paths, waypoints within reach, direction, and what happens without a path."""

import numpy as np
import pytest
import torch

from vjepa2_hf.planning.subgoal_graph import SubgoalGraph, connecting_length, cover


def distances(places: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.abs(places[:, None] - others).astype(np.float32)


LINE = np.arange(0.0, 60.0, 5.0)  # nodes 5 frames apart


def route_on_line(graph: SubgoalGraph, start: float, goal: float, nodes: np.ndarray = LINE):
    places = (np.array([start]), np.array([goal]))
    found = graph.route(distances(places[0], nodes), distances(nodes, places[1]).T, distances(*places).diagonal())
    return found[0]


class TestRoute:
    def test_the_waypoint_is_the_farthest_node_of_the_path_within_reach(self):
        graph = SubgoalGraph.from_distances(distances(LINE, LINE), max_edge=6, reach=12)
        waypoint = route_on_line(graph, 1.0, 51.0)
        assert (waypoint.node, waypoint.reason) == (3, "waypoint")  # the path begins at 5; 15 is 10 frames ahead
        assert waypoint.distance == 14 and waypoint.goal_distance == pytest.approx(50, abs=0.01)

    def test_a_goal_within_reach_is_planned_for_itself(self):
        graph = SubgoalGraph.from_distances(distances(LINE, LINE), max_edge=6, reach=12)
        waypoint = route_on_line(graph, 1.0, 12.5)
        assert (waypoint.node, waypoint.reason, waypoint.distance) == (None, "goal within reach", 11.5)

    def test_a_goal_at_the_end_of_a_short_path_is_within_reach_whatever_the_direct_distance(self):
        graph = SubgoalGraph.from_distances(distances(LINE, LINE), max_edge=6, reach=12)
        start, end = distances(np.array([1.0]), LINE), distances(LINE, np.array([11.0])).T
        waypoint = graph.route(start, end, np.array([40.0]))[0]
        assert (waypoint.node, waypoint.reason) == (None, "goal within reach")

    def test_the_waypoint_lies_at_least_one_node_ahead(self):
        graph = SubgoalGraph.from_distances(distances(LINE, LINE), max_edge=6, reach=0.5)
        waypoint = route_on_line(graph, 5.0, 51.0)
        assert (waypoint.node, waypoint.distance) == (2, 5)  # else a planner at node 1 would stay there

    def test_states_far_from_all_nodes_enter_at_the_nearest(self):
        graph = SubgoalGraph.from_distances(distances(LINE, LINE), max_edge=6, reach=6)
        waypoint = route_on_line(graph, -30.0, 51.0)
        assert (waypoint.node, waypoint.distance) == (1, 35)

    def test_without_a_path_the_goal_itself_is_named_so(self):
        nodes = np.concatenate([LINE, LINE + 200])
        graph = SubgoalGraph.from_distances(distances(nodes, nodes), max_edge=6, reach=6)
        waypoint = route_on_line(graph, 1.0, 240.0, nodes)
        assert (waypoint.node, waypoint.reason) == (None, "no path")
        assert waypoint.distance == waypoint.goal_distance == 239

    def test_a_path_leads_around_a_wall_that_distances_do_not_know(self):
        """Two rows of nodes with one door; the far side is close, but its distance is above the trusted length."""
        graph = SubgoalGraph.from_distances(self.two_rows(), max_edge=1.1, reach=1.1)
        start, end = self.two_rows()[0], self.two_rows()[:, 5]
        waypoint = graph.route(start[None], end[None], np.array([2.0]))[0]
        assert waypoint.node == 1 and waypoint.goal_distance == pytest.approx(
            9, abs=0.02
        )  # 4 out, 1 through the door, 4 back

    @staticmethod
    def two_rows() -> np.ndarray:
        rows = np.array([(x, y) for y in (0, 2) for x in range(5)], float)  # nodes 0-4 below, 5-9 above
        straight = np.linalg.norm(rows[:, None] - rows, axis=-1)
        straight[4, 9] = straight[9, 4] = 1.0  # the door
        return straight.astype(np.float32)

    def test_paths_have_a_direction(self):
        """A ring on which only forward is trusted: back by one node is the whole way round."""
        nodes = np.arange(8)
        ring = ((nodes[None] - nodes[:, None]) % 8).astype(np.float32)
        graph = SubgoalGraph.from_distances(ring, max_edge=1, reach=1)
        assert graph.lengths[0, 7] == 7 and graph.lengths[7, 0] == 1
        waypoint = graph.route(ring[[1]], ring[:, [0]].T, ring[1, [0]])[0]
        assert waypoint.goal_distance == pytest.approx(7, abs=0.01)

    def test_an_edge_that_an_episode_saw_is_used_beyond_the_trusted_length(self):
        nodes = np.array([0.0, 5.0, 30.0, 35.0])
        far = distances(nodes, nodes)
        alone = SubgoalGraph.from_distances(far, max_edge=6, reach=6)
        seen = SubgoalGraph.from_distances(far, max_edge=6, reach=6, seen=[(1, 2, 25.0)])
        assert route_on_line(alone, 0.0, 35.0, nodes).reason == "no path"
        assert route_on_line(seen, 0.0, 35.0, nodes).goal_distance == pytest.approx(35)
        assert route_on_line(seen, 35.0, 0.0, nodes).reason == "no path"  # seen in one direction
        assert (alone.largest_component(), seen.largest_component()) == (0.5, 0.5)

    def test_edges_are_as_long_as_the_nodes_need_to_be_connected(self):
        nodes = np.array([0.0, 1.0, 2.0, 5.0, 6.0, 30.0])
        assert connecting_length(distances(nodes, nodes), fraction=0.8) == 3
        assert connecting_length(distances(nodes, nodes), fraction=1.0) == 24
        one_way = np.where(nodes[:, None] > nodes, 2 * distances(nodes, nodes), distances(nodes, nodes))
        assert connecting_length(one_way, fraction=0.8) == 6  # all reach all, also backwards

    def test_bad_lengths_are_refused(self):
        with pytest.raises(ValueError, match="max_edge is -1; expected a finite number above 0"):
            SubgoalGraph.from_distances(distances(LINE, LINE), max_edge=-1, reach=1)
        for shape in ((3, 2), (0, 0)):
            with pytest.raises(ValueError, match="expected two arrays"):
                SubgoalGraph(np.zeros(shape), np.zeros(shape), 1, 1)

    @pytest.mark.parametrize("nodes", [np.zeros(1), np.zeros(3), np.array([0, np.nan])])
    def test_nodes_without_different_distances_make_no_graph(self, nodes):
        with pytest.raises(ValueError, match="expected two or more different ones and finite distances"):
            connecting_length(distances(nodes, nodes))


class TestDamage:
    def test_predecessors_in_a_circle_end(self):
        circle = np.array([[-1, 2, 1]] * 3)
        graph = SubgoalGraph(np.full((3, 3), 9, np.float32), circle, max_edge=10, reach=1)
        with pytest.raises(ValueError, match="form no path"):
            graph.route(np.array([[0, 99, 99.0]]), np.array([[99, 99, 0.0]]), np.array([50.0]))

    def test_an_observation_that_is_not_a_number_has_no_path(self):
        graph = SubgoalGraph.from_distances(distances(LINE, LINE), max_edge=6, reach=12)
        assert route_on_line(graph, float("nan"), 51.0).reason == "no path"


class TestCover:
    def test_every_state_is_near_a_node(self):
        points = torch.rand(400, 2, generator=torch.Generator().manual_seed(0)).numpy()
        chosen = cover(400, lambda index: np.linalg.norm(points - points[index], axis=1), 60)
        gaps = np.linalg.norm(points[:, None] - points[chosen], axis=-1).min(axis=1)
        uniform = np.linalg.norm(points[:, None] - points[:60], axis=-1).min(axis=1)
        assert len(set(chosen)) == 60 and gaps.max() < 0.6 * uniform.max()

    def test_fewer_states_than_nodes_are_all_taken(self):
        assert sorted(cover(3, lambda index: np.abs(np.arange(3) - index), 10)) == [0, 1, 2]

    def test_equal_states_become_one_node(self):
        numbers = np.array([0, 0, 1, 1, 0])
        assert cover(5, lambda index: np.abs(numbers - numbers[index]), 5).tolist() == [0, 2]
