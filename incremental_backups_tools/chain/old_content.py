"""The old contents of files, where they can be read as cheaply as the new ones: to make deltas of their bytes.

A delta of wrong bytes patches to wrong bytes without an error, as one of a wrong signature does. So what was read is
compared with the digest that its entry promises. Old bytes that are damaged are no base for any delta, and the file
is stored whole: then the new version can be restored. Old volumes that cannot be reached, or were carried elsewhere,
say nothing of that: deltas are made of signatures, as for a repository on another machine.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Final

from blake3 import blake3

from incremental_backups_tools.chain.archives import Archives
from incremental_backups_tools.chain.policy import MAX_EXACT_LEN
from incremental_backups_tools.chain.rebuild import iter_content, patch_in_turn
from incremental_backups_tools.chain.resolve import ResolvedEntry
from incremental_backups_tools.exceptions import IntegrityError, LimitExceededError, RepositoryError
from incremental_backups_tools.tree.entry import printable

_MAX_BETWEEN_LEN: Final = 2 * MAX_EXACT_LEN

log = logging.getLogger(__name__)


class OldContents:
    """Reads the contents of the parent's files, until a volume cannot be reached."""

    def __init__(self, archives: Archives) -> None:
        self._are_at_hand = True
        self._archives = archives

    def read(self, resolved: ResolvedEntry) -> bytes | memoryview | None:
        """The content of an entry that may be held in memory, holes as zeros; None where it cannot be reached.

        Raises:
            BackupError: it is damaged.
        """
        if not self._are_at_hand:
            return None
        try:
            content = self._content(resolved)
        except RepositoryError as error:
            log.warning("%s; deltas are made of signatures, and are larger", error)
            self._are_at_hand = False
            return None
        actual = blake3(content).digest()
        if actual != resolved.content_digest:
            path = printable(resolved.path)
            expected = resolved.content_digest.hex() if resolved.content_digest is not None else "none"
            raise IntegrityError(
                f"old content of {path}: expected BLAKE3 {expected}, got {actual.hex()}",
                path=path,
                expected=expected,
                actual=actual.hex(),
            )
        return content

    def _content(self, resolved: ResolvedEntry) -> bytes | memoryview:
        data = resolved.data
        if data and data[0].sparse is None and max(location.length for location in data) <= _MAX_BETWEEN_LEN:
            with suppress(LimitExceededError):  # a version in between was larger than those of today
                return patch_in_turn(map(self._archives.read, data), max_output=_MAX_BETWEEN_LEN)
        return b"".join(iter_content(resolved, self._archives))
