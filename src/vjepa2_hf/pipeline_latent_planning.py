"""Planning: an observation and a goal in, actions out. Processor, world model and solver put together.

Letters: B problems, T frames, A action, P planning horizon.
"""

import warnings
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from transformers import Pipeline

from .modeling_world_model import VJepa2WorldModel
from .planning import SOLVERS, build_solver
from .video_processing_vjepa2 import VJepa2VideoProcessor


DISCRETE_SOLVER = "categorical_cem"  # the one in the place of "cem" where actions are one-hot


class VJepa2Planner(Pipeline):
    """Model-predictive control in latent space (seed 003, Algorithm 3), as a transformers pipeline.

    Encodes observation and goal, lets the solver search for the actions whose imagined outcome lies nearest to the
    goal, and returns them. It keeps nothing between calls: a warm start is an argument.

    Args:
        model: a [`VJepa2WorldModel`].
        video_processor: a [`VJepa2VideoProcessor`].
        solver: "cem", "random", "categorical_cem", or an object of the solver protocol (`vjepa2_hf.planning`).
            Default: what the model was saved with, else "cem", and "categorical_cem" where its actions are discrete.
        distance: "l2" (squared, seed 003) or "l1" (published), between the last imagined latents and the goal's.
        candidate_chunk_size: candidates imagined at a time, which bounds memory; `None` chooses by size.
        num_samples, uncertainty_weight: for a model with a stochastic latent: futures that a candidate's cost is
            averaged over (default 1, the middle one), and weight of their deviation as a penalty (default 0).
        kwargs: settings of the solver, by name: `horizon`, `num_candidates`, `num_iterations`, `num_elites`,
            `momentum`, `init_std`, …; each replaces what the model was saved with.

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
        saved_distance, saved_chunk_size = saved.pop("distance", None), saved.pop("candidate_chunk_size", None)
        self.distance = saved_distance or "l2" if distance is None else distance
        if self.distance not in ("l1", "l2"):
            raise ValueError(f"distance is {self.distance!r}; expected 'l1' or 'l2'.")
        self.candidate_chunk_size = saved_chunk_size if candidate_chunk_size is None else candidate_chunk_size
        if self.candidate_chunk_size is not None and self.candidate_chunk_size < 1:
            raise ValueError(f"candidate_chunk_size is {self.candidate_chunk_size}; expected 1 or more, or None.")
        saved_samples, saved_weight = saved.pop("num_samples", 1), saved.pop("uncertainty_weight", 0.0)
        self.num_samples = saved_samples if num_samples is None else num_samples
        self.uncertainty_weight = saved_weight if uncertainty_weight is None else uncertainty_weight
        _check_samples(model.config, self.num_samples, self.uncertainty_weight)
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
            ValueError: for a solver object without `to_dict`, whose settings cannot be saved.
        """
        if not hasattr(self.solver, "to_dict"):
            raise ValueError(f"the solver {self.solver!r} has no to_dict, so its settings cannot be saved.")
        extra = {"distance": self.distance, "candidate_chunk_size": self.candidate_chunk_size}
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
        goal: Any,
        proprio_state: Any = None,
        context_actions: Any = None,
        seed: int | None = 0,
        warm_start: Any = None,
        budget_ms: float | None = None,
        extrinsics: Any = None,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Plans.

        Args:
            observation: an image (PIL, uint8 H×W×3 or float 0–1, tensor, path, URL), or a clip of the last
                T ≤ `context_frames` frames, one model step apart. A list is a batch, planned in one solver call. A
                tensor (B, T, C, H, W) is taken as processed already.
            goal: an image, a list of as many as observations, or a processed tensor (B, 1, C, H, W).
            proprio_state: (S,) or (T, S) in environment units, if the model has proprio states; a list for a batch.
            context_actions: (T-1, A) between the frames of a clip; a list for a batch.
            seed: the same seed gives the same plan on the same machine, alone or in a batch; `None` draws anew.
            warm_start: (P, A), where the search starts, such as the last plan moved on by a step; a list for a batch.
            budget_ms: the search begins no further iteration after so many milliseconds; encoding comes on top.
            extrinsics: (E,) or (T, E), if the model has them; a list for a batch.

        Returns:
            `{"action": (A,), "actions": (P, A), "cost": float, "trace": {"cost": [one an iteration], …}}`, float32
            numpy in environment units; a list of these for a batch. With `actions_per_step` = k an action holds the k
            environment actions of a model step one after the other. Discrete actions are one-hot.
        """
        single = not isinstance(observation, list) and not _is_processed(observation)
        if single != (not isinstance(goal, list) and not _is_processed(goal)):
            raise ValueError("observation and goal must both be single, or both be a batch (a list, or processed).")
        extra = (proprio_state, extrinsics, context_actions, warm_start)
        inputs = {"observation": observation, "goal": goal, "single": single, "extra": extra}
        plans = self.run_single(inputs, {}, {"seed": seed, "budget_ms": budget_ms}, {})
        return plans[0] if single else plans

    def _sanitize_parameters(self, **kwargs):
        if kwargs:
            raise ValueError(f"the planner has no setting {', '.join(map(repr, kwargs))}.")
        return {}, {}, {}

    def preprocess(self, inputs: dict[str, Any]) -> dict[str, torch.Tensor | None]:
        frames = self._pixels("observation", inputs["observation"], inputs["single"])
        goal = self._pixels("goal", inputs["goal"], inputs["single"])
        _check_pair(frames, goal, self.model.config.context_frames)
        if not inputs["single"] and isinstance(inputs["observation"], list) and isinstance(inputs["goal"], list):
            for pair in zip(inputs["observation"], inputs["goal"], strict=True):
                _warn_of_aspect_ratio(*pair)
        elif inputs["single"]:
            _warn_of_aspect_ratio(inputs["observation"], inputs["goal"])
        names = ("proprio_state", "extrinsics", "context_actions", "warm_start")
        proprio, extrinsics, context_actions, warm_start = (
            _stacked(name, value, inputs["single"], len(frames))
            for name, value in zip(names, inputs["extra"], strict=True)
        )
        config, steps = self.model.config, frames.shape[1]
        proprio = _per_frame("proprio_state", proprio, steps, config.proprio_dim)
        extrinsics = _per_frame("extrinsics", extrinsics, steps, config.extrinsics_dim)
        return {
            "frames": frames,
            "goal": goal,
            "proprio_states": proprio,
            "extrinsics": extrinsics,
            "context_actions": context_actions,
            "warm_start": warm_start,
        }

    def _forward(
        self, inputs: dict[str, torch.Tensor | None], seed: int | None, budget_ms: float | None
    ) -> dict[str, Any]:
        model: VJepa2WorldModel = self.model
        latents = model.encode(inputs["frames"].to(model.dtype))
        goal = model.encode_targets(inputs["goal"].to(model.dtype))

        def cost(actions: torch.Tensor) -> torch.Tensor:
            return model.score(
                latents,
                goal,
                actions.to(latents.device),
                context_actions=inputs["context_actions"],
                proprio_states=inputs["proprio_states"],
                extrinsics=inputs["extrinsics"],
                distance=self.distance,
                candidate_chunk_size=self.candidate_chunk_size,
                num_samples=self.num_samples,
                uncertainty_weight=self.uncertainty_weight,
            )

        default_low = 0.0 if model.config.action_type == "discrete" else -1.0
        result = self.solver(
            cost,
            batch_size=len(latents),
            action_dim=model.config.action_dim,
            action_low=default_low if self.action_low is None else self.action_low,
            action_high=1.0 if self.action_high is None else self.action_high,
            generator=None if seed is None else torch.Generator().manual_seed(seed),
            warm_start=inputs["warm_start"],
            **({} if budget_ms is None else {"budget_ms": budget_ms}),
        )
        return {"actions": result.actions, "cost": result.cost, "trace": result.trace}

    def postprocess(self, outputs: dict[str, Any]) -> list[dict[str, Any]]:
        actions = outputs["actions"].float().numpy()
        return [
            {
                "action": actions[row, 0],
                "actions": actions[row],
                "cost": float(outputs["cost"][row]),
                "trace": {name: values[:, row].tolist() for name, values in outputs["trace"].items()},
            }
            for row in range(len(actions))
        ]

    def _pixels(self, name: str, value: Any, single: bool) -> torch.Tensor:
        """Processed frames (B, T, C, H, W) of one input or a batch."""
        if _is_processed(value):
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
    if isinstance(name, str) and name in SOLVERS and discrete != (name == DISCRETE_SOLVER):
        fitting = repr(DISCRETE_SOLVER) if discrete else "'cem'"
        raise ValueError(f"solver is {name!r}, but the model's actions are {config.action_type}: take {fitting}.")
    if name == DISCRETE_SOLVER:
        combined = {"actions_per_step": config.actions_per_step, **combined}
    try:
        return build_solver(name, **combined)
    except ValueError as error:
        for name in saved.keys() - settings.keys():
            if str(error).startswith((f"{name} is ", f"{name} '")):  # the caller may not know of it
                raise ValueError(
                    f"{str(error).removesuffix('.')}; {name}={saved[name]!r} was saved with the model."
                ) from error
        raise


def _load_processor(path: str | Path, hub: dict[str, Any]) -> VJepa2VideoProcessor:
    try:
        return VJepa2VideoProcessor.from_pretrained(path, **hub)
    except OSError as error:
        raise ValueError(
            f"no video processor loads from {path}: save one beside the model, or give one as video_processor."
        ) from error


def _check_samples(config, num_samples: int, uncertainty_weight: float) -> None:
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; expected 1 or more.")
    if (num_samples > 1 or uncertainty_weight) and not config.stochastic_dim:
        raise ValueError(
            f"num_samples={num_samples} and uncertainty_weight={uncertainty_weight} are for a model with a stochastic "
            "latent, and this one leaves nothing to chance (stochastic_dim is 0)."
        )
    if uncertainty_weight and num_samples < 2:
        raise ValueError(f"uncertainty_weight={uncertainty_weight} needs num_samples of 2 or more, such as 8.")


def _search_bounds(config, low: list[float] | None, high: list[float] | None) -> tuple[list | None, list | None]:
    """Bounds given to the planner, or those of the model's config.

    Raises:
        ValueError: not A numbers, a low one above a high one, or none at all for an arm.
    """
    bounds = {"action_low": low, "action_high": high}
    for name, value in bounds.items():
        value = getattr(config, name) if value is None else value
        if value is None and config.proprio_transition == "pose_delta":
            raise ValueError(
                f"{name} is missing: actions of an arm are metres and radians, so there is no safe default; give "
                f"{name}=[…] ({config.action_dim} numbers; published: ±0.05 m, rotation 0, gripper ±0.75)."
            )
        if value is not None:
            value = [float(number) for number in value]
            if len(value) != config.action_dim:
                raise ValueError(f"{name} has {len(value)} numbers; expected {config.action_dim} (action_dim).")
        bounds[name] = value
    if None not in bounds.values() and any(a > b for a, b in zip(*bounds.values())):
        raise ValueError(f"action_low={bounds['action_low']} lies above action_high={bounds['action_high']}.")
    return bounds["action_low"], bounds["action_high"]


def _per_frame(name: str, value: torch.Tensor | None, frames: int, size: int) -> torch.Tensor | None:
    """A state (B, size) or (B, T, size) as (B, T, size); asked for exactly when the model has such states."""
    if value is not None and value.ndim == 2:
        value = value.unsqueeze(1)
    if size == 0:
        if value is not None:
            raise ValueError(f"{name} was given, but the model has none.")
        return None
    expected = f"({size},)" if frames == 1 else f"({frames}, {size})"
    if value is None:
        raise ValueError(f"{name} is missing: the model plans from it; give {name} of shape {expected}.")
    if tuple(value.shape[1:]) != (frames, size):
        raise ValueError(f"{name} has shape {tuple(value.shape[1:])}; expected {expected}.")
    return value


def _is_processed(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == 5 and value.is_floating_point()


def _check_pair(frames: torch.Tensor, goal: torch.Tensor, context_frames: int) -> None:
    if len(frames) != len(goal):
        raise ValueError(f"{len(frames)} observations and {len(goal)} goals; expected as many of both.")
    if frames.shape[1] > context_frames:
        raise ValueError(
            f"the observation has {frames.shape[1]} frames; the model looks back over {context_frames} "
            "(context_frames): give the last ones."
        )
    if goal.shape[1] != 1:
        raise ValueError(f"the goal has {goal.shape[1]} frames; expected one image.")
    if frames.shape[-2:] != goal.shape[-2:]:
        raise ValueError(
            f"the processed goal is {tuple(goal.shape[-2:])} pixels, the observation {tuple(frames.shape[-2:])}: "
            "process both to one size, or give raw images, which are resized."
        )


def _warn_of_aspect_ratio(observation: Any, goal: Any) -> None:
    ratios = [_aspect_ratio(item) for item in (observation, goal)]
    if None not in ratios and not 1 / 1.1 <= ratios[0] / ratios[1] <= 1.1:
        warnings.warn(
            f"observation and goal have aspect ratios {ratios[0]:.2f} and {ratios[1]:.2f}: resizing bends or cuts "
            "one of them, so that the same place looks different.",
            stacklevel=2,
        )


def _aspect_ratio(image: Any) -> float | None:
    """Width over height of a raw image or an image file, or `None` where it is not known without decoding."""
    if isinstance(image, str | Path):
        try:
            with PIL.Image.open(image) as picture:
                return picture.width / picture.height
        except OSError:
            return None
    if hasattr(image, "height"):
        return image.width / image.height
    shape = getattr(image, "shape", None)
    if shape is None or len(shape) < 3:
        return None
    channels_last = shape[-1] in (1, 3, 4)
    height, width = shape[-3:-1] if channels_last else shape[-2:]
    return width / height


def _stacked(name: str, value: Any, single: bool, batch_size: int) -> torch.Tensor | None:
    """Numbers of one problem or of a batch as a float32 tensor (B, …)."""
    if value is None:
        return None
    rows = [value] if single else list(value)
    if len(rows) != batch_size:
        raise ValueError(f"{name} was given for {len(rows)} problems; expected {batch_size}.")
    stacked = torch.stack([torch.as_tensor(row, dtype=torch.float32).cpu() for row in rows])
    if not torch.isfinite(stacked).all():
        raise ValueError(f"{name} holds numbers that are not finite.")
    return stacked


__all__ = ["VJepa2Planner"]
