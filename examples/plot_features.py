# /// script
# requires-python = ">=3.11"
# dependencies = ["vjepa2-hf[demo]"]
# ///
"""Plots an encoder's features of a clip as colors, and measures how much of them is position alone.

    python examples/plot_features.py MODEL VIDEO OUTPUT.png [--frames 16] [--fps F] [--size PIXELS] [--clips 8]

After the demo:

    python examples/plot_features.py runs/demo/pretrain/final runs/demo/episodes features.png

The figure shows the frames of the first clip, the first three principal components of the tokens as red, green and
blue, and the same after subtracting each position's mean over time (gray: unchanged); then both again for an encoder
with random weights. The variance fractions, for this clip and over `--clips` clips, are saved in `OUTPUT.json`.
"""

import argparse
import vjepa2_cli  # noqa: F401 (a quick --help)
from pathlib import Path

from vjepa2_hf import VJepa2Encoder
from vjepa2_hf.data.files import write_json
from vjepa2_hf.training.settings import exit_on_user_error, refuse_missing_model
from vjepa2_hf.visualization.feature_variance import FRACTIONS, compare_with_random, list_fractions
from vjepa2_hf.visualization.figures import write_figure
from vjepa2_hf.visualization.tables import format_table
from vjepa2_hf.visualization.video_clips import load_processor, read_clips


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id of a model with an encoder")
    parser.add_argument("video", metavar="VIDEO", help="video file or folder of shards")
    parser.add_argument("output", metavar="OUTPUT.png", type=Path)
    parser.add_argument("--frames", type=int, default=16, help="length of a clip")
    parser.add_argument("--fps", type=float, help="frames per second; default: the video's own rate")
    parser.add_argument("--clips", type=int, default=8, help="clips of the file, or rows of shards, for the fractions")
    parser.add_argument("--size", type=int, help="resize whole frames to squares of this many pixels")
    options = parser.parse_args(arguments)
    if options.output.suffix != ".png":
        raise ValueError(f"OUTPUT is {str(options.output)!r}; expected a name that ends in .png.")
    refuse_missing_model(options.model)
    clips = read_clips(options.video, options.frames, options.fps, options.clips)
    encoder = VJepa2Encoder.from_pretrained(options.model).eval()
    processor = load_processor(options.model, encoder, options.size)
    figure, numbers = compare_with_random(encoder, processor, clips)
    figure.set_dpi(150)
    write_figure(options.output, lambda shown: figure)
    settings = {name: getattr(options, name) for name in ("model", "video", "frames", "fps", "size")}
    write_json(options.output.with_suffix(".json"), {**settings, **numbers})
    rows = ([title, *(f"{parts[name]:.3f}" for name in FRACTIONS)] for title, parts in list_fractions(numbers))
    print("\n".join(format_table(["fraction of variance", *FRACTIONS], rows)))
    print(f"Wrote {options.output} and {options.output.with_suffix('.json')}.")


if __name__ == "__main__":
    main()
