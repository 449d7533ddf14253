"""Masked latent prediction with `transformers.Trainer`: the target encoder's moving average as a callback.

    model = VJepa2ForMaskedLatentPrediction(config)
    schedule = MomentumSchedule("cosine", start=0.996, final=1.0)  # from vjepa2_hf.training.schedules; or a number
    Trainer(model, arguments, train_dataset=clips, data_collator=masks, callbacks=[TargetEncoderCallback(schedule)])

The collator returns `pixel_values_videos`, `context_mask` and `target_mask` (`vjepa2_hf.data.clips.MaskCollator`, or
with samplers of `vjepa2_hf.masking`). Trainer computes an `eval_loss` only when it knows the labels' names: give
`TrainingArguments(label_names=["target_mask"])`, and `["actions"]` for a world model.
"""

from transformers import TrainerCallback
from transformers.modeling_utils import unwrap_model

from .schedules import MomentumSchedule


class TargetEncoderCallback(TrainerCallback):
    """Moves the target encoder after every step: ξ ← τ ξ + (1 − τ) θ (two-phase recipe, Algorithm 1, line 13).

    The momentum depends on Trainer's step alone, so a resumed run continues the schedule without a state.

    Args:
        momentum: τ, a number between 0 and 1 for every step, or a schedule over the run's steps.

    Raises:
        ValueError: the momentum is not between 0 and 1; when training begins, the model has no target encoder.
    """

    def __init__(self, momentum: float | MomentumSchedule = 0.99925):
        self.schedule = momentum if isinstance(momentum, MomentumSchedule) else MomentumSchedule(start=momentum)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Refuses a model without a target encoder."""
        if not hasattr(unwrap_model(model), "target_encoder"):
            raise ValueError(
                f"TargetEncoderCallback got a {type(unwrap_model(model)).__name__}, which has no target encoder; "
                "train a VJepa2ForMaskedLatentPrediction, a VJepa2WorldModel with freeze_encoder=False, or leave the "
                "callback out."
            )

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """Updates the target encoder after every optimizer step."""
        # Once per optimizer step (micro-batches end in `on_substep_end`), already counted, and before any checkpoint
        momentum = self.schedule.at(state.global_step, state.max_steps)
        unwrap_model(model).update_target_encoder(momentum)


__all__ = ["TargetEncoderCallback"]
