"""The video processor equals transformers' for the same settings, keeps given sizes, and refuses non-videos."""

import io

import numpy as np
import PIL.Image
import pytest
import torch
from torchvision.transforms.v2 import functional as tvf
from transformers.models.vjepa2.video_processing_vjepa2 import VJEPA2VideoProcessor

from vjepa2_hf.video_io import encode_video, read_video
from vjepa2_hf.video_processing_vjepa2 import RandomResizedClip, VJepa2VideoProcessor


FRAMES = np.random.default_rng(0).integers(0, 256, (4, 40, 52, 3), np.uint8)


def pixels(processor, *args, **kwargs) -> torch.Tensor:
    return processor(*args, return_tensors="pt", **kwargs)["pixel_values_videos"]


@pytest.fixture(scope="module")
def processor():
    return VJepa2VideoProcessor(size=16, crop_size=16)


class TestEqualsTransformers:
    @pytest.mark.parametrize("crop_size", [16, 32, {"height": 24, "width": 24}])
    def test_same_settings_same_bits(self, crop_size):
        ours, theirs = VJepa2VideoProcessor(crop_size=crop_size), VJEPA2VideoProcessor(crop_size=crop_size)
        assert torch.equal(pixels(ours, FRAMES), pixels(theirs, FRAMES))
        assert dict(ours.size) == dict(theirs.size)

    def test_defaults_are_the_published_ones(self):
        ours, theirs = VJepa2VideoProcessor().to_dict(), VJEPA2VideoProcessor().to_dict()
        assert ours.pop("video_processor_type") == "VJepa2VideoProcessor"
        theirs.pop("video_processor_type")
        assert ours == theirs

    def test_per_call_options(self):
        ours, theirs = VJepa2VideoProcessor(crop_size=16), VJEPA2VideoProcessor(crop_size=16)
        options = {"size": {"shortest_edge": 30}, "crop_size": {"height": 20, "width": 28}, "do_normalize": False}
        assert torch.equal(pixels(ours, FRAMES, **options), pixels(theirs, FRAMES, **options))


class TestSizes:
    def test_size_is_taken_as_given(self, processor):
        assert dict(processor.size) == {"height": 16, "width": 16}
        gradient = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[None, None, :, None], (2, 64, 64, 3))
        clip = pixels(processor, gradient, do_normalize=False)
        assert clip.shape == (1, 2, 3, 16, 16)
        assert clip[..., 0].max() < 0.05 and clip[..., -1].min() > 0.95  # nothing was cut off

    def test_size_survives_saving(self, processor, tmp_path):
        processor.save_pretrained(tmp_path)
        loaded = VJepa2VideoProcessor.from_pretrained(tmp_path)
        assert loaded.to_dict() == processor.to_dict()

    def test_height_and_width_apart(self):
        processor = VJepa2VideoProcessor(size={"height": 20, "width": 30}, crop_size={"height": 16, "width": 24})
        assert pixels(processor, FRAMES).shape == (1, 4, 3, 16, 24)


class TestInputs:
    def test_every_form_of_a_video_gives_the_same_clip(self, processor):
        expected = pixels(processor, FRAMES)
        images = [PIL.Image.fromarray(frame) for frame in FRAMES]
        tensor = torch.from_numpy(FRAMES)
        forms = [
            images, list(FRAMES), tensor, tensor.permute(0, 3, 1, 2), list(tensor), FRAMES[None], [FRAMES], [images],
            FRAMES.astype(np.int64), FRAMES.transpose(0, 3, 1, 2),
        ]  # fmt: skip
        for form in forms:
            assert torch.equal(pixels(processor, form), expected)

    def test_floats_of_zero_to_one_and_to_255_are_the_same_video(self, processor):
        one, many = pixels(processor, FRAMES / 255), pixels(processor, FRAMES.astype(np.float32))
        assert torch.allclose(one, many, atol=1e-5)
        assert torch.allclose(one, pixels(processor, FRAMES), atol=2e-2)  # uint8 rounds after resizing

    def test_files_and_bytes(self, processor, tmp_path):
        video = encode_video(FRAMES, fps=10)
        path = tmp_path / "a.mp4"
        path.write_bytes(video)
        expected = pixels(processor, read_video(video))
        for form in (path, str(path), video, {"bytes": video, "path": None}, path.as_uri()):
            assert torch.equal(pixels(processor, form), expected)
        assert pixels(processor, [path, path]).shape == (2, 4, 3, 16, 16)

    def test_frames_of_a_file_are_sampled(self, processor):
        video = encode_video(
            np.arange(20, dtype=np.uint8)[:, None, None, None] * np.full((20, 16, 16, 3), 10, np.uint8), 10
        )
        clip = pixels(processor, video, do_sample_frames=True, num_frames=4, do_normalize=False)
        assert torch.allclose(clip.mean((0, 2, 3, 4)) * 255, torch.tensor([0.0, 50, 100, 150]), atol=3)

    def test_an_image_is_one_frame(self, processor, tmp_path):
        image = PIL.Image.fromarray(FRAMES[0])
        image.save(tmp_path / "a.png")
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        expected = pixels(processor, FRAMES[:1])
        for form in (image, FRAMES[0], tmp_path / "a.png", buffer.getvalue(), [[str(tmp_path / "a.png")]]):
            assert torch.equal(pixels(processor, form), expected)

    def test_grey_and_transparent_images_become_rgb(self, processor):
        for mode in ("L", "RGBA", "P"):
            assert pixels(processor, PIL.Image.fromarray(FRAMES[0]).convert(mode)).shape == (1, 1, 3, 16, 16)

    def test_clips_of_one_shape_are_stacked_unasked(self, processor):
        assert processor([FRAMES, FRAMES])["pixel_values_videos"].shape == (2, 4, 3, 16, 16)
        assert [len(clip) for clip in processor([FRAMES, FRAMES[:2]])["pixel_values_videos"]] == [4, 2]


