"""Latent planning: from an observation and a goal to actions, as a transformers pipeline.

Letters: B problems, T frames, V views (cameras), C channels, H W pixels, N tokens of a frame, D width of a latent,
A action size, S proprio state, P planning horizon, E plans to start from, G goals in sequence.
"""

import functools
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..configuration_world_model import VJepa2WorldModelConfig
from ..modeling_costs import distance_between
from ..modeling_embodiments import embodiment_config
from ..modeling_state import check_chunk_size, held_views, tokens_of_views
from ..modeling_world_model import VJepa2WorldModel
from ..planning import Cost, build_constraints, build_cost, shift_plan
from ..planning.constraints import for_every_action
from ..planning.landscape import Grid, plot_landscape
from ..planning.problem_costs import ProblemCosts
from ..planning.search import check_budget, numbers_of
from ..specs import check_count, check_number, refuse
from ..video_processing_vjepa2 import VJepa2VideoProcessor
from . import planner_inputs
from .base import VideoPipeline
from .encoded_goals import EncodedGoal, WeightsVersion, first_unreached, images_of, join_latents, not_encoded
from .planner_settings import (
    check_samples,
    choose_cost,
    choose_embodiment,
    choose_solver,
    search_bounds,
    with_bound,
)
from .subgoals import check_can_be_saved, find_subgoals, next_goal, save_subgoals


# Arguments of transformers' `pipeline` that are not settings of the solver
PIPELINE_ARGUMENTS = ("tokenizer", "feature_extractor", "image_processor", "processor", "binary_output", "args_parser")
HUB_ARGUMENTS = ("revision", "token", "cache_dir", "subfolder", "local_files_only")
SEEDS = (-(2**63), 2**64 - 1)  # the smallest and the largest of torch
NUMBERS = ("proprio_state", "context_actions", "extrinsics", "goal_proprio_state")


