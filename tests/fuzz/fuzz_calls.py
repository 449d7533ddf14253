"""The calls of the fuzz suite: for each public call its right arguments, the kind of each argument, and an invariant
of a right result."""

import atexit
import copy
import functools
import io
import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_origin

import builders
import numpy as np
import PIL.Image
import torch

import vjepa2_hf as package
from vjepa2_hf import masking, planning, pose
from vjepa2_hf.configuration_vjepa2 import VJepa2EncoderConfig
from vjepa2_hf.data import clips, episodes, sampling
from vjepa2_hf.hub.conversion import convert
from vjepa2_hf.metrics.class_mean_recall.class_mean_recall import class_mean_recall
from vjepa2_hf.metrics.confusion_matrix.confusion_matrix import confusion_matrix
from vjepa2_hf.metrics.latent_rollout.latent_rollout import RolloutScores
from vjepa2_hf.metrics.mean_average_precision.mean_average_precision import average_precisions
from vjepa2_hf.metrics.mean_iou.mean_iou import mean_iou
from vjepa2_hf.metrics.planning_success.planning_success import summarize_success
from vjepa2_hf.metrics.r_squared.r_squared import r_squared
from vjepa2_hf.metrics.root_mean_squared_error.root_mean_squared_error import root_mean_squared_error
from vjepa2_hf.metrics.top_k_accuracy.top_k_accuracy import is_in_top_k
from vjepa2_hf.planning.constraints import build_constraints
from vjepa2_hf.planning.search import shift_plan
from vjepa2_hf.planning.solvers import SOLVERS, build_solver
from vjepa2_hf.probing.label_propagation import Propagation, propagate_labels
from vjepa2_hf.probing.labeled_clips import ClipViews
from vjepa2_hf.probing.sweep import ProbeSweep
from vjepa2_hf.specs import is_integer
from vjepa2_hf.training import schedules
from vjepa2_hf.training.settings import load_config
from vjepa2_hf.video_io import VideoReader, read_image, read_video
from vjepa2_hf.video_processing_vjepa2 import RandomResizedClip


@dataclass
class Call:
    """A public call.

    right: right arguments by name. kinds: of the arguments that are replaced by wrong values, see `fuzz_values`.
    holds: whether a result is right, of (result, arguments). in_api: wrong types are tried too.
    """

    name: str
    function: Callable[..., Any]
    right: Callable[[], dict[str, Any]]
    kinds: dict[str, str]
    holds: Callable[[Any, dict], bool] = lambda result, arguments: True
    in_api: bool = True
    weight: int = field(default=1)


# --- Small models


@functools.cache
def model(name: str) -> Any:
    makers = {
        "encoder": builders.build_encoder,
        "masked": lambda: builders.build_masked_latent(frames_per_clip=4),
        "classifier": builders.build_classifier,
        "planner": builders.build_planner,
        "wm": lambda: builders.build_planner(proprio_dim=2, reward_head=True).model,
        "robots": lambda: builders.build_planner(
            num_views=2, view_names=["front", "wrist"], num_embodiments=2, embodiment_names=["pusher", "arm"],
            action_dim=3, embodiment_action_dims=[2, 3], options={"embodiment": "arm"},
        ).model,
        "unfitted": lambda: builders.build_planner(state_type="projected", state_dim=2).model,
        "decoder": lambda: package.VJepa2PixelDecoder(
            package.VJepa2PixelDecoderConfig(
                num_latents=16, latent_size=24, crop_size=32, patch_size=8, hidden_size=16, num_hidden_layers=1,
                num_attention_heads=2,
            )
        ).eval(),
        "processor": lambda: package.VJepa2VideoProcessor(size=32, crop_size=32),
        "features": lambda: package.VJepa2FeatureExtractor(model("encoder"), model("processor"), device="cpu"),
        "detector": lambda: package.VJepa2AnomalyDetector(
            model("masked"), model("processor"), context_frames=2, future_frames=2, device="cpu"
        ),
        "linear": lambda: package.VJepa2ForVideoClassification.from_encoder(
            model("encoder"), pooler_type="linear", num_labels=3, problem_type="single_label_classification"
        ),
        "stochastic": lambda: builders.build_planner(stochastic_dim=2).model,
        "discrete": lambda: builders.build_planner(action_type="discrete", solver="categorical_cem").model,
        "tables": lambda: package.VJepa2Encoder(
            VJepa2EncoderConfig(
                **builders.TINY_ENCODER, position_embedding_type="learned", attention_type="factorized"
            )
        ).eval(),
        "folder": lambda: saved(model("encoder")),
        "reader": lambda: VideoReader(builders.numbered_video(8)),
    }  # fmt: skip
    return makers[name]()


