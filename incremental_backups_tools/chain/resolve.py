"""From a chain's states to the index at its end: a merge join of sorted streams.

A state names its own archives, and otherwise its parent's index by path. Resolving replaces every such path by
the places where the bytes lie: each :class:`ResolvedEntry` lists every location that rebuilds its content and
every one that rebuilds its signature, base first.

Memory grows with the number of hard links, renames and copies on the chain, not with the tree: streams are in
path order, but what a ``from`` names lies anywhere in the parent, so the versions of these few paths are gathered
before the entries are handed out.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Final

import msgspec

from incremental_backups_tools.chain.state import StateHeader, StateLine
from incremental_backups_tools.exceptions import ChainError, IntegrityError
from incremental_backups_tools.repository.layout import Role, parse_object_name
from incremental_backups_tools.tree.diff import CREATED, DELETED, METADATA, content_identity
from incremental_backups_tools.tree.entry import FILE, Entry, IndexDigest, Location, printable, sort_key

# In place of the next group of changes.
_AT_END: Final = (None, ())
# A version stands on another at most twice in one backup: a link on its target, that on the parent's path.
_STEPS_PER_BACKUP: Final = 2


class ResolvedEntry(msgspec.Struct, frozen=True):
    """An entry and where its bytes lie.

    Attributes:
        data: a whole copy, then deltas in the order in which they are applied. Of a hard link: its target's.
        sigs: a whole signature, then deltas of signatures.
        sig_digest: BLAKE3 (hex) of the resolved signature; None where there is none.
        content_digest: BLAKE3 of the content; of a hard link its target's.
    """

    entry: Entry
    data: tuple[Location, ...] = ()
    sigs: tuple[Location, ...] = ()
    sig_digest: str | None = None
    content_digest: bytes | None = None

    def with_entry(self, entry: Entry) -> ResolvedEntry:
        """The same bytes for another entry."""
        return ResolvedEntry(entry, self.data, self.sigs, self.sig_digest, self.content_digest)

    @property
    def path(self) -> bytes:
        """The entry's path."""
        return self.entry.path


class _Version(msgspec.Struct, frozen=True):
    """A path at one level of the chain. What lies before its own locations is the version *base* names.

    Attributes:
        since: the level whose state gave this path its own first location, or *base*.
    """

    entry: Entry
    since: int
    data: tuple[Location, ...] = ()
    sigs: tuple[Location, ...] = ()
    sig_digest: str | None = None
    base: tuple[int, bytes] | None = None


class ChainState(msgspec.Struct, frozen=True):
    """A state of a chain as the resolver needs it: its header, and a way to read its lines from the start."""

    header: StateHeader
    lines: Callable[[], Iterable[StateLine]]


class RunEntry(msgspec.Struct, frozen=True):
    """A path before and after a run of backups.

    Attributes:
        old: what the backup before the run has; None where it has none.
        new: what the last one of the run has.
        source: the path in the index before the run whose content *new* has, or stands on; None where the run
            holds all of it, or there is none.
        is_referenced: a hard link, rename or copy somewhere on the chain names the path.
    """

    old: ResolvedEntry | None
    new: ResolvedEntry | None
    source: bytes | None = None
    is_referenced: bool = False

    @property
    def path(self) -> bytes:
        """The path."""
        known = self.new if self.new is not None else self.old
        assert known is not None  # or there would be nothing to say
        return known.path


def check_chain(headers: Sequence[StateHeader]) -> None:
    """Check that *headers*, full first, name each other as parents, by id and by index digest.

    Raises:
        ChainError: they do not.
    """
    if not headers or headers[0].parent is not None:
        raise ChainError("a chain must begin with a full backup")
    for parent, child in pairwise(headers):
        if child.parent != parent.id or child.key != parent.key:
            raise ChainError(f"backup {child.id} stands on {child.parent}, not on {parent.id}")
        if child.parent_index_digest != parent.index_digest:
            raise ChainError(
                f"backup {child.id} was made on an index of {parent.id} with digest "
                f"{child.parent_index_digest}, but that one's is {parent.index_digest}"
            )


