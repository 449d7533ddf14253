"""Subgoals of a planner: what it plans for when the goal is far.

A subgoal object has

    choose(model, latents (B, N, D), goal (B, N, D)) -> latents (B, N, D), facts

where `facts` has a small dict for each problem, which becomes `plan["subgoal"]`. To be saved with the planner it also
has a `name` in `SUBGOALS`, `save_pretrained(folder)`, and the class method `from_pretrained(folder, model)`.

Letters: B problems, K nodes, N tokens of a frame, D width of a latent, E size of a distance embedding.
"""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub.errors import HFValidationError

from ..data.files import remove_folder, write_aside, write_json
from ..data.parts import DamagedPartError, check_part, read_note, read_tensors, save_part
from ..modeling_world_model import VJepa2WorldModel
from ..planning.subgoal_graph import SubgoalGraph
from ..specs import check_known, refuse
from .two_level import MacroActionSubgoals, holds_macro_model


FOLDER = "subgoals"  # beside the model
KIND_FILE = "subgoals.json"
GRAPH_FILE = "graph.safetensors"
GRAPH_TENSORS = {"latents", "embeddings", "lengths", "predecessors"}
CHECKED_NODES = 64


class GraphSubgoals:
    """Waypoints on a graph of stored latents, whose edges are learned temporal distances.

    Args:
        latents: (K, N, D) of the nodes.
        embeddings: (K, E), the model's `distance_embedding` of the nodes.
        graph: shortest paths between the nodes.
    """

    name = "graph"

    def __init__(self, latents: torch.Tensor, embeddings: torch.Tensor, graph: SubgoalGraph):
        self.latents, self.embeddings, self.graph = latents, embeddings, graph

    def __len__(self) -> int:
        return len(self.latents)

    @torch.no_grad()
    def choose(
        self, model: VJepa2WorldModel, latents: torch.Tensor, goal: torch.Tensor
    ) -> tuple[torch.Tensor, list[dict[str, Any]]]:
        """The latents (B, N, D) to plan for, from those of the observations to those of the goals (B, N, D)."""
        here, there = model.distance_embedding(latents), model.distance_embedding(goal)
        nodes = self.embeddings.to(here)
        start = model.embedded_distance(here.unsqueeze(1), nodes)
        end = model.embedded_distance(nodes, there.unsqueeze(1))
        direct = model.embedded_distance(here, there)
        waypoints = self.graph.route(*(values.float().cpu().numpy() for values in (start, end, direct)))
        chosen = goal.clone()
        for problem, waypoint in enumerate(waypoints):
            if waypoint.node is not None:
                chosen[problem] = self.latents[waypoint.node].to(goal)
        return chosen, [dict(vars(waypoint)) for waypoint in waypoints]

    def save_pretrained(self, folder: Path) -> None:
        """Writes the graph, with the latents of its nodes, into a folder."""
        tensors = {"latents": self.latents, "embeddings": self.embeddings}
        tensors |= {name: torch.from_numpy(getattr(self.graph, name)) for name in ("lengths", "predecessors")}
        note = {"max_edge": self.graph.max_edge, "reach": self.graph.reach}
        save_part(folder / GRAPH_FILE, tensors, self.name, note)

    @classmethod
    def from_pretrained(cls, folder: Path, model: VJepa2WorldModel) -> "GraphSubgoals":
        """Reads what `save_pretrained` wrote. A missing or damaged file is a ValueError."""
        path = folder / GRAPH_FILE
        try:
            check_part(path, cls.name)
            note, tensors = read_note(path, cls.name), read_tensors(path)
            lengths, predecessors = (tensors[name].numpy() for name in ("lengths", "predecessors"))
            graph = SubgoalGraph(lengths, predecessors, note["max_edge"], note["reach"])
            found = cls(tensors["latents"], tensors["embeddings"], graph)
            if {len(found.latents), len(found.embeddings)} != {len(graph)}:
                raise ValueError(f"{len(graph)} nodes have {len(found.latents)} latents")
        except (DamagedPartError, OSError, KeyError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(
                f"{str(path)!r} is missing, damaged, or no subgoal graph ({reason}): build it again with "
                "examples/build_subgoal_graph.py."
            ) from error
        found._check(model, path)
        return found

    @torch.no_grad()
    def _check(self, model: VJepa2WorldModel, path: Path) -> None:
        """Refuses a graph of another model: its nodes would have other embeddings."""
        shape, size = tuple(self.latents.shape[1:]), model.latent_size
        if shape[-1] != size:
            raise ValueError(f"{str(path)!r} has nodes of size {shape[-1]}; the latents of this model have {size}.")
        if not (self.latents.isfinite().all() and self.embeddings.isfinite().all()):
            raise ValueError(f"{str(path)!r} has nodes that are not finite: build it again from other episodes.")
        nodes = self.latents[:CHECKED_NODES].to(model.device)
        embeddings = model.distance_embedding(nodes).float().cpu()
        saved = self.embeddings[:CHECKED_NODES].float()
        # in half precision the difference is about 0.0001 of the variance
        if embeddings.shape != saved.shape or (embeddings - saved).square().mean() > 0.01 * saved.square().mean():
            raise ValueError(
                f"{str(path)!r} was built with another model, or its distance head was trained again: build it again "
                "with examples/build_subgoal_graph.py."
            )


SUBGOALS: dict[str, type] = {kind.name: kind for kind in (GraphSubgoals, MacroActionSubgoals)}


def find_subgoals(given: Any, saved: str | None, model: VJepa2WorldModel) -> Any:
    """The subgoals of a planner: those given, else those saved with the model, else `None`.

    Args:
        given: an object with `choose`, a folder, `False` for none, or `None` for the saved ones.
        saved: the kind that the model's config names.
    """
    if given is False or given is None and saved is None:
        return None
    if hasattr(given, "choose"):
        return given
    if given is not None and not isinstance(given, (str, Path)):
        refuse("subgoals", given, "a folder, an object with choose(model, latents, goal), False, or None")
    return load_subgoals(model.name_or_path if given is None else given, model)


def load_subgoals(source: str | Path, model: VJepa2WorldModel) -> Any:
    """Subgoals from their folder, from the folder or Hub id of a planner that was saved with them, or from the folder
    of a world model with macro-actions."""
    folder = Path(source)
    if not folder.is_dir() and source:
        revision = getattr(model.config, "_commit_hash", None) if str(source) == model.name_or_path else None
        files = {"revision": revision, "allow_patterns": f"{FOLDER}/*"}
        try:
            folder = Path(huggingface_hub.snapshot_download(str(source), **files))
        except (HFValidationError, OSError) as error:
            raise FileNotFoundError(
                f"There are no subgoals at {str(source)!r}: no such folder, and not found on the Hub "
                f"({type(error).__name__})."
            ) from error
    own = any(path.is_file() for path in (folder / KIND_FILE, folder / FOLDER / KIND_FILE))
    if holds_macro_model(folder) and not own:
        return MacroActionSubgoals.from_pretrained(folder, model)
    folder = folder if (folder / KIND_FILE).is_file() else folder / FOLDER
    try:
        kind = json.loads((folder / KIND_FILE).read_text(encoding="utf-8"))["kind"]
        check_known(kind, SUBGOALS, "kind of subgoals")
    except FileNotFoundError:
        raise ValueError(
            f"{str(source)!r} holds no {FOLDER}/{KIND_FILE}: save the planner with its save_pretrained, or pass "
            "subgoals=False to plan without."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(folder / KIND_FILE)!r} is damaged ({error}): build the subgoals again.") from error
    return SUBGOALS[kind].from_pretrained(folder, model)


def save_subgoals(subgoals: Any, save_directory: str | Path) -> None:
    """Writes the subgoals of a planner into a folder beside the model; without any, removes those that are there."""
    folder = Path(save_directory) / FOLDER
    if subgoals is None:
        if folder.exists():
            remove_folder(folder)
        return
    with write_aside(folder) as partial:
        partial.mkdir()
        subgoals.save_pretrained(partial)
        write_json(partial / KIND_FILE, {"kind": subgoals.name})


def check_can_be_saved(subgoals: Any, push_to_hub: bool) -> str | None:
    """The name of subgoals in the model's config; refuses those that `save_subgoals` cannot save."""
    if subgoals is None:
        return None
    name = getattr(subgoals, "name", None)
    if SUBGOALS.get(name) is not type(subgoals):
        raise ValueError(f"the subgoals {subgoals!r} are none of {', '.join(SUBGOALS)}, so they cannot be saved.")
    if push_to_hub:
        raise ValueError(
            "save_pretrained(push_to_hub=True) leaves out the subgoals: call planner.push_to_hub(repo_id)."
        )
    return name


def next_goal(
    subgoals: Any, model: VJepa2WorldModel, latents: torch.Tensor, goal: torch.Tensor, needs_proprio: bool
) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """The goal (B, 1, N, D) that the solver plans for, and facts of each problem.

    `latents` (B, N, D) are of the observations, `goal` (B, 1, N, D) the goals of the call.
    """
    if needs_proprio:
        raise ValueError(
            "the cost compares proprio states, which subgoals do not have: plan with a cost of latents, or with "
            "subgoals=False."
        )
    chosen, facts = subgoals.choose(model, latents, goal[:, 0])
    if chosen.shape != latents.shape or len(facts) != len(latents):
        found = f"{tuple(chosen.shape)} and {len(facts)} facts"
        raise ValueError(f"subgoals.choose returned latents {found}; expected {tuple(latents.shape)}, one fact each.")
    return chosen.unsqueeze(1), facts
