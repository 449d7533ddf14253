"""The video processor equals transformers' for the same settings, keeps given sizes, augments as published, and
refuses non-videos."""

import io
import itertools
import json

import numpy as np
import PIL.Image
import pytest
import torch
from builders import served
from torchvision.transforms.v2 import functional as tvf
from transformers import AutoVideoProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.models.vjepa2.video_processing_vjepa2 import VJEPA2VideoProcessor
from transformers.video_utils import VideoMetadata

from vjepa2_hf.data.video_writing import encode_video
from vjepa2_hf.video_io import read_video
from vjepa2_hf.video_processing_vjepa2 import RandomResizedClip, VJepa2VideoProcessor


FRAMES = np.random.default_rng(0).integers(0, 256, (4, 40, 52, 3), np.uint8)


def pixels(processor, *args, **kwargs) -> torch.Tensor:
    return processor(*args, return_tensors="pt", **kwargs)["pixel_values_videos"]


@pytest.fixture(scope="module")
def processor():
    return VJepa2VideoProcessor(size=16, crop_size=16)


# (T, H, W): square, non-square, odd, and smaller than every crop below
CLIP_SIZES = [(4, 40, 52), (3, 33, 33), (2, 35, 47), (3, 10, 14)]
FORMS = {
    "numpy": lambda clip: clip,
    "tensor": torch.from_numpy,
    "channels first": lambda clip: torch.from_numpy(clip).permute(0, 3, 1, 2),
    "PIL": lambda clip: [PIL.Image.fromarray(frame) for frame in clip],
    "frames": list,
    "int64": lambda clip: torch.from_numpy(clip).long(),
    "float32": lambda clip: clip.astype(np.float32),
    "float64": lambda clip: clip.astype(np.float64),
    "float16": lambda clip: torch.from_numpy(clip).half(),
    "batch": lambda clip: np.stack([clip, clip[::-1]]),
}
OPTIONS = [
    {},
    {"do_center_crop": False},
    {"do_resize": False},
    {"do_resize": False, "do_center_crop": False},
    {"size": {"height": 20, "width": 30}},
    {"size": {"shortest_edge": 19}, "resample": 3},
    {"crop_size": {"height": 16, "width": 24}},
    {"crop_size": 64},
    {"do_normalize": False},
    {"do_rescale": False, "image_mean": [100.0, 110.0, 120.0]},
    {"do_rescale": False, "do_normalize": False},
]


