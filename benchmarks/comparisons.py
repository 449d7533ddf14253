"""The three comparisons: models with the same weights on both sides, inputs, agreement checks, operation counts.

Shapes: B clips, N tokens of a clip (of a frame, when planning), K tokens kept, M targets, D width, d width of the
predictor or dynamics, J candidates, P horizon, A action.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from baselines import disturb_weights, our_weights, plain_cost, transformers_loss, transformers_model, update_target
from measure import Check, Comparison, DisagreementError, Workload, check_agreement
from torch import nn

from vjepa2_hf import (
    VJepa2Encoder,
    VJepa2ForMaskedLatentPrediction,
    VJepa2MaskedLatentPredictionConfig,
    VJepa2WorldModel,
    VJepa2WorldModelConfig,
)
from vjepa2_hf.masking import PUBLISHED_MASKS, build_mask_samplers
from vjepa2_hf.modeling_layers import gather_tokens
from vjepa2_hf.planning import CEM


SEED = 0
MASK_TOKEN = 1  # the one that transformers' predictor always takes
ACTION_DIM = 7
TOLERANCE = 1e-4  # float32, after a dozen layers
GRADIENT_TOLERANCE = 1e-3  # the L1 loss's gradient is a sign, which rounding turns where a prediction is almost right


@dataclass(frozen=True)
class ModelSize:
    """Width, layers and heads of encoder, predictor and dynamics. The default: ViT-S, the published predictor, and
    dynamics of the encoder's width."""

    encoder: tuple[int, int, int] = (384, 12, 6)
    predictor: tuple[int, int, int] = (384, 12, 12)
    dynamics: tuple[int, int, int] = (384, 6, 6)
    patch_size: int = 16
    tubelet_size: int = 2
    mlp_ratio: float = 4.0  # of the encoder

    def encoder_config(self, frames: int, side: int) -> dict[str, float]:
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads")
        sizes = dict(zip(names, self.encoder, strict=True))
        sizes.update(patch_size=self.patch_size, tubelet_size=self.tubelet_size, mlp_ratio=self.mlp_ratio)
        return {**sizes, "frames_per_clip": frames, "crop_size": side}

    def pretraining_config(self, frames: int, side: int) -> VJepa2MaskedLatentPredictionConfig:
        width, layers, heads = self.predictor
        return VJepa2MaskedLatentPredictionConfig(
            encoder_config=self.encoder_config(frames, side),
            predictor_hidden_size=width,
            predictor_num_hidden_layers=layers,
            predictor_num_attention_heads=heads,
        )

    def grid(self, frames: int, side: int) -> tuple[int, int, int]:
        return frames // self.tubelet_size, side // self.patch_size, side // self.patch_size


VIT_S = ModelSize()
VIT_L = ModelSize(encoder=(1024, 24, 16))
VIT_G = ModelSize(encoder=(1408, 40, 22), dynamics=(1024, 24, 16), mlp_ratio=48 / 11)  # V-JEPA 2-AC's dynamics
TINY = ModelSize(encoder=(48, 2, 2), predictor=(24, 1, 2), dynamics=(48, 2, 2))


# ---------------------------------------------------------------------------------------------- operations


def block_operations(tokens: int, keys: int, width: int, mlp_ratio: float = 4) -> int:
    """Matrix products of a transformer block: q, k, v, projection and MLP of `tokens`, attention over `keys`."""
    linear = 2 * tokens * width * (4 * width + 2 * int(width * mlp_ratio))
    return linear + 4 * tokens * keys * width  # scores, and weighted values


def embedding_operations(size: ModelSize, tokens: int) -> int:
    return 2 * tokens * (3 * size.tubelet_size * size.patch_size**2) * size.encoder[0]


def encoder_operations(size: ModelSize, tokens: int) -> int:
    """Forward of a clip with that many tokens kept."""
    width, layers, _ = size.encoder
    return embedding_operations(size, tokens) + layers * block_operations(tokens, tokens, width, size.mlp_ratio)


