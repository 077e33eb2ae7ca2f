"""Every error that the package raises on purpose, as one tree.

A caller's own mistake (a wrong type, an option out of range) is a ``TypeError`` or ``ValueError``.
Everything that the outside world can cause derives from :class:`BackupError`:

    BackupError
    +- FormatError
    |  +- SignatureFormatError
    |  +- DeltaFormatError
    |  +- StateFormatError
    |  +- ArchiveFormatError
    |  +- UnsupportedVersionError
    +- IntegrityError
    +- ChainError
    +- UnsafePathError
    +- LimitExceededError
    +- RepositoryError
    |  +- RepositoryNotFoundError
    |  +- RepositoryLockedError
    |  +- ObjectNotFoundError
    |  +- ObjectExistsError
    +- DecryptionError
    +- SourceError

A message says what, where, expected and got.
"""

from __future__ import annotations


class BackupError(Exception):
    """Base of all errors of this package."""


class FormatError(BackupError):
    """Bytes that are not what their place or their first bytes promise."""


class SignatureFormatError(FormatError):
    """Not a librsync signature, or one with impossible parameters."""


class DeltaFormatError(FormatError):
    """Not a librsync delta, or one that cannot be applied to its basis."""


class StateFormatError(FormatError):
    """A state or an index that is cut, altered or not one at all."""


class ArchiveFormatError(FormatError):
    """A volume whose tar or zstd structure is broken."""


class UnsupportedVersionError(FormatError):
    """Written by a newer major version of the format than this one reads."""


class IntegrityError(BackupError):
    """Bytes that parse but are not the ones that were promised.

    Attributes:
        path: what was checked, as a text for people.
        expected: the promised digest or length.
        actual: the one found; None where nothing could be read.
    """

    def __init__(self, message: str, *, path: str, expected: str | int, actual: str | int | None) -> None:
        super().__init__(message)
        self.path = path
        self.expected = expected
        self.actual = actual


class ChainError(BackupError):
    """States that do not form a chain, or a key or point in time that does not exist."""


class UnsafePathError(BackupError):
    """A path that would lead out of where it belongs."""


class LimitExceededError(BackupError):
    """More bytes, entries or nesting than was promised or is allowed."""


class RepositoryError(BackupError):
    """A store that refused or failed an operation, or is not a repository."""


class RepositoryNotFoundError(RepositoryError):
    """No repository at that place."""


class RepositoryLockedError(RepositoryError):
    """Another process works on that key."""


class ObjectNotFoundError(RepositoryError):
    """A file of the repository that is not there."""


class ObjectExistsError(RepositoryError):
    """A name that was to be created is taken; what has it was not touched."""


class DecryptionError(BackupError):
    """No identity or passphrase that opens this repository."""


class SourceError(BackupError):
    """The tree to back up is missing, unreadable, or not the one that the key stands for."""