class TestEqualsTransformers:
    @pytest.mark.parametrize("crop_size", [16, 32, {"height": 24, "width": 24}])
    def test_same_settings_same_bits(self, crop_size):
        ours, theirs = VJepa2VideoProcessor(crop_size=crop_size), VJEPA2VideoProcessor(crop_size=crop_size)
        assert torch.equal(pixels(ours, FRAMES), pixels(theirs, FRAMES))
        assert dict(ours.size) == dict(theirs.size)

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("shape", CLIP_SIZES, ids=str)
    def test_every_input_and_option_gives_the_same_bits(self, form, shape):
        clip = FORMS[form](np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8))
        ours, theirs = VJepa2VideoProcessor(crop_size=32), VJEPA2VideoProcessor(crop_size=32)
        for options in OPTIONS:
            one, other = pixels(ours, clip, **options), pixels(theirs, clip, **options)
            assert one.dtype == other.dtype and torch.equal(one, other), options

    def test_floats_of_zero_to_one_that_are_not_rescaled(self):
        ours, theirs = VJepa2VideoProcessor(crop_size=32), VJEPA2VideoProcessor(crop_size=32)
        clip = (FRAMES / 255).astype(np.float32)
        assert torch.equal(pixels(ours, clip, do_rescale=False), pixels(theirs, clip, do_rescale=False))

    def test_clips_of_different_sizes(self):
        ours, theirs = VJepa2VideoProcessor(crop_size=32), VJEPA2VideoProcessor(crop_size=32)
        batch = [FRAMES, FRAMES[:2, :30, :30]]
        results = zip(*(p(batch)["pixel_values_videos"] for p in (ours, theirs)), strict=True)
        assert all(torch.equal(*pair) for pair in results)
        as_numpy = [p(FRAMES, return_tensors="np")["pixel_values_videos"] for p in (ours, theirs)]
        assert isinstance(as_numpy[0], np.ndarray) and np.array_equal(*as_numpy)

    @pytest.mark.parametrize("options", [{"num_frames": 3}, {"fps": 4}, {"fps": 10}])
    def test_frames_of_decoded_videos_are_sampled_alike(self, options):
        clip = np.random.default_rng(2).integers(0, 256, (20, 24, 24, 3), np.uint8)
        metadata = [VideoMetadata(total_num_frames=20, fps=10.0, duration=2.0)]
        ours, theirs = (
            pixels(c(crop_size=16), clip, do_sample_frames=True, video_metadata=metadata, **options)
            for c in (VJepa2VideoProcessor, VJEPA2VideoProcessor)
        )
        assert torch.equal(ours, theirs) and ours.shape[1] == options.get("num_frames", 2 * options.get("fps", 0))
        from_file = VJepa2VideoProcessor(crop_size=16)
        video = encode_video(clip, fps=10)
        sampled = pixels(from_file, video, do_sample_frames=True, **options)
        again = pixels(from_file, read_video(video), do_sample_frames=True, video_metadata=metadata, **options)
        assert torch.equal(sampled, again)

    def test_more_frames_than_there_are_is_the_same_error(self):
        for processor_class in (VJepa2VideoProcessor, VJEPA2VideoProcessor):
            with pytest.raises(ValueError, match="num_frames=9.*exceeds total_num_frames=4"):
                processor_class(crop_size=16)(FRAMES, do_sample_frames=True, num_frames=9)

    def test_defaults_are_the_published_ones(self):
        ours, theirs = VJepa2VideoProcessor().to_dict(), VJEPA2VideoProcessor().to_dict()
        assert ours.pop("video_processor_type") == "VJepa2VideoProcessor"
        theirs.pop("video_processor_type")
        augmentation = {name: ours.pop(name) for name in list(ours) if "random" in name}
        assert ours == theirs
        assert augmentation == {
            "do_random_resized_crop": False,
            "random_crop_scale": (0.3, 1.0),
            "random_crop_ratio": (0.75, 1.35),
            "random_flip_probability": 0.5,
        }

    def test_per_call_options(self):
        ours, theirs = VJepa2VideoProcessor(crop_size=16), VJEPA2VideoProcessor(crop_size=16)
        options = {"size": {"shortest_edge": 30}, "crop_size": {"height": 20, "width": 28}, "do_normalize": False}
        assert torch.equal(pixels(ours, FRAMES, **options), pixels(theirs, FRAMES, **options))


