"""Reading of videos: the right frames and times; errors name the video."""

import base64
import io
import sys
import zlib

import av
import numpy as np
import pytest
from builders import numbered_frames, numbered_video, numbers_of
from hypothesis import given, settings
from hypothesis import strategies as st

from vjepa2_hf import video_io
from vjepa2_hf.data.video_writing import encode_video
from vjepa2_hf.video_io import VideoDecodeError, VideoReader, read_video


# An MPEG-TS file in which damage makes a stream appear that is not there at first, as small as it goes
STREAM_FROM_NOWHERE = (
    "eNrVlzFOwzAUhn8HEIIqQqqQOAAbIzsSTFnpCRhZEBIdGDrAAhN3YOAEBcQBOAJH4Aa9wSO2g2MndqFu7DiWmqqv6cv3/vfXeSnOQBNCuQjU2Q"
    "IYz0i7MinPDWjfig+/0epdxqDOseTMzEhRsYtcXbJXV1cH7RIlOvvYF8Trsh8HYdd0l4QGOxm6i0jFzhLQ3WDfwHJ28maf1p2NtURxpBV3ofDd"
    "/E36SLpTKN3Ds2/thfL7fefsa1Z66TZQXQFi6R5sn5nG171Z3DY8/6uz/jzTquGa1B3eWoPOn4ru5K87JaL7Dqy6g72oXxjsJ33dm3Tm2z+8Mg"
    "TdaUW/P/TH7q5iJMdMRpbpsiqAs9+0nBQd9M7DMkjMM6OVPHOKMTDPwT55hxY4et18o2GsZP2ew90Bw+/o2e/5o6/fJ52zN9lk6L2exdCaxZjf"
    "s3YqnrE8nrsGYcWONNhpCXt9ktad4hwHyOZjsc98Y4GMH56fDr8GsM+Ur6uYuov+/0NfW18a6weXd9nA"
)


@pytest.fixture(scope="module")
def video() -> bytes:
    return numbered_video()


class TestVideo:
    @settings(max_examples=30, deadline=None)
    @given(indices=st.lists(st.integers(0, 29), min_size=1, max_size=8))
    def test_any_frames_in_any_order_are_the_frames_of_the_whole_video(self, video, indices):
        assert numbers_of(read_video(video, indices)) == indices

    def test_times_take_the_frame_shown_then(self, video):
        assert numbers_of(read_video(video, times=[0, 0.24, 0.25, 1.0, 99])) == [0, 2, 3, 12, 29]

    def test_reader_knows_rate_and_length(self, video):
        with VideoReader(video) as reader:
            assert len(reader) == 30
            assert reader.fps == pytest.approx(12)
            assert reader.duration == pytest.approx(2.5)

    def test_container_without_presentation_times(self):
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="avi") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width = stream.height = 32
            stream.pix_fmt = "yuv420p"
            for frame in numbered_frames(20, 32, 32):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        assert numbers_of(read_video(buffer.getvalue(), [19, 0, 7])) == [19, 0, 7]

    @pytest.mark.parametrize(
        ("source", "error", "message"),
        [
            (b"no video", VideoDecodeError, "cannot be decoded as a video"),
            (b"", VideoDecodeError, "cannot be decoded as a video"),
            ("/nowhere/a.mp4", FileNotFoundError, "no video file at '/nowhere/a.mp4'"),
            (7, ValueError, "bytes, a path or a URL, not as int"),
        ],
    )
    def test_what_is_no_video_is_refused(self, source, error, message):
        with pytest.raises(error, match=message):
            read_video(source)

    def test_truncated_video_does_not_decode_in_silence(self):
        noise = np.random.default_rng(0).integers(0, 255, (24, 32, 32, 3), np.uint8)
        video = bytearray(encode_video(noise, fps=10))
        video[len(video) // 4 : len(video) // 4 + 4000] = bytes(4000)
        with pytest.raises(ValueError, match="cannot be decoded"), VideoReader(bytes(video[:-2000])) as reader:
            reader.frames()

    def test_a_stream_that_appears_in_a_damaged_file_is_no_index_error(self):
        with pytest.raises(VideoDecodeError, match="cannot be decoded as a video"):
            VideoReader(zlib.decompress(base64.b64decode(STREAM_FROM_NOWHERE)))

    @pytest.mark.parametrize("read", [VideoReader.frames, lambda reader: list(reader.iterate())])
    @pytest.mark.parametrize("error", [IndexError, OverflowError, ValueError])
    def test_whatever_pyav_raises_while_it_decodes_names_the_video(self, video, monkeypatch, read, error):
        class Damaged:
            def seek(self, *arguments, **settings):
                raise error("list index out of range")

            def close(self):
                pass

        with VideoReader({"bytes": video, "path": "a.ts"}) as reader:
            monkeypatch.setattr(reader, "_container", Damaged())
            with pytest.raises(VideoDecodeError, match="a.ts cannot be decoded .list index"):
                read(reader)

    def test_frames_beyond_the_end_are_refused(self, video):
        with pytest.raises(ValueError, match="frames 0 to 29"):
            read_video(video, [30])

    def test_torchcodec_changes_nothing(self, video, monkeypatch):
        monkeypatch.setattr(video_io, "torchcodec_decoder", lambda: pytest.fail("torchcodec was asked"))
        assert numbers_of(read_video(video, [4, 2, 4])) == [4, 2, 4]

    def test_torchcodec_that_does_not_import_is_none(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
        video_io.torchcodec_decoder.cache_clear()
        assert video_io.torchcodec_decoder() is None
        video_io.torchcodec_decoder.cache_clear()