@pytest.mark.parametrize(
    ("video", "error", "message"),
    [
        (np.where(FRAMES == 7, np.nan, FRAMES.astype(np.float32)), ValueError, "not finite"),
        (np.full((2, 16, 16, 3), np.inf), ValueError, "not finite"),
        (np.full((2, 16, 16, 3), -1.5), ValueError, "lie in -1.5 to -1.5"),
        (np.full((2, 16, 16, 3), 300), ValueError, "lie in 300 to 300"),
        (np.zeros((2, 16, 16, 4), np.uint8), ValueError, "neither axis holds the 3 channels"),
        (np.zeros((2, 16, 16, 1), np.uint8), ValueError, "neither axis holds the 3 channels"),
        (np.zeros((16, 16), np.uint8), ValueError, "needs height, width and 3 channels"),
        (np.zeros((0, 16, 16, 3), np.uint8), ValueError, "empty"),
        (np.zeros(16, np.uint8), ValueError, "an image has 3 dimensions"),
        ([], ValueError, "empty"),
        ([[]], ValueError, "empty"),
        ([FRAMES[0], FRAMES[0, :8]], ValueError, "different sizes"),
        (b"no video", ValueError, "does not decode"),
        ("/nowhere/a.mp4", FileNotFoundError, "no video file"),
        ("/nowhere/a.png", FileNotFoundError, "no image file"),
        (None, ValueError, "The video is a NoneType"),
        ([[1.0]], ValueError, "The video is a float"),
    ],
)
def test_what_is_no_video_is_refused_in_one_sentence(processor, video, error, message):
    with pytest.raises(error, match=message) as caught:
        processor(video)
    assert "\n" not in str(caught.value)


class TestRandomResizedClip:
    CLIP = torch.from_numpy(FRAMES).permute(0, 3, 1, 2)

    def test_whole_frame_is_only_normalised(self):
        transform = RandomResizedClip((40, 52), scale=(1, 1), flip_probability=0)
        processor = VJepa2VideoProcessor(do_resize=False, do_center_crop=False)
        assert torch.allclose(transform(self.CLIP), pixels(processor, FRAMES)[0], atol=1e-5)

    def test_one_draw_for_all_frames_and_from_the_generator_alone(self):
        transform = RandomResizedClip(8, flip_probability=0.5)
        still = self.CLIP[:1].expand(4, -1, -1, -1)
        clips = [transform(still, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
        assert clips[0].shape == (4, 3, 8, 8) and clips[0].dtype == torch.float32
        assert torch.equal(clips[0][0], clips[0][3])
        assert torch.equal(clips[0], clips[1]) and not torch.equal(clips[0], clips[2])

    def test_flip(self):
        straight = RandomResizedClip((40, 52), scale=(1, 1), flip_probability=0)(self.CLIP)
        flipped = RandomResizedClip((40, 52), scale=(1, 1), flip_probability=1)(self.CLIP)
        assert torch.equal(straight.flip(-1), flipped)

    def test_crops_keep_to_scale_and_ratio_and_lie_inside(self):
        transform, generator = RandomResizedClip(16), torch.Generator().manual_seed(0)
        crops = np.array([transform.draw_crop(200, 300, generator) for _ in range(500)])
        top, left, height, width = crops.T
        assert (top >= 0).all() and (left >= 0).all()
        assert (top + height <= 200).all() and (left + width <= 300).all()
        assert 0.29 < (height * width).min() / 60_000 < 0.35
        assert (width / height).min() > 0.74 and (width / height).max() < 1.36
        assert len(set(top)) > 50 and len(set(left)) > 50

    def test_frame_too_long_for_any_crop_is_cut_in_the_centre(self):
        crop = RandomResizedClip(8, scale=(1, 1), ratio=(1, 1)).draw_crop(40, 52, torch.Generator())
        assert crop == (0, 6, 40, 40)

    def test_resize_is_torchvisions(self):
        transform = RandomResizedClip(16, scale=(1, 1), ratio=(0.5, 2), flip_probability=0, image_mean=(0, 0, 0))
        expected = (
            tvf.resize(self.CLIP, [16, 16], antialias=True) / 255 / torch.tensor(transform.image_std)[:, None, None]
        )
        assert torch.allclose(transform(self.CLIP), expected, atol=1e-5)

    @pytest.mark.parametrize(
        "settings", [{"scale": (0, 1)}, {"scale": (0.5, 2)}, {"ratio": (2, 1)}, {"flip_probability": 2}]
    )
    def test_bad_settings_are_refused(self, settings):
        with pytest.raises(ValueError, match=next(iter(settings))):
            RandomResizedClip(8, **settings)
