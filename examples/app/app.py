"""Opens the app in which a world model plans: choose a start and a goal, and watch it imagine and act.

    python examples/app/app.py --model runs/demo/world_model/final

Needs the extra `app`: pip install "vjepa2-hf[app,demo]". `make app` trains the demo's models first if there are none.
Of a model of `examples/demo.py` everything else is found beside it; of other models, name what there is:

    python examples/app/app.py --model USER/MODEL --env vjepa2_hf/TwoRooms-v0

With an environment of another package, or none, the plan tab takes images of a start and a goal and plans once.
A Space gives the same settings in its variables MODEL_ID, ENV_ID and VIDEO_MODEL_ID.
"""

import argparse
import contextlib
import os
import signal
import sys
import vjepa2_cli  # noqa: F401 (a quick --help)

import gradio as gr
import look_tab
import model_tab
import plan_tab
from uploads import LIMITS, SessionFiles

from vjepa2_hf.environments.run_parts import find_parts
from vjepa2_hf.environments.shared_models import SharedModels
from vjepa2_hf.training.settings import exit_on_user_error, refuse_missing_model


WAITING = 30  # events of all sessions together
KEPT_SECONDS = 600  # files of results, beyond the end of their session
STYLE = """
footer {display: none !important}
.vj-frames {display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 145px), 1fr)); gap: 12px}
.vj-frames + p {margin-top: 16px}
.vj-frames figure {margin: 0; max-width: 300px}
.vj-frames img {width: 100%; display: block; image-rendering: pixelated; border-radius: 6px}
.vj-frames figcaption {font-size: 0.9rem; padding-top: 4px}
.vj-text table {display: block; overflow-x: auto; border: none !important}
.vj-text td, .vj-text th {word-break: normal !important; overflow-wrap: normal !important; padding: 4px 8px !important}
.vj-strip {grid-template-columns: repeat(auto-fill, minmax(80px, 1fr))}
.vj-strip figure {max-width: 120px}
.vj-chart {grid-template-columns: 1fr}
.vj-chart figure {max-width: 520px}
.vj-chart img {image-rendering: auto; background: white}
.vj-table td, .vj-table th {padding: 2px 10px; text-align: right}
#plan-start img, #plan-goal img {image-rendering: pixelated; cursor: crosshair; -webkit-user-drag: none}
#plan-start label, #plan-goal label {position: static !important}
#plan-start label span, #plan-goal label span {display: none}
#plan-start .icon-button-wrapper, #plan-goal .icon-button-wrapper {display: none !important}
"""


def build(models: SharedModels, files: SessionFiles) -> gr.Blocks:
    """The page: three tabs. The files of a session go when its page is closed."""

    def forget(request: gr.Request) -> None:
        files.forget(request.session_hash)

    with gr.Blocks(title="V-JEPA 2 plans", delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as page:
        gr.Markdown(f"# A world model that plans\nModel: `{models.parts.name}`")
        with gr.Tab("Plan", id="plan"):
            plan_tab.build(models, files)
        with gr.Tab("Look", id="look"):
            look_tab.build(models, files)
        with gr.Tab("Model", id="model"):
            model_tab.build(models)
        page.unload(forget)
    return page


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("MODEL_ID", "runs/demo/world_model/final")
    beside = "default: found beside the model"
    parser.add_argument("--model", default=default, help=f"world model, folder or Hub id; default: {default}")
    parser.add_argument(
        "--env",
        default=os.environ.get("ENV_ID"),
        help="environment that the model knows, such as vjepa2_hf/Pushing-v0; default: the one that its episodes name",
    )
    parser.add_argument(
        "--video_model",
        default=os.environ.get("VIDEO_MODEL_ID"),
        help=f"encoder or masked-latent model of the tab Look; {beside}",
    )
    parser.add_argument("--episodes", help=f"recorded episodes that the model was trained on; {beside}")
    parser.add_argument("--random_model", help=f"world model on a random encoder, a baseline; {beside}")
    parser.add_argument("--decoder", help=f"pixel decoder of the model's latents; {beside}")
    parser.add_argument("--cloning", help=f"policy of train_cloning.py, a baseline; {beside}")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    return parser.parse_args(arguments)


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    options = vars(parse(arguments))
    model, port = options.pop("model"), options.pop("port")
    refuse_missing_model(model)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # leaves the block below, as Ctrl-C does
    with contextlib.closing(SessionFiles()) as files:
        os.environ["GRADIO_TEMP_DIR"] = str(files.root)
        models = SharedModels(find_parts(model, **options))
        models.prepare()
        page = build(models, files)
        page.queue(max_size=WAITING, default_concurrency_limit=4)
        page.launch(
            server_port=port,
            max_file_size=LIMITS.max_bytes,
            show_error=False,  # errors may name paths
            theme=gr.themes.Soft(),
            css=STYLE,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            share=False,
        )


if __name__ == "__main__":
    main()