def predictor_operations(size: ModelSize, context: int, targets: int) -> int:
    """A clip's forward; only targets are projected back."""
    width, layers, _ = size.predictor
    tokens = context + targets
    mapped = 2 * (context + targets) * size.encoder[0] * width  # context into the predictor, targets out of it
    return mapped + layers * block_operations(tokens, tokens, width)


def pretraining_operations(size: ModelSize, tokens: int, masks: list[tuple[int, int]]) -> int:
    """A clip's step: target forward once; forward and backward (twice the forward) of encoder and predictor for every
    mask set (K, M). Pixels need no gradient. AdamW and EMA have no matrix products."""
    total = encoder_operations(size, tokens)
    for context, targets in masks:
        total += 3 * (encoder_operations(size, context) + predictor_operations(size, context, targets))
        total -= embedding_operations(size, context)
    return total


def rollout_operations(size: ModelSize, tokens: int, horizon: int) -> int:
    """One candidate's rollout from one frame: at step k the newest frame's tokens attend to k frames."""
    width, layers, _ = size.dynamics
    frame = tokens + 1  # and the action's
    per_step = 2 * (2 * tokens * size.encoder[0] * width) + 2 * ACTION_DIM * width
    return sum(per_step + layers * block_operations(frame, k * frame, width) for k in range(1, horizon + 1))


# ---------------------------------------------------------------------------------------------- encoder


class EncoderPair:
    """Our encoder and transformers' model with the same weights, and clips."""

    def __init__(self, size: ModelSize, batch_size: int, frames: int, side: int):
        torch.manual_seed(SEED)
        config = size.pretraining_config(frames, side)
        self.other = transformers_model(config).eval()
        weights = our_weights(self.other.state_dict())
        self.encoder = VJepa2Encoder(config.encoder_config).eval()
        self.encoder.load_state_dict(
            {name[8:]: value for name, value in weights.items() if name.startswith("encoder.")}
        )
        self.clips = torch.randn(batch_size, frames, 3, side, side)
        self.num_tokens = math.prod(size.grid(frames, side))
        self.operations = batch_size * encoder_operations(size, self.num_tokens)

    @torch.no_grad()
    def ours(self) -> torch.Tensor:
        return self.encoder(self.clips).last_hidden_state

    @torch.no_grad()
    def baseline(self) -> torch.Tensor:
        return self.other(self.clips, skip_predictor=True).last_hidden_state


def compare_encoder(size: ModelSize, batch_size: int, frames: int, side: int) -> Workload:
    """Forward of `VJepa2Encoder` against `VJEPA2Model(skip_predictor=True)`; checked: the tokens are the same."""
    pair = EncoderPair(size, batch_size, frames, side)
    checks = [check_agreement("tokens", pair.ours(), pair.baseline(), TOLERANCE)]
    return Workload(pair.ours, pair.baseline, checks, pair.operations, f"{pair.num_tokens} tokens per clip")


# ---------------------------------------------------------------------------------------------- pretraining


