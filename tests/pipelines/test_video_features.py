"""The feature pipeline gives what the encoder gives, for files and arrays, one or many."""

import numpy as np
import pytest
import torch
from builders import TINY_ENCODER, TINY_PREDICTOR, noise_frames, noise_pixels
from transformers import VJEPA2Config, VJEPA2Model, pipeline

from vjepa2_hf import VJepa2Encoder, VJepa2FeatureExtractor, VJepa2ForMaskedLatentPrediction
from vjepa2_hf import VJepa2MaskedLatentPredictionConfig as MaskedConfig


TASK = "video-feature-extraction"


@pytest.fixture(scope="module")
def extractor(encoder, processor):
    return VJepa2FeatureExtractor(encoder, processor, device="cpu")


def test_features_are_the_encoders(extractor, encoder, processor, video):
    tokens = encoder.encode_long(video, chunk_frames=4, processor=processor)[0]
    by_frame = encoder.encode_long(video, chunk_frames=4, processor=processor, pool="frame")[0]
    assert np.array_equal(extractor(video, pool="none"), tokens.numpy())
    assert np.array_equal(extractor(str(video), pool="frame"), by_frame.numpy())
    clip = extractor(video)
    assert clip.shape == (24,) and clip.dtype == np.float32 and np.array_equal(clip, by_frame.mean(dim=0).numpy())
    assert torch.equal(extractor(video, return_tensors=True), by_frame.mean(dim=0))


def test_settings_reach_the_encoder(extractor, encoder, processor, video):
    options = {"chunk_frames": 8, "overlap": 2, "stride": 2}
    expected = encoder.encode_long(video, processor=processor, **options)[0]
    assert np.array_equal(extractor(video, pool="none", **options), expected.numpy())
    standing = VJepa2FeatureExtractor(encoder, processor, device="cpu", pool="none", **options)
    assert np.array_equal(standing(video), expected.numpy())
    assert np.array_equal(standing(video, pool="frame").shape, (6, 24))


def test_one_video_or_many_in_any_form(extractor, video):
    expected, frames = extractor(video), noise_frames(6)
    found = extractor([video, str(video), frames, video.read_bytes()], batch_size=2)
    assert all(np.array_equal(found[i], expected) for i in (0, 1, 3)) and np.array_equal(found[2], extractor(frames))
    assert all(np.array_equal(one, expected) for one in extractor(path for path in [video, video]))
    assert extractor(noise_pixels(4)).shape == (24,)  # normalized already


def test_saved_and_loaded_by_the_task(extractor, video, tmp_path):
    extractor.save_pretrained(tmp_path)
    loaded = pipeline(TASK, model=str(tmp_path), device="cpu")
    assert type(loaded) is VJepa2FeatureExtractor and np.allclose(loaded(video), extractor(video), atol=1e-5)


def test_of_a_masked_latent_model_the_target_encoder_is_taken(processor, video):
    model = VJepa2ForMaskedLatentPrediction(MaskedConfig(encoder_config=TINY_ENCODER, **TINY_PREDICTOR))
    extractor = pipeline(TASK, model=model, video_processor=processor, device="cpu")
    assert isinstance(extractor.model, VJepa2Encoder) and extractor.model is model.target_encoder


def test_what_is_refused(extractor, encoder, video):
    with pytest.raises(ValueError, match="pool is 'mean'; expected 'clip', 'frame' or 'none'"):
        extractor(video, pool="mean")
    with pytest.raises(ValueError, match="has no setting 'num_frames'"):
        extractor(video, num_frames=3)
    with pytest.raises(ValueError, match="must be resized and normalized by a processor"):
        VJepa2FeatureExtractor(encoder, device="cpu")(video)
    with pytest.raises(ValueError, match="VJEPA2Model loads with VJepa2Encoder.from_pretrained"):
        small = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "pred_hidden_size": 12}
        small |= {"pred_num_hidden_layers": 1, "pred_num_attention_heads": 2}
        VJepa2FeatureExtractor(VJEPA2Model(VJEPA2Config(**small)))