def saved(encoder: package.VJepa2Encoder) -> str:
    """The folder of a model, removed at the end of the process."""
    folder = tempfile.mkdtemp(prefix="vjepa2-fuzz-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    encoder.save_pretrained(folder)
    return folder


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ids(*numbers: int) -> torch.Tensor:
    return torch.tensor([numbers, numbers])


def as_floats(value: Any) -> torch.Tensor | None:
    """Numbers as float64; `None` for what are none."""
    try:
        value = value if isinstance(value, torch.Tensor) else torch.as_tensor(value)
        return value.detach().double() if not value.is_complex() else None
    except (TypeError, ValueError, RuntimeError):
        return None


def whole_numbers(kinds: dict[str, str]) -> Callable[[Any, dict], bool]:
    """That the integers among the arguments are integers."""
    names = [name for name, kind in kinds.items() if kind in ("integer", "seed")]

    def holds(result: Any, given: dict) -> bool:
        return all(given[name] is None or is_integer(given[name]) for name in names)

    return holds


def is_finite(value: Any) -> bool:
    """Whether all numbers are finite."""
    numbers = as_floats(value)
    return numbers is not None and bool(torch.isfinite(numbers).all())


def finite_in_finite_out(result: Any, arguments: dict) -> bool:
    """Results of finite numbers are finite."""
    for value in arguments.values():
        numbers = as_floats(value)
        if numbers is not None and not (numbers.isfinite() & (numbers.abs() < 1e6)).all():
            return True
    return is_finite(result)


# --- Configs: every field


def _kind_of(hint: Any) -> str | None:
    if get_origin(hint) is Literal:
        return "choice"
    plain = [each for each in get_args(hint) if each is not type(None)] or [hint]
    return {bool: "flag", int: "integer", float: "number", str: "choice", list: "vector"}.get(
        float if float in plain else plain[0]
    )


def config_call(config_class: type, right: dict, in_api: bool = True) -> Call:
    own = {
        each.name: _kind_of(each.type) for each in fields(config_class) if each.name in config_class.__annotations__
    }
    kinds = {name: kind for name, kind in own.items() if kind is not None}

    def holds(config: Any, given: dict) -> bool:
        return all(getattr(config, name) == value or value is None for name, value in given.items() if name in kinds)

    def make(**given):
        return config_class(**{**right, **given})

    defaults = {each.name: each.default for each in fields(config_class) if each.name in kinds}
    defaults = {name: right.get(name, value) for name, value in defaults.items()}
    return Call(config_class.__name__, make, lambda: dict(defaults), kinds, holds, in_api, weight=3)


def config_calls() -> list[Call]:
    encoder = dict(builders.TINY_ENCODER)
    nested = {"encoder_config": encoder}
    small = {**nested, **builders.TINY_PREDICTOR}
    decoder = {"num_latents": 16, "latent_size": 24, "crop_size": 32, "patch_size": 8, "hidden_size": 16}
    return [
        config_call(package.VJepa2EncoderConfig, encoder),
        config_call(package.VJepa2MaskedLatentPredictionConfig, small),
        config_call(package.VJepa2WorldModelConfig, {**small, "action_dim": 2}),
        config_call(package.VJepa2VideoClassificationConfig, {**nested, "pooler_num_attention_heads": 2}),
        config_call(package.VJepa2PixelDecoderConfig, {**decoder, "num_attention_heads": 2}),
        Call("from_preset", VJepa2EncoderConfig.from_preset, lambda: {"name": "base"}, {"name": "choice"}),
    ]


# --- Models


def encoder_calls() -> list[Call]:
    def clip_and_mask():
        return {"pixel_values_videos": builders.clips(), "context_mask": ids(0, 3, 9)}

    def same_as_all(result, given):
        return finite_in_finite_out(result.last_hidden_state, given) and result.last_hidden_state.ndim == 3

    long = {"chunk_frames": "integer", "overlap": "integer", "stride": "integer", "pool": "choice", "video": "tensor"}
    return [
        Call(
            "encoder",
            lambda **given: model("encoder")(**given),
            clip_and_mask,
            {"pixel_values_videos": "tensor", "context_mask": "tensor"},
            same_as_all,
            weight=2,
        ),
        Call(
            "encoder.encode",
            lambda **given: model("encoder").encode(**given),
            lambda: {"video": builders.clips(), "pool": "frame", "levels": False},
            {"video": "tensor", "pool": "choice", "levels": "flag"},
            finite_in_finite_out,
        ),
        Call(
            "encoder.encode_long",
            lambda **given: model("encoder").encode_long(**given),
            lambda: {"video": rand(6, 3, 32, 32), "chunk_frames": 4, "overlap": 2, "stride": 1, "pool": "frame"},
            long,
            finite_in_finite_out,
        ),
    ]


def masked_calls() -> list[Call]:
    def arguments():
        masks = {"context_mask": [ids(0, 1)], "target_mask": [ids(4, 5)]}
        numbers = {"mask_token_index": 0, "targets": rand(2, 32, 24), "context_loss_weight": None}
        return {"pixel_values_videos": builders.clips(), **masks, **numbers}

    return [
        Call(
            "masked_latent",
            lambda **given: model("masked")(**given),
            arguments,
            {
                "pixel_values_videos": "tensor",
                "context_mask": "tensors",
                "target_mask": "tensors",
                "mask_token_index": "integer",
                "targets": "tensor",
                "context_loss_weight": "number",
            },
            lambda result, given: finite_in_finite_out(result.loss, given),
            weight=2,
        ),
        Call(
            "update_target_encoder",
            lambda **given: model("masked").update_target_encoder(**given),
            lambda: {"momentum": 0.5},
            {"momentum": "fraction"},
            lambda result, given: (
                0 <= given["momentum"] <= 1
                and all(is_finite(each) for each in model("masked").target_encoder.parameters())
            ),
        ),
        Call(
            "predict_future",
            lambda **given: model("masked").predict_future(**given),
            lambda: {"pixel_values_videos": builders.clips(), "num_future_frames": 2, "autoregressive": False},
            {"pixel_values_videos": "tensor", "num_future_frames": "integer", "autoregressive": "flag"},
            lambda result, given: (
                finite_in_finite_out(result, given) and result.shape[1] == given["num_future_frames"] // 2
            ),
        ),
    ]


def classifier_calls() -> list[Call]:
    def forward(**given):
        return model("classifier")(**given)

    def holds(result, given):
        labels = given["labels"]
        right = labels is None or isinstance(labels, torch.Tensor) and bool(((labels >= 0) & (labels < 3)).all())
        return right and finite_in_finite_out(result.logits, given) and (labels is None or result.loss is not None)

    return [
        Call(
            "classifier",
            forward,
            lambda: {"pixel_values_videos": builders.clips(), "labels": torch.tensor([0, 2])},
            {"pixel_values_videos": "tensor", "labels": "tensor"},
            holds,
            weight=2,
        ),
        Call(
            "classifier.from_encoder",
            lambda **given: package.VJepa2ForVideoClassification.from_encoder(
                model("encoder"), num_pooler_layers=1, pooler_num_attention_heads=2, **given
            ),
            lambda: {"num_labels": 2, "pooler_type": "linear", "labels_per_frame": False},
            {"num_labels": "integer", "pooler_type": "choice", "labels_per_frame": "flag"},
            lambda result, given: result.config.num_labels == (given["num_labels"] or 2),
        ),
    ]


def world_model_calls() -> list[Call]:
    def latents(frames=2):
        return rand(2, frames, 16, 24)

    states = {"proprio_states": rand(2, 2, 2)}
    rollout = {"latents": "tensor", "actions": "tensor", "context_actions": "tensor", "proprio_states": "tensor"}
    rollout |= {"candidate_chunk_size": "integer", "use_cache": "flag"}
    score = {"observation": "tensor", "goal": "tensor", "actions": "tensor", "context_actions": "tensor"}
    score |= {"proprio_states": "tensor", "distance": "choice", "candidate_chunk_size": "integer"}
    score |= {"num_samples": "integer", "uncertainty_weight": "number", "goal_proprio_states": "tensor"}

    def forward_arguments():
        given = {"latents": latents(3), "actions": rand(2, 2, 2), "proprio_states": rand(2, 3, 2)}
        return {**given, "rewards": rand(2, 2), "teacher_forcing_weight": 1.0, "rollout_weight": 1.0}

    return [
        Call(
            "world_model.encode",
            lambda **given: model("wm").encode(**given),
            lambda: {"pixel_values_videos": builders.clips()},
            {"pixel_values_videos": "tensor"},
            finite_in_finite_out,
        ),
        Call(
            "world_model",
            lambda **given: model("wm")(**given),
            forward_arguments,
            {
                "latents": "tensor",
                "actions": "tensor",
                "proprio_states": "tensor",
                "rewards": "tensor",
                "teacher_forcing_weight": "number",
                "rollout_weight": "number",
            },
            lambda result, given: finite_in_finite_out(result.loss, given),
            weight=2,
        ),
        Call(
            "world_model.rollout",
            lambda **given: model("wm").rollout(**given),
            lambda: {
                "latents": latents(),
                "actions": rand(2, 3, 2, 2),
                "context_actions": rand(2, 1, 2),
                **states,
                "candidate_chunk_size": 2,
                "use_cache": True,
            },
            rollout,
            lambda result, given: finite_in_finite_out(result, given) and result.shape[-2:] == (16, 24),
            weight=2,
        ),
        Call(
            "world_model.score",
            lambda **given: model("wm").score(**given),
            lambda: {
                "observation": latents(),
                "goal": rand(2, 1, 16, 24),
                "actions": rand(2, 3, 2, 2),
                "context_actions": rand(2, 1, 2),
                **states,
                "distance": "l1",
                "candidate_chunk_size": 2,
                "num_samples": 1,
                "uncertainty_weight": 0.0,
                "goal_proprio_states": rand(2, 2),
            },
            score,
            lambda result, given: finite_in_finite_out(result, given) and result.ndim == 2,
            weight=2,
        ),
        Call(
            "world_model.rollout of robots",
            lambda **given: model("robots").rollout(**given),
            lambda: {
                "latents": rand(2, 1, 16, 24),
                "actions": rand(2, 3, 2, 3),
                "embodiment_ids": torch.tensor([0, 1]),
                "views": [1],
            },
            {"latents": "tensor", "actions": "tensor", "embodiment_ids": "tensor", "views": "vector"},
            lambda result, given: finite_in_finite_out(result, given) and result.shape[-2:] == (16, 24),
        ),
        Call(
            "world_model.score of robots",
            lambda **given: model("robots").score(**given),
            lambda: {
                "observation": rand(2, 1, 32, 24),
                "goal": rand(2, 1, 16, 24),
                "actions": rand(2, 3, 2, 3),
                "embodiment_ids": 1,
                "views": [0, 1],
                "goal_views": [0],
            },
            {"embodiment_ids": "integer", "views": "vector", "goal_views": "vector"},
            lambda result, given: finite_in_finite_out(result, given) and result.shape == (2, 3),
        ),
        Call(
            "world_model.add_embodiment",
            lambda **given: copy.deepcopy(model("robots")).add_embodiment(**given),
            lambda: {"action_dim": 2, "name": "hand", "action_low": [-1.0, -1.0], "action_std": [1.0, 2.0]},
            {"action_dim": "integer", "name": "choice", "action_low": "vector", "action_std": "vector"},
            lambda result, given: result == 2,
        ),
        Call(
            "world_model.predict_rewards",
            lambda **given: model("wm").predict_rewards(**given),
            lambda: {"latents": latents(3), "actions": rand(2, 2, 2)},
            {"latents": "tensor", "actions": "tensor"},
            lambda result, given: finite_in_finite_out(result, given),
        ),
        Call(
            "world_model.fit_state",
            lambda **given: package.VJepa2WorldModel(copy.deepcopy(model("unfitted").config)).fit_state(**given),
            lambda: {"latents": rand(2, 6, 16, 24)},
            {"latents": "tensor"},
        ),
        Call(
            "decoder",
            lambda **given: model("decoder")(**given),
            lambda: {"latents": rand(2, 3, 16, 24), "pixel_values_videos": rand(2, 3, 3, 32, 32)},
            {"latents": "tensor", "pixel_values_videos": "tensor"},
            lambda result, given: finite_in_finite_out(result.predicted_pixels, given),
        ),
        Call(
            "decoder.decode",
            lambda **given: model("decoder").decode(**given),
            lambda: {"latents": rand(2, 3, 16, 24), "chunk_size": 4},
            {"latents": "tensor", "chunk_size": "integer"},
            finite_in_finite_out,
        ),
        Call(
            "decoder.decode_views",
            lambda **given: model("decoder").decode_views(**given),
            lambda: {"latents": rand(2, 3, 32, 24), "chunk_size": 4},
            {"latents": "tensor", "chunk_size": "integer"},
            finite_in_finite_out,
        ),
    ]


# --- Planning


def planner_calls() -> list[Call]:
    call = {"observation": "image", "goal": "image", "seed": "seed", "warm_start": "tensor", "budget_ms": "number"}
    call |= {"goal_index": "integer", "goal_threshold": "number", "cost": "choice", "context_actions": "vector"}
    call |= {"proprio_state": "vector", "goal_proprio_state": "vector", "constraints": "choice"}

    def within_bounds(plan, given):
        plan = plan[0] if isinstance(plan, list) else plan
        right = is_finite(plan["actions"]) and bool((np.abs(plan["actions"]) <= 1 + 1e-6).all())
        return right and math.isfinite(plan["cost"]) and given["goal_proprio_state"] is None

    def arguments():
        given = {"observation": builders.OBSERVATION, "goal": builders.GOAL, "seed": 0, "budget_ms": 1e4}
        return {**given, **dict.fromkeys(call.keys() - given.keys()), "goal_index": 0, "goal_threshold": 0.1}

    def construct(**given):
        return builders.build_planner(options=given)

    settings = {
        "horizon": "integer",
        "num_candidates": "integer",
        "num_iterations": "integer",
        "num_elites": "integer",
    }
    settings |= {"momentum": "fraction", "init_std": "vector", "distance": "choice", "candidate_chunk_size": "integer"}
    settings |= {"num_samples": "integer", "uncertainty_weight": "number", "sample_noise_per_step": "flag"}
    settings |= {"action_low": "vector", "action_high": "vector", "constraints": "choice"}
    right = {"momentum": 0.1, "init_std": [0.5, 0.5], "distance": "l1", "candidate_chunk_size": 4, "num_samples": 1}
    right |= {"uncertainty_weight": 0.0, "sample_noise_per_step": False, "action_low": [-1, -1], "action_high": [1, 1]}
    right |= {**builders.SOLVER, "constraints": None}
    landscape = {"observation": "image", "goal": "image", "dims": "vector", "points": "integer", "actions": "tensor"}
    landscape |= {"step": "integer", "cost": "choice"}
    return [
        Call(
            "planner", lambda **given: model("planner")(**given), arguments, call, within_bounds, weight=3
        ),
        Call(
            "VJepa2Planner",
            construct,
            lambda: dict(right),
            settings,
            lambda planner, given: planner.num_samples == 1 and planner.uncertainty_weight == 0,
            weight=2,
        ),
        Call(
            "planner.energy_landscape",
            lambda **given: model("planner").energy_landscape(**given)["costs"],
            lambda: {
                "observation": builders.OBSERVATION,
                "goal": builders.GOAL,
                "dims": (0, 1),
                "points": 3,
                "actions": torch.zeros(2, 2),
                "step": 0,
                "cost": "l1",
            },
            landscape,
            lambda costs, given: is_finite(costs) and costs.shape == (given["points"],) * 2,
        ),
    ]  # fmt: skip


SOLVER_KINDS = {
    "num_elites": ("integer", 3), "momentum": ("fraction", 0.1), "init_std": ("vector", [0.5, 0.5]),
    "sample_noise_per_step": ("flag", False), "noise_exponent": ("number", 1.0), "candidate_decay": ("number", 1.25),
    "kept_elites": ("fraction", 0.3), "temperature": ("number", 0.2), "relative_temperature": ("flag", True),
    "refit_std": ("flag", True), "learning_rate": ("number", 0.1), "min_probability": ("fraction", 0.05),
    "actions_per_step": ("integer", 1),
}  # fmt: skip


def quadratic(actions: torch.Tensor) -> torch.Tensor:
    return actions.clamp(-1e6, 1e6).square().sum(dim=(2, 3))


def solver_calls() -> list[Call]:
    found = []
    for solver in SOLVERS.values():
        names = [each.name for each in fields(solver)]
        settings = {"horizon": ("integer", 2), "num_candidates": ("integer", 12), "num_iterations": ("integer", 2)}
        settings |= {each: SOLVER_KINDS[each] for each in names if each in SOLVER_KINDS}
        call = {"batch_size": ("integer", 2), "action_dim": ("integer", 2), "action_low": ("vector", -1.0)}
        call |= {"action_high": ("vector", 1.0), "warm_start": ("tensor", torch.zeros(2, 2, 2))}
        call |= {"budget_ms": ("number", 1e4), "constraints": ("choice", ()), "generator": ("choice", None)}
        if solver.takes_noise:
            call["noise"] = ("tensor", rand(2, 12, 2, 2))

        def construct(solver=solver, **given):
            return solver(**given)(quadratic, 1, 2, generator=torch.Generator().manual_seed(0))

        def solve(solver=solver, **given):
            return solver(horizon=2, num_candidates=12, num_iterations=2)(quadratic, **given)

        def right_plan(result, given):
            return is_finite(result.actions) and is_finite(result.cost) and result.actions.ndim == 3

        for suffix, function, kinds in (("", construct, settings), ("()", solve, call)):
            found.append(
                Call(
                    f"{solver.__name__}{suffix}",
                    function,
                    functools.partial(dict, {each: value for each, (_, value) in kinds.items()}),
                    {each: kind for each, (kind, _) in kinds.items()},
                    right_plan,
                )
            )
    return found


def term_calls() -> list[Call]:
    actions = rand(2, 3, 4)

    def applied(kind: type):
        return lambda **given: kind(**given).apply(actions)

    def summed(weight, times):
        return planning.LatentDistance("l1") * weight + times * planning.ActionPenalty()

    def whole_plan(result, given):
        return result.shape == (2, 3, 4) and (is_finite(result) or not is_finite(given.get("value", 0.0)))

    return [
        Call(
            "LatentDistance",
            planning.LatentDistance,
            lambda: {"distance": "l1", "summed": False},
            {"distance": "choice", "summed": "flag"},
            lambda cost, given: cost.distance in ("l1", "l2", "cosine") and isinstance(cost.summed, bool),
        ),
        Call(
            "ProprioDistance",
            planning.ProprioDistance,
            lambda: {"dims": [0], "summed": False},
            {"dims": "vector", "summed": "flag"},
            lambda cost, given: isinstance(cost.summed, bool),
        ),
        Call(
            "cost arithmetic", summed, lambda: {"weight": 0.5, "times": 2.0}, {"weight": "number", "times": "number"}
        ),
        Call("build_cost", planning.build_cost, lambda: {"cost": "l1"}, {"cost": "choice"}, in_api=False),
        Call("build_constraints", build_constraints, lambda: {"constraints": None}, {"constraints": "choice"}),
        Call("build_solver", build_solver, lambda: {"solver": "cem"}, {"solver": "choice"}),
        Call(
            "Fixed",
            applied(planning.Fixed),
            lambda: {"dims": [1, 2], "value": [0.0, 1.0]},
            {"dims": "vector", "value": "vector"},
            whole_plan,
        ),
        Call(
            "ClosedGripper",
            applied(planning.ClosedGripper),
            lambda: {"from_step": 1, "value": 1.0, "dim": -1, "exact": True},
            {"from_step": "integer", "value": "number", "dim": "integer", "exact": "flag"},
            whole_plan,
        ),
        Call(
            "StepBounds",
            applied(planning.StepBounds),
            lambda: {"low": [-1.0, -0.5], "high": [1.0, 0.5]},
            {"low": "vector", "high": "vector"},
            lambda result, given: result.shape == (2, 3, 4) and not result.isnan().any(),
        ),
        Call(
            "DeadZone",
            lambda **given: planning.DeadZone(**given).finish(actions, actions),
            lambda: {"dim": 0, "below": 0.25},
            {"dim": "integer", "below": "number"},
            whole_plan,
        ),
        Call(
            "shift_plan",
            shift_plan,
            lambda: {"actions": actions, "steps": 1},
            {"actions": "tensor", "steps": "integer"},
            in_api=False,
        ),
    ]


# --- Masks, processor, pipelines


def mask_calls() -> list[Call]:
    settings = {
        "MultiBlockMask": (
            {"num_blocks": 2, "spatial_scale": 0.15, "temporal_scale": 1.0, "aspect_ratio": (0.75, 1.5)},
            {"num_blocks": "integer", "spatial_scale": "range", "temporal_scale": "range", "aspect_ratio": "range"},
        ),
        "FutureMask": ({"context_ratio": 0.5}, {"context_ratio": "fraction"}),
        "RandomFrameMask": ({"mask_ratio": 0.5}, {"mask_ratio": "fraction"}),
        "PeriodicMask": ({"period": 2}, {"period": "integer"}),
        "MultiRateMask": ({"context_ratio": 0.5, "horizons": (1, 2)}, {"context_ratio": "range", "horizons": "range"}),
    }
    call = {"batch_size": "integer", "grid": "vector", "generator": "choice"}

    def right_masks(result, given):
        context, target = result
        rows = given.get("batch_size", 2)
        both = torch.cat(result, dim=1)
        distinct = all(len(set(row)) == len(row) for row in both.tolist())
        return distinct and len(context) == rows == len(target) and context.numel() > 0 < target.numel()

    found = []
    for name, (right, kinds) in settings.items():
        kind = getattr(masking, name)

        def sample(sampler=kind, **given):
            return sampler(**given)(2, (4, 4, 4), torch.Generator().manual_seed(0))

        def call_sampler(sampler=kind, **given):
            return sampler()(**given)

        found.append(Call(name, sample, functools.partial(dict, right), kinds, right_masks))
        grid = {"batch_size": 2, "grid": (8, 4, 4), "generator": None}
        found.append(Call(f"{name}()", call_sampler, functools.partial(dict, grid), call, right_masks))
    found.append(
        Call(
            "build_mask_samplers",
            masking.build_mask_samplers,
            lambda: {"specs": []},
            {"specs": "choice"},
            in_api=False,
        )
    )
    return found


def processor_calls() -> list[Call]:
    options = {"size": 32, "crop_size": 32, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
    options |= {"rescale_factor": 1 / 255, "do_random_resized_crop": False, "random_crop_scale": (0.3, 1.0)}
    options |= {"random_crop_ratio": (0.75, 1.35), "random_flip_probability": 0.5, "do_resize": True}
    kinds = {"size": "integer", "crop_size": "integer", "image_mean": "vector", "image_std": "vector"}
    kinds |= {"resample": "integer", "rescale_factor": "number", "do_random_resized_crop": "flag", "do_resize": "flag"}
    kinds |= {"random_crop_scale": "range", "random_crop_ratio": "range", "random_flip_probability": "fraction"}

    def construct(**given):
        return package.VJepa2VideoProcessor(**given)(builders.OBSERVATION[None])["pixel_values_videos"]

    def call(**given):
        return model("processor")(**given)["pixel_values_videos"]

    def clip(result, given):
        return all(is_finite(one) and one.shape[-3] == 3 and one.numel() for one in result)

    crop = {"crop_size": 16, "scale": (0.3, 1.0), "ratio": (0.75, 1.35), "flip_probability": 0.5}
    crop_kinds = {"crop_size": "integer", "scale": "range", "ratio": "range", "flip_probability": "fraction"}
    return [
        Call("VJepa2VideoProcessor", construct, lambda: dict(options), kinds, clip, weight=3),
        Call("processor options", lambda **given: call(videos=builders.OBSERVATION[None], **given),
             lambda: dict(options), kinds, clip, weight=2),
        Call("processor", call, lambda: {"videos": np.stack([builders.OBSERVATION] * 3)}, {"videos": "image"}, clip,
             weight=3),
        Call("processor.to_images", lambda **given: model("processor").to_images(**given),
             lambda: {"pixel_values_videos": rand(2, 3, 8, 8)}, {"pixel_values_videos": "tensor"}, in_api=False),
        Call("RandomResizedClip", lambda **given: RandomResizedClip(**given)(torch.zeros(2, 3, 24, 24).byte()),
             lambda: dict(crop), crop_kinds, finite_in_finite_out, in_api=False),
    ]  # fmt: skip


def pipeline_calls() -> list[Call]:
    def video(frames=6):
        return builders.noise_frames(frames, 32, 32)

    extract = {"videos": "image", "pool": "choice", "chunk_frames": "integer", "overlap": "integer"}
    extract |= {"stride": "integer", "return_tensors": "flag"}
    detector = {"context_frames": "integer", "future_frames": "integer", "stride": "integer"}
    detector |= {"top_fraction": "fraction", "two_sided": "flag", "window_batch_size": "integer"}

    def features(result, given):
        return is_finite(result if not isinstance(result, list) else np.concatenate([np.ravel(one) for one in result]))

    return [
        Call("feature pipeline", lambda **given: model("features")(**given),
             lambda: {"videos": video(), "pool": "frame", "chunk_frames": 4, "overlap": 2, "stride": 1,
                      "return_tensors": False}, extract, features, weight=2),
        Call("VJepa2AnomalyDetector", lambda **given: package.VJepa2AnomalyDetector(
             model("masked"), model("processor"), device="cpu", **given)(video()),
             lambda: {"context_frames": 2, "future_frames": 2, "stride": 1, "top_fraction": 0.5, "two_sided": True,
                      "window_batch_size": 2}, detector),
        Call("detector", lambda **given: model("detector")(**given), lambda: {"videos": video()}, {"videos": "image"}),
        Call("detector.calibrate", lambda **given: package.VJepa2AnomalyDetector(
             model("masked"), model("processor"), context_frames=2, future_frames=2, device="cpu").calibrate(**given),
             lambda: {"normal_videos": video(8), "quantile": 0.9}, {"normal_videos": "image", "quantile": "fraction"},
             lambda found, given: math.isfinite(found.threshold)),
    ]  # fmt: skip


# --- Metrics, schedules, data


def metric_calls() -> list[Call]:
    scores, labels = rand(6, 4).numpy(), np.array([0, 1, 2, 3, 0, 1])
    binary = (rand(6, 4, seed=1).numpy() > 0).astype(int)

    def tensors(**arrays):
        return {name: torch.from_numpy(np.asarray(value)) for name, value in arrays.items()}

    def rollout_scores(horizon, **given):
        found = RolloutScores()
        found.add(**given)
        return found.means([horizon])["error"]

    success = {
        "successes": [True, False, True, True],
        "steps": [3.0, 4.0, 5.0, 1.0],
        "distances": [1.0, 2.0, 3.0, 4.0],
    }
    success |= {"groups": [0, 0, 1, 1]}
    in_range = lambda result, given: 0 <= float(np.mean(result)) <= 1  # noqa: E731
    return [
        Call("is_in_top_k", is_in_top_k, lambda: {**tensors(scores=scores, labels=labels), "k": 2},
             {"scores": "tensor", "labels": "tensor", "k": "integer"}, in_range),
        Call("class_mean_recall", class_mean_recall, lambda: {**tensors(scores=scores, labels=labels), "k": 2},
             {"scores": "tensor", "labels": "tensor", "k": "integer"}, in_range),
        Call("confusion_matrix", confusion_matrix, lambda: {**tensors(guesses=labels, labels=labels), "classes": 4},
             {"guesses": "tensor", "labels": "tensor", "classes": "integer"}),
        Call("average_precisions", average_precisions, lambda: tensors(scores=scores, labels=binary),
             {"scores": "tensor", "labels": "tensor"}, in_range),
        Call("r_squared", r_squared, lambda: tensors(predictions=scores, labels=scores),
             {"predictions": "tensor", "labels": "tensor"}, lambda result, given: result <= 1),
        Call("mean_iou", mean_iou, lambda: {**tensors(predictions=labels, references=labels), "num_labels": 4},
             {"predictions": "tensor", "references": "tensor", "num_labels": "integer"}, in_range),
        Call("root_mean_squared_error", root_mean_squared_error,
             lambda: tensors(predictions=scores, references=scores),
             {"predictions": "tensor", "references": "tensor"}, lambda result, given: result >= 0),
        Call("summarize_success", summarize_success, lambda: {**tensors(**success), "bins": 2},
             {**dict.fromkeys(success, "tensor"), "bins": "integer"},
             lambda result, given: 0 <= result["low"] <= result["success"] <= result["high"] <= 1),
        Call("latent_rollout", rollout_scores,
             lambda: {"predictions": rand(2, 3, 4, 5), "references": rand(2, 3, 4, 5), "copies": rand(2, 4, 5),
                      "previous": rand(2, 4, 5), "horizon": 2},
             {"predictions": "tensor", "references": "tensor", "copies": "tensor", "previous": "tensor",
              "horizon": "integer"}, finite_in_finite_out),
    ]  # fmt: skip


def schedule_calls() -> list[Call]:
    def at(kind, step, max_steps, **given):
        return kind(**given).at(step, max_steps)

    shared = {"schedule": "choice", "start": "number", "final": "number", "schedule_scale": "number"}
    shared |= {"step": "integer", "max_steps": "integer"}
    right = {"start": 0.1, "final": 0.5, "schedule_scale": 1.25, "step": 5, "max_steps": 100}
    rate = {**shared, "peak": "number", "warmup_steps": "integer", "decay_steps": "integer"}
    rate_right = {**right, "peak": 0.9, "warmup_steps": 3, "decay_steps": 2}

    def bounded(result, given):
        ends = [given[name] for name in ("start", "final", "peak") if name in given]
        slack = 1e-9 * (1 + max(ends))
        return min(ends) - slack <= result <= max(ends) + slack

    return [
        Call("LearningRateSchedule", functools.partial(at, schedules.LearningRateSchedule),
             lambda: {**rate_right, "schedule": "warmup_cosine"}, rate, bounded, weight=2),
        Call("MomentumSchedule", functools.partial(at, schedules.MomentumSchedule),
             lambda: {**right, "schedule": "cosine"}, shared, bounded),
        Call("WeightDecaySchedule", functools.partial(at, schedules.WeightDecaySchedule),
             lambda: {**right, "schedule": "cosine"}, shared, bounded),
    ]  # fmt: skip


def sample_frames(num_frames=4, **given):
    return sampling.FrameSampler(**given)(model("reader"), num_frames, torch.Generator().manual_seed(0))


@functools.cache
def shards() -> str:
    """A folder of one video."""
    folder = tempfile.mkdtemp(prefix="vjepa2-fuzz-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return builders.write_numbered_shards(folder, num_videos=1, num_shards=1, bad=())


def image_bytes() -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(builders.OBSERVATION).save(file, "PNG")
    return file.getvalue()


def data_calls() -> list[Call]:
    sampler = {"fps": "number", "speed": "range", "frame_jitter": "fraction", "motion_weight": "fraction"}
    sampler |= {"short_videos": "choice", "min_frames": "integer", "position": "fraction"}
    stream = {"frames_per_clip": "integer", "crop_size": "integer", "clips_per_video": "integer", "seed": "seed"}
    stream |= {"shuffle_buffer": "integer", "shuffle_bytes": "integer", "video_cache_bytes": "integer"}
    stream |= {"max_skipped_fraction": "fraction", "rank": "integer", "world_size": "integer", "epochs": "integer"}
    folder, camera = str(builders.FIXTURES / "lerobot_v3"), "observation.images.front"
    return [
        Call("FrameSampler", sample_frames,
             lambda: {"fps": 6.0, "speed": (1.0, 1.0), "frame_jitter": 0.1, "motion_weight": 0.5,
                      "short_videos": "repeat", "min_frames": 2, "position": 0.5}, sampler,
             lambda result, given: bool(((result >= 0) & (result < 8)).all()), in_api=False),
        Call("FramesCurriculum", lambda **given: sampling.FramesCurriculum(**given).frames_of_batch(0, 0, 1, 0),
             lambda: {"stages": [(0, 4), (10, 8)], "batch_size": 2, "gradient_accumulation_steps": 1, "by": "step"},
             {"stages": "vector", "batch_size": "integer", "gradient_accumulation_steps": "integer", "by": "choice"},
             in_api=False),
        Call("ClipStream", lambda **given: clips.ClipStream(shards(), **given),
             lambda: {"frames_per_clip": 4, "crop_size": 16, "clips_per_video": 1, "seed": 0, "rank": 0,
                      "max_skipped_fraction": 0.5, "world_size": 1, "epochs": 1, "shuffle_buffer": 4,
                      "shuffle_bytes": 2**20, "video_cache_bytes": 2**20}, stream, whole_numbers(stream),
             in_api=False),
        Call("split_episodes", episodes.split_episodes, lambda: {"ids": ["a", "b"], "validation_fraction": 0.5},
             {"validation_fraction": "fraction"}, in_api=False),
        Call("EpisodeSource", lambda **given: episodes.EpisodeSource("x", **given),
             lambda: {"weight": 1.0, "embodiment": 0, "camera": "front"},
             {"weight": "number", "embodiment": "integer", "camera": "choice"},
             lambda result, given: result.views == [given["camera"]], in_api=False),
        Call("read_episodes", lambda **given: next(episodes.read_episodes(folder, **given)),
             lambda: {"frame_skip": 1, "max_episodes": 1, "camera": camera},
             {"frame_skip": "integer", "max_episodes": "integer", "camera": "choice"}, in_api=False),
        Call("read_video", lambda **given: read_video(builders.numbered_video(8), **given),
             lambda: {"frame_indices": [0, 2]}, {"frame_indices": "vector"},
             lambda result, given: len(result) > 0, in_api=False),
        Call("read_image", lambda file, source: read_image(source if file is None else f"/no/file {file}"),
             lambda: {"source": image_bytes(), "file": None}, {"file": "choice"}, in_api=False),
    ]  # fmt: skip


def load_tiny(**overrides):
    return load_config(builders.TinyRunConfig, None, ["output_dir=x", *(f"{k}={v}" for k, v in overrides.items())])


def setting_calls() -> list[Call]:
    kinds = {"max_steps": "integer", "batch_size": "integer", "seed": "seed", "num_workers": "integer"}
    kinds |= {"log_every": "integer", "save_every": "integer", "keep_last": "integer", "scale": "range"}
    kinds |= {"gradient_clipping": "number", "mixed_precision": "choice", "encoder": "vector"}
    right = {"max_steps": 3, "batch_size": 2, "seed": 0, "num_workers": 0, "log_every": 1, "save_every": 1}
    right |= {"keep_last": 1, "scale": [0.3, 1.0], "gradient_clipping": 1.0, "mixed_precision": "no", "encoder": {}}
    return [
        Call("load_config", load_tiny, lambda: dict(right), kinds, in_api=False),
        Call("TrainingConfig", lambda **given: builders.TinyRunConfig(output_dir="x", **given), lambda: dict(right),
             {name: kind for name, kind in kinds.items() if name not in ("encoder", "scale")},
             whole_numbers(kinds), in_api=False),
    ]  # fmt: skip


def probe_calls() -> list[Call]:
    def sweep(settings, features, labels):
        return ProbeSweep(model("linear"), settings)(features, labels)

    def propagate(features, first, **settings):
        return propagate_labels(features, first, Propagation(**settings))

    views = {
        "frames_per_clip": "integer",
        "fps": "number",
        "speed": "number",
        "segments": "integer",
        "crops": "integer",
    }
    views |= {"shuffle_time": "flag", "seed": "seed", "anticipate_frames": "integer"}
    views_right = {"frames_per_clip": 4, "fps": 4.0, "speed": 1.0, "segments": 1, "crops": 1, "shuffle_time": False}

    return [
        Call("ProbeSweep", sweep,
             lambda: {"settings": [(0.1, 0.0), (0.2, 0.1)], "features": rand(2, 24), "labels": torch.tensor([0, 2])},
             {"settings": "vector", "features": "tensor", "labels": "tensor"}, finite_in_finite_out, in_api=False),
        Call("propagate_labels", propagate,
             lambda: {"features": rand(3, 2, 4, 5), "first": torch.ones(2, 2, 4) / 2, "top_k": 2, "context_frames": 1,
                      "radius": 2.0, "temperature": 0.1},
             {"features": "tensor", "first": "tensor", "top_k": "integer", "context_frames": "integer",
              "radius": "number", "temperature": "number"}, finite_in_finite_out, in_api=False),
        Call("ClipViews", ClipViews, lambda: {**views_right, "seed": 0, "anticipate_frames": None}, views,
             whole_numbers(views), in_api=False),
    ]  # fmt: skip


def folder_calls() -> list[Call]:
    def converted(**given):
        with tempfile.TemporaryDirectory() as out:
            return convert(out_dir=f"{out}/converted", **given).name

    settings = {"to": "choice", "component": "choice", "encoder": "choice", "source": "choice", "settings": "choice"}
    return [
        Call("convert", converted, lambda: {"source": model("folder"), "to": "transformers",
             "component": None, "encoder": None, "settings": None}, settings, in_api=False),
        Call("from_pretrained", package.VJepa2Encoder.from_pretrained,
             lambda: {"pretrained_model_name_or_path": model("folder"), "component": None, "allow_missing": False},
             {"pretrained_model_name_or_path": "choice", "component": "choice", "allow_missing": "flag"}),
    ]  # fmt: skip


def variant_calls() -> list[Call]:
    """Models with optional parts."""

    def collated(**given):
        clip = {"pixel_values_videos": rand(4, 3, 32, 32), "seed": 1}
        return clips.MaskCollator([masking.FutureMask()], **given)([clip, clip])

    latents, goal = rand(2, 1, 16, 24), rand(2, 1, 16, 24)
    return [
        Call("encoder with tables", lambda **given: model("tables")(**given).last_hidden_state,
             lambda: {"pixel_values_videos": builders.clips(), "context_mask": ids(0, 3, 9)},
             {"pixel_values_videos": "tensor", "context_mask": "tensor"}, finite_in_finite_out),
        Call("score with samples", lambda **given: model("stochastic").score(latents, goal, **given),
             lambda: {"actions": rand(2, 3, 2, 2), "num_samples": 2, "uncertainty_weight": 0.1, "generator": None},
             {"actions": "tensor", "num_samples": "integer", "uncertainty_weight": "number", "generator": "choice"},
             finite_in_finite_out),
        Call("discrete rollout", lambda **given: model("discrete").rollout(latents, **given),
             lambda: {"actions": torch.tensor([[0, 1], [1, 0]])}, {"actions": "tensor"}, finite_in_finite_out),
        Call("planner goals", lambda goal, **given: model("planner")(
             builders.OBSERVATION, goals=[builders.GOAL, goal], **given)["actions"],
             lambda: {"goal": builders.OTHER, "goal_index": 1, "goal_threshold": 0.1},
             {"goal": "image", "goal_index": "integer", "goal_threshold": "number"},
             lambda actions, given: is_finite(actions)),
        Call("planner batch", lambda goal, **given: model("planner")(
             [builders.OBSERVATION] * 2, [builders.GOAL, goal], **given)[1]["actions"],
             lambda: {"goal": builders.OTHER, "seed": 1, "warm_start": None},
             {"goal": "image", "seed": "seed", "warm_start": "vector"}, lambda actions, given: is_finite(actions)),
        Call("MaskCollator", collated, lambda: {"patch_size": 8, "tubelet_size": 2, "seed": 0},
             {"patch_size": "integer", "tubelet_size": "integer", "seed": "seed"}, in_api=False),
    ]  # fmt: skip


def pose_calls() -> list[Call]:
    return [
        Call("move_pose", pose.move_pose, lambda: {"pose": rand(2, 7), "action": rand(2, 7)},
             {"pose": "tensor", "action": "tensor"}, lambda result, given: result.shape[-1] == 7, in_api=False),
    ]  # fmt: skip


@functools.cache
def all_calls() -> list[Call]:
    groups = (
        config_calls, encoder_calls, masked_calls, classifier_calls, world_model_calls, planner_calls, solver_calls,
        term_calls, mask_calls, processor_calls, pipeline_calls, metric_calls, schedule_calls, data_calls,
        setting_calls, pose_calls, probe_calls, folder_calls, variant_calls,
    )  # fmt: skip
    return [call for group in groups for call in group()]
