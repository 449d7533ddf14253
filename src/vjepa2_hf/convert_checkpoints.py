"""Converts checkpoints: published `.pt` files, transformers' `vjepa2` folders, and ours.

    python -m vjepa2_hf.convert_checkpoints vitl.pt vjepa2-large
    python -m vjepa2_hf.convert_checkpoints vjepa2-large vjepa2-large-transformers --to transformers

Names change, values do not. `--help` has an example of every kind; `convert` is the same in Python.
"""

import argparse
import contextlib
import logging
import signal
import sys
import threading
from dataclasses import make_dataclass
from typing import Any

from .hub.conversion import FORMATS, convert
from .training.settings import exit_on_user_error, load_config


logger = logging.getLogger(f"{__package__}.convert_checkpoints")  # `__name__` is "__main__" under `python -m`

_EXAMPLES = """
examples:
  a pretraining file: encoder, target encoder and predictor
    python -m vjepa2_hf.convert_checkpoints vitl.pt vjepa2-large
  its target encoder alone
    python -m vjepa2_hf.convert_checkpoints vitl.pt vjepa2-large-encoder --component target_encoder
  V-JEPA 2.1: encoders with levels, and predictor
    python -m vjepa2_hf.convert_checkpoints vjepa2_1_vitl_dist_vitG_384.pt vjepa2.1-large
  a model of other sizes than the released ones: give the fields that cannot be inferred from tensors
    python -m vjepa2_hf.convert_checkpoints mine.pt mine --set num_attention_heads=3 predictor_num_attention_heads=3
  V-JEPA 1
    python -m vjepa2_hf.convert_checkpoints vitl16.pth.tar vjepa1-large \\
        --set position_embedding_type=sincos uniform_power=true
  an action-conditioned file: a world model; with the camera's extrinsics in use
    python -m vjepa2_hf.convert_checkpoints vjepa2-ac-vitg.pt vjepa2-ac
    python -m vjepa2_hf.convert_checkpoints vjepa2-ac-vitg.pt vjepa2-ac --set extrinsics_dim=6
  one with other actions: give the bounds for planning
    python -m vjepa2_hf.convert_checkpoints mine-ac.pt mine-ac --set 'action_low=[-1, -1]' 'action_high=[1, 1]'
  a probe (it holds no encoder); with the names of its labels
    python -m vjepa2_hf.convert_checkpoints ssv2-vitl-16x2x3.pt vjepa2-large-ssv2 --encoder vitl.pt
    python -m vjepa2_hf.convert_checkpoints mine-probe.pt mine-probe --encoder vitl.pt --set 'id2label={0: a, 1: b}'
  a transformers folder or Hub id into ours, and back
    python -m vjepa2_hf.convert_checkpoints facebook/vjepa2-vitl-fpc64-256 vjepa2-large
    python -m vjepa2_hf.convert_checkpoints vjepa2-large for-transformers --to transformers
  into the published format (OUT_DIR/model.pt)
    python -m vjepa2_hf.convert_checkpoints runs/pretrain/final published --to published

All files are first written into OUT_DIR.tmp-PID. Only a killed process (kill -9) leaves such a folder behind; it can
be deleted.
"""


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m vjepa2_hf.convert_checkpoints",
        description=__doc__.partition("\n")[0],
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source", metavar="SOURCE", help="published .pt, model folder (ours, transformers'), or Hub id"
    )
    parser.add_argument("out_dir", metavar="OUT_DIR", help="new folder")
    parser.add_argument("--to", choices=FORMATS, default="ours", help="format to write (default: ours)")
    parser.add_argument("--component", choices=("target_encoder", "encoder"), help="the encoder to take")
    parser.add_argument("--encoder", metavar="PATH", help="encoder for a file that holds none: .pt, folder or Hub id")
    parser.add_argument(
        "--set", metavar="key=value", nargs="+", action="extend", default=[], help="config fields, see the examples"
    )
    arguments = parser.parse_args(argv)
    overrides = [f"set.{setting}" for setting in arguments.set]
    settings = load_config(make_dataclass("Settings", [("set", dict[str, Any], None)]), overrides=overrides).set
    package, handler = logging.getLogger(__package__), logging.StreamHandler(sys.stdout)
    with contextlib.ExitStack() as undo:
        undo.callback(package.setLevel, package.level)
        undo.callback(package.removeHandler, handler)
        package.addHandler(handler)
        package.setLevel(logging.INFO)
        if threading.current_thread() is threading.main_thread():  # others get no signals
            # an exception, so that an unfinished conversion is removed
            for name in {"SIGTERM", "SIGHUP"} & set(dir(signal)):  # Windows has no SIGHUP
                number = getattr(signal, name)
                before = signal.signal(number, lambda number, frame: sys.exit(128 + number))
                undo.callback(signal.signal, number, before or signal.SIG_DFL)
        folder = convert(
            arguments.source, arguments.out_dir, arguments.to, arguments.component, arguments.encoder, settings
        )
        logger.info("written: %s", folder)


if __name__ == "__main__":
    main()
