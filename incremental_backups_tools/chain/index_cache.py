"""The resolved index of the newest backup, kept on this machine so that the next one need not rebuild it.

It is a cache and nothing else: it holds for exactly the repository and the set of states it was made from, and
is rebuilt from them whenever it is missing, damaged, or of others. What it has and the states do not are the
``ctime_ns``, ``inode`` and ``dev`` of each file, which tell the next run that a file need not be read; rebuilt
from states it lacks them, and every file is read and hashed once.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from typing import BinaryIO, Final, cast

import msgspec
import zstandard
from blake3 import blake3

from incremental_backups_tools.archive.seek_table import SeekTable, encode_seek_table
from incremental_backups_tools.chain.content_table import ContentTable
from incremental_backups_tools.chain.line_search import (
    WrittenFrames,
    encode_index_end,
    is_whole_index,
    iter_record_frames,
    read_frame,
    read_frame_table,
)
from incremental_backups_tools.chain.policy import MIN_SHARED_LEN
from incremental_backups_tools.chain.resolve import ResolvedEntry
from incremental_backups_tools.exceptions import FormatError, LimitExceededError, StateFormatError
from incremental_backups_tools.tree.entry import (
    FILE,
    Entry,
    EntryLine,
    bytes_of,
    encode_line,
    entry_of_line,
    line_of_entry,
    parse_line,
)
from incremental_backups_tools.tree.records import MAX_WINDOW_LEN, RecordWriter, Trailer

CACHE_FORMAT: Final = "ibt-cached-index"
CACHE_VERSION: Final = 3
INDEX_NAME: Final = "index"
IDENTITY_NAME: Final = "index-identity"
_LEAST_FRAMES: Final = 3  # of the header, of entries or at least the identity, of the trailer


class IndexIdentity(msgspec.Struct, frozen=True):
    """Which index a cached one is: of which repository and key, and made from which states.

    Attributes:
        states: id and generation of each state of the chain, full first.
        index_digest: of the newest.
    """

    repository_id: str
    key: str
    states: list[tuple[str, int]]
    index_digest: str


class _Header(msgspec.Struct, frozen=True):
    format: str
    version: int
    token: str = ""  # random: tells this file from all others, to the table of its contents


class _KeptIdentity(msgspec.Struct, frozen=True):
    """Which index the cached one with *token* is by now: backups that changed nothing wrote no other."""

    token: str
    identity: IndexIdentity


class _NotedLine(msgspec.Struct):
    """What of a line the table of contents notes."""

    path: str | None = None
    path_b64: str | None = None
    type: str = ""
    size: int = 0
    link_of: str | None = None
    link_of_b64: str | None = None
    digest: str | None = None


_noted_decoder = msgspec.json.Decoder(_NotedLine)


class CachedEntry:
    """An entry as the cache holds it: its encoded line, to be copied where nothing changed."""

    __slots__ = ("_resolved", "raw")

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self._resolved: ResolvedEntry | None = None

    @property
    def resolved(self) -> ResolvedEntry:
        """What the line stands for.

        Raises:
            StateFormatError, UnsafePathError: nothing.
        """
        if self._resolved is None:
            self._resolved = parse_resolved(self.raw)
        return self._resolved

    @property
    def path(self) -> bytes:
        """The entry's path."""
        return self.resolved.path