class VJepa2Planner(VideoPipeline):
    """Model-predictive control in latent space (Algorithm 3 of the two-phase recipe), as a transformers pipeline.

    The solver searches for the actions whose predicted outcome is nearest to the goal, in latents. There is no state
    between calls: a warm start is an argument.

    Args:
        model: a [`VJepa2WorldModel`].
        video_processor: a [`VJepa2VideoProcessor`].
        solver: "cem", "icem", "mppi", "gradient", "random", "categorical_cem", or an object of the solver protocol
            (`vjepa2_hf.planning`). Default: the one saved with the model, else "cem" ("categorical_cem" for discrete
            actions).
        distance: "l2" (mean squared error), "l1" (published), "cosine" or "whitened", between the last predicted
            latents and the goal's; short for `cost=LatentDistance(distance)`.
        candidate_chunk_size: candidates rolled out at a time, which bounds memory; `None` chooses by size.
        num_samples, uncertainty_weight: for a model with a stochastic latent: futures that the cost of a candidate is
            averaged over (default 1, the mean one), and w, short for adding `w * Uncertainty()` to the cost.
        action_low, action_high: bounds of the search in environment units: one number per dimension of an environment
            action, used for each of the `actions_per_step` actions of a model step, or A numbers. Default: the
            config's.
        cost: terms of `vjepa2_hf.planning`, such as `LatentDistance("l1") + 0.1 * ActionPenalty()`, or a name.
        constraints: a list of constraints on environment actions, such as `Fixed([3, 4, 5], 0.0)`; each applies to all
            `actions_per_step` actions of a model step.
        subgoals: what to plan for when the goal is far: an object with `choose`, such as
            `pipelines.subgoals.GraphSubgoals`, or a folder of `examples/build_subgoal_graph.py`. Default: those saved
            with the model; `False`: none.
        embodiment: index or name of the embodiment that acts, for a model of several; actions, states and bounds are
            its own. Default: the one saved with the model.
        kwargs: settings of the solver by name: `horizon`, `num_candidates`, `num_iterations`, `num_elites`,
            `momentum`, `init_std` (as many numbers as `action_low`), …; each replaces a saved setting.

    Example:
        >>> planner = VJepa2Planner.from_pretrained("runs/demo/world_model/final", horizon=3)
        >>> plan = planner(observation, goal, seed=0)
        >>> plan["action"], plan["cost"]
    """

    def __init__(
        self,
        model: VJepa2WorldModel,
        video_processor: VJepa2VideoProcessor | None = None,
        solver: Any = None,
        distance: str | None = None,
        candidate_chunk_size: int | None = None,
        num_samples: int | None = None,
        uncertainty_weight: float | None = None,
        action_low: list[float] | None = None,
        action_high: list[float] | None = None,
        cost: Any = None,
        constraints: Any = None,
        subgoals: Any = None,
        embodiment: int | str | None = None,
        task: str = "latent-planning",
        device: int | str | torch.device | None = None,
        **kwargs,
    ):
        if not isinstance(model, VJepa2WorldModel):
            raise ValueError(f"the planner needs a VJepa2WorldModel; got {type(model).__name__}.")
        if video_processor is None:
            raise ValueError("the planner needs a video processor: save one beside the model, or give one.")
        names = (*PIPELINE_ARGUMENTS, "torch_dtype", "dtype")
        pipeline_arguments = {name: kwargs.pop(name) for name in names if name in kwargs}
        saved = dict(model.config.planner or {})
        saved_subgoals = saved.pop("subgoals", None)

        def choose(name: str, given: Any, default: Any = None) -> Any:
            stored = saved.pop(name, default)
            return stored if given is None else given

        self.embodiment, config = choose_embodiment(model.config, embodiment, saved)
        self.cost = choose_cost(cost, distance, saved)
        self.constraints = build_constraints(choose("constraints", constraints))
        self.candidate_chunk_size = choose("candidate_chunk_size", candidate_chunk_size)
        check_chunk_size(self.candidate_chunk_size)
        self.num_samples = choose("num_samples", num_samples, 1)
        self.uncertainty_weight = choose("uncertainty_weight", uncertainty_weight, 0.0)
        check_samples(config, self.num_samples, self.uncertainty_weight, self.cost)
        self.action_low, self.action_high = search_bounds(config, action_low, action_high)
        self.solver = choose_solver(config, solver, kwargs, saved)
        super().__init__(model, video_processor, task=task, device=device, **pipeline_arguments)
        self.subgoals = find_subgoals(subgoals, saved_subgoals, model)

    @property
    def embodied_config(self) -> VJepa2WorldModelConfig:
        """The model's config with the sizes and statistics of the embodiment that acts."""
        return embodiment_config(self.model.config, self.embodiment)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        device: int | str | torch.device | None = None,
        video_processor: VJepa2VideoProcessor | None = None,
        **kwargs,
    ) -> "VJepa2Planner":
        """Loads world model, video processor and solver settings from a folder or the Hub.

        Args:
            device: of the model; `None`: the first accelerator, or the CPU.
            video_processor: replaces the saved one.
            kwargs: settings that replace the saved ones, arguments for the Hub (`revision`, `token`, …), `dtype`,
                `attn_implementation` and `allow_missing`.

        Raises:
            FileNotFoundError, ValueError: there is no such folder, or it holds another model, or no video processor.
        """
        path = pretrained_model_name_or_path
        hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
        loading = ("dtype", "attn_implementation", "allow_missing")
        loading = {name: kwargs.pop(name) for name in loading if name in kwargs}
        model = VJepa2WorldModel.from_pretrained(path, **hub, **loading)
        if video_processor is None:
            try:
                video_processor = VJepa2VideoProcessor.from_pretrained(path, **hub)
            except OSError as error:
                raise ValueError(
                    f"no video processor loads from {path}: save one beside the model, or give one as video_processor."
                ) from error
        return cls(model, video_processor, device=device, **kwargs)

    def save_pretrained(self, save_directory: str | Path, **kwargs) -> None:
        """Saves model, video processor, solver settings and subgoals; `pipeline("latent-planning", model=…)` loads
        them. A custom solver, cost or constraint needs `to_dict`."""
        subgoals = check_can_be_saved(self.subgoals, kwargs.get("push_to_hub", False))
        for kind, part in [("solver", self.solver), *(("constraint", each) for each in self.constraints)]:
            if not hasattr(part, "to_dict"):
                raise ValueError(f"the {kind} {part!r} has no to_dict, so its settings cannot be saved.")
        extra = {"cost": self.cost.to_dict(), "candidate_chunk_size": self.candidate_chunk_size}
        if self.constraints:
            extra["constraints"] = [constraint.to_dict() for constraint in self.constraints]
        config = self.model.config
        if config.stochastic_dim:
            extra |= {"num_samples": self.num_samples, "uncertainty_weight": self.uncertainty_weight}
        for name in ("action_low", "action_high"):
            setattr(config, name, with_bound(config, name, self.embodiment, getattr(self, name)))
        extra |= {} if self.embodiment is None else {"embodiment": self.embodiment}
        extra |= {"subgoals": subgoals} if subgoals else {}
        config.planner = {**self.solver.to_dict(), **extra}
        super().save_pretrained(save_directory, **kwargs)
        save_subgoals(self.subgoals, save_directory)

    def __call__(
        self,
        observation: Any,
        goal: Any = None,
        proprio_state: Any = None,
        context_actions: Any = None,
        seed: int | None = 0,
        warm_start: Any = None,
        budget_ms: float | None = None,
        extrinsics: Any = None,
        goals: list[Any] | None = None,
        goal_index: int | list[int] = 0,
        goal_threshold: float = 0.1,
        goal_proprio_state: Any = None,
        cost: Any = None,
        constraints: Any = None,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Plans.

        Args:
            observation: an image (PIL, uint8 H×W×3 or float 0–1, tensor, path, URL), or a clip of the last
                T ≤ `context_frames` frames, one model step apart. A list is a batch, planned in one solver call. A
                tensor (B, T, C, H, W) of floats is taken as processed. For a model of several cameras each is a dict
                of camera names -> images or clips, which may lack cameras; a processed tensor is (B, T, V, C, H, W).
            goal: an image, a list with one image per observation, or a processed tensor (B, 1, C, H, W). `None` for a
                cost without a goal, or with `goals`. It may show fewer cameras than the observation: only those are
                compared. In a loop give the result of `encode_goal`, which is not encoded again.
            proprio_state: (S,) or (T, S) in environment units, if the model has proprio states; a list for a batch.
            context_actions: (T-1, A) between the frames of a clip; a list for a batch.
            seed: the same seed gives the same plan on the same machine, alone or in a batch; `None`: a random seed.
            warm_start: where the search starts, such as the last plan's "warm_start": (P, A) or (E, P, A), a list for
                a batch; or a function of latents (B, T, N, D) of observations and (B, 1, N, D) of goals to (B, P, A).
            budget_ms: milliseconds from this call's start, including image processing and encoding. No iteration
                starts that would end later if it took as long as the last one; one iteration always runs.
            extrinsics: (E,) or (T, E), if the model has them; a list for a batch.
            goals: G goals in sequence, each like `goal`. The planner plans for the first goal, from `goal_index` on,
                that the observation has not reached.
            goal_index: the last plan's "goal_index", from 0; a list for a batch.
            goal_threshold: a goal is reached when its distance from the observation is at most this fraction of its
                distance from the next goal, in the cost's own distance of latents.
            goal_proprio_state: (S,), which `ProprioDistance` compares with, or (G, S), one per goal; a list for a
                batch.
            cost, constraints: for this call, instead of the planner's.

        Returns:
            `{"action": (A,), "actions": (P, A), "cost": float, "trace": {"cost": [one per iteration], …},
            "warm_start": …}`, float32 numpy in environment units; a list of these for a batch. With `actions_per_step`
            = k an action holds the k environment actions of a model step one after the other; discrete actions are
            one-hot. "warm_start" is (P, A), the plan shifted by one step, or (E, P, A) with further plans (ICEM's
            elites). With `goals` also "goal_index" of the current goal, and "goal_distance" from the observation. With
            subgoals also "subgoal", a dict of what was chosen for this plan.
        """
        end = None if budget_ms is None else time.perf_counter() + check_budget(budget_ms) / 1000
        seed = None if seed is None else check_count("seed", seed, *SEEDS)
        goal_threshold = check_number("goal_threshold", goal_threshold, at_least=0)
        numbers = dict(zip(NUMBERS, (proprio_state, context_actions, extrinsics, goal_proprio_state), strict=True))
        search = {"seed": seed, "end": end, "goal_threshold": goal_threshold, "solver": self.solver}
        search["cost"] = self.cost if cost is None else build_cost(cost)
        search["constraints"] = self.constraints if constraints is None else build_constraints(constraints)
        return self._plan(observation, goal, {**numbers, "warm_start": warm_start}, search, goals, goal_index)

    def encode_goal(self, goal: Any) -> EncodedGoal:
        """Encodes a goal once, for many plans: `planner(observation, planner.encode_goal(image))` is the plan for the
        image itself. Encode it again when the weights have changed; a planner refuses the goals of other weights.

        Args:
            goal: as in a call, of one observation or of a batch.
        """
        with torch.inference_mode(False):
            pixels, views = self._process("goal", goal, not planner_inputs.is_batch(goal))
            pixels = pixels.to(self.device)
            latents = self.model.encode_targets(pixels.to(self.model.dtype), views)
        return EncodedGoal(goal, pixels, views, latents, WeightsVersion(self.model))

    def energy_landscape(
        self,
        observation: Any,
        goal: Any = None,
        dims: tuple[int, int] = (0, 1),
        points: int = 21,
        actions: Any = None,
        step: int = 0,
        cost: Any = None,
        **given: Any,
    ) -> dict[str, Any]:
        """The cost over two dimensions of an action, from bound to bound, with the other dimensions fixed.

        Args:
            observation, goal: one of each, as in a call.
            dims: the two dimensions, of an environment action: all `actions_per_step` actions of the step have the
                same value there. If one of them is larger than an environment action, both index the A numbers of a
                model step, and one action varies.
            points: per dimension.
            actions: (P, A) in environment units, such as a plan's, which stay fixed elsewhere. Default: one step of
                zeros.
            step: whose action varies.
            cost: instead of the planner's. Constraints are ignored here.
            given: `proprio_state`, `context_actions`, `extrinsics`, `goal_proprio_state`, as in a call.

        Returns:
            `{"x": (points,), "y": (points,), "costs": (points, points), "figure": …}`: values of the first and of the
            second dimension, costs with one row per y, float32 numpy, and a matplotlib figure.
        """
        unknown = sorted(given.keys() - set(NUMBERS))
        is_batch = planner_inputs.is_batch(observation) and (isinstance(observation, list) or len(observation) != 1)
        if unknown or is_batch:
            wrong = f"it has no argument {unknown[0]!r}" if unknown else "the observation is a batch"
            raise ValueError(f"energy_landscape takes one observation and the states and actions of a call; {wrong}.")
        size = self.embodied_config.action_dim
        base = torch.zeros(1, size) if actions is None else numbers_of("actions", actions)
        if base.ndim != 2 or base.shape[1] != size:
            raise ValueError(f"actions have shape {tuple(base.shape)}; expected (P, {size}).")
        if not torch.isfinite(base).all() or not len(base):
            refuse("actions", actions, f"finite numbers (P, {size}), of at least one step")
        grid = Grid(base, dims, points, step, self.model.config.actions_per_step)
        search = {"seed": 0, "end": None, "goal_threshold": 0.0, "solver": grid, "constraints": []}
        search["cost"] = self.cost if cost is None else build_cost(cost)
        plan = self._plan(observation, goal, given, search)
        plan = plan if isinstance(plan, dict) else plan[0]
        costs = np.array(plan["trace"]["cost"], np.float32).reshape(points, points)
        x, y = (axis.numpy() for axis in grid.axes)
        return {"x": x, "y": y, "costs": costs, "figure": plot_landscape((x, y), costs, dims)}

    def _plan(
        self,
        observation: Any,
        goal: Any,
        numbers: dict[str, Any],
        search: dict[str, Any],
        goals: list[Any] | None = None,
        goal_index: int | list[int] = 0,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Runs `preprocess`, `_forward` and `postprocess`; `search` are the arguments of `_forward`."""
        is_sequence = goals is not None
        if is_sequence and (goal is not None or not isinstance(goals, list | tuple) or not goals):
            raise ValueError("give either goal, or goals as a list of at least one.")
        if not is_sequence:
            goals = [] if goal is None else [goal]
        single = not planner_inputs.is_batch(observation)
        if any(single == planner_inputs.is_batch(images_of(each)) for each in goals):
            raise ValueError("observation and goal must both be single, or both be a batch (a list, or processed).")
        check_samples(self.model.config, self.num_samples, self.uncertainty_weight, search["cost"])
        inputs = {"observation": observation, "goals": goals, "goal_index": goal_index, "numbers": numbers}
        with torch.inference_mode(False):  # a solver may need gradients, which inference mode rules out
            plans = self.run_single({**inputs, "single": single, "is_sequence": is_sequence}, {}, search, {})
        return plans[0] if single else plans

    def _process(self, name: str, images: Any, single: bool) -> tuple[torch.Tensor, tuple[int, ...] | None]:
        config = self.embodied_config
        processing = (self.video_processor, config.fps and config.fps / config.frame_skip)
        return planner_inputs.process_views(config, name, not_encoded(name, images), single, *processing)

    def preprocess(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """First step of the pipeline: images to pixels (B, T, C, H, W), numbers to tensors."""
        observation, goals, single = inputs["observation"], inputs["goals"], inputs["single"]
        config = self.embodied_config
        frames, views = self._process("observation", observation, single)
        latents = join_latents(goals, self.model)
        encoded = latents is not None
        processed = [(goal.pixels, goal.views) if encoded else self._process("goal", goal, single) for goal in goals]
        goal_views = processed[0][1] if processed else None
        if any(each != goal_views for _, each in processed):
            raise ValueError("the goals show different cameras; expected the same cameras of all goals in sequence.")
        processed = [pixels for pixels, _ in processed]
        for goal, pixels in zip(map(images_of, goals), processed, strict=True):
            planner_inputs.check_pair(frames, pixels, config.context_frames)
            if single:
                planner_inputs.warn_of_aspect_ratio(observation, goal)
            elif isinstance(observation, list) and isinstance(goal, list):
                for pair in zip(observation, goal, strict=True):
                    planner_inputs.warn_of_aspect_ratio(*pair)
        batch_size, steps = frames.shape[:2]
        given = {name: inputs["numbers"].get(name) for name in NUMBERS}
        numbers = {
            name: planner_inputs.stack_numbers(name, value, single, batch_size) for name, value in given.items()
        }
        state, extrinsics = numbers["proprio_state"], numbers["extrinsics"]
        start = inputs["numbers"].get("warm_start")
        if not callable(start):
            start = planner_inputs.stack_numbers("warm_start", start, single, batch_size)
        if numbers["goal_proprio_state"] is not None and not config.proprio_dim:
            raise ValueError("goal_proprio_state was given, but the model has no proprio states.")
        return {
            "frames": frames,
            "views": (views, goal_views),
            "goals": torch.cat(processed, dim=1) if processed else None,  # (B, G, C, H, W)
            "goal_latents": latents,  # (B, G, N, D), of encoded goals
            "goal_index": planner_inputs.goal_indices(inputs["goal_index"], batch_size, len(goals)),
            "goal_proprio_states": planner_inputs.states_per_goal(numbers["goal_proprio_state"], len(goals)),
            "is_sequence": inputs["is_sequence"],
            "proprio_states": planner_inputs.states_per_frame("proprio_state", state, steps, config.proprio_dim),
            "extrinsics": planner_inputs.states_per_frame("extrinsics", extrinsics, steps, config.extrinsics_dim),
            "context_actions": numbers["context_actions"],
            "warm_start": start,
        }

    def _forward(
        self,
        inputs: dict[str, Any],
        seed: int | None,
        end: float | None,
        goal_threshold: float,
        solver: Any,
        cost: Cost,
        constraints: list[Any],
    ) -> dict[str, Any]:
        model, config, (views, goal_views) = self.model, self.embodied_config, inputs["views"]
        latents = model.encode(inputs["frames"].to(model.dtype), views)
        goal, goal_proprio_states, progress = self._current_goal(inputs, latents, cost, goal_threshold)
        start = inputs["warm_start"]
        if callable(start):
            start = planner_inputs.stack_numbers("warm_start", start(latents, goal), False, len(latents))
            start = None if start is None else start.to(latents.device)
        if self.subgoals is not None and goal is not None:
            if views is not None or goal_views is not None:
                raise ValueError("subgoals need an observation and a goal of every camera; got fewer: add the others.")
            goal, facts = next_goal(self.subgoals, model, latents[:, -1], goal, cost.needs_proprio)
            progress["subgoal"] = facts

        problems = {name: inputs[name] for name in ("context_actions", "proprio_states", "extrinsics")}
        problems |= {"observation": latents, "goal": goal, "goal_proprio_states": goal_proprio_states}
        scoring: dict[str, Any] = {"cost": cost, "embodiment_ids": self.embodiment}
        scoring |= {"views": views, "goal_views": None if goal is None else held_views(config, goal_views)}
        for name in ("candidate_chunk_size", "num_samples", "uncertainty_weight"):
            scoring[name] = getattr(self, name)

        def score(actions: torch.Tensor, **given: torch.Tensor | None) -> torch.Tensor:
            return model.score(actions=actions.to(latents.device), **given, **scoring)

        default_low = 0.0 if config.action_type == "discrete" else -1.0
        optional = {} if end is None else {"budget_ms": max(0.0, 1000 * (end - time.perf_counter()))}
        if constraints:
            optional["constraints"] = for_every_action(constraints, config.actions_per_step)
        result = solver(
            ProblemCosts(score, **problems),
            batch_size=len(latents),
            action_dim=config.action_dim,
            action_low=default_low if self.action_low is None else self.action_low,
            action_high=1.0 if self.action_high is None else self.action_high,
            generator=None if seed is None else torch.Generator().manual_seed(seed),
            warm_start=start,
            **optional,
        )
        starts = getattr(result, "warm_start", None)
        starts = shift_plan(result.actions.unsqueeze(1) if starts is None else starts)
        plan = {"actions": result.actions, "cost": result.cost, "trace": result.trace}
        plan["iterations"] = getattr(result, "iterations", None)
        return {**plan, "warm_start": starts, "progress": progress}

    def _current_goal(
        self, inputs: dict[str, Any], latents: torch.Tensor, cost: Cost, threshold: float
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, dict[str, torch.Tensor]]:
        """Latents (B, 1, N, D) and proprio states (B, S) of the goals to plan for; with a sequence also how far the
        observations are."""
        goals, states, index = inputs["goals"], inputs["goal_proprio_states"], inputs["goal_index"]
        if goals is None:
            return None, states, {}
        views, goal_views = inputs["views"]
        known, progress = inputs["goal_latents"], {}
        goals = self.model.encode_targets(goals.to(self.model.dtype), goal_views) if known is None else known
        problems = torch.arange(len(latents))
        if inputs["is_sequence"]:
            parts = {"temporal_distance": self.model.temporal_distance, "whitening": self.model.state_whitening}
            between = functools.partial(distance_between, cost, **parts)
            present = latents[:, -1]
            tokens = tokens_of_views(self.model.config, views, goal_views, present.shape[1], present.device)
            present = present if tokens is None else present[:, tokens]
            index, away = first_unreached(between, present, goals, index.to(goals.device), threshold)
            progress = {"goal_index": index, "goal_distance": away}
        states = None if states is None else states[problems, index.to(states.device)]
        return goals[problems, index].unsqueeze(1), states, progress

    def postprocess(self, outputs: dict[str, Any]) -> list[dict[str, Any]]:
        """Last step of the pipeline: one plan per observation."""
        actions, starts = outputs["actions"].float().numpy(), outputs["warm_start"].float().numpy()
        rows_of = outputs["iterations"]
        counts = [None] * len(actions) if rows_of is None else rows_of.tolist()
        progress = outputs["progress"].items()
        progress = {name: rows if isinstance(rows, list) else rows.tolist() for name, rows in progress}
        return [
            {
                "action": actions[row, 0],
                "actions": actions[row],
                "cost": float(outputs["cost"][row]),
                "trace": {name: values[: counts[row], row].tolist() for name, values in outputs["trace"].items()},
                "warm_start": starts[row, 0] if starts.shape[1] == 1 else starts[row],
                **{name: rows[row] for name, rows in progress.items()},
            }
            for row in range(len(actions))
        ]
