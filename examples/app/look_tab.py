"""The tab Look: what a video model sees in a clip. Features, losses, anomalies or nearest frames, as one figure."""

import base64
import html
import io
from collections.abc import Callable, Iterator
from functools import cached_property, partial

import gradio as gr
import numpy as np
import torch
from uploads import LIMITS, Clip, Refused, SessionFiles, sentence_of

from vjepa2_hf import VJepa2VideoProcessor
from vjepa2_hf.data.episodes import read_episodes
from vjepa2_hf.environments import FOUR_ROOMS, FRAMES_PER_SECOND, PUSHING, TWO_ROOMS
from vjepa2_hf.environments.clips import record_clip
from vjepa2_hf.environments.run_parts import RunParts
from vjepa2_hf.environments.shared_models import SharedModels
from vjepa2_hf.pipelines.anomaly_detection import VJepa2AnomalyDetector
from vjepa2_hf.pipelines.anomaly_scores import needs_statistics
from vjepa2_hf.visualization.clip_figures import Masks, animate_features, plot_losses, plot_neighbors
from vjepa2_hf.visualization.figures import evenly_spaced
from vjepa2_hf.visualization.measures import dense_features, feature_colors
from vjepa2_hf.visualization.video_clips import load_processor


UPLOADED = "Your video"
BUNDLED_FRAMES, CUT = 60, 30  # frames of a bundled clip, and where the one with a cut has it
MOST_FRAMES, MOST_CLIPS = 64, 8  # that features and losses are computed of
NORMAL_CLIPS = range(1000, 1008)  # seeds of the clips that the anomaly detector is calibrated on


