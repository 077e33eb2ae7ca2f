"""What names a place: a directory or a URL, and what is needed to open it. Nothing is imported that opens any."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from incremental_backups_tools.repository.remote_base import RemoteOptions

# A protocol, or a chain of them that ends in one: 'memory://', 'simplecache::s3://bucket'.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(://|::.*://)", re.DOTALL)
LOCAL_URL = re.compile(r"(?:file|local)://", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class StoreAddress(os.PathLike[str]):
    """A directory or a URL together with what is needed to open it; stands wherever a URL may stand.

    Attributes:
        storage_options: what the filesystem's class takes: keys, endpoints, ports.
        remote_options: limits, retries, and where objects wait for their upload.
    """

    url: str
    storage_options: Mapping[str, object] = field(default_factory=dict, repr=False)
    remote_options: RemoteOptions = field(default_factory=RemoteOptions)

    def __fspath__(self) -> str:
        return self.url


def is_url(place: str) -> bool:
    """Whether a place is reached by a protocol, and not a directory of this machine."""
    return bool(_URL.match(place)) and not LOCAL_URL.match(place)


def address_of(place: object) -> StoreAddress | None:
    """The URL that *place* names, with what is needed to open it; None for a directory of this machine."""
    if isinstance(place, StoreAddress):
        return place if is_url(place.url) else None
    return StoreAddress(place) if isinstance(place, str) and is_url(place) else None
