"""A corpus of odd videos, made here: whatever the codec, container or fault, each frame is the right one or refused.

Each picture holds its number: eight fields, light for a set bit, large enough for every codec; a red field marks the
top left corner, so that a turned picture is noticed.
"""

import functools
import io
import itertools
import logging
import os
import struct
from collections.abc import Callable, Iterable
from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition

from vjepa2_hf import video_source
from vjepa2_hf.data.video_writing import transcode_video
from vjepa2_hf.video_io import ReadLimits, VideoDecodeError, VideoReader, read_video, torchcodec_decoder


COUNT = 24  # frames
RATE = 10


def picture(number: int, height: int = 64, width: int = 64) -> np.ndarray:
    image = np.full((height, width, 3), 60, np.uint8)
    high, wide = height // 4, width // 4
    for bit in range(8):
        row, column = divmod(bit, 4)
        field = image[(row + 1) * high : (row + 2) * high, column * wide : (column + 1) * wide]
        field[:] = 235 if number >> bit & 1 else 20
    image[:high, :wide] = (230, 30, 30)
    return image


def number_of(image: np.ndarray) -> int:
    """The number in a picture; -1 if its corner is not red."""
    high, wide = image.shape[0] // 4, image.shape[1] // 4
    corner = image[high // 4 : high - high // 4, wide // 4 : wide - wide // 4].reshape(-1, 3).mean(axis=0)
    if corner[0] < corner[1] + 60:
        return -1
    found = 0
    for bit in range(8):
        row, column = divmod(bit, 4)
        top, left = (row + 1) * high + high // 4, column * wide + wide // 4
        found |= int(image[top : top + high // 2, left : left + wide // 2].mean() > 128) << bit
    return found


def numbers_of(frames: Iterable[np.ndarray]) -> list[int]:
    return [number_of(frame) for frame in frames]


def film(
    container: str,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    numbers: Iterable[int] = range(COUNT),
    size: tuple[int, int] = (64, 64),
    pts: Iterable[int] | None = None,
    edit: Callable[[list[av.Packet]], list[av.Packet]] = list,
    muxer: dict | None = None,
    rate: int = RATE,
    **context,
) -> bytes:
    """A video of pictures; `edit` changes the packets, `context` the encoder."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container, options=muxer or {}) as output:
        stream = output.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        stream.gop_size, stream.thread_count = 8, 1
        for name, value in context.items():
            setattr(stream if name == "options" else stream.codec_context, name, value)
        packets = []
        for number, time in zip(numbers, pts if pts is not None else itertools.count(), strict=False):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = time, Fraction(1, rate)
            packets += stream.encode(frame)
        for packet in edit([*packets, *stream.encode()]):
            output.mux(packet)
    return buffer.getvalue()


def x264(parameters: str = "", b_frames: int = 3, **more) -> dict:
    return {
        "options": {
            "preset": "veryfast",
            "crf": "12",
            "bf": str(b_frames),
            "b_strategy": "0",
            "x264-params": parameters,
        },
        **more,
    }


def with_pts_of_dts(packets: list[av.Packet]) -> list[av.Packet]:
    """Times of decoding for times of presentation, as after a copy out of an AVI file."""
    first = min(packet.dts for packet in packets)
    for packet in packets:
        packet.dts -= first
        packet.pts = packet.dts
    return packets


def flagged(is_key: bool) -> Callable:
    def edit(packets: list[av.Packet]) -> list[av.Packet]:
        for packet in packets[1:]:
            packet.is_keyframe = is_key
        return packets

    return edit


def shifted(by: int) -> Callable:
    """Times that start later or earlier; in units of the packets' time base times the interval between frames."""

    def edit(packets: list[av.Packet]) -> list[av.Packet]:
        step = round(Fraction(1, RATE) / packets[0].time_base)
        for packet in packets:
            packet.pts, packet.dts = packet.pts + by * step, packet.dts + by * step
        return packets

    return edit


def without_first(count: int) -> Callable:
    return lambda packets: packets[count:]


def with_matrix(video: bytes, *entries: float) -> bytes:
    """An mp4 with (a, b, c, d) in the display matrix of its track."""
    position = video.index(b"tkhd") + 4 + 40  # after version, times, ids, layer and volume
    a, b, c, d = (round(entry * 65536) for entry in entries)
    return video[:position] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + video[position + 36 :]


def joined(*videos: bytes) -> bytes:
    return b"".join(videos)


def cosine(degrees: float) -> tuple[float, float, float, float]:
    angle = np.deg2rad(degrees)
    return np.cos(angle), np.sin(angle), -np.sin(angle), np.cos(angle)


INTRA_REFRESH = "intra-refresh=1:keyint=12:bframes=0"

# name -> (function that makes the file, numbers in its frames)
CORPUS: dict[str, tuple[Callable[[], bytes], list[int]]] = {}
ALL = list(range(COUNT))


def add(name: str, *arguments, expected: list[int] = ALL, **settings) -> None:
    CORPUS[name] = (functools.partial(film, *arguments, **settings), expected)


# --- H.264 in every container, with B-frames
for container in ("mp4", "mov", "matroska", "flv", "mpegts", "avi", "h264", "nut"):
    add(f"h264 with B-frames in {container}", container, **x264())
add("h264 without B-frames in avi", "avi", **x264(b_frames=0))
add("h264 with a pyramid of B-frames", "mp4", **x264("b-pyramid=normal:bframes=5:ref=4"))
add("h264 with open GOPs", "mp4", **x264("open-gop=1:keyint=8:bframes=3"))
add("h264 with open GOPs in mkv", "matroska", **x264("open-gop=1:keyint=8:bframes=3"))
add("h264 with intra refresh", "mp4", **x264(INTRA_REFRESH, b_frames=0))
add("h264 with intra refresh in mkv", "matroska", **x264(INTRA_REFRESH, b_frames=0))
add("h264 interlaced", "mp4", **x264("interlaced=1"))
add("h264 in one GOP", "mp4", **x264("keyint=250:scenecut=0"))
add("h264 of 10 bits", "mp4", pixels="yuv420p10le", **x264())
add("h264 4:4:4 of odd size", "mp4", pixels="yuv444p", size=(51, 67), **x264())
add("h264 in fragments", "mp4", muxer={"movflags": "frag_keyframe+empty_moov"}, **x264())
add("h264 with its key frames hidden", "mp4", edit=flagged(False), **x264())
add("h264 with every packet flagged as key", "mp4", edit=flagged(True), **x264())
add("h264 with every packet flagged as key in mkv", "matroska", edit=flagged(True), **x264())
add("h264 with times of decoding", "mp4", edit=with_pts_of_dts, **x264())
add("h264 with times of decoding in mkv", "matroska", edit=with_pts_of_dts, **x264())
add("h264 that starts later", "mp4", edit=shifted(30), **x264())
add("h264 that starts before time 0 and is cut there", "mp4", edit=shifted(-5), expected=ALL[5:], **x264(b_frames=0))
add("h264 of a variable rate", "mp4", pts=np.cumsum(np.arange(COUNT) % 3 + 1).tolist(), **x264())
add("h264 of a variable rate in avi", "avi", pts=np.cumsum(np.arange(COUNT) % 3 + 1).tolist(), **x264(b_frames=0))
add(
    "h264 recording from between key frames",
    "mpegts",
    edit=without_first(3),
    expected=ALL[8:],
    **x264("scenecut=0", 0),
)
add("h264 with one frame", "mp4", numbers=[7], expected=[7], **x264())
# --- Other codecs


def x265(parameters: str) -> dict:
    quiet = "log-level=none:pools=none:frame-threads=1:keyint=8:"
    return {"codec": "libx265", "options": {"preset": "ultrafast", "crf": "12", "x265-params": quiet + parameters}}


add("hevc", "mp4", **x265("bframes=3:open-gop=0"))
add("hevc with open GOPs", "matroska", **x265("bframes=3:open-gop=1:min-keyint=8"))
add("hevc with intra refresh", "mp4", **x265("intra-refresh=1:bframes=0"))
add("hevc as a raw stream", "hevc", **x265("bframes=3"))
add("hevc of 10 bits", "mp4", pixels="yuv420p10le", **x265("bframes=0"))
LAGGED = {"lag-in-frames": "16", "auto-alt-ref": "1", "deadline": "good", "cpu-used": "4", "crf": "10", "b": "2M"}
add("vp8 with hidden frames", "webm", codec="libvpx", options={**LAGGED, "arnr-maxframes": "0"})
add("vp9 with hidden frames", "webm", codec="libvpx-vp9", options={**LAGGED, "arnr-maxframes": "0"})
add("vp9 in mp4", "mp4", codec="libvpx-vp9", options=LAGGED)
add("vp9 in ivf", "ivf", codec="libvpx-vp9", options=LAGGED)
AV1 = {"preset": "8", "crf": "8", "svtav1-params": "lp=1:enable-tf=0:keyint=8"}
add("av1 in mp4", "mp4", codec="libsvtav1", options=AV1)
add("av1 in webm", "webm", codec="libsvtav1", options=AV1)
for container, codec, b_frames in (
    ("avi", "mpeg4", 2), ("mp4", "mpeg4", 2), ("matroska", "mpeg4", 0), ("m4v", "mpeg4", 0),
    ("mpegts", "mpeg2video", 2), ("mpeg", "mpeg2video", 2), ("mpeg", "mpeg1video", 2), ("matroska", "mpeg2video", 2),
    ("mpeg2video", "mpeg2video", 0),
    ("asf", "wmv2", 0), ("avi", "msmpeg4", 0), ("flv", "flv", 0), ("avi", "ffv1", 0), ("matroska", "ffv1", 0),
    ("avi", "huffyuv", 0), ("avi", "rawvideo", 0), ("avi", "cinepak", 0),
):  # fmt: skip
    pixels = {"huffyuv": "yuv422p", "cinepak": "rgb24", "rawvideo": "yuv420p"}.get(codec, "yuv420p")
    rate = {"max_b_frames": b_frames} if codec.startswith("mpeg") else {}
    rate["rate"] = 25 if codec == "mpeg1video" else RATE
    add(f"{codec} in {container}", container, codec, pixels, bit_rate=4_000_000, **rate)
for container, codec, pixels in (
    ("avi", "mjpeg", "yuvj420p"), ("mov", "mjpeg", "yuvj422p"), ("mjpeg", "mjpeg", "yuvj420p"),
    ("mov", "png", "rgb24"),
    ("mov", "qtrle", "rgb24"), ("mov", "prores_ks", "yuv422p10le"), ("avi", "utvideo", "gbrp"),
    ("apng", "apng", "rgb24"),
):  # fmt: skip
    add(f"{codec} in {container}", container, codec, pixels)
add("gif", "gif", "gif", "rgb8")
add("mjpeg with empty packets in avi", "avi", "mjpeg", "yuvj420p", pts=range(0, 3 * COUNT, 3))
CORPUS["mpeg2 that is joined of two files, its times beginning anew"] = (
    lambda: joined(film("mpegts", "mpeg2video"), film("mpegts", "mpeg2video", numbers=range(30, 30 + COUNT))),
    [*ALL, *range(30, 30 + COUNT)],
)
CORPUS["h264 whose size changes"] = (
    lambda: joined(film("mpegts", **x264()), film("mpegts", size=(96, 128), **x264())),
    ALL * 2,
)
CORPUS["mjpeg whose size changes"] = (
    lambda: joined(film("mjpeg", "mjpeg", "yuvj420p"), film("mjpeg", "mjpeg", "yuvj420p", size=(96, 128))),
    ALL * 2,
)


@functools.cache
def corpus_file(name: str) -> bytes:
    return CORPUS[name][0]()


@pytest.mark.parametrize("name", CORPUS)
def test_every_frame_is_the_right_one(name):
    """All frames, each alone, some in one call, and in order."""
    video, expected = corpus_file(name), CORPUS[name][1]
    whole = read_video(video)
    assert numbers_of(whole) == expected
    with VideoReader(video) as reader:
        assert len(reader) == len(expected)
        for index in reversed(range(len(expected))):
            assert np.array_equal(reader.frames([index])[0], whole[index]), index
        some = [*range(1, len(expected), 5), *range(0, len(expected), 3)]
        assert np.array_equal(reader.frames(some), whole[some])
        in_order = [(time, reader.to_rgb(frame)) for time, frame in reader.iterate()]
        assert np.array_equal(np.stack([image for _, image in in_order]), whole)
        assert [time for time, _ in in_order] == reader.times.tolist()
        assert reader.times[0] == 0 and (np.diff(reader.times) > 0).all()


@pytest.mark.parametrize(
    ("name", "starts"), [("h264 with open GOPs", 3), ("hevc with open GOPs", 3), ("h264 with intra refresh", 1)]
)
def test_decoding_begins_at_exact_recovery_points_alone(name, starts):
    with VideoReader(corpus_file(name)) as reader:
        assert reader._trusted and len(reader._key_pts) == starts


# --- Which stream, how it is turned, where it lies


def two_streams(first: dict, second: dict, container: str = "matroska") -> bytes:
    """Two video streams: `numbers`, `size`, `codec`, and `disposition` of each."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        streams, packets = [], []
        for settings in (first, second):
            stream = output.add_stream(settings.get("codec", "libx264"), rate=RATE)
            stream.height, stream.width = settings["size"]
            stream.pix_fmt = "yuvj420p" if settings.get("codec") == "mjpeg" else "yuv420p"
            stream.disposition = settings.get("disposition", 0)
            streams.append(stream)
        for stream, settings in zip(streams, (first, second), strict=True):
            for time, number in enumerate(settings["numbers"]):
                frame = av.VideoFrame.from_ndarray(picture(number, *settings["size"]), format="rgb24")
                frame = frame.reformat(format=stream.pix_fmt)
                frame.pts, frame.time_base = time, Fraction(1, RATE)
                packets += stream.encode(frame)
            packets += stream.encode()
        output.mux(sorted(packets, key=lambda packet: packet.dts * packet.time_base))
    return buffer.getvalue()


MAIN, SMALL = {"numbers": ALL, "size": (64, 64)}, (32, 48)
COVER = {"numbers": [9], "codec": "mjpeg", "disposition": Disposition.attached_pic}
STREAMS = {
    "a cover first": ({**COVER, "size": SMALL}, MAIN),
    "a larger cover last": (
        MAIN, {**COVER, "size": (128, 96)}
    ),
    "a still picture first": ({"numbers": [9], "size": SMALL, "codec": "mjpeg"}, MAIN),
    "the default one last": (
        {"numbers": range(100, 100 + COUNT), "size": SMALL}, {**MAIN, "disposition": Disposition.default}
    ),
    "the default one first": (
        {**MAIN, "disposition": Disposition.default}, {"numbers": range(100, 100 + COUNT), "size": (128, 96)}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STREAMS)
def test_the_stream_is_the_video(name):
    video = two_streams(*STREAMS[name])
    frames = read_video(video)
    assert frames.shape[1:3] == (64, 64) and numbers_of(frames) == ALL
    assert numbers_of(read_video(video, [17, 3])) == [17, 3]


def test_a_cover_alone_is_no_video():
    cover = {**COVER, "size": SMALL}
    with pytest.raises(VideoDecodeError, match="holds no video stream"):
        read_video(two_streams(cover, cover, "mp4"))


# (a, b, c, d) of the display matrix -> how the stored picture is shown
MATRICES = {
    "a quarter turn": ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
    "half a turn": ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
    "three quarters of a turn": ((0, -1, 1, 0), lambda image: np.rot90(image, 1)),
    "mirrored": ((-1, 0, 0, 1), lambda image: image[:, ::-1]),
    "upside down": ((1, 0, 0, -1), lambda image: image[::-1]),
    "transposed": ((0, 1, 1, 0), lambda image: image.transpose(1, 0, 2)),
    "transposed and turned": ((0, -1, -1, 0), lambda image: np.rot90(image, 2).transpose(1, 0, 2)),
    "half a degree": ((0.99996, 0.0087, -0.0087, 0.99996), lambda image: image),
    "twice the size": ((2, 0, 0, 2), lambda image: image),
    "all zero": ((0, 0, 0, 0), lambda image: image),
}


@pytest.mark.parametrize("name", MATRICES)
def test_display_matrix(name):
    entries, show = MATRICES[name]
    plain = film("mp4", size=(64, 96), numbers=range(4), **x264())
    video = with_matrix(plain, *entries)
    expected = np.stack([show(image) for image in read_video(plain)])
    assert np.array_equal(read_video(video), expected)
    assert np.array_equal(read_video(video, [2])[0], expected[2])
    again = read_video(transcode_video(video, height=expected.shape[1])[0])
    assert again.shape == expected.shape and np.abs(again.astype(int) - expected).mean() < 6


def test_a_display_matrix_of_any_angle_turns_the_picture_about_its_center():
    plain = film("mp4", size=(64, 96), numbers=[255], **x264())
    angle = np.deg2rad(-20)
    video = with_matrix(plain, np.cos(angle), np.sin(angle), -np.sin(angle), np.cos(angle))
    image, turned = read_video(plain)[0], read_video(video)[0]
    assert turned.shape == image.shape and turned[0, 0].max() == 0
    # The center of the red corner field (column 12, row 8), turned by 20 degrees against the clock about (48, 32)
    x, y = 12 - 48, 8 - 32
    column, row = 48 + np.cos(angle) * x - np.sin(angle) * y, 32 + np.sin(angle) * x + np.cos(angle) * y
    assert np.abs(turned[round(row), round(column)].astype(int) - image[8, 12]).max() < 12


@pytest.mark.parametrize(
    "name",
    ["2024-01-01T10:30:00.mp4", "a%03d.mp4", "a [1] {2} 'x' ü 影.mp4", "file:a.mp4", "concat:a.mp4|b.mp4", "-i.mp4"],
)
def test_file_names(name, tmp_path, monkeypatch):
    (tmp_path / name).write_bytes(corpus_file("h264 in one GOP"))
    monkeypatch.chdir(tmp_path)
    assert numbers_of(read_video(name)) == ALL


def test_a_file_name_and_a_title_that_are_not_utf8(tmp_path):
    video = corpus_file("h264 in one GOP").replace(b"Lavf", b"\xff\xfe\xe4\xf6")
    name = os.fsencode(tmp_path) + b"/\xff\xe4.mp4"
    with open(name, "wb") as file:
        file.write(video)
    assert numbers_of(read_video(os.fsdecode(name), [5])) == [5]


# --- What is refused

SDP = (
    b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
)
PLAYLISTS = {
    "sdp": SDP,
    "m3u8": b"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:3\n#EXTINF:2.4,\nb.mp4\n#EXT-X-ENDLIST\n",
    "ffconcat": b"ffconcat version 1.0\nfile 'b.mp4'\n",
    "mpd": b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"></MPD>',
}


@pytest.mark.parametrize("kind", PLAYLISTS)
@pytest.mark.parametrize("as_bytes", [True, False], ids=["bytes", "file"])
def test_files_that_name_other_files_are_refused(kind, as_bytes, tmp_path):
    (tmp_path / "b.mp4").write_bytes(corpus_file("h264 in one GOP"))
    path = tmp_path / f"a.{kind}"
    path.write_bytes(PLAYLISTS[kind])
    with pytest.raises(VideoDecodeError, match="cannot be decoded as a video"):
        read_video(PLAYLISTS[kind] if as_bytes else path)


def test_a_frame_too_large_takes_no_memory():
    """269 KB of zeros in ffv1 once asked for 3 GB."""
    video = film("matroska", "ffv1", size=(64, 64), numbers=[0])
    width = video.index(b"\xb0\x81\x40")  # PixelWidth 64 in Matroska
    large = video[:width] + b"\xb0\x81\xff" + video[width + 3 :]
    assert len(large) == len(video)
    with pytest.raises(VideoDecodeError, match="more pixels than max_frame_pixels=4,096"):
        read_video(film("mp4", size=(66, 64), numbers=[0], **x264()), limits=ReadLimits(max_frame_pixels=4096))
    with pytest.raises(VideoDecodeError, match="max_frame_pixels|cannot be decoded"):
        read_video(large, limits=ReadLimits(max_frame_pixels=8000))


@pytest.mark.parametrize("container", ["mp4", "avi", "mpegts", "matroska"])
def test_a_cut_file_gives_frames_at_their_times_or_is_refused(container):
    video = film(container, **x264())
    for end in range(len(video) // 4, len(video), len(video) // 6):
        try:
            with VideoReader(video[:end]) as reader:
                numbers, times = numbers_of(reader.frames()), reader.times
        except VideoDecodeError:
            continue
        assert numbers == np.rint(times * RATE).astype(int).tolist(), end  # B-frames at the end may be lacking


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (float("inf"), "expected a sequence of finite numbers"), ([float("nan")], "expected a sequence of finite"),
        (["a"], "expected a sequence of finite numbers"), ([1.5], "Frames 1.5 to 1.5"), ([], "Frames none"),
        ([2**70], "Frames 1.18"), ([-1], "Frames -1 to -1"), (3, "expected a sequence"),
        ([[1], [2]], "expected a sequence"),
    ],
)  # fmt: skip
def test_frame_indices_that_are_none_are_named(indices, message):
    with pytest.raises(ValueError, match=message):
        read_video(corpus_file("h264 in one GOP"), indices)


@pytest.mark.parametrize("times", [float("inf"), [float("nan")], ["a"], 1.0])
def test_times_that_are_none_are_named(times):
    with pytest.raises(ValueError, match="The times requested from the video are .*; expected a sequence of finite"):
        read_video(corpus_file("h264 in one GOP"), times=times)


def test_a_rate_above_the_videos_own_warns_once(caplog, monkeypatch):
    monkeypatch.setattr(video_source, "_warned_of_repeats", False)
    with VideoReader(corpus_file("h264 in one GOP")) as reader, caplog.at_level(logging.WARNING):
        reader.indices_at(np.arange(8) / RATE)
        reader.indices_at(np.arange(8) / 4)
        reader.indices_at([1.0])
        assert not caplog.records
        for rate in (1000, 30):
            reader.indices_at(np.arange(8) / rate)
    assert len(caplog.records) == 1
    assert "has 10 frames per second, and 1000 per second are requested: frames repeat" in caplog.text


def test_motion_of_a_file_that_is_decoded_for_its_table():
    still = film("avi", "mpeg4", numbers=[3] * 12 + list(range(12)), bit_rate=2_000_000)
    with VideoReader(still) as reader:
        motion = reader.motion()
    assert motion[13:].mean() > 3 * motion[2:11].mean()


@pytest.mark.skipif(torchcodec_decoder() is None, reason="torchcodec does not import here")
@pytest.mark.parametrize("name", CORPUS)
def test_torchcodec_gives_the_same_frames(name):
    """The same to 2 of 255, where torchcodec reads the right frames."""
    frames = read_video(corpus_file(name))
    try:
        decoder = torchcodec_decoder()(corpus_file(name), dimension_order="NHWC")
        other = decoder.get_frames_in_range(0, len(decoder)).data.numpy()
    except RuntimeError as error:
        pytest.skip(f"torchcodec cannot read it ({str(error):.200})")
    if numbers_of(other) != CORPUS[name][1]:
        pytest.skip(f"torchcodec takes other frames: {numbers_of(other)}")
    assert np.abs(other.astype(int) - frames).max() <= 2