class PretrainingPair:
    """Both ways to pretrain, with the same weights, clips and published masks.

    Args:
        precision: makes the context of every forward, such as autocast.
    """

    def __init__(
        self,
        size: ModelSize,
        batch_size: int,
        frames: int,
        side: int,
        precision: Callable[[], AbstractContextManager] = nullcontext,
    ):
        torch.manual_seed(SEED)
        self.size, self.clip_shape, self.precision = size, (frames, 3, side, side), precision
        config = size.pretraining_config(frames, side)
        self.other, self.other_target = transformers_model(config), transformers_model(config)
        disturb_weights(self.other_target, seed=SEED + 1)  # equal weights would hide a mix-up
        self.other_target.requires_grad_(False)
        self.model = VJepa2ForMaskedLatentPrediction(config)
        target = our_weights(self.other_target.state_dict())
        target = {f"target_{name}": value for name, value in target.items() if name.startswith("encoder.")}
        self.model.load_state_dict({**our_weights(self.other.state_dict()), **target})

        self.grid = size.grid(frames, side)
        self.num_tokens = math.prod(self.grid)
        self.sample_batch(batch_size)

    def sample_batch(self, batch_size: int) -> None:
        """Replaces the clips and the masks."""
        device = next((self.model or self.other).parameters()).device
        self.clips = torch.randn(batch_size, *self.clip_shape, device=device)
        with torch.device("cpu"):
            generator = torch.Generator().manual_seed(SEED)
            masks = [sampler(batch_size, self.grid, generator) for sampler in build_mask_samplers(PUBLISHED_MASKS)]
        masks = [[ids.to(device) for ids in pair] for pair in masks]
        self.context_masks, self.target_masks = map(list, zip(*masks, strict=True))

    @property
    def mask_sizes(self) -> list[tuple[int, int]]:
        """Tokens of context and target (K, M) of every mask set."""
        return [(c.shape[1], t.shape[1]) for c, t in zip(self.context_masks, self.target_masks, strict=True)]

    @property
    def operations(self) -> int:
        """Of a step of the batch."""
        return len(self.clips) * pretraining_operations(self.size, self.num_tokens, self.mask_sizes)

    def our_backward(self) -> None:
        """Backward after each mask set, as in examples/pretrain.py."""
        targets = None
        for masks in zip(self.context_masks, self.target_masks, strict=True):
            with self.precision():
                output = self.model(self.clips, *masks, MASK_TOKEN, output_targets=True, targets=targets)
            (output.loss / len(self.target_masks)).backward()
            targets = output.targets

    def other_loss(self, context_masks: list[torch.Tensor]) -> torch.Tensor:
        with self.precision():
            return transformers_loss(self.other, self.other_target, self.clips, context_masks, self.target_masks)

    def other_backward(self) -> None:
        self.other_loss(self.context_masks).backward()

    def our_step(self, learning_rate: float = 1e-4) -> Callable[[], None]:
        return self._step(self.model, self.our_backward, self.model.update_target_encoder, learning_rate)

    def other_step(self, learning_rate: float = 1e-4) -> Callable[[], None]:
        update = partial(update_target, self.other, self.other_target)
        return self._step(self.other, self.other_backward, update, learning_rate)

    def _step(
        self, model: nn.Module, backward: Callable, update: Callable, learning_rate: float
    ) -> Callable[[], None]:
        """Forward, backward, AdamW (fused, the same on both sides) and EMA."""
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.04, fused=True)

        def step() -> None:
            backward()
            optimizer.step()
            optimizer.zero_grad()
            update(momentum=0.998)

        return step

    def check(self, tolerance: float = TOLERANCE, gradient_tolerance: float = GRADIENT_TOLERANCE) -> list[Check]:
        """The two ways differ by what the context encoder sees, so the losses of a step differ, and must. They agree
        where the whole clip is context: loss, every gradient and the EMA are compared there, with the step's own
        targets. With the step's own masks the predictors are compared, on the same context."""
        checks = [self._check_predictor(i, tolerance) for i in range(len(self.context_masks))]
        everything = torch.arange(self.num_tokens, device=self.clips.device).expand(len(self.clips), -1)
        whole = [everything] * len(self.target_masks)
        ours, other = self._our_loss_of_the_whole_clip(everything), self.other_loss(whole)
        checks.append(check_agreement("loss with the whole clip as context", ours, other, tolerance))
        ours.backward()
        other.backward()
        theirs = our_weights({name: _gradient(value) for name, value in self.other.named_parameters()})
        gradients = {name: _gradient(value) for name, value in self.model.named_parameters() if name in theirs}
        if set(gradients) != set(theirs):
            raise DisagreementError(f"parameters of one side only: {sorted(set(gradients) ^ set(theirs))}.")
        checks.append(
            check_agreement("gradients of that loss", _joined(gradients), _joined(theirs), gradient_tolerance)
        )
        self.model.zero_grad()
        self.other.zero_grad()

        self.model.update_target_encoder(momentum=0.998)
        update_target(self.other, self.other_target, momentum=0.998)
        theirs = our_weights(dict(self.other_target.encoder.named_parameters(prefix="encoder")))
        targets = dict(self.model.target_encoder.named_parameters(prefix="encoder"))
        checks.append(check_agreement("target encoder after EMA", _joined(targets), _joined(theirs), tolerance))
        return checks

    def _our_loss_of_the_whole_clip(self, everything: torch.Tensor) -> torch.Tensor:
        """The steps of `forward`, which itself refuses targets that the context holds."""
        targets = self.model.normalize_targets(self.model.encode_targets(self.clips))
        context = self.model.encoder(self.clips, context_mask=everything).last_hidden_state
        predicted = [
            self.model.predictor(context, everything, ids, self.grid, MASK_TOKEN) for ids in self.target_masks
        ]
        selected = [gather_tokens(targets, ids) for ids in self.target_masks]
        return torch.stack([self.model.latent_loss(p, z) for p, z in zip(predicted, selected, strict=True)]).mean()

    @torch.no_grad()
    def _check_predictor(self, index: int, tolerance: float) -> Check:
        context_ids, target_ids = self.context_masks[index], self.target_masks[index]
        shape = (len(self.clips), self.num_tokens, self.model.config.encoder_config.hidden_size)
        encoded = torch.randn(shape, device=self.clips.device)
        ours = self.model.predictor(
            gather_tokens(encoded, context_ids), context_ids, target_ids, self.grid, mask_token_index=MASK_TOKEN
        )
        other = self.other.predictor(encoded, [context_ids], [target_ids]).last_hidden_state
        return check_agreement(f"predictions of mask set {index} from given latents", ours, other, tolerance)