class TestFolders:
    def test_transformers_folder(self, tmp_path):
        theirs = VJEPA2VideoProcessor(crop_size=24, image_mean=[0.1, 0.2, 0.3], do_rescale=True)
        theirs.save_pretrained(tmp_path)
        ours = VJepa2VideoProcessor.from_pretrained(tmp_path)
        assert dict(ours.size) == {"shortest_edge": 27} and torch.equal(pixels(ours, FRAMES), pixels(theirs, FRAMES))
        larger = [c.from_pretrained(tmp_path, crop_size=32) for c in (VJepa2VideoProcessor, VJEPA2VideoProcessor)]
        assert torch.equal(*(pixels(processor, FRAMES) for processor in larger))

    def test_the_released_file(self, tmp_path):
        """The fields of `facebook/vjepa2-vitl-fpc64-256`, nulls and a stray one among them."""
        file = {
            **dict.fromkeys(("device", "do_convert_rgb", "do_pad", "input_data_format", "size_divisor")),
            "crop_size": {"height": 256, "width": 256},
            "data_format": "channels_first",
            "default_to_square": True,
            "do_center_crop": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
            "resample": 2,
            "rescale_factor": 0.00392156862745098,
            "size": {"shortest_edge": 292},
            "video_processor_type": "VJEPA2VideoProcessor",
        }
        (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(file))
        ours, theirs = (c.from_pretrained(tmp_path) for c in (VJepa2VideoProcessor, VJEPA2VideoProcessor))
        assert dict(ours.size) == {"shortest_edge": 292}
        assert torch.equal(pixels(ours, FRAMES[:1]), pixels(theirs, FRAMES[:1]))

    def test_a_files_own_size_is_kept_with_another_crop(self, tmp_path):
        VJepa2VideoProcessor(size=40, crop_size=32).save_pretrained(tmp_path)
        assert dict(VJepa2VideoProcessor.from_pretrained(tmp_path, crop_size=24).size) == {"height": 40, "width": 40}

    def test_ours_in_transformers_own_class(self, tmp_path):
        """It reads our file, but overwrites `size`: the same bits where `size` is the crop's default."""
        VJepa2VideoProcessor(crop_size=24, do_random_resized_crop=True).save_pretrained(tmp_path)
        theirs = VJEPA2VideoProcessor.from_pretrained(tmp_path)
        assert torch.equal(pixels(theirs, FRAMES), pixels(VJepa2VideoProcessor(crop_size=24), FRAMES))

    @pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "a/b/c"])
    def test_a_folder_that_is_not_there(self, path):
        with pytest.raises(FileNotFoundError, match=f"There is no folder '{path}'") as caught:
            VJepa2VideoProcessor.from_pretrained(path)
        assert "\n" not in str(caught.value)

    def test_auto_class_leaves_transformers_folders_to_transformers(self, tmp_path):
        VJEPA2VideoProcessor(crop_size=24).save_pretrained(tmp_path)
        assert type(AutoVideoProcessor.from_pretrained(tmp_path)) is VJEPA2VideoProcessor


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
            FRAMES.transpose(0, 3, 1, 2),
        ]  # fmt: skip
        for form in forms:
            assert torch.equal(pixels(processor, form), expected)

    def test_integers_are_the_same_video_but_for_rounding(self, processor):
        wide = pixels(processor, FRAMES.astype(np.int64), do_normalize=False)
        assert (wide - pixels(processor, FRAMES, do_normalize=False)).abs().max() < 1.01 / 255

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

    def test_addresses(self, processor, tmp_path):
        video = encode_video(FRAMES, fps=10)
        (tmp_path / "a.mp4").write_bytes(video)
        PIL.Image.fromarray(FRAMES[0]).save(tmp_path / "a.png")
        with served(tmp_path) as address:
            assert torch.equal(pixels(processor, f"{address}/a.mp4"), pixels(processor, video))
            assert torch.equal(pixels(processor, f"{address}/a.png?size=1"), pixels(processor, FRAMES[:1]))
            both = pixels(processor, [f"{address}/a.mp4", str(tmp_path / "a.mp4")])
            assert torch.equal(both[0], both[1])
            with pytest.raises(FileNotFoundError, match="b.mp4"):
                processor(f"{address}/b.mp4")

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
        (np.zeros((2, 16, 16, 4), np.uint8), ValueError, "no axis holds the 3 channels"),
        (np.zeros((2, 16, 16, 1), np.uint8), ValueError, "no axis holds the 3 channels"),
        (np.zeros((16, 16), np.uint8), ValueError, "needs height, width and 3 channels"),
        (np.zeros((0, 16, 16, 3), np.uint8), ValueError, "empty"),
        (np.zeros(16, np.uint8), ValueError, "an image has 3 dimensions"),
        ([], ValueError, "empty"),
        ([[]], ValueError, "empty"),
        ([FRAMES[0], FRAMES[0, :8]], ValueError, "different sizes"),
        (b"no video", ValueError, "cannot be decoded"),
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


