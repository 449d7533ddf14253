"""Elastic resume: a stopped run's data continues with another number of processes or DataLoader workers.

    state = redistribute([rank_state["loader"] for rank_state in states_of_all_processes])
    loader.dataset.load_state_dict(state)                        # a fresh loader of a ClipStream

Old readers can be in different epochs. What each has left of its own and later epochs, up to the last one that any has
begun, is dealt out to the new readers: shards, row groups of open shards, buffered rows. No row is read twice in an
epoch or left out. The new readers then share the next epoch as in a new run.
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
    processes = [reader_states(loader_state) for loader_state in loader_states]
    readers = [state for process in processes for state in process]
    # A worker that had not begun since the last change of readers has the states from before it
    readers = [
        deal_out(state["readers"], number, len(readers)) if "readers" in state else state
        for number, state in enumerate(readers)
    ]
    batches = readers[0].get("first_batch", 0) + sum(state["batch"] for state in readers[: len(processes[0])])
    return {"readers": [{**state, "first_batch": batches} for state in readers]}


def reader_states(loader_state: dict[str, Any]) -> list[dict[str, Any]]:
    """The states of the dataset in a `StatefulDataLoader`'s state: one, or one of each worker."""
    try:
        if "_snapshot" not in loader_state:
            return [loader_state["dataset_state"]]
        workers = loader_state["_snapshot"]["_worker_snapshots"]
        return [workers[f"worker_{number}"]["dataset_state"] for number in range(len(workers))]
    except (KeyError, TypeError) as error:
        raise ValueError(f"This is not the state of a StatefulDataLoader with a ClipStream ({error!r}).") from error


def describe(readers: Sequence[dict[str, Any]]) -> str:
    """What happens to the data of a run whose readers stopped in these states, in a sentence."""
    epochs = [[position_epoch(position) for position in reader["sources"]] for reader in readers]
    begun = " and ".join(f"{min(source)}" for source in zip(*epochs))
    return (
        f"another number of processes or workers reads the data than the {len(readers)} readers before: the rows that "
        f"are left of epoch {begun} are dealt out to the new readers, and a row counts as read if one of its clips was"
    )


def position_epoch(position: dict[str, Any]) -> int:
    """The epoch of a source's next row."""
    if "order" not in position:
        return position["epoch"]
    return position["order"]["epoch"] if position["order"] else 0


def upgrade(position: dict[str, Any], number: int, readers: int) -> dict[str, Any]:
    """A source's position in a reader's state, also of version 0.1, which knew no shuffle buffer."""
    if "order" in position:
        return dict(position)
    epoch, kept = position["epoch"], ("clip", "used", "skipped", "fingerprint")
    leg = {
        "epoch": epoch, "queues": [[number, readers, position["place"] + 1, 1]],
        "open": [[number, readers, position["place"], 0, 1, position["row"]]], "rows": [], "blocks": 0,
    }  # fmt: skip
    order = {**_empty_order(epoch, False), "next_epoch": epoch + 1, "legs": [leg]}
    return {**{name: position[name] for name in kept}, "unread": 0, "order": order}


def restart_epoch(position: dict[str, Any], fingerprint: Any) -> dict[str, Any]:
    """The position at the beginning of a source's epoch, for shards that have changed."""
    was_shuffled = position["order"]["shuffled"] if position.get("order") else "order" in position
    order = _empty_order(position_epoch(position), was_shuffled)
    return {**upgrade(position, 0, 1), "clip": 0, "fingerprint": fingerprint, "order": order}


def deal_out(states: Sequence[dict[str, Any]], number: int, readers: int) -> dict[str, Any]:
    """The state of one of `readers` new readers from those of all old ones, in order."""
    sources = []
    for positions in zip(*(state["sources"] for state in states), strict=True):
        positions = [upgrade(position, old, len(states)) for old, position in enumerate(positions)]
        counts = {
            name: sum(position[name] for position in positions) / readers for name in ("used", "skipped", "unread")
        }
        begun = next((position["order"] for position in positions if position["order"]), None)
        orders = [position["order"] or (begun and _empty_order(0, begun["shuffled"])) for position in positions]
        order = _deal_order(orders, number, readers) if begun else None
        sources.append({"clip": 0, **counts, "fingerprint": positions[0]["fingerprint"], "order": order})
    rows = max(state["rows"] for state in states)
    counts = {"batch": 0, "first_batch": states[0]["first_batch"], "slot": 0, "batch_epoch": 0, "rows": rows}
    return {**counts, "sources": sources}


def _deal_order(orders: Sequence[dict[str, Any]], number: int, readers: int) -> dict[str, Any]:
    epochs = range(min(order["epoch"] for order in orders), max(order["next_epoch"] for order in orders))
    legs = [_deal_leg(epoch, orders, number, readers) for epoch in epochs]
    order = _empty_order(epochs.start, orders[0]["shuffled"])
    return {**order, "next_epoch": epochs.stop, "legs": legs, "picked": max(order["picked"] for order in orders)}


def _deal_leg(epoch: int, orders: Sequence[dict[str, Any]], number: int, readers: int) -> dict[str, Any]:
    """A new reader's part of what the old ones have left of an epoch."""
    queues, opened, rows, turn = [], [], [], 0
    for old, order in enumerate(orders):
        # Which of the new readers comes first changes, so that remainders do not add up
        first = (number + old) % readers
        left = [leg for leg in order["legs"] if leg["epoch"] == epoch]
        if epoch >= order["next_epoch"]:
            left = [{"queues": [[old, len(orders), 0, 1]], "open": [], "rows": []}]
        for leg in left:
            queues += [[*who, position + first * step, readers * step] for *who, position, step in leg["queues"]]
            for *who, position, run, step, row in leg["open"]:
                if row:  # in the middle of its run: one reader continues it
                    opened += [[*who, position, run, step, row]] if turn % readers == number else []
                else:
                    run += (number + turn) % readers * step
                    opened.append([*who, position, run, step * readers, 0])
                turn += 1
            rows += leg["rows"]
        rows += order["buffer"] if order["epoch"] == epoch else order["ahead"] if order["epoch"] + 1 == epoch else []
    pairs = sorted(zip(rows[::2], rows[1::2], strict=True))
    mine = pairs[len(pairs) * number // readers : len(pairs) * (number + 1) // readers]
    rows = [value for pair in mine for value in pair]
    return {"epoch": epoch, "queues": queues, "open": opened, "rows": rows, "blocks": 0}


def _empty_order(epoch: int, shuffled: bool) -> dict[str, Any]:
    return {
        "shuffled": shuffled, "epoch": epoch, "next_epoch": epoch, "picked": 0, "current": [], "buffer": [],
        "ahead": [], "legs": [],
    }  # fmt: skip
