"""Folders of results: one owner, one writer; hashes that change with what matters alone."""

import json

import pytest
from builders import TINY_ENCODER
from torch import nn

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig
from vjepa2_hf.data.files import claim_folder, config_fingerprint, locked, weights_fingerprint, write_json


def test_weights_have_their_hash():
    layer = nn.Linear(3, 2)
    before = weights_fingerprint(layer)
    assert weights_fingerprint(layer) == before
    layer.bias.data[0] += 1
    assert weights_fingerprint(layer) != before


def test_a_config_is_known_wherever_it_was_loaded_from(tmp_path):
    config = VJepa2EncoderConfig(**TINY_ENCODER)
    VJepa2Encoder(config).save_pretrained(tmp_path)
    assert config_fingerprint(VJepa2Encoder.from_pretrained(tmp_path).config) == config_fingerprint(config)
    other = VJepa2EncoderConfig(**{**TINY_ENCODER, "num_attention_heads": 4})  # the same weights' shapes
    assert config_fingerprint(other) != config_fingerprint(config)


def test_a_folder_belongs_to_what_claimed_it(tmp_path):
    (tmp_path / "new").mkdir()
    manifest = tmp_path / "new" / "manifest.json"
    claim_folder(manifest, {"model": "here", "stride": 1})
    claim_folder(manifest, {"model": "moved", "stride": 1})
    assert json.loads(manifest.read_text()) == {"model": "here", "stride": 1}
    with pytest.raises(ValueError, match=r"holds features with other pool \(None, now clip\), stride \(1, now 2\)"):
        claim_folder(manifest, {"model": "here", "stride": 2, "pool": "clip"})
    with pytest.raises(FileExistsError, match="holds files, but no features"):
        claim_folder(tmp_path / "manifest.json", {})


def test_a_folder_has_one_writer(tmp_path):
    with locked(tmp_path), pytest.raises(OSError, match="Another process writes to"), locked(tmp_path):
        pass
    with locked(tmp_path):
        write_json(tmp_path / "a.json", [1])
    assert [path.name for path in tmp_path.iterdir() if path.suffix] == ["a.json"]