def resolve(states: Sequence[ChainState]) -> Iterator[ResolvedEntry]:
    """The index that the chain *states*, full first, leads to, in sort order.

    Iterating to the end checks it against the digest that the last state promises.

    Raises:
        ChainError: the states do not form a chain, or one of them contradicts its parent.
        IntegrityError: the index does not have the promised digest.
        StateFormatError, UnsafePathError, LimitExceededError: a state is damaged.
    """
    check_chain([state.header for state in states])
    return _Resolver(states).entries()


def resolve_versions(
    states: Sequence[ChainState], *, only: Collection[bytes] | None = None
) -> Iterator[tuple[int, ResolvedEntry]]:
    """Every version that the chain *states*, full first, brought, as (level, entry), in one pass.

    A metadata change is a version too. Iterating to the end checks the index digest of every state on the way.

    Args:
        only: paths to tell of. What is told of some paths alone is checked against no digest.

    Raises:
        as :func:`resolve`.
    """
    check_chain([state.header for state in states])
    return _Resolver(states).versions() if only is None else _Resolver(states).versions_of(only)


def resolve_run(states: Sequence[ChainState], first: int) -> Iterator[RunEntry]:
    """Every path of the indexes before and after the run ``states[first:]``, in sort order.

    Args:
        states: the chain, full first.
        first: the level at which the run begins; 0 is the whole chain, with nothing before it.

    Raises:
        as :func:`resolve`.
    """
    check_chain([state.header for state in states])
    return _Resolver(states).run(first)


