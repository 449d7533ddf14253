"""Inputs that were taken without a word and gave something else than asked, each with the right value: a refusal that
names the value, or the result of the input in its plain form."""

import copy

import builders
import numpy as np
import pytest
import torch
from builders import GOAL, OBSERVATION
from fuzz_calls import ids, model, rand

from vjepa2_hf import (
    VJepa2AnomalyDetector,
    VJepa2EncoderConfig,
    VJepa2ForVideoClassification,
    VJepa2MaskedLatentPredictionConfig,
    VJepa2PixelDecoderConfig,
    VJepa2VideoClassificationConfig,
    VJepa2VideoProcessor,
    VJepa2WorldModel,
    VJepa2WorldModelConfig,
)
from vjepa2_hf.masking import FutureMask, MultiBlockMask, MultiRateMask, PeriodicMask, RandomFrameMask
from vjepa2_hf.metrics.class_mean_recall.class_mean_recall import class_mean_recall
from vjepa2_hf.metrics.confusion_matrix.confusion_matrix import confusion_matrix
from vjepa2_hf.metrics.latent_rollout.latent_rollout import RolloutScores
from vjepa2_hf.metrics.planning_success.planning_success import summarize_success
from vjepa2_hf.metrics.r_squared.r_squared import r_squared
from vjepa2_hf.metrics.top_k_accuracy.top_k_accuracy import is_in_top_k
from vjepa2_hf.planning import CEM, ICEM, MPPI, ActionPenalty, GradientDescent, LatentDistance, ProprioDistance
from vjepa2_hf.planning.constraints import ClosedGripper, DeadZone, Fixed, StepBounds
from vjepa2_hf.planning.search import shift_plan
from vjepa2_hf.planning.solvers import build_solver
from vjepa2_hf.pose import move_pose
from vjepa2_hf.training.schedules import LearningRateSchedule, MomentumSchedule, WeightDecaySchedule
from vjepa2_hf.video_processing_vjepa2 import RandomResizedClip


NAN = float("nan")
SCORES, CLASSES = np.eye(4), np.array([0, 1, 2, 3])


def classify(labels, **config):
    if not config:
        return model("classifier")(builders.clips(), labels=labels).loss
    classifier = VJepa2ForVideoClassification.from_encoder(model("encoder"), pooler_type="linear", **config).eval()
    return classifier(builders.clips(), labels=labels).loss


def plan(**given):
    return model("planner")(OBSERVATION, GOAL, **given)


def landscape(**given):
    return model("planner").energy_landscape(OBSERVATION, GOAL, **{"points": 3, **given})


def score(**given):
    right = {"observation": rand(2, 1, 16, 24), "goal": rand(2, 1, 16, 24), "actions": rand(2, 3, 2, 2)}
    return model("planner").model.score(**{**right, **given})


def rollout(**given):
    return model("planner").model.rollout(**{"latents": rand(2, 1, 16, 24), "actions": rand(2, 2, 2), **given})


def masked(**given):
    masks = {"context_mask": ids(0, 1), "target_mask": ids(4, 5)}
    return model("masked")(builders.clips(), **masks, **given)


def train(**given):
    right = {"latents": rand(2, 3, 16, 24), "actions": rand(2, 2, 2), "proprio_states": rand(2, 3, 2)}
    return model("wm")(**{**right, "rewards": rand(2, 2), **given})


def solve(solver=None, **given):
    return (solver or CEM(2, 8, 2, 2))(lambda actions: actions.square().sum((2, 3)), 1, 2, **given)


def process(options=None, **call):
    return VJepa2VideoProcessor(size=32, crop_size=32, **(options or {}))(OBSERVATION[None], **call)


def detector(**given):
    return VJepa2AnomalyDetector(model("masked"), model("processor"), device="cpu", **given)


def world_model_config(**fields):
    return VJepa2WorldModelConfig(
        encoder_config=builders.TINY_ENCODER, action_dim=2, **{**builders.TINY_PREDICTOR, **fields}
    )


def rollout_error(horizon):
    scores = RolloutScores()
    scores.add(rand(2, 3, 4), rand(2, 3, 4, seed=1))
    return scores.means([horizon])


