"""SigVault: the archive of signatures, from which a delta can be made without the old files.

A vault is a volume whose members are librsync signatures, each named by the path of its file; ``rdiff delta``
takes an extracted one as it is. A member may instead be a librsync delta, from the signature that the next
older vault has for the same path: ``rdiff patch old.sig member new.sig``.
"""

from __future__ import annotations

import io
import os
import re
import struct
from collections.abc import Iterable
from concurrent.futures import Executor
from contextlib import ExitStack
from types import TracebackType
from typing import BinaryIO, Literal, Self, overload

from blake3 import blake3

from incremental_backups_tools.archive.tar import REGULAR, TarMember
from incremental_backups_tools.archive.volume_reader import VolumeReader, open_volume
from incremental_backups_tools.archive.volume_writer import VolumeInfo, VolumeWriter
from incremental_backups_tools.delta import patch
from incremental_backups_tools.delta import signature as compute_signature
from incremental_backups_tools.durable import atomic_write, is_temporary_name
from incremental_backups_tools.exceptions import (
    ChainError,
    IntegrityError,
    LimitExceededError,
    SignatureFormatError,
)

FsPath = str | os.PathLike[str]
RelPath = str | bytes | os.PathLike[str]

# librsync's magic numbers: MD4 and BLAKE2 strong sums, each with its rolling sum and with rabin-karp.
_SIGNATURE_MAGICS = frozenset(struct.pack(">I", 0x72730100 + low) for low in (0x36, 0x37, 0x46, 0x47))
_DELTA_MAGIC = struct.pack(">I", 0x72730236)
_MAGIC_LEN = 4

# Most bytes of one signature, which is held in memory: at 64 KiB a block, that of a file of 3 TiB.
MAX_SIGNATURE_LEN = 1 << 32

# <backup>[.g<generation>].sigvault.<volume>...
_VAULT_NAME = re.compile(r"(.+?)(?:\.g([0-9]+))?\.sigvault\.(.+)", re.DOTALL)


class SigVaultWriter:
    """Writes a vault.

    :meth:`close` makes the file appear, durable. Leaving the context by an exception leaves none.

    Args:
        path_or_file: where to write; what has that path is replaced. A file object must be as for
            VolumeWriter; it is flushed at the end, neither synchronised nor closed.
        base_path: the directory that the paths given to :meth:`add` start from; None is the current one.
        level, pool: as for VolumeWriter.
    """

    def __init__(
        self,
        path_or_file: FsPath | BinaryIO,
        base_path: FsPath | None = None,
        *,
        level: int = 3,
        pool: Executor | None = None,
    ) -> None:
        self._base_path = os.fsencode(base_path if base_path is not None else os.curdir)
        self._stack = ExitStack()
        if isinstance(path_or_file, str | os.PathLike):
            file = self._stack.enter_context(atomic_write(path_or_file))
        else:
            file = path_or_file
        self._volume: VolumeWriter | None = VolumeWriter(file, level=level, pool=pool)
        self._stack.callback(self._volume.abandon)
        self._info: VolumeInfo | None = None

    def add(
        self, path: RelPath | None = None, fileobj: BinaryIO | None = None, name: RelPath | None = None
    ) -> int:
        """Compute a file's signature and store it.

        Args:
            path: relative to *base_path*.
            fileobj: read in place of the file at *path*, from its position to its end.
            name: the member's name; None is *path*.

        Returns:
            The offset of the signature in the vault's uncompressed tar.

        Raises:
            ValueError: neither *path* nor *name*, or one that is absolute or leaves the tree.
            OSError: the file cannot be read.
        """
        member_name = path if name is None else name
        if member_name is None:
            raise ValueError("add() needs a path or a name")
        if fileobj is not None:
            return self.add_signature(_parse_rel_path(member_name), compute_signature(fileobj))
        if path is None:
            raise ValueError("add() needs a path or a file object")
        with open(os.path.join(self._base_path, _parse_rel_path(path)), "rb") as file:
            return self.add_signature(_parse_rel_path(member_name), compute_signature(file))

    def add_signature(self, rel_path: bytes, signature: bytes) -> int:
        """Store a signature, or a delta of signatures, that was computed elsewhere. Returns as :meth:`add`.

        Raises:
            ValueError: it is neither, or the vault is closed.
        """
        magic = signature[:_MAGIC_LEN]
        if magic not in _SIGNATURE_MAGICS and magic != _DELTA_MAGIC:
            raise ValueError(f"{rel_path!r}: begins with {magic!r}, neither a signature nor a delta")
        if self._volume is None:
            raise ValueError("this vault is closed")
        return self._volume.add(TarMember(rel_path, REGULAR, len(signature), 0o600), signature)

    def close(self) -> VolumeInfo:
        """Finish the vault; a path is then published. May be called again."""
        if self._info is None:
            if self._volume is None:
                raise ValueError("this vault failed and was dropped")
            volume, self._volume = self._volume, None
            with self._stack:
                self._info = volume.finish()
        return self._info

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._volume = None
            self._stack.__exit__(kind, error, trace)


