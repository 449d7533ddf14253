# /// script
# requires-python = ">=3.11"
# dependencies = ["vjepa2-hf[export]"]
# ///
"""Exports an encoder as one file, for ONNX Runtime or for PyTorch without this package, and compares both outputs.

    python examples/export_encoder.py MODEL encoder.onnx       # needs pip install "vjepa2-hf[export]"
    python examples/export_encoder.py MODEL encoder.pt2        # torch.export

MODEL is a folder or Hub id that holds an encoder. The file takes any number of clips, all with the model's frames and
size, or with `--frames` and `--size`. Clips are normalized, as MODEL's video processor returns them: float32
(B, T, C, H, W). The result are the tokens, float32 (B, N, D).

    (tokens,) = onnxruntime.InferenceSession("encoder.onnx").run(None, {"pixel_values_videos": clips})      # numpy
    tokens = torch.export.load("encoder.pt2").module()(clips)                                              # torch

Weights of more than 2 GB lie in a second file, encoder.onnx.data.
"""

import argparse
import importlib.util
import tempfile
import vjepa2_cli  # noqa: F401 (a quick --help)
from collections.abc import Callable
from pathlib import Path

import torch

from vjepa2_hf import VJepa2Encoder
from vjepa2_hf.configuration_vjepa2 import check
from vjepa2_hf.data.files import commit_folder, writing
from vjepa2_hf.training.settings import exit_on_user_error, refuse_missing_model


INPUT, OUTPUT = "pixel_values_videos", "last_hidden_state"
FORMATS = {".onnx": "onnx", ".pt2": "torch_export"}
TOLERANCE = 1e-4  # of the largest difference, relative to the largest value of the tokens
BATCH_SIZES = (2, 3)  # exported with the first, compared with both


def is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


class Tokens(torch.nn.Module):
    """The encoder with one input and one output: exported programs return no objects of ours."""

    def __init__(self, encoder: VJepa2Encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        return self.encoder(pixel_values_videos).last_hidden_state


def save_onnx(program: torch.export.ExportedProgram, path: Path) -> None:
    torch.onnx.export(program, dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False).save(path)


def load_onnx(path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda clips: torch.from_numpy(session.run(None, {INPUT: clips.numpy()})[0])


def load_program(path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    return torch.export.load(path).module()


@torch.no_grad()
def export_encoder(encoder: VJepa2Encoder, output: Path, frames: int, size: int) -> float:
    """Writes the file once its tokens agree with the encoder's; returns their largest relative difference."""
    model, channels = Tokens(encoder).eval(), encoder.config.in_chans
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(count, frames, channels, size, size, generator=generator) for count in BATCH_SIZES]
    expected = [model(clips) for clips in batches]  # refuses sizes in a sentence, which exporting would not
    program = torch.export.export(model, (batches[0],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    is_onnx = FORMATS[output.suffix] == "onnx"
    output.parent.mkdir(parents=True, exist_ok=True)
    with writing(output), tempfile.TemporaryDirectory(dir=output.parent, prefix=".export-") as folder:
        path = Path(folder) / output.name  # by which encoder.onnx names its second file
        (save_onnx if is_onnx else torch.export.save)(program, path)
        exported = (load_onnx if is_onnx else load_program)(path)
        pairs = [(exported(clips), tokens) for clips, tokens in zip(batches, expected, strict=True)]
        largest = max(((found - tokens).abs().max() / tokens.abs().max()).item() for found, tokens in pairs)
        check(
            largest <= TOLERANCE,
            f"{output.name} would differ from the model by {largest:.1e} of the largest value; expected {TOLERANCE:g} "
            "at most, so nothing was written. Try another version of torch or onnxruntime.",
        )
        for file in sorted(Path(folder).iterdir(), key=lambda file: file == path):  # the weights first
            commit_folder(file, output.parent / file.name)
    return largest


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id of a model that holds an encoder")
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="file to write; .onnx or .pt2 is the format")
    parser.add_argument("--frames", type=int, help="frames of a clip (default: the model's)")
    parser.add_argument("--size", type=int, help="height and width in pixels (default: the model's)")
    args = parser.parse_args(arguments)
    check(args.output.suffix in FORMATS, f"OUTPUT is {str(args.output)!r}; give a name that ends in .onnx or .pt2.")
    for name in ("frames", "size"):
        value = getattr(args, name)
        check(value is None or value > 0, f"--{name} is {value}, but it must be positive.")
    missing = [name for name in ("onnxscript", "onnxruntime") if not is_installed(name)]
    if args.output.suffix == ".onnx" and missing:
        raise ValueError(f'ONNX needs {" and ".join(missing)}: pip install "vjepa2-hf[export]", or write a .pt2 file.')
    refuse_missing_model(args.model)
    encoder = VJepa2Encoder.from_pretrained(args.model, dtype=torch.float32)
    frames = encoder.config.frames_per_clip if args.frames is None else args.frames
    size = encoder.config.crop_size if args.size is None else args.size
    largest = export_encoder(encoder, args.output, frames, size)
    clips = f"{frames} frames of {size} x {size} pixels"
    print(f"saved {args.output} for clips of {clips}; its tokens differ by {largest:.1e} of the largest value")


if __name__ == "__main__":
    main()
