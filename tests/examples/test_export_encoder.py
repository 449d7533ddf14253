"""Exported encoders give the tokens of the model, at batch sizes they were not exported with."""

import re

import export_encoder
import pytest
import torch
from builders import TINY_ENCODER, spread

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig


KINDS = {
    "rope": {},
    "factorized": {"attention_type": "factorized"},
    "sincos": {"position_embedding_type": "sincos"},
}
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture
def model(request, tmp_path):
    torch.manual_seed(0)
    fields = KINDS[getattr(request, "param", "rope")]
    encoder = spread(VJepa2Encoder(VJepa2EncoderConfig(**TINY_ENCODER, **fields))).eval()
    encoder.save_pretrained(tmp_path / "model")
    return encoder, str(tmp_path / "model")


@torch.no_grad()
def compare(encoder, run, frames, size):
    for count in (1, 5):
        clips = torch.randn(count, frames, 3, size, size)
        expected = encoder(clips).last_hidden_state
        torch.testing.assert_close(run(clips), expected, **TOLERANCE)
    assert expected.std(dim=0).mean() > 0.1  # the tokens depend on the clip


def test_torch_export(model, tmp_path, capsys):
    encoder, folder = model
    export_encoder.main([folder, str(tmp_path / "out" / "encoder.pt2")])
    program = torch.export.load(tmp_path / "out" / "encoder.pt2").module()
    compare(encoder, program, 4, 32)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["encoder.pt2"]  # nothing else is left
    assert "its tokens differ by" in capsys.readouterr().out


@pytest.mark.parametrize("model", [*KINDS], indirect=True)
def test_onnx(model, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    encoder, folder = model
    export_encoder.main([folder, str(tmp_path / "encoder.onnx"), "--frames", "8", "--size", "24"])
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx", providers=["CPUExecutionProvider"])

    def run(video):
        (tokens,) = session.run(None, {"pixel_values_videos": video.numpy()})
        return torch.from_numpy(tokens)

    compare(encoder, run, 8, 24)


def test_a_file_that_would_differ_is_not_written(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export_encoder, "load_program", lambda path: lambda clips: torch.zeros(()))
    with pytest.raises(SystemExit):
        export_encoder.main([model[1], str(tmp_path / "out" / "encoder.pt2")])
    assert "encoder.pt2 would differ from the model by 1.0e+00 of the largest" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encoder.pt"], "OUTPUT is 'encoder.pt'; give a name that ends in .onnx or .pt2"),
        (["encoder.pt2", "--size", "0"], "--size is 0, but it must be positive"),
        (["encoder.pt2", "--size", "33"], "has height=33 .*; expected a multiple of 8"),
        (["encoder.onnx"], 'ONNX needs onnxruntime: pip install "vjepa2-hf\\[export\\]", or write a .pt2 file'),
    ],
)
def test_a_wrong_argument_is_one_sentence(model, arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export_encoder, "is_installed", lambda name: name == "onnxscript")
    with pytest.raises(SystemExit):
        export_encoder.main([model[1], *arguments])
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(f"error: .*{message}.*", error) and not list(tmp_path.glob("encoder*"))
