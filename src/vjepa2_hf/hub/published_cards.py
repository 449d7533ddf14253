"""Model cards of the released models, as `vjepa2_hf.convert_checkpoints` converts them.

python -m vjepa2_hf.hub.published_cards model_cards
"""

import argparse
from pathlib import Path

import torch

from ..modeling_classification import VJepa2ForVideoClassification
from ..modeling_masked_latent import VJepa2ForMaskedLatentPrediction
from ..modeling_world_model import VJepa2WorldModel
from .model_card import CardFacts, build_model_card


_CLASSIFIER = {"num_labels": 174}  # of Something-Something v2
# File of the card -> class, preset, title, published file and Hub id, fields of the config that differ from the preset
_RELEASED = {
    "vjepa2_large.md": (
        VJepa2ForMaskedLatentPrediction, "large", "V-JEPA 2 ViT-L, converted: encoder and predictor",
        "`vitl.pt`, or `facebook/vjepa2-vitl-fpc64-256` of transformers", {},
    ),
    "vjepa2_huge.md": (
        VJepa2ForMaskedLatentPrediction, "huge", "V-JEPA 2 ViT-H, converted: encoder and predictor",
        "`vith.pt`, or `facebook/vjepa2-vith-fpc64-256` of transformers", {},
    ),
    "vjepa2_giant.md": (
        VJepa2ForMaskedLatentPrediction, "giant", "V-JEPA 2 ViT-g, converted: encoder and predictor",
        "`vitg.pt`, or `facebook/vjepa2-vitg-fpc64-256` of transformers", {},
    ),
    "vjepa2_large_classifier.md": (
        VJepa2ForVideoClassification, "large", "V-JEPA 2 ViT-L, converted: classifier of Something-Something v2",
        "`ssv2-vitl-16x2x3.pt` (with `--encoder`), or `facebook/vjepa2-vitl-fpc16-256-ssv2` of transformers",
        {**_CLASSIFIER, "encoder_config": {"frames_per_clip": 16}},
    ),
    "vjepa2_giant_classifier.md": (
        VJepa2ForVideoClassification, "giant", "V-JEPA 2 ViT-g, converted: classifier of Something-Something v2",
        "`ssv2-vitg-384-64x2x3.pt` (with `--encoder`), or `facebook/vjepa2-vitg-fpc64-384-ssv2` of transformers",
        {**_CLASSIFIER, "encoder_config": {"crop_size": 384}},
    ),
    "vjepa2_ac_giant.md": (
        VJepa2WorldModel, "giant", "V-JEPA 2-AC ViT-g, converted: world model", "`vjepa2-ac-vitg.pt`", {},
    ),
}  # fmt: skip


def published_cards() -> dict[str, str]:
    """The cards of the models that `convert_checkpoints` makes of released files, by file name.

    They hold facts of configs and of models on the meta device; released weights are not used.
    """
    cards = {}
    for file, (model_class, preset, title, source, fields) in _RELEASED.items():
        with torch.device("meta"):
            model = model_class(model_class.config_class.from_preset(preset, **fields))
        model.card_facts = CardFacts(source=source, title=title)
        cards[file] = str(build_model_card(model, load_from="OUT_DIR", published=True))
    return cards


def main(argv: list[str] | None = None) -> None:
    """Writes the cards of the released models into a folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path, help="folder of the cards: model_cards")
    folder = parser.parse_args(argv).folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in published_cards().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
