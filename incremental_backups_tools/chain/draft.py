"""A backup before it exists: what is recorded of it, and how it is published.

The order of writing is the promise: volumes, replay list, state. Whatever happens before the state is there,
the repository holds the backups that it held before.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from typing import BinaryIO, Final, cast

import msgspec
from blake3 import blake3

from incremental_backups_tools.chain.content_table import ContentTable
from incremental_backups_tools.chain.history import identities
from incremental_backups_tools.chain.index_cache import IndexCacheWriter, IndexIdentity, open_cached_index
from incremental_backups_tools.chain.known_content import KnownContent
from incremental_backups_tools.chain.parent_index import ParentIndex, keep_index
from incremental_backups_tools.chain.recording import Recorder
from incremental_backups_tools.chain.replay import ReplayList
from incremental_backups_tools.chain.resolve import ResolvedEntry
from incremental_backups_tools.chain.resume import ResumeConflictError
from incremental_backups_tools.chain.signatures import put_signature
from incremental_backups_tools.chain.state import (
    FULL,
    INCREMENTAL,
    STATE_LEVEL,
    ArchiveFile,
    StateHeader,
    write_state_frames,
)
from incremental_backups_tools.exceptions import ChainError, ObjectExistsError
from incremental_backups_tools.repository.cache import Cache
from incremental_backups_tools.repository.layout import ObjectName, Role
from incremental_backups_tools.repository.signing import Signer
from incremental_backups_tools.repository.store import ObjectInfo, Store
from incremental_backups_tools.tree.entry import IndexDigest
from incremental_backups_tools.tree.records import RecordWriter

_CHUNK_LEN: Final = 1 << 20


class Draft:
    """A backup that is being made.

    Args:
        store: where it will be published.
        chain: headers of the backups it will stand on, full first; none for a full.
        stack: closes what the draft opened.
        pool: where lines are compressed, until it is finished; None is in the calling thread.

    Attributes:
        recorder: takes what there is to say of each name.
    """

    def __init__(
        self,
        store: Store,
        key: str,
        backup_id: str,
        *,
        generation: int = 0,
        chain: Sequence[StateHeader],
        stack: ExitStack,
        pool: Executor | None = None,
    ) -> None:
        self.key = key
        self.backup_id = backup_id
        self.generation = generation
        self.chain = list(chain)
        self.kind = INCREMENTAL if self.chain else FULL
        self._store = store
        self._stack = stack
        self._index_file = self.scratch_file()
        self._lines = RecordWriter(self.scratch_file(), b"{}", level=STATE_LEVEL, pool=pool)
        self._contents = ContentTable.create()
        stack.callback(self._contents.close)
        self._index = IndexCacheWriter(self._index_file, contents=self._contents, pool=pool)
        self._contents_before: ContentTable | None = None
        self._replay = ReplayList()
        stack.callback(self._replay.close)
        self._digest = IndexDigest(self.chain[-1].index_digest if self.chain else None)
        self._identity: IndexIdentity | None = None
        self.recorder = Recorder(
            kind=self.kind,
            lines=self._lines,
            index=self._index,
            replay=self._replay,
            digest=self._digest,
        )

    @property
    def parent(self) -> StateHeader | None:
        """The backup it stands on; None of a full."""
        return self.chain[-1] if self.chain else None

    @property
    def whole_role(self) -> Role:
        """What the volumes with whole files are called."""
        return Role.CREATED if self.chain else Role.FULL

    @property
    def index_digest(self) -> str:
        """Of what was recorded."""
        return self._digest.hexdigest()

    @property
    def line_count(self) -> int:
        """Lines of the state."""
        return self._lines.count

    def scratch_file(self) -> BinaryIO:
        """An empty temporary file, which the stack closes."""
        return cast(BinaryIO, self._stack.enter_context(tempfile.TemporaryFile(prefix="ibt-backup-")))

    def name(self, role: Role, volume: int | None = None) -> ObjectName:
        """The name of one of its files."""
        encrypted = self._store.is_encrypted and role.is_ever_encrypted
        return ObjectName(self.key, self.backup_id, role, self.generation, volume, encrypted)

    def known_content(self, parent: ParentIndex | None) -> KnownContent:
        """Looks up what *parent* has and what was recorded so far; to be called before anything is."""
        if parent is not None:
            self._contents_before = parent.contents
            if parent.is_cached:
                self._index.base = parent.entries
        return KnownContent(
            parent=(parent.file, parent.contents) if parent is not None else None,
            own=self._index,
            own_file=self._index_file,
            own_contents=self._contents,
            own_files=self.name(Role.STATE).file_name.partition(f".{Role.STATE}.")[0] + ".",
        )

    def finish(self, repository_id: str, archives: Sequence[ArchiveFile]) -> list[ArchiveFile]:
        """All is recorded: close the index, publish the replay list if one is needed; return all archives.

        Raises:
            ResumeConflictError: a killed run has published another list under this name.
        """
        self._lines.close()
        chain = [*identities(self.chain), (self.backup_id, self.generation)]
        self._identity = IndexIdentity(repository_id, self.key, chain, self.index_digest)
        self._index.close(self._identity)
        # A full of one volume brings the metadata of its directories itself.
        is_one_volume = self.kind == FULL and sum(file.role == Role.FULL for file in archives) < 2
        if self._replay.is_empty and (is_one_volume or not self._replay.has_directories):
            return list(archives)
        return [*archives, self._put_replay()]

    def entries(self) -> Iterator[ResolvedEntry]:
        """What was recorded, with every location; once it is finished."""
        assert self._identity is not None  # finished
        cached = open_cached_index(self._index_file, self._identity)
        if cached is None:
            raise ChainError("the index could not be read back from a temporary file")
        return (entry.resolved for entry in cached)

    def put_state(
        self,
        header: StateHeader,
        *,
        confirm: Callable[[], None] | None,
        prove: Callable[[BinaryIO], None] | None = None,
        signer: Signer | None = None,
    ) -> list[ArchiveFile]:
        """Publish the state, which makes it a backup; return it, last, and its signature.

        Args:
            confirm: called at the last moment; raises if somebody else may have gone first.
            prove: called with the finished file before; raises if it is not what it must be.
            signer: signs the state; None leaves it unsigned.
        """
        assert self._identity is not None  # finished
        name = self.name(Role.STATE)
        files = []
        if signer is not None:
            header = msgspec.structs.replace(header, repository=self._identity.repository_id)
        with self._store.spool(name.path) as spool:
            write_state_frames(spool.file, header, self._lines.written_frames())
            file = describe(spool.file, name.file_name, str(Role.STATE))
            if prove is not None:
                prove(spool.file)
            if signer is not None:
                files.append(put_signature(self._store, name, spool.file, signer))
            if confirm is not None:
                confirm()
            files.append(_as_stored(file, spool.publish()))
        return files

    def keep_index(self, cache: Cache) -> None:
        """Put the resolved index into the cache, for the next backup."""
        assert self._identity is not None  # finished
        keep_index(
            cache,
            self._index_file,
            self._index,
            self._identity,
            self._contents,
            before=self._contents_before,
        )

    def _put_replay(self) -> ArchiveFile:
        name = self.name(Role.REPLAY)
        with self._store.spool(name.path) as spool:
            self._replay.write(spool.file)
            file = describe(spool.file, name.file_name, str(Role.REPLAY))
            try:
                file = _as_stored(file, spool.publish())
            except ObjectExistsError:
                # The killed run that this one goes on with was past this point: the list must be the same.
                with self._store.open(name.path) as stored:
                    if describe(stored, file.name, file.role) != file:
                        raise ResumeConflictError("the metadata changed since it was stored") from None
        return file


def _as_stored(file: ArchiveFile, stored: ObjectInfo) -> ArchiveFile:
    """*file* with size and digest as it lies."""
    return ArchiveFile(file.name, file.role, stored.size, stored.digest or file.digest)


def describe(file: BinaryIO, name: str, role: str) -> ArchiveFile:
    """Size and digest of a file from its beginning to its end."""
    file.flush()
    file.seek(0)
    hasher = blake3()
    size = 0
    while chunk := file.read(_CHUNK_LEN):
        hasher.update(chunk)
        size += len(chunk)
    return ArchiveFile(name, role, size, hasher.hexdigest())