class SigVaultReader:
    """Finds signatures in one or several vaults, newest first.

    The names in a vault are read when it is first searched and then kept in memory. What a merge has replaced
    may still lie beside what replaced it, so the order of files alone does not prove that a delta of
    signatures meets the signature it was made from: whoever knows the signature's digest gives it to
    :meth:`extract`.

    Args:
        vaults: paths, or volumes that the caller has open, newest first.

    Raises:
        OSError: a vault cannot be opened.
        ArchiveFormatError, LimitExceededError: it is no volume; from the other methods: its tar is broken.
    """

    def __init__(self, vaults: Iterable[FsPath | VolumeReader]) -> None:
        with ExitStack() as stack:
            self._vaults = [
                _Vault(vault if isinstance(vault, VolumeReader) else stack.enter_context(open_volume(vault)))
                for vault in vaults
            ]
            self._stack = stack.pop_all()

    def extract(self, path: RelPath, *, digest: bytes | None = None) -> BinaryIO | None:
        """The newest whole signature of a path; None where no vault has one.

        Args:
            digest: the BLAKE3 that it must have. Without it a wrong base of a delta goes unnoticed.

        Raises:
            ChainError: a delta of signatures without an older signature.
            SignatureFormatError: the result is no signature.
            DeltaFormatError: a broken delta.
            IntegrityError: the result has another digest, or the vault is damaged.
            LimitExceededError: more than MAX_SIGNATURE_LEN bytes.
        """
        rel_path = _parse_rel_path(path)
        deltas: list[tuple[_Vault, tuple[int, int]]] = []
        for vault in self._vaults:
            location = vault.find(rel_path)
            if location is None:
                continue
            if not vault.is_delta(location):
                return io.BytesIO(_resolve(rel_path, vault.read(location), deltas, digest))
            deltas.append((vault, location))
        if deltas:
            raise ChainError(
                f"{deltas[-1][0].name}: {rel_path!r} is a delta of signatures, no older vault has its base"
            )
        return None

    def names(self) -> list[bytes]:
        """The paths that have a signature, sorted as bytes."""
        return sorted(set().union(*(vault.names() for vault in self._vaults)))

    def __contains__(self, path: RelPath) -> bool:
        rel_path = _parse_rel_path(path)
        return any(vault.find(rel_path) for vault in self._vaults)

    def close(self) -> None:
        """Close the files that were opened here. May be called again."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SigVault:
    """Opens vaults; :data:`open_vault` is the same function by itself."""

    @overload
    @classmethod
    def open(
        cls,
        path: FsPath,
        mode: Literal["r"] = "r",
        base_path: FsPath | None = None,
        *,
        key: str | None = None,
    ) -> SigVaultReader: ...

    @overload
    @classmethod
    def open(
        cls, path: FsPath, mode: Literal["w"], base_path: FsPath | None = None, *, key: str | None = None
    ) -> SigVaultWriter: ...

    @classmethod
    def open(
        cls, path: FsPath, mode: str = "r", base_path: FsPath | None = None, *, key: str | None = None
    ) -> SigVaultReader | SigVaultWriter:
        """Open a vault for reading or writing.

        Args:
            path: the vault; for reading also a directory, of which all vaults are searched, newest first.
            mode: ``'r'`` or ``'w'``.
            base_path: for writing, as for SigVaultWriter.
            key: for reading a directory: only the vaults named ``<key>.…`` and those in its subdirectory of
                that name.
        """
        if mode == "w":
            return SigVaultWriter(path, base_path)
        if mode != "r":
            raise ValueError(f"mode is {mode!r}, must be 'r' or 'w'")
        return SigVaultReader(_list_vaults(path, key) if os.path.isdir(path) else [path])


open_vault = SigVault.open


class _Vault:
    """One vault with its table of contents."""

    def __init__(self, volume: VolumeReader) -> None:
        self._volume = volume
        self._locations: dict[bytes, tuple[int, int]] | None = None
        self.name = volume.name

    def names(self) -> Iterable[bytes]:
        return self._contents().keys()

    def find(self, rel_path: bytes) -> tuple[int, int] | None:
        return self._contents().get(rel_path)

    def is_delta(self, location: tuple[int, int]) -> bool:
        offset, length = location
        return self._volume.read(offset, min(length, _MAGIC_LEN)) == _DELTA_MAGIC

    def read(self, location: tuple[int, int]) -> bytes:
        offset, length = location
        if length > MAX_SIGNATURE_LEN:
            raise LimitExceededError(f"{self.name}: signature of {length} bytes, over {MAX_SIGNATURE_LEN}")
        return self._volume.read(offset, length)

    def _contents(self) -> dict[bytes, tuple[int, int]]:
        if self._locations is None:
            # Of two members with one name the later one counts, as in every tar.
            self._locations = {
                member.name: (offset, member.size)
                for member, offset in self._volume.members()
                if member.type == REGULAR
            }
        return self._locations


def _resolve(
    rel_path: bytes, signature: bytes, deltas: list[tuple[_Vault, tuple[int, int]]], digest: bytes | None
) -> bytes:
    """Apply *deltas*, which are newest first, to the signature below them, and check the result."""
    for vault, location in reversed(deltas):
        signature = patch(signature, vault.read(location), max_output=MAX_SIGNATURE_LEN)
    if signature[:_MAGIC_LEN] not in _SIGNATURE_MAGICS:
        raise SignatureFormatError(
            f"{rel_path!r}: begins with {signature[:_MAGIC_LEN]!r}, which is no signature"
        )
    if digest is not None and (actual := blake3(signature).digest()) != digest:
        raise IntegrityError(
            f"{rel_path!r}: signature has digest {actual.hex()}, expected {digest.hex()}",
            path=os.fsdecode(rel_path),
            expected=digest.hex(),
            actual=actual.hex(),
        )
    return signature


def _parse_rel_path(path: RelPath) -> bytes:
    """A path as a member's name: relative, without ``.`` and double slashes."""
    raw = os.fsencode(path)
    parts = [part for part in raw.split(b"/") if part not in (b"", b".")]
    if not parts or b".." in parts or raw.startswith(b"/") or b"\0" in raw:
        raise ValueError(f"{path!r} is no path of a file below a directory")
    return b"/".join(parts)


def _list_vaults(directory: FsPath, key: str | None) -> list[str]:
    """The vaults in a directory, newest first; of a backup with several generations the highest one's."""
    found = _list_names(directory, "" if key is None else f"{key}.")
    if key is not None and os.path.isdir(os.path.join(directory, key)):
        found += _list_names(os.path.join(directory, key), "")
    generations: dict[str, int] = {}
    for backup, generation, _, _ in found:
        generations[backup] = max(generation, generations.get(backup, 0))
    newest_first = sorted(found, reverse=True)
    return [fs_path for backup, generation, _, fs_path in newest_first if generation == generations[backup]]


def _list_names(directory: FsPath, prefix: str) -> list[tuple[str, int, str, str]]:
    """Backup, generation, volume and path of each vault whose name begins with *prefix*."""
    found = []
    for name in os.listdir(directory):
        parts = _VAULT_NAME.fullmatch(name)
        if parts and name.startswith(prefix) and not is_temporary_name(name):
            found.append((parts[1], int(parts[2] or 0), parts[3], os.path.join(directory, name)))
    return found