class Looks:
    """The figures of the video model of an app. Take `models.lock` before each.

    Attributes:
        bundled: clips that need no upload, by name: uint8 (T, H, W, 3) from a function, made when asked for.
    """

    def __init__(self, models: SharedModels):
        self.models = models
        parts, self.bundled = models.parts, {}
        environments = {PUSHING: "Pushing", TWO_ROOMS: "Two rooms", FOUR_ROOMS: "Four rooms"}
        if parts.env is not None:
            name = environments.get(parts.env, parts.env)
            self.bundled[name] = partial(self._episode, 1)
            self.bundled[f"{name} with a cut"] = self._episode_with_a_cut
        if parts.episodes is not None:
            self.bundled["Recorded episode"] = self._recorded_episode
        for env, name in environments.items():
            if env != parts.env:
                self.bundled[name] = partial(record_clip, env, BUNDLED_FRAMES, 1)

    def clip(self, name: str) -> Clip:
        """A bundled clip."""
        frames = self.bundled[name]()
        return Clip(frames, FRAMES_PER_SECOND, len(frames) / FRAMES_PER_SECOND)

    def _episode(self, seed: int) -> np.ndarray:
        return record_clip(self.models.parts.env, BUNDLED_FRAMES, seed, **self.models.parts.env_kwargs)

    def _episode_with_a_cut(self) -> np.ndarray:
        return np.concatenate([self._episode(2)[:CUT], self._episode(3)[CUT:]])

    def _recorded_episode(self) -> np.ndarray:
        return next(read_episodes(self.models.parts.episodes, max_episodes=1))["frames"]

    @cached_property
    def processor(self) -> VJepa2VideoProcessor:
        return load_processor(self.models.video_path, self.models.encoder)

    @cached_property
    def detector(self) -> VJepa2AnomalyDetector:
        """Calibrated on new episodes of the model's environment, where it is known."""
        detector = VJepa2AnomalyDetector(self._masked_model("an anomaly curve"), self.processor, device="cpu")
        if detector.calibration is None and self.models.parts.env is not None:
            detector.calibrate([self._episode(seed) for seed in NORMAL_CLIPS])
        if detector.calibration is None and needs_statistics(detector.model):
            raise Refused(
                "This model needs normal video to compare with (its targets are normalized over a batch), and the app "
                "knows no environment to record it in; start the app with --env."
            )
        return detector

    def _masked_model(self, figure: str):
        model = self.models.masked_model
        if model is None:
            raise Refused(f"This model predicts no masked features, which {figure} needs; features as colors work.")
        return model

    def _clips(self, frames: np.ndarray, most: int = MOST_CLIPS) -> list[torch.Tensor]:
        """Clips of the model's length, one after the other from the start of a video: (T, C, H, W) each."""
        config = self.models.encoder.config
        tubelet, frames = config.tubelet_size, frames[:MOST_FRAMES]
        length = min(max(config.frames_per_clip // tubelet, 1), len(frames) // tubelet) * tubelet
        if length == 0:
            raise Refused(f"The video has {len(frames)} frames; this model needs at least {tubelet}.")
        pixels = self.processor(frames, return_tensors="pt")["pixel_values_videos"][0]
        return list(pixels.split(length))[: min(most, len(frames) // length)]

    def features(self, clip: Clip, name: str) -> tuple[str, str]:
        """A figure as HTML, and what it shows."""
        clips = self._clips(clip.frames)
        colors = feature_colors([dense_features(self.models.encoder, pixels[None]) for pixels in clips])
        frames = np.concatenate([self.processor.to_images(pixels) for pixels in clips])
        image = animate_features(frames, np.concatenate(colors), clip.fps)
        rows, columns = colors[0].shape[1:3]
        status = (
            f"Left: {len(frames)} frames as the model sees them. Right: their features, {rows} × {columns} per time "
            "step. Red, green and blue are the first three principal components: equal colors are equal features."
        )
        return show(image, "webp", f"Animation of {name} beside its features as colors", wide=False), status

    def losses(self, clip: Clip, name: str) -> tuple[str, str]:
        model = self._masked_model("the loss by position")
        masks = Masks.of_run(self.models.video_path)
        (plot, _), losses = plot_losses(model, self._clips(clip.frames), masks)
        status = (
            f"How badly the model predicts each position when it is masked: the mean is {losses.mean.nanmean():.3f}. "
            "Bright positions are hard to predict from the rest of the clip."
        )
        return show_plot(plot, f"Prediction loss by position of {name}"), status

    def anomalies(self, clip: Clip, name: str) -> tuple[str, str]:
        detector = self.detector
        needed = detector.settings["context_frames"] + detector.settings["future_frames"]
        if len(clip.frames) < needed:
            raise Refused(f"The video has {len(clip.frames)} frames; an anomaly curve needs at least {needed}.")
        result = detector(clip.frames)
        scores = result["frame_scores"]
        highest = int(np.nanargmax(scores))
        others = detector.settings["context_frames"] + evenly_spaced(int(np.isfinite(scores).sum()), 5)
        plot = partial(detector.heat_map, clip.frames, result, sorted({highest, *others.tolist()}))
        status = (
            f"The score is highest at frame {highest} ({scores[highest]:.2f}): there the model is most wrong about "
        )
        status += "the features of the next frames."
        if result["threshold"] is not None:
            above = int(result["is_anomaly"].sum())
            normal = f"{len(NORMAL_CLIPS)} new episodes of {self.models.parts.env}"
            status += f" {above} of {len(scores)} frames are above the threshold (99 % of the frames of {normal})."
        return show_plot(plot, f"Anomaly score over the frames of {name}"), status

    def neighbors(self, clip: Clip, name: str) -> tuple[str, str]:
        clips = self._clips(clip.frames)
        names = [name, *(f"part {number}" for number in range(2, len(clips) + 1))]
        for other in self.bundled:
            if other != name:
                clips += self._clips(self.clip(other).frames, most=1)
                names.append(other)
        frames = [self.processor.to_images(pixels) for pixels in clips]
        plot, _ = plot_neighbors(self.models.encoder, clips, frames, names, neighbors=min(4, len(clips) - 1))
        status = (
            f"Each row: a frame of the first part of {name}, then the frames with the nearest features in its other "
            "parts and in the bundled clips, one from each, with their distances."
        )
        return show_plot(plot, f"Nearest frames of {name}"), status


FIGURES: dict[str, Callable[[Looks, Clip, str], tuple[str, str]]] = {
    "Features as colors": Looks.features,
    "Loss by position": Looks.losses,
    "Anomaly curve": Looks.anomalies,
    "Nearest frames": Looks.neighbors,
}


def show_plot(plot: Callable, title: str, wide: bool = True) -> str:
    buffer = io.BytesIO()
    plot().savefig(buffer, format="png", dpi=120)
    return show(buffer.getvalue(), "png", title, wide)


def show(image: bytes, kind: str, title: str, wide: bool = True) -> str:
    """An image inside the page, so that no file of it stays on the server; wide ones scroll on a phone."""
    source = f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
    width = "min-width:640px;" if wide else "max-width:640px;"
    label = html.escape(title, quote=True)
    image = f'<img src="{source}" alt="{label}" style="width:100%;{width}display:block">'
    return f'<div style="overflow-x:auto" role="group" aria-label="{label}" tabindex="0">{image}</div>'


def build(models: SharedModels, files: SessionFiles) -> None:
    """The tab's components, inside `gr.Blocks`."""
    looks = Looks(models)
    names = list(looks.bundled)

    def take(path: str | None, request: gr.Request) -> Iterator[tuple[dict, str, dict | None]]:
        """Reads an upload, and offers it as a clip. The component is emptied: the page needs no link to the file."""
        if path is None:
            return
        yield gr.update(), say("Reading the video …"), gr.update()
        try:
            clip = files.take(request.session_hash, path, "video")
        except Exception as error:
            yield gr.update(), say(sentence_of(error)), None
            return
        used = len(clip.frames) / clip.fps
        part = "" if clip.seconds < used + 1 / clip.fps else f", of which the first {used:.1f} are used"
        status = f"Your video has {clip.seconds:.1f} seconds{part}, at {clip.fps:.3g} frames per second. Press Show."
        yield gr.update(choices=[UPLOADED, *names], value=UPLOADED), say(status), None

    def look(name: str | None, figure: str, request: gr.Request) -> tuple[str, str]:
        try:
            if name is None:
                raise Refused("Choose a clip, or upload a video.")
            with models.lock:
                clip = files.load(request.session_hash, "video") if name == UPLOADED else looks.clip(name)
                image, status = FIGURES[figure](looks, clip, "your video" if name == UPLOADED else name)
        except Exception as error:
            return "", say(sentence_of(error))
        return image, say(status)

    length = models.encoder.config.frames_per_clip
    gr.Markdown(f"What the video model `{RunParts(models.video_path).name}` sees, {length} frames at a time.")
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            clip = gr.Radio(names, value=names[0] if names else None, label="Clip", elem_id="look-clip")
            limits = f"{LIMITS.max_bytes >> 20} MiB, {LIMITS.max_seconds:g} s"
            upload = gr.File(label=f"Or your own video (up to {limits})", height=180, elem_id="look-upload")
            figure = gr.Radio(list(FIGURES), value=next(iter(FIGURES)), label="Figure", elem_id="look-kind")
            run = gr.Button("Show", variant="primary", elem_id="look-run")
        with gr.Column(scale=2, min_width=320):
            status = gr.HTML(say("Choose a clip and a figure, then press Show."), elem_id="look-status")
            image = gr.HTML(elem_id="look-figure")
    quiet = {"show_progress": "hidden"}  # the status says it; gradio's own would cover the upload after an error
    taken = upload.upload(take, upload, [clip, status, upload], concurrency_limit=2, **quiet)
    odd = say("The upload was not accepted; give the file a plain name and choose it again.")  # such as a hidden file
    taken.failure(lambda: (odd, None), None, [status, upload], **quiet)
    run.click(look, [clip, figure], [image, status], show_progress_on=image, scroll_to_output=True)


def say(sentence: str) -> str:
    return f'<p role="status">{html.escape(sentence)}</p>'
