"""Writes the model cards of the released models, as `vjepa2_hf.convert_checkpoints` converts them.

    python model_cards/write_cards.py

The cards hold facts of configs and of models on the meta device. Released weights are not used.
"""

from pathlib import Path

import torch

from vjepa2_hf import VJepa2ForMaskedLatentPrediction, VJepa2ForVideoClassification, VJepa2WorldModel
from vjepa2_hf.hub.model_card import CardFacts, build_model_card


_CLASSES = {
    "encoder and predictor": VJepa2ForMaskedLatentPrediction,
    "classifier of Something-Something v2": VJepa2ForVideoClassification,
    "world model": VJepa2WorldModel,
}
_SSV2 = {"num_labels": 174}
# Card -> backbone, preset, part, published file, name on the Hub, fields of the config that differ from the preset
_RELEASED = {
    "vjepa2_large": ("ViT-L", "large", "encoder and predictor", "vitl.pt", "vitl-fpc64-256", {}),
    "vjepa2_huge": ("ViT-H", "huge", "encoder and predictor", "vith.pt", "vith-fpc64-256", {}),
    "vjepa2_giant": ("ViT-g", "giant", "encoder and predictor", "vitg.pt", "vitg-fpc64-256", {}),
    "vjepa2_large_classifier": (
        "ViT-L", "large", "classifier of Something-Something v2", "ssv2-vitl-16x2x3.pt", "vitl-fpc16-256-ssv2",
        {**_SSV2, "encoder_config": {"frames_per_clip": 16}},
    ),
    "vjepa2_giant_classifier": (
        "ViT-g", "giant", "classifier of Something-Something v2", "ssv2-vitg-384-64x2x3.pt", "vitg-fpc64-384-ssv2",
        {**_SSV2, "encoder_config": {"crop_size": 384}},
    ),
    "vjepa2_1_base": (
        "ViT-B", "2.1-base", "encoder and predictor", "vjepa2_1_vitb_dist_vitG_384.pt", None, {},
    ),
    "vjepa2_1_large": (
        "ViT-L", "2.1-large", "encoder and predictor", "vjepa2_1_vitl_dist_vitG_384.pt", None, {},
    ),
    "vjepa2_1_giant": ("ViT-g", "2.1-giant", "encoder and predictor", "vjepa2_1_vitg_384.pt", None, {}),
    "vjepa2_1_gigantic": ("ViT-G", "2.1-gigantic", "encoder and predictor", "vjepa2_1_vitG_384.pt", None, {}),
    "vjepa2_ac_giant": ("ViT-g", "giant", "world model", "vjepa2-ac-vitg.pt", None, {}),
}  # fmt: skip


def published_cards() -> dict[str, str]:
    """The cards by file name."""
    cards = {}
    for card, (backbone, preset, part, file, hub_name, fields) in _RELEASED.items():
        model_class = _CLASSES[part]
        with torch.device("meta"):
            model = model_class(model_class.config_class.from_preset(preset, **fields))
        version = "V-JEPA 2.1" if preset.startswith("2.1-") else "V-JEPA 2"
        title = f"{version}{'-AC' if part == 'world model' else ''} {backbone}, converted: {part}"
        source = f"`{file}`" + (" (with `--encoder`)" if model_class is VJepa2ForVideoClassification else "")
        source += f", or `facebook/vjepa2-{hub_name}` of transformers" if hub_name else ""
        model.card_facts = CardFacts(source=source, title=title)
        cards[f"{card}.md"] = str(build_model_card(model, load_from="OUT_DIR", published=True))
    return cards


def main(folder: Path = Path(__file__).parent) -> None:
    for name, text in published_cards().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