class CachedLines:
    """The entries of a cached index that was proven whole, one by one or passed over many at a time.

    Args:
        table: where the frames of *file* lie.
        count: lines that stand for entries; after them comes the identity.

    Attributes:
        token: of the index.
        count: all entries.
        taken: entries that were given or passed over.
        block: some lines, each with its newline.
        offset: where in *block* the next one begins.
    """

    def __init__(self, file: BinaryIO, table: SeekTable, count: int, token: str) -> None:
        self._file = file
        self._table = table
        self._blocks = iter_record_frames(file, table)
        self.token = token
        self.count = count
        self.taken = 0
        self.block = b""
        self.offset = 0

    def read_ahead(self, pool: Executor | None) -> None:
        """Have what comes next decompressed in *pool*; to be called before anything is taken."""
        self._blocks = iter_record_frames(self._file, self._table, pool=pool)

    def has_more(self) -> bool:
        """Whether there is another entry; then it begins at ``offset`` in ``block``."""
        if self.taken >= self.count:
            return False
        if self.offset >= len(self.block):
            self.block, self.offset = next(self._blocks), 0
        return True

    def __iter__(self) -> Iterator[CachedEntry]:
        return self

    def __next__(self) -> CachedEntry:
        if not self.has_more():
            raise StopIteration
        end = self.block.index(b"\n", self.offset)
        raw = self.block[self.offset : end]
        self.offset, self.taken = end + 1, self.taken + 1
        return CachedEntry(raw)

    def take(self, count: int, end: int) -> bytes:
        """Take the next *count* lines, which end at *end* of ``block``, as they are."""
        lines = self.block[self.offset : end]
        self.offset, self.taken = end, self.taken + count
        return lines

    def first_blocks(self, count: int) -> Iterator[tuple[bytes, int]]:
        """The first *count* lines again, some at a time, each with its newline, and how many these are."""
        for block in iter_record_frames(self._file, self._table):
            lines = block.count(b"\n")
            if lines > count:
                lines, block = count, b"".join(block.splitlines(keepends=True)[:count])
            if lines:
                yield block, lines
            count -= lines
            if not count:
                return


class IndexCacheWriter:
    """Writes a cached index in sort order. It counts only once :meth:`close` was called.

    Which index it is stands in the last record: the digest is known when all entries are.

    As long as all that it is given are the entries of *base*, in their order, it writes nothing: where that goes
    on to the end, :attr:`is_base` says that the old index is the new one too.

    Args:
        file: empty, binary.
        contents: told of the content of each regular file that is not copied from *base*, and of which the base
            had and this index has not.
        pool: where frames are compressed; None is in the calling thread.

    Attributes:
        token: tells this file from all others.
        base: the index that entries are copied from, if it will still be there.
        frames: those that are in the file.
    """

    def __init__(
        self, file: BinaryIO, *, contents: ContentTable | None = None, pool: Executor | None = None
    ) -> None:
        self.token = secrets.token_hex(16)
        header = _Header(CACHE_FORMAT, CACHE_VERSION, self.token)
        self._out = _Hashed(file)
        out = cast(BinaryIO, self._out)
        self._records = RecordWriter(out, msgspec.json.encode(header), level=1, pool=pool)
        self.frames = WrittenFrames(self._records.frame_lens, self._records.content_lens)
        self._contents = contents
        self._open = deque([_OpenFrame(self._records.begun_frames)])
        self._skipped = 0  # entries of the base, from its first one on, that were not written
        self.base: CachedLines | None = None

    @property
    def is_base(self) -> bool:
        """Whether all entries of the base were given, and nothing else."""
        return self.base is not None and self._skipped == self.base.count

    def write(self, resolved: ResolvedEntry, raw: bytes | None = None) -> None:
        """Append an entry, encoded anew unless its line is given."""
        self._leave_base()
        self._append(resolved, encode_resolved(resolved) if raw is None else raw)

    def write_new_files(
        self, prefix: bytes, lines: bytes, count: int, rows: list[tuple[int, int, bytes]]
    ) -> None:
        """Append *count* lines of regular files of one directory, whose paths need no escapes.

        Args:
            prefix: the directory's path with a slash; empty for the root.
            rows: what the table of contents is to have of them.
        """
        self._append_lines(lines, count)
        if self._contents is not None:
            self._contents.add_rows(rows)
            self._open[-1].blocks.setdefault(prefix, []).append(lines)

    def write_cached(self, cached: CachedEntry) -> None:
        """Append an entry that is encoded already, the one that the base gave last."""
        if not self._skip(1):
            self._append_lines(cached.raw + b"\n", 1)

    def write_lines(self, lines: bytes, count: int) -> None:
        """Append *count* encoded entries, each with its newline, those that the base gave last."""
        if not self._skip(count):
            self._append_lines(lines, count)

    def leave_out(self, before: Entry) -> None:
        """Note that an entry of the base is gone, or that another of its path is written."""
        if self._contents is not None and _is_noted(before):
            assert before.digest is not None  # it is noted
            self._contents.remove(before.size, before.digest, before.path)

    def open_line(self, path: bytes) -> bytes | None:
        """The line of *path*, if it was noted and lies in a frame that is not in the file yet."""
        for frame in self._open:
            line = frame.line_of(path)
            if line is not None:
                return line
        return None

    def close(self, identity: IndexIdentity) -> None:
        """Make it whole."""
        if not self.is_base:
            self._leave_base()
        self._records.write(msgspec.json.encode(identity))
        self._records.close()
        self._out.write(encode_seek_table(self._records.frame_lens, self._records.content_lens))
        self._out.end()

    def _skip(self, count: int) -> bool:
        """Leave out the next *count* entries, if they are the base's and so was all before; else leave the base."""
        if self.base is not None and self.base.taken == self._skipped + count:
            self._skipped += count
            return True
        self._leave_base()
        return False

    def _leave_base(self) -> None:
        """From here on the two differ: write what was left out."""
        base, self.base = self.base, None
        if base is not None and self._skipped:
            for lines, count in base.first_blocks(self._skipped):
                self._append_lines(lines, count)

    def _append(self, resolved: ResolvedEntry, raw: bytes) -> None:
        entry = resolved.entry
        self._records.write(raw)
        self._move_on()
        if self._contents is not None and _is_noted(entry):
            assert entry.digest is not None  # it is noted
            self._contents.add(entry.size, entry.digest, entry.path)
            self._open[-1].lines[entry.path] = raw

    def _append_lines(self, lines: bytes, count: int) -> None:
        self._records.write_block(lines, count)
        self._move_on()

    def _move_on(self) -> None:
        """Begin another frame where one is on its way, and forget the lines of those that are in the file by now."""
        if self._open[-1].number != self._records.begun_frames:
            self._open.append(_OpenFrame(self._records.begun_frames))
        while len(self._open) > 1 and self._open[0].number < self.frames.frame_count:
            self._open.popleft()