def _gradient(parameter: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


@torch.no_grad()
def _joined(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def compare_pretraining(size: ModelSize, batch_size: int, frames: int, side: int) -> Workload:
    """One step of masked latent prediction against transformers' way; see `PretrainingPair.check` for what agrees."""
    pair = PretrainingPair(size, batch_size, frames, side)
    checks = pair.check()
    sizes = " and ".join(f"{context} context + {targets} target" for context, targets in pair.mask_sizes)
    note = f"Sampled masks (published sets, seed {SEED}): {sizes} of {pair.num_tokens} tokens."
    return Workload(pair.our_step(), pair.other_step(), checks, pair.operations, note)


# ---------------------------------------------------------------------------------------------- planning


class PlanningPair:
    """Both ways to plan from one frame to a goal, with the same weights, noise and solver."""

    def __init__(self, size: ModelSize, side: int, horizon: int, candidates: int, chunk_size: int | None = None):
        torch.manual_seed(SEED)
        width, layers, heads = size.dynamics
        self.world_model = VJepa2WorldModel(
            VJepa2WorldModelConfig(
                encoder_config=size.encoder_config(2, side),
                action_dim=ACTION_DIM,
                predictor_hidden_size=width,
                predictor_num_hidden_layers=layers,
                predictor_num_attention_heads=heads,
                context_frames=max(8, horizon),
            )
        ).eval()
        disturb_weights(self.world_model)
        with torch.no_grad():  # otherwise costs would differ by rounding alone
            self.world_model.predictor.action_encoder.weight.mul_(50)
        latents = self.world_model.encode(torch.randn(1, 2, 3, side, side))
        self.latents, self.goal = latents[:, :1], latents[:, 1:]
        self.solver = CEM(horizon, num_candidates=candidates, num_iterations=1, num_elites=math.ceil(candidates / 10))
        self.chunk_size = chunk_size

    def our_cost(self, actions: torch.Tensor) -> torch.Tensor:
        return self.world_model.score(self.latents, self.goal, actions, candidate_chunk_size=self.chunk_size)

    def other_cost(self, actions: torch.Tensor) -> torch.Tensor:
        return plain_cost(self.world_model, self.latents, self.goal, actions)

    def plan(self, cost: Callable[[torch.Tensor], torch.Tensor]):
        generator = torch.Generator().manual_seed(SEED)
        device = self.latents.device
        return self.solver(cost, batch_size=1, action_dim=ACTION_DIM, generator=generator, device=device)

    def check(self) -> list[Check]:
        """Cost of every candidate and the plans themselves; refuses a task whose candidates cost nearly the same."""
        seen = {}

        def recorded(name: str, cost: Callable) -> Callable:
            def call(actions: torch.Tensor) -> torch.Tensor:
                return seen.setdefault(name, []).append(cost(actions)) or seen[name][-1]

            return call

        ours = self.plan(recorded("ours", self.our_cost))
        other = self.plan(recorded("other", self.other_cost))
        costs = torch.cat(seen["other"], dim=1)
        checks = [check_agreement("cost of the candidates", torch.cat(seen["ours"], dim=1), costs, TOLERANCE)]
        spread = (costs.std() / costs.mean()).item()
        if spread < 10 * checks[0].difference:
            raise DisagreementError(
                f"the candidates' costs vary by {spread:.0e} only: the plans' agreement means nothing."
            )
        return [*checks, check_agreement("actions of the plans", ours.actions, other.actions, TOLERANCE)]


def compare_planning(size: ModelSize, side: int, horizon: int, candidates: int) -> Workload:
    """One CEM plan, block-causal, against recomputing every candidate's whole sequence at every step."""
    pair = PlanningPair(size, side, horizon, candidates)
    checks = pair.check()
    tokens = pair.latents.shape[2]
    evaluated = candidates * pair.solver.num_iterations + 1  # and the plan itself
    operations = evaluated * rollout_operations(size, tokens, horizon)
    note = f"H = {horizon}, {tokens} tokens per frame, {candidates} candidates, 1 iteration, latents given."
    ours, other = partial(pair.plan, pair.our_cost), partial(pair.plan, pair.other_cost)
    return Workload(ours, other, checks, operations, note, warm=True)


# ---------------------------------------------------------------------------------------------- what is run


def _encoder(size: ModelSize, batch_size: int, frames: int, side: int) -> Comparison:
    build = partial(compare_encoder, size, batch_size, frames, side)
    return Comparison("encoder_forward", f"{batch_size} x {frames}x{side}^2", "transformers", build)


def _pretraining(size: ModelSize, batch_size: int, frames: int, side: int) -> Comparison:
    build = partial(compare_pretraining, size, batch_size, frames, side)
    return Comparison(
        "pretraining_step", f"{batch_size} x {frames}x{side}^2", "transformers way", build, profiled=True
    )


def _planning(size: ModelSize, side: int, horizon: int, candidates: int) -> Comparison:
    build = partial(compare_planning, size, side, horizon, candidates)
    return Comparison("cem_plan", f"H={horizon}, {candidates} candidates", "recompute all", build, profiled=True)


# Horizon and candidates. With few of both, the plan's own cost, of one candidate, is much of the time
PLANS = ((2, 32), (5, 16), (10, 16))


COMPARISONS: dict[str, list[Comparison]] = {
    "tiny": [_encoder(TINY, 1, 4, 32), _pretraining(TINY, 2, 4, 64), _planning(TINY, 32, 2, 4)],
    "default": [
        _encoder(VIT_S, 1, 16, 128),
        _pretraining(VIT_S, 2, 16, 128),
        *(_planning(VIT_S, 128, *plan) for plan in PLANS),
    ],
    "full": [
        _encoder(VIT_S, 1, 16, 128),
        _encoder(VIT_S, 1, 16, 224),
        _pretraining(VIT_S, 2, 16, 128),
        _pretraining(VIT_S, 1, 16, 224),
        *(_planning(VIT_S, 128, *plan) for plan in PLANS),
    ],
}