class TestTrainingAugmentation:
    """The mode of the processor; what is drawn is read off a video whose pixels hold their own place."""

    HEIGHT, WIDTH, OUT = 200, 240, 32

    @pytest.fixture
    def processor(self):
        return VJepa2VideoProcessor(
            crop_size=self.OUT, do_random_resized_crop=True, do_rescale=False, do_normalize=False
        )

    @pytest.fixture
    def places(self):
        """float32 (2, 3, H, W): row, column, and the frame's number."""
        rows, columns = np.mgrid[: self.HEIGHT, : self.WIDTH].astype(np.float32)
        frames = [np.stack([rows, columns, np.full_like(rows, number)]) for number in (0, 1)]
        return torch.from_numpy(np.stack(frames))

    def crop_of(self, clip: torch.Tensor) -> tuple[int, int, int, int]:
        """Top, left, height and width in source pixels; a negative width is a flip. Borders, where resizing has
        nothing to interpolate with, are left out."""
        inner = torch.arange(4, self.OUT - 4)

        def line(values):  # value at output place j: start + (j + 0.5) · size / OUT - 0.5
            step = (values[inner[-1]] - values[inner[0]]) / (len(inner) - 1)
            start = values[inner[0]] + 0.5 - (inner[0] + 0.5) * step
            return start.item(), step.item() * self.OUT

        (top, height), (left, width) = line(clip[0, 0, :, 16]), line(clip[0, 1, 16])
        found = top, min(left, left + width), height, width
        assert all(abs(value - round(value)) < 0.1 for value in found)  # whole pixels
        return tuple(map(round, found))

    def test_crops_and_flips_are_as_published(self, processor, places):
        generator = torch.Generator().manual_seed(0)
        clips = torch.cat([pixels(processor, [places] * 20, generator=generator) for _ in range(20)])
        top, left, height, width = np.array([self.crop_of(clip) for clip in clips]).T
        area, ratio = height * abs(width) / (self.HEIGHT * self.WIDTH), abs(width) / height
        assert 0.29 < area.min() < 0.33 and area.max() < 1.01 and 0.5 < area.mean() < 0.65
        assert 0.74 < ratio.min() < 0.8 and 1.28 < ratio.max() < 1.37
        assert 0.4 < (width < 0).mean() < 0.6
        assert top.min() >= 0 and (top + height).max() <= self.HEIGHT
        assert left.min() >= 0 and (left + abs(width)).max() <= self.WIDTH
        assert len({*zip(top, left, height, width)}) > 390  # every clip of a batch has a draw of its own

    def test_all_frames_of_a_clip_share_the_draw(self, processor, places):
        for clip in pixels(processor, [places] * 5, generator=torch.Generator().manual_seed(1)):
            assert torch.equal(clip[0, :2], clip[1, :2])
            assert clip[0, 2].max() == 0 and (clip[1, 2] - 1).abs().max() < 1e-4

    def test_generator_makes_it_repeatable(self, processor, places):
        one, same, other = (
            pixels(processor, places, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
        )
        assert torch.equal(one, same) and not torch.equal(one, other)
        torch.manual_seed(0)
        first = pixels(processor, places)
        torch.manual_seed(0)
        assert torch.equal(first, pixels(processor, places)) and not torch.equal(first, pixels(processor, places))

    def test_replaces_resize_and_centre_crop_and_normalises_as_configured(self):
        transform = RandomResizedClip((24, 40), flip_probability=1.0)
        clip = torch.from_numpy(FRAMES).permute(0, 3, 1, 2)
        size = {"size": {"height": 9, "width": 9}, "crop_size": {"height": 24, "width": 40}}
        for do_resize, do_center_crop in itertools.product((True, False), repeat=2):
            processor = VJepa2VideoProcessor(
                do_resize=do_resize, do_center_crop=do_center_crop, random_flip_probability=1.0, **size
            )
            generator = [torch.Generator().manual_seed(5) for _ in range(2)]
            augmented = pixels(processor, clip, do_random_resized_crop=True, generator=generator[0])[0]
            assert torch.allclose(augmented, transform(clip, generator[1]), atol=1e-5)

    def test_is_saved_and_loaded_and_off_for_a_call(self, tmp_path, places):
        options = {"random_crop_scale": (0.5, 0.6), "random_crop_ratio": (1.0, 1.0), "random_flip_probability": 0.0}
        processor = VJepa2VideoProcessor(crop_size=self.OUT, do_random_resized_crop=True, **options)
        processor.save_pretrained(tmp_path)
        loaded = VJepa2VideoProcessor.from_pretrained(tmp_path)
        assert loaded.to_dict() == processor.to_dict()
        clips = [pixels(p, places, generator=torch.Generator().manual_seed(0)) for p in (processor, loaded)]
        assert torch.equal(*clips)
        plain = VJepa2VideoProcessor.from_pretrained(tmp_path, do_random_resized_crop=False)
        assert torch.equal(pixels(plain, places), pixels(VJepa2VideoProcessor(crop_size=self.OUT), places))
        off = pixels(loaded, places, do_random_resized_crop=False)
        assert torch.equal(off, pixels(VJepa2VideoProcessor(crop_size=self.OUT), places))

    def test_without_it_a_generator_changes_nothing(self):
        processor, generator = VJepa2VideoProcessor(crop_size=16), torch.Generator().manual_seed(0)
        state = generator.get_state()
        assert torch.equal(pixels(processor, FRAMES, generator=generator), pixels(processor, FRAMES))
        assert torch.equal(generator.get_state(), state)

    def test_files_are_augmented_too(self, processor):
        video = encode_video(FRAMES, fps=10)
        both = [
            pixels(processor, form, generator=torch.Generator().manual_seed(0)) for form in (video, read_video(video))
        ]
        assert torch.equal(*both)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"random_crop_scale": (0.0, 1.0)}, r"scale is \(0.0, 1.0\)"),
            ({"random_crop_scale": 0.5}, "scale is 0.5, but it must be two numbers"),
            ({"random_crop_ratio": [2, 1]}, r"ratio is \[2, 1\]"),
            ({"random_flip_probability": 1.5}, "flip_probability is 1.5"),
        ],
    )
    def test_settings_out_of_range(self, processor, options, message):
        with pytest.raises(ValueError, match=message):
            VJepa2VideoProcessor(crop_size=16, **options)
        with pytest.raises(ValueError, match=message):
            processor(FRAMES, **options)

    def test_a_setting_of_another_type(self, processor):
        with pytest.raises(ValueError, match="do_random_resized_crop is 'yes'; expected True or False"):
            processor(FRAMES, do_random_resized_crop="yes")


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
        crops = np.array([transform.sample_crop(200, 300, generator) for _ in range(500)])
        top, left, height, width = crops.T
        assert (top >= 0).all() and (left >= 0).all()
        assert (top + height <= 200).all() and (left + width <= 300).all()
        assert 0.29 < (height * width).min() / 60_000 < 0.35
        assert (width / height).min() > 0.74 and (width / height).max() < 1.36
        assert len(set(top)) > 50 and len(set(left)) > 50

    def test_frame_too_long_for_any_crop_is_cut_in_the_centre(self):
        crop = RandomResizedClip(8, scale=(1, 1), ratio=(1, 1)).sample_crop(40, 52, torch.Generator())
        assert crop == (0, 6, 40, 40)

    def test_resize_is_torchvisions(self):
        transform = RandomResizedClip(16, scale=(1, 1), ratio=(0.5, 2), flip_probability=0)
        expected = tvf.resize(self.CLIP, [16, 16], antialias=True) / 255
        expected = tvf.normalize(expected, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        assert torch.allclose(transform(self.CLIP), expected, atol=1e-5)

    @pytest.mark.parametrize(
        "settings", [{"scale": (0, 1)}, {"scale": (0.5, 2)}, {"ratio": (2, 1)}, {"flip_probability": 2}]
    )
    def test_bad_settings_are_refused(self, settings):
        with pytest.raises(ValueError, match=next(iter(settings))):
            RandomResizedClip(8, **settings)


@pytest.mark.parametrize("options", [{}, {"do_normalize": False}, {"do_rescale": False, "image_mean": [100.0] * 3}])
def test_pictures_are_what_was_normalised(options):
    processor = VJepa2VideoProcessor(do_resize=False, do_center_crop=False, **options)
    clips = pixels(processor, FRAMES)
    np.testing.assert_array_equal(processor.to_images(clips), FRAMES[None])
    bright = processor.to_images(clips[0] + 2000)
    assert bright.dtype == np.uint8 and (bright == 255).all()