class _OpenFrame:
    """Lines that were noted of a frame that is not in the file yet.

    Attributes:
        lines: by their paths.
        blocks: many at once, by the directory of their files.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.lines: dict[bytes, bytes] = {}
        self.blocks: dict[bytes, list[bytes]] = {}

    def line_of(self, path: bytes) -> bytes | None:
        line = self.lines.get(path)
        if line is None:
            directory, slash, _ = path.rpartition(b"/")
            line = _line_in(self.blocks.get(directory + slash, ()), path)
        return line


class _Hashed:
    """Takes what is written to a file, to end it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hasher = blake3()

    def write(self, data: bytes) -> int:
        self._hasher.update(data)
        return self._file.write(data)

    def end(self) -> None:
        self._file.write(encode_index_end(self._hasher.digest()))


def _line_in(blocks: Iterable[bytes], path: bytes) -> bytes | None:
    """The line of *path* among many; of a path that needs escapes perhaps another's."""
    beginning = b'{"path":"%b",' % path
    for block in blocks:
        begin = block.find(beginning)
        while begin > 0 and block[begin - 1 : begin] != b"\n":
            begin = block.find(beginning, begin + 1)
        if begin >= 0:
            return block[begin : block.index(b"\n", begin)]
    return None


def _is_noted(entry: Entry) -> bool:
    """Whether the table of contents has an entry: a regular file, under its first name, worth referring to."""
    return (
        entry.type == FILE
        and entry.link_of is None
        and entry.digest is not None
        and entry.size >= MIN_SHARED_LEN
    )


