"""Planning: an observation and a goal in, actions out. Processor, world model and solver put together.

Letters: B problems, T frames, N tokens of a frame, D width of a latent, A action, P planning horizon, E plans to start
from, G goals in sequence.
"""

import math
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Pipeline

from ..modeling_inputs import check_chunk_size
from ..modeling_world_model import VJepa2WorldModel
from ..planning import (
    SOLVERS,
    Cost,
    LatentDistance,
    Solver,
    build_constraints,
    build_cost,
    build_solver,
    shift_plan,
)
from ..planning.constraints import for_every_action
from ..planning.landscape import Grid, draw_landscape
from ..video_processing_vjepa2 import VJepa2VideoProcessor
from .inputs import (
    check_pair,
    goal_indices,
    goal_states,
    is_processed,
    per_frame,
    stacked,
    warn_of_aspect_ratio,
)


DISCRETE_SOLVER = "categorical_cem"  # the one in the place of "cem" where actions are one-hot


class VJepa2Planner(Pipeline):
    """Model-predictive control in latent space (seed 003, Algorithm 3), as a transformers pipeline.

    Encodes observation and goal, lets the solver search for the actions whose imagined outcome lies nearest to the
    goal, and returns them. It keeps nothing between calls: a warm start is an argument.

    Args:
        model: a [`VJepa2WorldModel`].
        video_processor: a [`VJepa2VideoProcessor`].
        solver: "cem", "icem", "mppi", "gradient", "random", "categorical_cem", or an object of the solver protocol
            (`vjepa2_hf.planning`). Default: what the model was saved with, else "cem", and "categorical_cem" where its
            actions are discrete.
        distance: "l2" (squared, seed 003), "l1" (published) or "cosine", between the last imagined latents and the
            goal's; short for `cost=LatentDistance(distance)`.
        candidate_chunk_size: candidates imagined at a time, which bounds memory; `None` chooses by size.
        num_samples, uncertainty_weight: for a model with a stochastic latent: futures that a candidate's cost is
            averaged over (default 1, the middle one), and w, short for adding `w * Uncertainty()` to the cost.
        action_low, action_high: what the search keeps to, in environment units: as many numbers as an environment
            action has, for each of the `actions_per_step` actions of a model step, or A. Default: the config's.
        cost: terms of `vjepa2_hf.planning`, such as `LatentDistance("l1") + 0.1 * ActionPenalty()`, or a name.
        constraints: what environment actions obey beyond their bounds, a list of terms such as
            `Fixed([3, 4, 5], 0.0)`; each holds for every one of the `actions_per_step` actions of a model step.
        kwargs: settings of the solver, by name: `horizon`, `num_candidates`, `num_iterations`, `num_elites`,
            `momentum`, `init_std` (as many numbers as `action_low`), …; each replaces what the model was saved with.

    Example:
        >>> planner = VJepa2Planner.from_pretrained("runs/demo/world_model/final", horizon=3)
        >>> plan = planner(observation, goal, seed=0)
        >>> plan["action"], plan["cost"]
    """

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False
    _load_video_processor = True

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
        task: str = "latent-planning",
        device: int | str | torch.device | None = None,
        **kwargs,
    ):
        if not isinstance(model, VJepa2WorldModel):
            raise ValueError(f"the planner needs a VJepa2WorldModel; got {type(model).__name__}.")
        if video_processor is None:
            raise ValueError("the planner needs a video processor: save one beside the model, or give one.")
        plumbing = ("tokenizer", "feature_extractor", "image_processor", "processor", "binary_output", "args_parser")
        plumbing = {name: kwargs.pop(name) for name in (*plumbing, "torch_dtype", "dtype") if name in kwargs}
        saved = dict(model.config.planner or {})
        self.cost = _choose_cost(cost, distance, saved)
        saved_constraints = saved.pop("constraints", None)
        self.constraints = build_constraints(saved_constraints if constraints is None else constraints)
        saved_chunk_size = saved.pop("candidate_chunk_size", None)
        self.candidate_chunk_size = saved_chunk_size if candidate_chunk_size is None else candidate_chunk_size
        check_chunk_size(self.candidate_chunk_size)
        saved_samples, saved_weight = saved.pop("num_samples", 1), saved.pop("uncertainty_weight", 0.0)
        self.num_samples = saved_samples if num_samples is None else num_samples
        self.uncertainty_weight = saved_weight if uncertainty_weight is None else uncertainty_weight
        _check_samples(model.config, self.num_samples, self.uncertainty_weight, self.cost)
        self.action_low, self.action_high = _search_bounds(model.config, action_low, action_high)
        self.solver = _build_solver(model.config, solver, kwargs, saved)
        super().__init__(model=model.eval(), video_processor=video_processor, task=task, device=device, **plumbing)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        device: int | str | torch.device | None = None,
        video_processor: VJepa2VideoProcessor | None = None,
        **kwargs,
    ) -> "VJepa2Planner":
        """Loads world model, video processor and solver settings.

        Args:
            pretrained_model_name_or_path: folder or Hub id.
            device: where the model goes; `None` is the first accelerator, or the CPU.
            video_processor: in the place of the one that is saved there.
            kwargs: settings to replace, those that say where to look on the Hub, `dtype`, `attn_implementation`.

        Raises:
            FileNotFoundError: a local folder that is not there.
            ValueError: it holds another model, or no video processor.
        """
        hub = ("revision", "token", "cache_dir", "subfolder", "local_files_only")
        hub = {name: kwargs.pop(name) for name in hub if name in kwargs}
        loading = {name: kwargs.pop(name) for name in ("dtype", "attn_implementation") if name in kwargs}
        model = VJepa2WorldModel.from_pretrained(pretrained_model_name_or_path, **hub, **loading)
        if video_processor is None:
            video_processor = _load_processor(pretrained_model_name_or_path, hub)
        return cls(model, video_processor, device=device, **kwargs)

    def save_pretrained(self, save_directory: str | Path, **kwargs) -> None:
        """Saves model, video processor and solver settings; `pipeline("latent-planning", model=…)` loads them back.

        Raises:
            ValueError: for a solver, cost or constraint of your own without `to_dict`, whose settings cannot be saved.
        """
        if not hasattr(self.solver, "to_dict"):
            raise ValueError(f"the solver {self.solver!r} has no to_dict, so its settings cannot be saved.")
        for constraint in self.constraints:
            if not hasattr(constraint, "to_dict"):
                raise ValueError(f"the constraint {constraint!r} has no to_dict, so its settings cannot be saved.")
        extra = {"cost": self.cost.to_dict(), "candidate_chunk_size": self.candidate_chunk_size}
        if self.constraints:
            extra["constraints"] = [constraint.to_dict() for constraint in self.constraints]
        if self.model.config.stochastic_dim:
            extra |= {"num_samples": self.num_samples, "uncertainty_weight": self.uncertainty_weight}
        self.model.config.action_low, self.model.config.action_high = self.action_low, self.action_high
        self.model.config.planner = {**self.solver.to_dict(), **extra}
        self.model.save_pretrained(str(save_directory), **kwargs)
        upload = ("push_to_hub", "repo_id", "token", "private", "commit_message")
        upload = {name: kwargs[name] for name in upload if name in kwargs}
        self.video_processor.save_pretrained(str(save_directory), **upload)

    def _upload_modified_files(self, *args, **kwargs):
        """The last step of `push_to_hub`, which the model does: it puts its card in the place of transformers'."""
        return self.model._upload_modified_files(*args, **kwargs)

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
                tensor (B, T, C, H, W) is taken as processed already.
            goal: an image, a list of as many as observations, or a processed tensor (B, 1, C, H, W). `None` for a cost
                that needs none, or with `goals`.
            proprio_state: (S,) or (T, S) in environment units, if the model has proprio states; a list for a batch.
            context_actions: (T-1, A) between the frames of a clip; a list for a batch.
            seed: the same seed gives the same plan on the same machine, alone or in a batch; `None` draws anew.
            warm_start: (P, A) or (E, P, A), where the search starts, such as the last plan's "warm_start"; a list for
                a batch.
            budget_ms: milliseconds from this call's start, with pictures and encoding. The search begins no iteration
                that would end later if it took as long as the last one; one is always done.
            extrinsics: (E,) or (T, E), if the model has them; a list for a batch.
            goals: G goals in sequence, each as `goal` would be given. The plan is for the first one from `goal_index`
                on that the observation has not reached.
            goal_index: the last plan's "goal_index", from 0; a list for a batch.
            goal_threshold: a goal is reached when its distance from the observation is at most this share of its
                distance from the next goal, in the cost's latent distance.
            goal_proprio_state: (S,), what `ProprioDistance` compares with, or (G, S), one a goal; a list for a batch.
            cost, constraints: for this call, in the place of the planner's.

        Returns:
            `{"action": (A,), "actions": (P, A), "cost": float, "trace": {"cost": [one an iteration], …},
            "warm_start": …}`, float32 numpy in environment units; a list of these for a batch. With `actions_per_step`
            = k an action holds the k environment actions of a model step one after the other. Discrete actions are
            one-hot. "warm_start" is (P, A), the plan as it goes on after its first step, or (E, P, A) with what else
            the solver starts from (ICEM's elites). With `goals` also "goal_index", of the goal planned for, and
            "goal_distance", of the observation from it.
        """
        started = time.perf_counter()
        given = {"goals": goals, "goal_index": goal_index, "goal_proprio_state": goal_proprio_state}
        given |= {"proprio_state": proprio_state, "context_actions": context_actions, "extrinsics": extrinsics}
        end = None if budget_ms is None else started + budget_ms / 1000
        settings = {"seed": seed, "end": end, "goal_threshold": goal_threshold, "solver": self.solver}
        settings["cost"] = self.cost if cost is None else build_cost(cost)
        settings["constraints"] = self.constraints if constraints is None else build_constraints(constraints)
        return self._plan(observation, goal, {**given, "warm_start": warm_start}, settings)

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
        """The cost over two dimensions of an action, from bound to bound, the others as given.

        Args:
            observation, goal: one of each, as in a call.
            dims: the two dimensions, of an environment action: all `actions_per_step` actions of the step have the
                same value there. Where one is larger than an environment action, both are of the A numbers of a model
                step, and one action varies.
            points: of each.
            actions: (P, A) that do not vary, in environment units, such as a plan's. Default: one step of zeros.
            step: whose action varies.
            cost: in the place of the planner's. Constraints do not count here.
            given: `proprio_state`, `context_actions`, `extrinsics`, `goal_proprio_state`, as in a call.

        Returns:
            `{"x": (points,), "y": (points,), "costs": (points, points), "figure": …}`: values of the first and of the
            second dimension, costs with a row a y, float32 numpy, and a matplotlib figure.
        """
        unknown = given.keys() - {"proprio_state", "context_actions", "extrinsics", "goal_proprio_state"}
        several = isinstance(observation, list) or is_processed(observation) and len(observation) != 1
        if unknown or several:
            wrong = f"it has no argument {sorted(unknown)[0]!r}" if unknown else "the observation is a batch"
            raise ValueError(f"energy_landscape takes one observation and what a call takes beside it; {wrong}.")
        size = self.model.config.action_dim
        base = torch.zeros(1, size) if actions is None else torch.as_tensor(actions, dtype=torch.float32)
        if base.ndim != 2 or base.shape[1] != size:
            raise ValueError(f"actions have shape {tuple(base.shape)}; expected (P, {size}).")
        grid = Grid(base, dims, points, step, self.model.config.actions_per_step)
        settings = {"seed": 0, "end": None, "goal_threshold": 0.0, "solver": grid, "constraints": []}
        settings["cost"] = self.cost if cost is None else build_cost(cost)
        plan = self._plan(observation, goal, given, settings)
        plan = plan if isinstance(plan, dict) else plan[0]
        costs = np.array(plan["trace"]["cost"], np.float32).reshape(points, points)
        x, y = (axis.numpy() for axis in grid.axes)
        return {"x": x, "y": y, "costs": costs, "figure": draw_landscape((x, y), costs, dims)}

    def _plan(self, observation: Any, goal: Any, given: dict[str, Any], settings: dict[str, Any]) -> Any:
        goals = given.get("goals")
        if goals is not None and (goal is not None or not isinstance(goals, list | tuple) or not goals):
            raise ValueError("give either goal, or goals as a list of at least one.")
        if goals is None and goal is not None:
            goals = [goal]
        single = not isinstance(observation, list) and not is_processed(observation)
        for each in goals or []:
            if single != (not isinstance(each, list) and not is_processed(each)):
                raise ValueError(
                    "observation and goal must both be single, or both be a batch (a list, or processed)."
                )
        _check_samples(self.model.config, self.num_samples, self.uncertainty_weight, settings["cost"])
        inputs = {"observation": observation, "single": single, "sequence": given.get("goals") is not None}
        with torch.inference_mode(False):  # within which a solver could not ask for gradient
            plans = self.run_single({**given, **inputs, "goals": goals}, {}, settings, {})
        return plans[0] if single else plans

    def _sanitize_parameters(self, **kwargs):
        if kwargs:
            raise ValueError(f"the planner has no setting {', '.join(map(repr, kwargs))}.")
        return {}, {}, {}

    def preprocess(self, inputs: dict[str, Any]) -> dict[str, Any]:
        observation, single, goals = inputs["observation"], inputs["single"], inputs["goals"] or []
        frames = self._pixels("observation", observation, single)
        processed = [self._pixels("goal", goal, single) for goal in goals]
        for goal, pixels in zip(goals, processed, strict=True):
            check_pair(frames, pixels, self.model.config.context_frames)
            if single:
                warn_of_aspect_ratio(observation, goal)
            elif isinstance(observation, list) and isinstance(goal, list):
                for pair in zip(observation, goal, strict=True):
                    warn_of_aspect_ratio(*pair)
        names = ("proprio_state", "extrinsics", "context_actions", "warm_start", "goal_proprio_state")
        numbers = {name: stacked(name, inputs.get(name), single, len(frames)) for name in names}
        config, steps = self.model.config, frames.shape[1]
        proprio = per_frame("proprio_state", numbers["proprio_state"], steps, config.proprio_dim)
        extrinsics = per_frame("extrinsics", numbers["extrinsics"], steps, config.extrinsics_dim)
        return {
            "frames": frames,
            "goals": torch.cat(processed, dim=1) if processed else None,  # (B, G, C, H, W)
            "goal_index": goal_indices(inputs.get("goal_index", 0), len(frames), len(goals)),
            "goal_proprio_states": goal_states(numbers["goal_proprio_state"], len(goals)),
            "sequence": inputs["sequence"],
            "proprio_states": proprio,
            "extrinsics": extrinsics,
            "context_actions": numbers["context_actions"],
            "warm_start": numbers["warm_start"],
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
        model: VJepa2WorldModel = self.model
        latents = model.encode(inputs["frames"].to(model.dtype))
        goals, outputs, goal, goal_proprio_states = inputs["goals"], {}, None, inputs["goal_proprio_states"]
        if goals is not None:
            goals = model.encode_targets(goals.to(model.dtype))
            index, problems = inputs["goal_index"], torch.arange(len(latents))
            if inputs["sequence"]:
                distance = _latent_distance(cost)
                index, outputs = _unreached(distance, latents[:, -1], goals, index.to(goals.device), goal_threshold)
            goal = goals[problems, index].unsqueeze(1)
            if goal_proprio_states is not None:
                goal_proprio_states = goal_proprio_states[problems, index.to(goal_proprio_states.device)]

        def score(actions: torch.Tensor) -> torch.Tensor:
            return model.score(
                latents,
                goal,
                actions.to(latents.device),
                context_actions=inputs["context_actions"],
                proprio_states=inputs["proprio_states"],
                extrinsics=inputs["extrinsics"],
                candidate_chunk_size=self.candidate_chunk_size,
                num_samples=self.num_samples,
                uncertainty_weight=self.uncertainty_weight,
                cost=cost,
                goal_proprio_states=goal_proprio_states,
            )

        default_low = 0.0 if model.config.action_type == "discrete" else -1.0
        optional = {} if end is None else {"budget_ms": 1000 * (end - time.perf_counter())}
        if constraints:
            optional["constraints"] = for_every_action(constraints, model.config.actions_per_step)
        result = solver(
            score,
            batch_size=len(latents),
            action_dim=model.config.action_dim,
            action_low=default_low if self.action_low is None else self.action_low,
            action_high=1.0 if self.action_high is None else self.action_high,
            generator=None if seed is None else torch.Generator().manual_seed(seed),
            warm_start=inputs["warm_start"],
            **optional,
        )
        starts = getattr(result, "warm_start", None)
        starts = result.actions.unsqueeze(1) if starts is None else starts
        parts = {"actions": result.actions, "cost": result.cost, "trace": result.trace}
        return {**parts, "warm_start": shift_plan(starts), **outputs}

    def postprocess(self, outputs: dict[str, Any]) -> list[dict[str, Any]]:
        actions, starts = outputs["actions"].float().numpy(), outputs["warm_start"].float().numpy()
        plans = []
        for row in range(len(actions)):
            plan = {
                "action": actions[row, 0],
                "actions": actions[row],
                "cost": float(outputs["cost"][row]),
                "trace": {name: values[:, row].tolist() for name, values in outputs["trace"].items()},
                "warm_start": starts[row, 0] if starts.shape[1] == 1 else starts[row],
            }
            if "goal_index" in outputs:
                plan["goal_index"] = int(outputs["goal_index"][row])
                plan["goal_distance"] = float(outputs["goal_distance"][row])
            plans.append(plan)
        return plans

    def _pixels(self, name: str, value: Any, single: bool) -> torch.Tensor:
        """Processed frames (B, T, C, H, W) of one input or a batch."""
        if is_processed(value):
            if not torch.isfinite(value).all():
                raise ValueError(f"the {name} has pixels that are not finite (NaN or infinite).")
            return value.float()
        values = [value] if single else value
        if not values:
            raise ValueError(f"the {name} is an empty list; expected at least one image.")
        frames = [self._process(name, item) for item in values]
        if len({tuple(item.shape) for item in frames}) > 1:
            shapes = sorted({tuple(item.shape) for item in frames})
            raise ValueError(f"the {name}s of the batch differ in shape after processing: {shapes}.")
        return torch.stack(frames)

    def _process(self, name: str, value: Any) -> torch.Tensor:
        """One image or clip -> (T, C, H, W); warns when a file's frame rate is not the model's."""
        options = {"return_tensors": "pt", "return_metadata": True}
        if isinstance(self.video_processor, VJepa2VideoProcessor):
            options["do_random_resized_crop"] = False  # a processor saved in its training mode
        batch = self.video_processor(value, **options)
        metadata, config = batch.get("video_metadata"), self.model.config
        expected = config.fps and config.fps / config.frame_skip
        fps = metadata[0].fps if metadata and isinstance(value, (str, bytes, Path)) else None
        if len(batch["pixel_values_videos"]) != 1:
            raise ValueError(f"the {name} holds {len(batch['pixel_values_videos'])} videos: give a batch as a list.")
        frames = batch["pixel_values_videos"][0]
        if expected and fps and len(frames) > 1 and abs(fps / expected - 1) > 0.01:
            warnings.warn(
                f"the {name} has {fps:g} frames a second, the model's steps are {expected:g} a second: its motion "
                "will look too slow or too fast to the model.",
                stacklevel=2,
            )
        return frames


def _build_solver(config, solver: Any, settings: dict[str, Any], saved: dict[str, Any]) -> Any:
    """The solver that is asked for, with the settings saved with the model where it is the same one.

    Raises:
        ValueError: the solver or a setting is unknown, or the solver searches other actions than the model's.
    """
    if solver is not None and solver != saved.get("solver"):
        saved = {}  # settings of another solver
    discrete = config.action_type == "discrete"
    combined = {"solver": DISCRETE_SOLVER if discrete else "cem", **saved, **settings}
    name = combined.pop("solver")
    name = name if solver is None else solver
    kind = getattr(name, "name", None) if isinstance(name, Solver) else name
    if isinstance(kind, str) and kind in SOLVERS and discrete != (kind == DISCRETE_SOLVER):
        fitting = repr(DISCRETE_SOLVER) if discrete else "'cem'"
        raise ValueError(f"solver is {name!r}, but the model's actions are {config.action_type}: take {fitting}.")
    steps = getattr(name, "actions_per_step", config.actions_per_step)
    if steps != config.actions_per_step:
        raise ValueError(f"solver is {name!r}, but the model has actions_per_step={config.actions_per_step}.")
    if np.ndim(combined.get("init_std")) == 1:
        combined["init_std"] = _of_a_model_step(config, "init_std", combined["init_std"])
    if name == DISCRETE_SOLVER:
        combined = {"actions_per_step": config.actions_per_step, **combined}
    try:
        return build_solver(name, **combined)
    except ValueError as error:
        for name in saved.keys() - settings.keys():
            if str(error).startswith((f"{name} is ", f"Unknown {name} '")):  # the caller may not know of it
                raise ValueError(
                    f"{str(error).rstrip('.?')}; {name}={saved[name]!r} was saved with the model."
                ) from error
        raise


def _load_processor(path: str | Path, hub: dict[str, Any]) -> VJepa2VideoProcessor:
    try:
        return VJepa2VideoProcessor.from_pretrained(path, **hub)
    except OSError as error:
        raise ValueError(
            f"no video processor loads from {path}: save one beside the model, or give one as video_processor."
        ) from error


def _choose_cost(cost: Any, distance: str | None, saved: dict[str, Any]) -> Cost:
    """The cost that is given, the distance that is short for one, or what was saved, which is taken out of `saved`."""
    if cost is not None and distance is not None:
        raise ValueError(f"both cost and distance={distance!r} were given; the distance is a part of the cost.")
    saved_cost, saved_distance = saved.pop("cost", None), saved.pop("distance", None)  # saved before costs were
    if distance is not None:
        return LatentDistance(distance)
    return build_cost(next(each for each in (cost, saved_cost, saved_distance, "l2") if each is not None))


def _latent_distance(cost: Cost) -> LatentDistance:
    for _, term in cost.terms():
        if isinstance(term, LatentDistance):
            return term
    raise ValueError("goals need a cost with a LatentDistance, which tells when one is reached.")


def _unreached(
    distance: LatentDistance, present: torch.Tensor, goals: torch.Tensor, index: torch.Tensor, threshold: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The first goals (B,) of (B, G, N, D) from `index` on that the present (B, N, D) has not reached, and how far
    they are."""
    problems, last = torch.arange(len(present), device=goals.device), goals.shape[1] - 1
    away = distance.between(present.unsqueeze(1), goals)
    apart = distance.between(goals[:, :-1], goals[:, 1:])
    for _ in range(last):
        following = (index + 1).clamp(max=last)
        near = away[problems, index] <= threshold * apart[problems, index.clamp(max=last - 1)]
        index = torch.where(near, following, index)
    return index, {"goal_index": index, "goal_distance": away[problems, index]}


def _check_samples(config, num_samples: int, uncertainty_weight: float, cost: Cost) -> None:
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; expected 1 or more.")
    if (num_samples > 1 or uncertainty_weight or cost.needs_samples) and not config.stochastic_dim:
        raise ValueError(
            f"num_samples={num_samples} and uncertainty_weight={uncertainty_weight} are for a model with a stochastic "
            "latent, and this one leaves nothing to chance (stochastic_dim is 0)."
        )
    if (uncertainty_weight or cost.needs_samples) and num_samples < 2:
        raise ValueError(
            f"num_samples is {num_samples}, and a cost of uncertainty (uncertainty_weight) "
            "needs num_samples of 2 or more, such as 8."
        )


def _of_a_model_step(config, name: str, values: Any) -> list[float]:
    """A numbers of a model step, from these or from those of an environment action, which each of its actions has.

    Raises:
        ValueError: neither, no list of numbers, or one of them is NaN. A bound may be infinite; solvers say if not.
    """
    each = config.action_dim // config.actions_per_step
    try:
        values = [float(number) for number in values]
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {values!r}; expected a list of {each} numbers, one for each dimension.") from None
    if any(math.isnan(number) for number in values):
        raise ValueError(f"{name} is {values}, and NaN is no number to plan with; give numbers.")
    if len(values) == each:
        return values * config.actions_per_step
    if len(values) != config.action_dim:
        sizes = f"{config.action_dim} (action_dim)"
        if config.actions_per_step > 1:
            sizes = f"{each}, of an environment action, or {sizes}"
        raise ValueError(f"{name} has {len(values)} numbers; expected {sizes}.")
    return values


def _search_bounds(config, low: list[float] | None, high: list[float] | None) -> tuple[list | None, list | None]:
    """Bounds given to the planner, or those of the model's config.

    Raises:
        ValueError: another number of numbers, a low one above a high one, or none at all for an arm.
    """
    bounds = {"action_low": low, "action_high": high}
    for name, value in bounds.items():
        value = getattr(config, name) if value is None else value
        if value is None and config.proprio_transition == "pose_delta":
            raise ValueError(
                f"{name} is missing: actions of an arm are metres and radians, so there is no safe default; give "
                f"{name}=[…] ({config.action_dim} numbers; published: ±0.05 m, rotation 0, gripper ±0.75)."
            )
        bounds[name] = None if value is None else _of_a_model_step(config, name, value)
    if None not in bounds.values() and any(a > b for a, b in zip(*bounds.values())):
        raise ValueError(f"action_low={bounds['action_low']} lies above action_high={bounds['action_high']}.")
    return bounds["action_low"], bounds["action_high"]


__all__ = ["VJepa2Planner"]