class _Resolver:
    def __init__(self, states: Sequence[ChainState]) -> None:
        self._states = states
        self._last = len(states) - 1
        # Of each path that others stand on, its versions by level; None where it was deleted.
        self._versions_of: dict[bytes, list[tuple[int, _Version | None]]] = {}
        self._roles: dict[str, Role] = {}
        self._wanted: set[bytes] | None = None  # all paths

    def entries(self) -> Iterator[ResolvedEntry]:
        self._gather_referenced()
        digest = IndexDigest()
        for versions in self._groups():
            version = versions[-1][1]
            if version is None:
                continue
            digest.add(version.entry)
            yield self._resolved(version, self._last)
        _check_digest(self._states[-1].header, digest)

    def run(self, first: int) -> Iterator[RunEntry]:
        self._gather_referenced()
        digest = IndexDigest()
        for versions in self._groups():
            before = _at(versions, first - 1)
            after = versions[-1][1]
            old = self._resolved(before, first - 1) if before is not None else None
            if after is None:
                if old is not None:
                    yield RunEntry(old, None)
                continue
            digest.add(after.entry)
            new = old if after is before else self._resolved(after, self._last)
            # A hard link is resolved again: what it is a link of may have changed.
            if new is old and after.entry.link_of is not None:
                new = self._resolved(after, self._last)
            is_referenced = after.entry.path in self._versions_of
            yield RunEntry(old, new, self._source_before(after, first), is_referenced)
        _check_digest(self._states[-1].header, digest)

    def versions(self) -> Iterator[tuple[int, ResolvedEntry]]:
        self._gather_referenced()
        # What each state adds to the digest of its parent's index.
        changes = [IndexDigest() for _ in self._states]
        for versions in self._groups():
            previous: _Version | None = None
            for level, version in versions:
                if previous is not None:
                    changes[level].remove(previous.entry)
                if version is not None:
                    changes[level].add(version.entry)
                    yield level, self._resolved(version, level)
                previous = version
        digest = IndexDigest()
        for state, change in zip(self._states, changes, strict=True):
            digest.merge(change)
            _check_digest(state.header, digest)

    def versions_of(self, paths: Collection[bytes]) -> Iterator[tuple[int, ResolvedEntry]]:
        self._wanted = set(paths)
        self._gather_referenced()
        for versions in self._groups():
            for level, version in versions:
                if version is not None and version.entry.path in paths:
                    yield level, self._resolved(version, level)

    def _groups(self) -> Iterator[list[tuple[int, _Version | None]]]:
        """For each path its versions as (level, version), None where it was deleted.

        The full's lines, of which most have no others, are joined with all later ones merged before.
        """
        changes = groupby(self._changes(), key=itemgetter(0))
        key, group = next(changes, _AT_END)
        for line in self._lines(0):
            own_key = sort_key(line.path)
            while key is not None and key < own_key:
                yield self._versions([], group)
                key, group = next(changes, _AT_END)
            first = (0, self._step(None, line, 0))
            if key == own_key:
                yield self._versions([first], group)
                key, group = next(changes, _AT_END)
            else:
                yield [first]
        while key is not None:
            yield self._versions([], group)
            key, group = next(changes, _AT_END)

    def _versions(
        self, versions: list[tuple[int, _Version | None]], group: Iterable[tuple[bytes, int, StateLine]]
    ) -> list[tuple[int, _Version | None]]:
        """*versions*, and after them those that the lines of later states make of their last one."""
        current = versions[-1][1] if versions else None
        for _, level, line in group:
            current = self._step(current, line, level)
            versions.append((level, current))
        return versions

    def _changes(self) -> Iterator[tuple[bytes, int, StateLine]]:
        """The lines of all states but the full's, by path and level."""
        streams = [self._stream(level) for level in range(1, len(self._states))]
        return streams[0] if len(streams) == 1 else heapq.merge(*streams, key=itemgetter(0, 1))

    def _stream(self, level: int) -> Iterator[tuple[bytes, int, StateLine]]:
        for line in self._lines(level):
            yield sort_key(line.path), level, line

    def _lines(self, level: int) -> Iterable[StateLine]:
        lines, wanted = self._states[level].lines(), self._wanted
        return lines if wanted is None else (line for line in lines if line.path in wanted)

    def _step(self, current: _Version | None, line: StateLine, level: int) -> _Version | None:
        """The version of a path after *line*, given the one before it."""
        entry = line.entry
        if line.op == CREATED:
            if current is not None and current.entry.type == entry.type:
                raise self._contradiction(line, level, "creates what its parent has")
        elif current is None:
            raise self._contradiction(line, level, "changes what its parent does not have")
        elif line.op != DELETED and current.entry.type != entry.type:
            raise self._contradiction(line, level, "changes the type of what its parent has")
        if line.op == DELETED:
            return None
        if line.op == METADATA:
            assert current is not None  # checked above
            return self._with_metadata(current, line, level)
        if entry.type != FILE or entry.link_of is not None:
            return _Version(entry, level)
        return self._with_content(current, line, level)

    def _with_metadata(self, current: _Version, line: StateLine, level: int) -> _Version:
        entry, old = line.entry, current.entry
        if (entry.link_of, content_identity(entry)) != (old.link_of, content_identity(old)):
            raise self._contradiction(line, level, "changes content where it says metadata")
        return msgspec.structs.replace(current, entry=entry)

    def _with_content(self, current: _Version | None, line: StateLine, level: int) -> _Version:
        entry = line.entry
        sig_digest = entry.sig.digest if entry.sig is not None else None
        own_sigs = (entry.sig.location,) if entry.sig is not None else ()
        if entry.data is not None and self._role(line, level) != Role.UPDATED:
            if entry.source is not None:
                raise self._contradiction(line, level, "has a whole copy and stands on another path")
            return _Version(entry, level, (entry.data,), own_sigs, sig_digest)
        own_data = (entry.data,) if entry.data is not None else ()
        if entry.source is not None:
            # Without own data the content, and with it the signature, is the other path's.
            return _Version(entry, level, own_data, own_sigs, sig_digest, (level - 1, entry.source))
        if entry.data is None or current is None:
            raise self._contradiction(line, level, "has neither content nor the path that holds it")
        if current.entry.link_of is not None:
            return _Version(entry, level, own_data, own_sigs, sig_digest, (level - 1, current.entry.link_of))
        if current.entry.type != FILE:
            raise self._contradiction(line, level, "is a delta of what is no file")
        return _Version(
            entry, current.since, current.data + own_data, current.sigs + own_sigs, sig_digest, current.base
        )

    def _role(self, line: StateLine, level: int) -> Role:
        assert line.entry.data is not None  # the caller looked
        name = line.entry.data.file
        role = self._roles.get(name)
        if role is None:
            parsed = parse_object_name(self._states[level].header.key, name)
            if parsed is None or parsed.role not in (Role.FULL, Role.CREATED, Role.UPDATED):
                raise self._contradiction(line, level, f"has its content in {name!r}")
            role = self._roles[name] = parsed.role
        return role

    def _contradiction(self, line: StateLine, level: int, what: str) -> ChainError:
        header = self._states[level].header
        return ChainError(f"state {header.key}@{header.id}: {line.op} {printable(line.path)} {what}")

    # --- paths that stand for others -------------------------------------------------------------------

    def _gather_referenced(self) -> None:
        """Gather the versions of every path that a hard link, rename or copy of the chain names.

        What no state has stays missing here, and is told of when the entry that needs it comes.
        """
        paths: set[bytes] = set()
        for state in self._states:
            if state.header.references:
                for line in state.lines():
                    paths.update(path for path in (line.entry.link_of, line.entry.source) if path is not None)
        if not paths:
            return
        if self._wanted is not None:
            self._wanted |= paths
        for versions in self._groups():
            path = next((version.entry.path for _, version in versions if version is not None), None)
            if path in paths and path is not None:
                self._versions_of[path] = versions

    def _version_at(self, reference: tuple[int, bytes]) -> _Version | None:
        level, path = reference
        return _at(self._versions_of.get(path, ()), level)

    def _source_before(self, version: _Version, first: int) -> bytes | None:
        """The path at level *first* - 1 on whose content *version*, of the last level, stands."""
        level = self._last
        while True:
            if version.entry.link_of is None and version.since < first:
                return version.entry.path
            reference = _reference(version, level)
            if reference is None:
                return None
            level = reference[0]
            if level < first:
                return reference[1]
            base = self._version_at(reference)
            assert base is not None  # the version was resolved before
            version = base

    def _resolved(self, version: _Version, level: int) -> ResolvedEntry:
        data, sigs = version.data, version.sigs
        holder, sig_digest = version, version.sig_digest
        steps = _STEPS_PER_BACKUP * len(self._states) + 1
        while reference := _reference(holder, level):
            level = reference[0]
            base = self._version_at(reference)
            steps -= 1
            if base is None or steps < 0:
                raise ChainError(
                    f"{printable(version.entry.path)} stands on {printable(reference[1])}, "
                    f"which backup {self._states[level].header.id} does not have"
                )
            if holder.entry.link_of is not None or not data:
                # Nothing of its own so far: content and signature are the other's.
                sig_digest, sigs = base.sig_digest, base.sigs + sigs
            elif sigs:
                sigs = base.sigs + sigs
            data = base.data + data
            holder = base
        digest = version.entry.digest if version.entry.link_of is None else holder.entry.digest
        return ResolvedEntry(version.entry, data, sigs if sig_digest else (), sig_digest, digest)


def _at(versions: Iterable[tuple[int, _Version | None]], level: int) -> _Version | None:
    """What a path is at *level*, given its versions in order."""
    found = None
    for own_level, version in versions:
        if own_level <= level:
            found = version
    return found


def _check_digest(header: StateHeader, digest: IndexDigest) -> None:
    actual = digest.hexdigest()
    if actual != header.index_digest:
        raise IntegrityError(
            f"{header.key}@{header.id}: expected index digest {header.index_digest}, got {actual}",
            path=f"{header.key}@{header.id}",
            expected=header.index_digest,
            actual=actual,
        )


def _reference(version: _Version, level: int) -> tuple[int, bytes] | None:
    """The version whose content *version*, looked at in the index of *level*, needs; None where it needs no other."""
    if version.entry.link_of is not None and version.entry.type == FILE:
        return level, version.entry.link_of
    return version.base