def read_contents(lines: CachedLines) -> ContentTable:
    """The table of the contents of an index, made out of it."""
    contents = ContentTable.create()
    for block, _ in lines.first_blocks(lines.count):
        for raw in block[:-1].split(b"\n"):
            line = _noted_decoder.decode(raw)
            if line.type != FILE or line.digest is None or line.size < MIN_SHARED_LEN:
                continue
            if not (line.link_of or line.link_of_b64):
                path = bytes_of(line.path, line.path_b64) or b""
                contents.add(line.size, bytes.fromhex(line.digest), path)
    return contents


def encode_resolved(resolved: ResolvedEntry) -> bytes:
    """The line of a resolved entry."""
    return encode_resolved_record(line_of_entry(resolved.entry), resolved)


def encode_resolved_record(line: EntryLine, resolved: ResolvedEntry) -> bytes:
    """The same out of the JSON form of its entry, or of that entry with other locations."""
    line.op = None
    line.data = line.sig = line.from_ = line.from_b64 = None
    line.locations = list(resolved.data)
    line.sig_locations = list(resolved.sigs)
    line.content_digest = resolved.content_digest.hex() if resolved.content_digest is not None else None
    line.sig_digest = resolved.sig_digest
    return encode_line(line)


def encode_kept_identity(token: str, identity: IndexIdentity) -> bytes:
    """What stands beside the cached index with *token* to say that it is *identity* too."""
    return msgspec.json.encode(_KeptIdentity(token, identity))


def open_cached_index(
    file: BinaryIO, expected: IndexIdentity, *, kept_identity: bytes = b""
) -> CachedLines | None:
    """The entries of a cached index; None where it is damaged or not the *expected* one.

    Before anything relies on it the file is proven whole, by its end; it is decompressed once.

    Args:
        kept_identity: what stands beside it; empty where nothing does.
    """
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_LEN)
    try:
        file.flush()
        if not is_whole_index(file):
            return None
        table = read_frame_table(file)
        if table.frame_count < _LEAST_FRAMES:
            return None
        header, last, trailer = (
            read_frame(file, table.frame(number), decompressor)
            for number in (0, table.frame_count - 2, table.frame_count - 1)
        )
        count = msgspec.json.decode(trailer, type=Trailer).entries
    except (FormatError, LimitExceededError, OSError, msgspec.DecodeError):
        return None
    identity = last[last.rfind(b"\n", 0, -1) + 1 :]
    token = token_of(header, identity, expected, kept_identity=kept_identity)
    return CachedLines(file, table, count - 1, token) if token is not None else None


def token_of(
    header: bytes, identity: bytes, expected: IndexIdentity, *, kept_identity: bytes = b""
) -> str | None:
    """The token of the index with this first and last line; None where it is not the *expected* one.

    Args:
        kept_identity: what stands beside it; empty where nothing does.
    """
    try:
        first = msgspec.json.decode(header, type=_Header)
        if (first.format, first.version) != (CACHE_FORMAT, CACHE_VERSION):
            return None
        own = msgspec.json.decode(identity, type=IndexIdentity)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return first.token if own == expected or _is_kept(kept_identity, first.token, expected) else None


def _is_kept(raw: bytes, token: str, expected: IndexIdentity) -> bool:
    try:
        return msgspec.json.decode(raw, type=_KeptIdentity) == _KeptIdentity(token, expected)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False


def parse_resolved(raw: bytes) -> ResolvedEntry:
    """The resolved entry that a line of a cached index stands for.

    Raises:
        StateFormatError, UnsafePathError: it stands for none.
    """
    line = parse_line(raw)
    entry = entry_of_line(line)
    try:
        digest = bytes.fromhex(line.content_digest) if line.content_digest is not None else None
    except ValueError as error:
        raise StateFormatError(f"cached index: {error}") from None
    return ResolvedEntry(
        entry, tuple(line.locations or ()), tuple(line.sig_locations or ()), line.sig_digest, digest
    )
