"""Decompressed frames that may be wanted once more, within a bounded number of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Generic, TypeVar

ContentT = TypeVar("ContentT", bound=Sequence[int])


class FrameCache(Generic[ContentT]):
    """The frames used last, of any number of volumes. Safe to share between threads.

    Args:
        max_len: bytes of content that are kept, at most; the frame that was used last is kept in any case.
    """

    def __init__(self, max_len: int) -> None:
        self._max_len = max_len
        self._len = 0
        self._lock = threading.Lock()
        self._frames: OrderedDict[tuple[object, int], ContentT] = OrderedDict()

    def get(self, volume: object, index: int) -> ContentT | None:
        """The content of a frame, None where it is not here."""
        with self._lock:
            content = self._frames.get((volume, index))
            if content is not None:
                self._frames.move_to_end((volume, index))
            return content

    def put(self, volume: object, index: int, content: ContentT) -> None:
        """Keep a frame, and let go of those that were not used for longest."""
        with self._lock:
            self._drop(volume, index)
            self._len += len(content)
            self._frames[volume, index] = content
            while self._len > self._max_len and len(self._frames) > 1:
                self._len -= len(self._frames.popitem(last=False)[1])

    def drop(self, volume: object, index: int) -> None:
        """Let go of a frame."""
        with self._lock:
            self._drop(volume, index)

    def _drop(self, volume: object, index: int) -> None:
        content = self._frames.pop((volume, index), None)
        if content is not None:
            self._len -= len(content)
