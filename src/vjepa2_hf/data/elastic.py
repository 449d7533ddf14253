"""Elastic resume: a stopped run's data continues with another number of processes or DataLoader workers.

state = redistribute([rank_state["loader"] for rank_state in states_of_all_processes])
loader.dataset.load_state_dict(state)                        # a fresh loader of a ClipStream
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..configuration_vjepa2 import check


def redistribute(loader_states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One state for `ClipStream.load_state_dict`, whatever the new number of processes and workers.

    Args:
        loader_states: `state_dict()` of the `StatefulDataLoader` of every process of the stopped run, by rank.

    Raises:
        ValueError: there is no state, or one is not of a `StatefulDataLoader`.
    """
    check(loader_states, "There is no loader state to redistribute; give those of all processes, by rank.")
    return {"readers": [state for loader_state in loader_states for state in reader_states(loader_state)]}


def reader_states(loader_state: dict[str, Any]) -> list[dict[str, Any]]:
    """The states of the dataset in a `StatefulDataLoader`'s state: one, or one of each worker."""
    try:
        if "_snapshot" not in loader_state:
            return [loader_state["dataset_state"]]
        workers = loader_state["_snapshot"]["_worker_snapshots"]
        return [workers[f"worker_{number}"]["dataset_state"] for number in range(len(workers))]
    except (KeyError, TypeError) as error:
        raise ValueError(f"This is not the state of a StatefulDataLoader with a ClipStream ({error!r}).") from error
