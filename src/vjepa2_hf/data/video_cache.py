"""Decoded videos in memory, so that later clips of the same videos are not decoded again.

    VideoCache(max_bytes).open(place, source, limits) -> CachedVideo, whose frames stay in memory

A clip is the same with and without a cache: `CachedVideo` has the table, the frames and the errors of `VideoReader`.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Hashable, Sequence

import numpy as np

from ..video_io import ReadLimits, VideoDecodeError, VideoReader


logger = logging.getLogger(__name__)

_TABLE_BYTES = 64  # of a frame's time, size and kind


class VideoCache:
    """Decoded videos of one reader of data. The least recently used ones make room for new ones.

    Args:
        max_bytes: limit on the memory of all videos together, the one that is being decoded included; 0 keeps none.

    Attributes:
        nbytes: memory of the videos that are kept.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes, self.nbytes = max_bytes, 0
        self._videos: OrderedDict[Hashable, CachedVideo] = OrderedDict()
        self._warned = False

    def __len__(self) -> int:
        return len(self._videos)

    def open(
        self, place: Hashable, source: bytes | str | os.PathLike | dict, limits: ReadLimits | None = None
    ) -> VideoReader:
        """The video at a place in the data: the one that is kept, or one that is kept once it has been decoded."""
        if not self.max_bytes:
            return VideoReader(source, limits)
        if place in self._videos:
            self._videos.move_to_end(place)
            return self._videos[place]
        return CachedVideo(source, limits, self, place)

    def make_room(self, size: int) -> bool:
        """Drops videos until `size` bytes fit. False, and nothing is dropped, if they are more than `max_bytes`."""
        if size > self.max_bytes:
            return False
        if self.nbytes + size > self.max_bytes and not self._warned:
            self._warned = True
            logger.warning(
                "the cache of decoded videos is full with %d videos; it saves time only if it holds most videos of an "
                "epoch, so raise video_cache_bytes=%d or set it to 0", len(self), self.max_bytes,
            )  # fmt: skip
        while self.nbytes + size > self.max_bytes:
            self.nbytes -= self._videos.popitem(last=False)[1].nbytes
        return True

    def keep(self, place: Hashable, video: CachedVideo) -> None:
        """Keeps a decoded video, for which there is room."""
        self._videos[place] = video
        self.nbytes += video.nbytes


class CachedVideo(VideoReader):
    """A video of which all frames are decoded when the first ones are asked for. It can then be read when it is
    closed, except by `iterate`.

    A video that is larger than the cache is decoded like any other. So is one that is damaged anywhere, or whose
    frames differ from its container's table. None of them is kept.

    Attributes:
        nbytes: memory of all frames and of their table.
    """

    def __init__(
        self, source: bytes | str | os.PathLike | dict, limits: ReadLimits | None, cache: VideoCache, place: Hashable
    ):
        super().__init__(source, limits)
        self._given, self._cache, self._place = (source, limits), cache, place
        self._decoded: np.ndarray | None = None
        width, height = self._to_rgb.size
        self.nbytes = len(self) * (3 * width * height + _TABLE_BYTES)

    def frames(self, indices: Sequence[int] | None = None) -> np.ndarray:
        """See `VideoReader.frames`."""
        if self._decoded is None:
            if not self._cache.make_room(self.nbytes):
                return super().frames(indices)
            if not self._decode():
                with VideoReader(*self._given) as reader:  # the attempt may have changed the table of this one
                    return reader.frames(indices)
        return self._decoded[np.arange(len(self)) if indices is None else self._check_indices(indices)]

    def _decode(self) -> bool:
        """Decodes all frames and keeps them; False if the video is damaged or its table is wrong."""
        table = self._pts
        try:
            decoded = super().frames(np.arange(len(self)))
        except (VideoDecodeError, MemoryError):
            return False
        if self._pts is not table:
            return False
        self._decoded = decoded
        self.close()
        self._container = self._stream = self._source = self._to_rgb = self._given = None
        self._cache.keep(self._place, self)
        return True