REFUSED = [
    # Keywords
    (lambda: model("encoder")(builders.clips(), contextmask=ids(0)), "'contextmask'; did you mean 'context_mask'"),
    (lambda: model("encoder")(builders.clips(), output_hidden_state=True), "'output_hidden_state'"),
    (lambda: model("classifier")(builders.clips(), label=torch.tensor([0, 1])), "'label'; did you mean 'labels'"),
    (lambda: model("planner").energy_landscape(OBSERVATION, GOAL, proprio_stat=[0.0]), "no argument 'proprio_stat'"),
    # Labels
    (lambda: classify(torch.tensor([-100, 0])), "labels lie in -100 to 0; expected class numbers, 0 to 2"),
    (lambda: classify(torch.tensor([-100, -100])), "labels lie in -100 to -100"),
    (lambda: classify(torch.tensor([0, 3])), "labels lie in 0 to 3"),
    (lambda: classify(torch.tensor([[0], [1]])), r"labels is a Tensor of shape \(2, 1\)"),
    (lambda: classify(torch.tensor([True, False])), "labels is a Tensor .* torch.bool"),
    (lambda: classify(np.array([0, 1])), "labels is a ndarray"),
    (lambda: classify(torch.full((2, 3), 2.0), num_labels=3), "labels lie in 2.0 to 2.0; expected 0 to 1"),
    (lambda: classify(torch.full((2, 3), NAN), num_labels=3), "labels lie in nan to nan"),
    (lambda: classify(torch.tensor([NAN, 1.0]), num_labels=1), "labels lie in nan to nan; expected finite"),
    (lambda: classify(torch.zeros(2, 2), num_labels=1), r"labels is a Tensor of shape \(2, 2\)"),
    (lambda: classify(torch.zeros(0, dtype=torch.int64)), r"labels is a Tensor of shape \(0,\)"),
    # Momentum and schedules
    (lambda: model("masked").update_target_encoder(1.5), "momentum is 1.5; expected 0"),
    (lambda: model("masked").update_target_encoder(NAN), "momentum is nan"),
    (lambda: model("masked").update_target_encoder(-0.1), "momentum is -0.1"),
    (lambda: model("masked").update_target_encoder(True), "momentum is True"),
    (lambda: LearningRateSchedule("warmup_cosin"), "schedule is 'warmup_cosin'; expected one of 'warmup_cosine'"),
    (lambda: LearningRateSchedule("Constant"), "schedule is 'Constant'"),
    (lambda: MomentumSchedule("cosin"), "schedule is 'cosin'"),
    (lambda: WeightDecaySchedule("linear"), "schedule is 'linear'; expected one of 'constant', 'cosine'"),
    (lambda: LearningRateSchedule(peak=NAN), "peak is nan"),
    (lambda: LearningRateSchedule(peak=float("inf")), "peak of a learning rate schedule is inf"),
    (lambda: LearningRateSchedule(warmup_steps=2.5), "warmup_steps is 2.5; expected an integer"),
    (lambda: LearningRateSchedule(schedule_scale=NAN), "schedule_scale is nan"),
    (lambda: LearningRateSchedule(final=True), "final is True; expected a number"),
    (lambda: LearningRateSchedule().at(NAN, 100), "step is nan"),
    (lambda: MomentumSchedule().at(1, 0), "max_steps is 0"),
    # Planning
    (lambda: plan(goal_proprio_state=[0.0, 1.0]), "goal_proprio_state was given, but the model has no proprio states"),
    (lambda: score(goal_proprio_states=torch.zeros(2, 2)), "goal_proprio_states were given, but the model has no"),
    (lambda: plan(budget_ms=-1), "budget_ms is -1; expected a number of at least 0"),
    (lambda: plan(budget_ms=NAN), "budget_ms is nan"),
    (lambda: plan(budget_ms=True), "budget_ms is True"),
    (lambda: solve(budget_ms=-1), "budget_ms is -1"),
    (lambda: plan(seed=True), "seed is True"),
    (lambda: plan(seed=1.5), "seed is 1.5"),
    (lambda: plan(goal_index=0.9), "goal_index is 0.9"),
    (lambda: plan(goal_index=True), "goal_index is True"),
    (lambda: plan(goal_threshold=NAN), "goal_threshold is nan"),
    (lambda: plan(goal_threshold=-1), "goal_threshold is -1"),
    (lambda: CEM(sample_noise_per_step="no"), "sample_noise_per_step is 'no'; expected True or False"),
    (lambda: CEM(sample_noise_per_step=0), "sample_noise_per_step is 0"),
    (lambda: build_solver("cem", sample_noise_per_step="no"), "sample_noise_per_step is 'no'"),
    (lambda: CEM(momentum=False), "momentum is False"),
    (lambda: MPPI(relative_temperature="false"), "relative_temperature is 'false'"),
    (lambda: MPPI(refit_std="no"), "refit_std is 'no'"),
    (lambda: MPPI(temperature=True), "temperature is True"),
    (lambda: ICEM(kept_elites=True), "kept_elites is True"),
    (lambda: GradientDescent(learning_rate=True), "learning_rate is True"),
    (lambda: builders.build_planner(options={"num_samples": 1.0}), "num_samples is 1.0; expected an integer"),
    (lambda: builders.build_planner(options={"num_samples": True}), "num_samples is True"),
    (lambda: builders.build_planner(options={"uncertainty_weight": NAN}), "uncertainty_weight is nan"),
    (lambda: score(num_samples=1.0), "num_samples is 1.0"),
    (lambda: score(uncertainty_weight=NAN), "uncertainty_weight is nan"),
    (lambda: score(candidate_chunk_size=True), "candidate_chunk_size is True"),
    (lambda: landscape(dims=(0.0, 1.0)), r"dims is \(0.0, 1.0\)"),
    (lambda: landscape(dims=(False, True)), r"dims is \(False, True\)"),
    (lambda: landscape(step=False), "step is False"),
    (lambda: landscape(actions=torch.full((1, 2), NAN)), "actions is a Tensor .* expected finite numbers"),
    (lambda: LatentDistance("l1", summed="no"), "summed is 'no'"),
    (lambda: ProprioDistance(dims=[0.9]), "dims is 0.9; expected an integer"),
    (lambda: ProprioDistance(dims=[True]), "dims is True"),
    (lambda: ProprioDistance(summed=1), "summed is 1"),
    (lambda: LatentDistance() * True, "weight of a cost is True"),
    (lambda: NAN * ActionPenalty(), "weight of a cost is nan"),
    (lambda: Fixed([1.7]), "dim is 1.7; expected an integer"),
    (lambda: Fixed([True]), "dim is True"),
    (lambda: Fixed([]), "dims is "),
    (lambda: ClosedGripper(0, exact="no"), "exact is 'no'"),
    (lambda: ClosedGripper(0, value=NAN), "value is nan"),
    (lambda: ClosedGripper(0, dim=0.5), "dim is 0.5"),
    (lambda: DeadZone(0, True), "below is True"),
    (lambda: DeadZone(0.5, 0.25), "dim is 0.5"),
    (lambda: StepBounds([[], []], [[], []]), "low is"),
    (lambda: shift_plan(torch.zeros(2, 3, 4), steps=-1), "steps is -1"),
    (lambda: shift_plan(torch.zeros(2, 3, 4), steps=0.5), "steps is 0.5"),
    # Models
    (lambda: masked(mask_token_index=12), "mask_token_index is 12; expected an integer from 0 to 9"),
    (lambda: masked(mask_token_index=-1), "mask_token_index is -1"),
    (lambda: masked(mask_token_index=True), "mask_token_index is True"),
    (lambda: masked(targets=torch.zeros(2, 32, 1)), r"targets have shape \(2, 32, 1\); expected \(2, 32, 24\)"),
    (lambda: model("masked").predict_future(builders.clips(), 2, autoregressive="no"), "autoregressive is 'no'"),
    (lambda: model("encoder")(torch.zeros(0, 4, 3, 32, 32)), "pixel_values_videos has no clip"),
    (lambda: model("encoder").encode(torch.zeros(0, 4, 3, 32, 32), pool="clip"), "has no clip"),
    (lambda: model("encoder").encode_long(rand(6, 3, 32, 32), chunk_frames=4, stride=True), "stride is True"),
    (lambda: model("encoder").encode_long(rand(6, 3, 32, 32), chunk_frames=4, overlap=False), "overlap is False"),
    (lambda: model("wm").encode(torch.zeros(0, 2, 3, 32, 32)), "has no clip"),
    (lambda: rollout(use_cache="no"), "use_cache is 'no'"),
    (lambda: train(teacher_forcing_weight=NAN), "teacher_forcing_weight is nan"),
    (lambda: train(rollout_weight=-1.0), "rollout_weight is -1.0"),
    (lambda: train(latents=torch.zeros(0, 3, 16, 24)), r"latents has shape \(0, 3, 16, 24\)"),
    (
        lambda: VJepa2WorldModel(copy.deepcopy(model("unfitted").config)).fit_state(torch.full((2, 6, 16, 24), NAN)),
        "latents hold numbers that are not finite",
    ),
    (lambda: move_pose(torch.zeros(2, 6), torch.zeros(2, 7)), r"pose is a Tensor of shape \(2, 6\)"),
    (lambda: move_pose(torch.zeros(2, 7), torch.zeros(2, 8)), r"action is a Tensor of shape \(2, 8\)"),
    # Configs
    (lambda: VJepa2EncoderConfig(hidden_size=2**40), "hidden_size is 1099511627776"),
    (
        lambda: VJepa2MaskedLatentPredictionConfig(predictor_query_key_bias=NAN),
        "predictor_query_key_bias is nan; expected a finite number",
    ),
    (lambda: world_model_config(action_low=[True, False]), "action_low holds True"),
    (lambda: world_model_config(predictor_initializer_range=0.0), "predictor_initializer_range is 0.0"),
    (lambda: world_model_config(reward_mean=NAN), "reward_mean is nan"),
    (lambda: VJepa2VideoClassificationConfig(num_labels=True), "num_labels is True"),
    (lambda: VJepa2PixelDecoderConfig(image_std=[True, True, True]), "image_std is"),
    # Processor
    (lambda: process({"image_std": [0.0, 1.0, 1.0]}), "image_std is 0.0; expected a finite number above 0"),
    (lambda: process({"image_std": 0}), "image_std is 0"),
    (lambda: process({"image_std": [NAN] * 3}), "image_std is nan"),
    (lambda: process({"image_mean": [NAN, 0, 0]}), "image_mean is nan"),
    (lambda: process({"rescale_factor": NAN}), "rescale_factor is nan"),
    (lambda: process({"rescale_factor": -1}), "rescale_factor is -1"),
    (lambda: process({"do_normalize": "no"}), "do_normalize is 'no'"),
    (lambda: process(do_rescale="false"), "do_rescale is 'false'"),
    (lambda: process(image_std=[0.0] * 3), "image_std is 0.0"),
    (lambda: process(crop_size=80_000), "crop_size is 80000"),
    (lambda: VJepa2VideoProcessor(crop_size="large"), "crop_size is 'large'"),
    (lambda: VJepa2VideoProcessor(crop_size=0), "crop_size is 0"),
    (lambda: RandomResizedClip(16, flip_probability=NAN), "flip_probability is nan"),
    (lambda: RandomResizedClip(True), "crop_size is True"),
    (lambda: RandomResizedClip(16, ratio=(1, float("inf"))), "ratio is"),
    # Pipelines
    (lambda: detector(two_sided="no"), "two_sided is 'no'"),
    (lambda: detector(stride=True), "stride is True"),
    (lambda: detector(top_fraction=True), "top_fraction is True"),
    (lambda: detector(window_batch_size=True), "window_batch_size is True"),
    (lambda: detector(context_frames=2, future_frames=2).calibrate([]), "normal_videos is"),
    (
        lambda: detector(context_frames=2, future_frames=2).calibrate(builders.noise_frames(8), True),
        "quantile is True",
    ),
    (lambda: model("features")([]), "videos is"),
    (lambda: model("features")(builders.noise_frames(4, 32, 32), stride=True), "stride is True"),
    (lambda: model("features")(builders.noise_frames(4, 32, 32), return_tensors="no"), "return_tensors is 'no'"),
    # Masks
    (lambda: PeriodicMask(True), "period is True"),
    (lambda: MultiRateMask(horizons=(True, 2)), "horizons is"),
    (lambda: FutureMask(True), "context_ratio is True"),
    (lambda: MultiBlockMask(num_blocks=True), "num_blocks is True"),
    (lambda: RandomFrameMask()(True, (4, 4, 4)), "batch_size is True"),
    (lambda: FutureMask()(1, (4.0, 4, 4)), "grid is"),
    (lambda: MultiBlockMask()(1, (4, 4, 4), np.random.default_rng(0)), "generator is"),
    # Metrics
    (lambda: is_in_top_k(SCORES, CLASSES + 0.5), "labels lie in 0.5 to 3.5"),
    (lambda: is_in_top_k(SCORES, np.full(4, NAN)), "labels lie in nan to nan"),
    (lambda: is_in_top_k(SCORES, CLASSES, k=1.5), "k is 1.5"),
    (lambda: class_mean_recall(SCORES, CLASSES * 0.9), "labels lie in 0 to 2.7"),
    (lambda: confusion_matrix(CLASSES * 0.7, CLASSES), "guesses is"),
    (lambda: confusion_matrix(CLASSES, CLASSES, classes=True), "classes is True"),
    (lambda: r_squared(np.full((4, 2), NAN), np.arange(8.0).reshape(4, 2)), "predictions hold numbers"),
    (lambda: summarize_success([True, False], distances=[1.0, 2.0], bins=True), "bins is True"),
    (lambda: summarize_success([True, False], distances=[1.0, 2.0], bins=[NAN]), "bins is"),
    (lambda: rollout_error(True), "a horizon is True"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_is_refused_with_a_sentence_that_names_it(call, message):
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_at_least_seventy_are_listed():
    assert len(REFUSED) >= 70


ACTIONS = rand(2, 3, 2, 2)
FLOATS = torch.tensor([0.25, 0.5])

SAME = [
    (lambda: score(actions=ACTIONS.numpy()), lambda: score(actions=ACTIONS)),
    (lambda: score(actions=ACTIONS.double()), lambda: score(actions=ACTIONS)),
    (lambda: score(actions=ACTIONS.tolist()), lambda: score(actions=ACTIONS)),
    (lambda: score(observation=rand(2, 1, 16, 24).double()), lambda: score()),
    (lambda: score(num_samples=np.int64(1)), lambda: score()),
    (lambda: rollout(actions=rand(2, 2, 2).numpy()), lambda: rollout()),
    (lambda: rollout(latents=rand(2, 1, 16, 24).double()), lambda: rollout()),
    (
        lambda: (
            train(actions=rand(2, 2, 2).numpy(), proprio_states=rand(2, 3, 2).numpy(), rewards=rand(2, 2).numpy()).loss
        ),
        lambda: train().loss,
    ),
    (lambda: train(latents=rand(2, 3, 16, 24).double()).loss, lambda: train().loss),
    (lambda: model("encoder").encode(builders.clips().double()), lambda: model("encoder").encode(builders.clips())),
    (lambda: classify(torch.tensor([1, 2], dtype=torch.int32)), lambda: classify(torch.tensor([1, 2]))),
    (lambda: classify(torch.tensor([1, 2], dtype=torch.uint8)), lambda: classify(torch.tensor([1, 2]))),
    (lambda: torch.tensor(plan(seed=np.int64(3))["actions"]), lambda: torch.tensor(plan(seed=3)["actions"])),
    (lambda: torch.tensor(plan(goal_index=np.int64(0))["actions"]), lambda: torch.tensor(plan()["actions"])),
    (lambda: torch.tensor(plan(budget_ms=float("inf"))["actions"]), lambda: torch.tensor(plan()["actions"])),
    (
        lambda: solve(warm_start=np.zeros((1, 2, 2)), generator=torch.Generator().manual_seed(0)).actions,
        lambda: solve(warm_start=torch.zeros(1, 2, 2), generator=torch.Generator().manual_seed(0)).actions,
    ),
    (
        lambda: (
            solve(CEM(np.int64(2), 8, 2, 2, momentum=np.float32(0.5)), generator=torch.Generator().manual_seed(0)).cost
        ),
        lambda: solve(CEM(2, 8, 2, 2, momentum=0.5), generator=torch.Generator().manual_seed(0)).cost,
    ),
    (
        lambda: process({"image_std": np.array([0.5, 0.25, 0.5])})["pixel_values_videos"],
        lambda: process({"image_std": [0.5, 0.25, 0.5]})["pixel_values_videos"],
    ),
    (
        lambda: MultiBlockMask(num_blocks=np.int64(2))(2, (4, 4, 4), torch.Generator().manual_seed(0))[0],
        lambda: MultiBlockMask(num_blocks=2)(2, (4, 4, 4), torch.Generator().manual_seed(0))[0],
    ),
    (
        lambda: torch.tensor(LearningRateSchedule("linear", np.float64(0.5), warmup_steps=np.int64(3)).at(5, 10)),
        lambda: torch.tensor(LearningRateSchedule("linear", 0.5, warmup_steps=3).at(5, 10)),
    ),
    (
        lambda: torch.tensor(confusion_matrix(torch.tensor([0, 1]), torch.tensor([0, 0]))),
        lambda: torch.tensor([[1, 1], [0, 0]]),
    ),
]


@pytest.mark.parametrize(("call", "plain"), SAME)
def test_gives_what_its_plain_form_gives(call, plain):
    found, expected = call(), plain()
    assert found.shape == expected.shape and torch.isfinite(found.float()).all()
    torch.testing.assert_close(found, expected)


def test_a_plan_goes_back_into_score_and_rollout():
    found = plan()
    costs = score(actions=found["actions"][None, None].repeat(2, axis=0))
    assert costs.shape == (2, 1) and torch.isfinite(costs).all()
    assert rollout(actions=found["actions"][None].repeat(2, axis=0)).shape == (2, 3, 16, 24)


def test_whole_numbers_are_labels_of_a_regression():
    torch.manual_seed(0)
    whole = classify(torch.tensor([1, 2]), num_labels=1)
    torch.manual_seed(0)
    torch.testing.assert_close(whole, classify(torch.tensor([1.0, 2.0]), num_labels=1))
    whole.backward()
