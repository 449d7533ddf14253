"""Configuration of the video classifier."""

from typing import Literal

from transformers import PreTrainedConfig

from .configuration_vjepa2 import (
    VJepa2EncoderConfig,
    VJepa2MaskedLatentPredictionConfig,
    VJepa2NestedConfig,
    check,
    check_choice,
    check_heads,
    check_numbers,
    strict_config,
)
from .specs import check_count, describe


MAX_LABELS = 2**20


@strict_config
class VJepa2VideoClassificationConfig(VJepa2NestedConfig, PreTrainedConfig):
    r"""Configuration of [`VJepa2ForVideoClassification`]: an encoder's tokens, a pooler and a linear head.

    encoder_config (`dict` or [`VJepa2EncoderConfig`]): the encoder.
    encoder_layers (list of `int` or `None`): blocks, from 0, whose outputs (each through its own norm, if it is one of
        the encoder's `output_levels`, else through the final one) are concatenated to one longer sequence of tokens,
        as in published probes on several layers. `None`: the last.
    Pooler:
        pooler_type (`str`, defaults to "attentive"; "linear" is the average of all tokens).
        num_pooler_layers (`int`, defaults to 3): self-attention blocks before the cross-attention block.
        pooler_num_attention_heads (`int`, defaults to 16): published for every backbone. (transformers uses the
            backbone's number, 22 for ViT-g, which computes another function.)
        pooler_layer_norm_eps (`float`, defaults to 1e-5), pooler_mlp_ratio (`float`, defaults to 4.0): published.
        pooler_time_positions (`bool`, defaults to `False`, published): add sin-cos positions in time to the tokens of
            an attentive pooler. Its attention is permutation-invariant, and the tokens of a small encoder carry little
            position information.
        pooler_space_positions (`bool`, defaults to `False`, published): the same for rows and columns; frames must be
            square.
    Head:
        labels_per_frame (`bool`, defaults to `False`): logits per tubelet, computed from its own tokens (after the
            self-attention of an attentive pooler over the whole clip); for event detection (temporal recipe).
        num_neighbors (`int`, defaults to 0): above 0, a k-NN classifier with this many neighbors replaces the linear
            layer; for a linear pooler and one label per clip. It stores `num_stored_views` views (`int`, defaults to
            0).
        neighbor_temperature (`float`, defaults to 0.07): of the neighbors' weights, exp(cosine / temperature); DINO's.
        initializer_range (`float`, defaults to 0.02): standard deviation of the truncated normal of new weights.
    Anticipation:
        predicted_frames (`int`, defaults to 0): above 0, the attentive pooler also reads the tokens that a
            masked-latent predictor expects for this many frames after the clip, as in the published evaluation of
            action anticipation. A multiple of the tubelet size.
        skipped_frames (`int`, defaults to 0): frames between the clip and the predicted ones, a multiple of the
            tubelet size. Published: the time until the action, and one predicted tubelet.
        predictor_config (`dict` or `None`): `VJepa2MaskedLatentPredictionConfig.predictor_fields()` of the predictor.
    """

    model_type = "vjepa2_hf_video_classification"
    sub_configs_defaults = {"encoder_config": VJepa2EncoderConfig}
    renamed_fields = {
        "num_neighbours": "num_neighbors",
        "neighbour_temperature": "neighbor_temperature",
        "pooler_place_positions": "pooler_space_positions",
    }

    encoder_config: dict | PreTrainedConfig | None = None

    pooler_type: Literal["attentive", "linear"] = "attentive"
    num_pooler_layers: int = 3
    pooler_num_attention_heads: int = 16
    pooler_layer_norm_eps: float = 1e-5
    pooler_mlp_ratio: int | float = 4.0
    encoder_layers: list | None = None
    pooler_time_positions: bool = False
    pooler_space_positions: bool = False
    labels_per_frame: bool = False
    num_neighbors: int = 0
    num_stored_views: int = 0
    neighbor_temperature: float = 0.07
    predicted_frames: int = 0
    skipped_frames: int = 0
    predictor_config: dict | None = None
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        kwargs = self._read_renamed(kwargs)
        if kwargs.get("num_labels") is not None:  # transformers makes a dict of so many names
            kwargs["num_labels"] = check_count("num_labels", kwargs["num_labels"], highest=MAX_LABELS)
        counts = "num_pooler_layers num_neighbors num_stored_views predicted_frames skipped_frames"
        positive = "pooler_mlp_ratio pooler_layer_norm_eps neighbor_temperature initializer_range"
        check_numbers(self, positive, counts)
        if self.num_neighbors:
            check(
                self.pooler_type == "linear" and not self.labels_per_frame and self.num_stored_views > 0,
                f"num_neighbors is {self.num_neighbors}; expected 0, or pooler_type 'linear', labels_per_frame "
                "False and num_stored_views above 0.",
            )
        super().__post_init__(**self._refuse_unknown(kwargs))
        check_numbers(self, positive="num_labels")
        problems = (None, "regression", "single_label_classification", "multi_label_classification")
        check_choice("problem_type", self.problem_type, problems)
        wanted, named = list(range(self.num_labels)), list(self.id2label)
        check(sorted(named) == wanted, f"id2label names {named[:8]}; expected every number from 0 to {wanted[-1]}.")
        layers, depth = self.encoder_layers, self.encoder_config.num_hidden_layers
        valid = not layers or all(type(layer) is int and 0 <= layer < depth for layer in layers)
        check(
            layers is None or valid and len(set(layers)) == len(layers) > 0,
            f"encoder_layers is {layers}; expected different block numbers from 0 to {depth - 1}, or None.",
        )
        if self.predicted_frames or self.skipped_frames or self.predictor_config is not None:
            self._check_predictor()
        if self.pooler_type == "attentive":
            size, heads = self.encoder_config.hidden_size, self.pooler_num_attention_heads
            check_heads("hidden_size", size, "pooler_num_attention_heads", heads)

    @property
    def masked_latent_config(self) -> VJepa2MaskedLatentPredictionConfig:
        """The configuration that the predictor is built from."""
        encoder_config = self.encoder_config.to_dict()
        return VJepa2MaskedLatentPredictionConfig(encoder_config=encoder_config, **(self.predictor_config or {}))

    def _check_predictor(self) -> None:
        tubelet, own = self.encoder_config.tubelet_size, self.predictor_config is not None
        check(
            own and self.predicted_frames > 0 and self.predicted_frames % tubelet == 0,
            f"predicted_frames is {self.predicted_frames}, skipped_frames {self.skipped_frames} and predictor_config "
            f"{describe(self.predictor_config)}; expected a multiple of the tubelet size {tubelet} above 0 and the "
            "fields of a predictor, or 0, 0 and None.",
        )
        skips = f"skipped_frames is {self.skipped_frames}; expected a multiple of the tubelet size {tubelet}."
        check(self.skipped_frames % tubelet == 0, skips)
        check(
            self.pooler_type == "attentive" and not self.labels_per_frame and self.encoder_layers is None,
            f"predicted_frames={self.predicted_frames} needs pooler_type 'attentive', labels_per_frame False and "
            f"encoder_layers None; got {self.pooler_type!r}, {self.labels_per_frame} and {self.encoder_layers}.",
        )
        latents = self.masked_latent_config.target_type != "pixels"
        check(latents, "predictor_config has target_type 'pixels'; expected a predictor of latents.")
        width, size = self.masked_latent_config.teacher_hidden_size, self.encoder_config.hidden_size
        expected = f"expected None or {size}, the encoder's hidden_size: the pooler reads both kinds of tokens."
        check(width in (None, size), f"predictor_config has teacher_hidden_size {width}; {expected}")
