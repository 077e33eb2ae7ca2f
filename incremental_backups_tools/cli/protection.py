"""Options that name keys, and how a command opens the repository with them.

Secrets never stand on the command line, where everybody sees them: they are in files, or a person is asked.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import click

from incremental_backups_tools.chain.history import History, open_repository
from incremental_backups_tools.chain.newest import describe_rollback, remember_newest
from incremental_backups_tools.cli.options import Settings
from incremental_backups_tools.cli.output import say
from incremental_backups_tools.exceptions import BackupError, LimitExceededError
from incremental_backups_tools.repository.client_recipients import find_recipients
from incremental_backups_tools.repository.identities import (
    KEY_FILE_LEN_MAX,
    parse_identities,
    parse_recipient,
    parse_recipients,
    parse_ssh_private_key,
)
from incremental_backups_tools.repository.protection import Protection
from incremental_backups_tools.repository.repository import Repository
from incremental_backups_tools.repository.signing import Signer, Verifier, parse_allowed_signers

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

_META: Final = "incremental_backups_tools.keys"


@dataclass(slots=True)
class _Keys:
    """What the options name; files are not read yet."""

    identity: tuple[str, ...] = ()
    verify_key: tuple[str, ...] = ()
    recipient: tuple[str, ...] = ()
    recipients_file: tuple[str, ...] = ()
    sign_key: str | None = None
    passphrase_file: str | None = None
    passphrase: bool = False
    cache_dir: str | None = None
    files: dict[str, bytes] = field(default_factory=dict)


def _set(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    keys = context.meta.setdefault(_META, _Keys())
    if value not in (None, False, ()):
        setattr(keys, str(parameter.name), value)


def _file_option(flag: str, variable: str, help_text: str, **attributes: Any) -> Any:
    return click.option(
        flag,
        metavar="FILE",
        envvar=variable,
        expose_value=False,
        callback=_set,
        help=f"{help_text}  [default: {variable}]",
        **attributes,
    )


# A variable may name several files, as PATH does.
_PATHS: Final = {"multiple": True, "type": click.Path()}
_READING: Final = (
    _file_option(
        "--identity",
        "IBT_IDENTITY",
        "What opens an encrypted repository: a file of age identities, or an OpenSSH key.",
        **_PATHS,
    ),
    _file_option("--passphrase-file", "IBT_PASSPHRASE_FILE", "A file whose first line is the passphrase."),
    click.option(
        "--passphrase", is_flag=True, expose_value=False, callback=_set, help="Ask for the passphrase."
    ),
    _file_option(
        "--verify-key",
        "IBT_VERIFY_KEY",
        "Refuse backups that are not signed by a key in FILE: OpenSSH public keys, or allowed_signers.",
        **_PATHS,
    ),
)
_WRITING: Final = (
    click.option(
        "--recipient",
        metavar="RECIPIENT",
        multiple=True,
        expose_value=False,
        callback=_set,
        help="Encrypt to this public key: age1…, 'ssh-ed25519 …' or 'ssh-rsa …'. Several can be named.",
    ),
    _file_option(
        "--recipients-file",
        "IBT_RECIPIENTS_FILE",
        "Encrypt to the public keys in FILE, one a line.",
        **_PATHS,
    ),
    _file_option("--sign-key", "IBT_SIGN_KEY", "Sign with this OpenSSH private key."),
)
_CACHE: Final = click.option(
    "--cache-dir",
    metavar="DIR",
    envvar="IBT_CACHE_DIR",
    expose_value=False,
    callback=_set,
    help="Where the local cache is.  [default: IBT_CACHE_DIR, else the user's]",
)


def _decorated(function: FunctionT, options: tuple[Any, ...]) -> FunctionT:
    for option in reversed(options):
        function = option(function)
    return function


def reading_options(function: FunctionT) -> FunctionT:
    """Add the options of commands that read a repository."""
    return _decorated(function, (*_READING, _CACHE))


def writing_options(function: FunctionT) -> FunctionT:
    """Add the options of commands that read and write a repository, but for ``--cache-dir``."""
    return _decorated(function, (*_WRITING, *_READING))


def recipient_options(function: FunctionT) -> FunctionT:
    """Add the options that name recipients alone."""
    return _decorated(function, _WRITING[:2])


def named_recipients() -> tuple[str, ...]:
    """The recipients that the options name."""
    keys = _keys()
    recipients = [parse_recipient(text) for text in keys.recipient]
    for path in keys.recipients_file:
        recipients += parse_recipients(_content(path), what=path)
    return tuple(dict.fromkeys(recipients))


def read_protection(*, confirm_passphrase: bool = False) -> Protection:
    """The keys that the options name, read from their files.

    Args:
        confirm_passphrase: a person who is asked says it twice: nothing checks a new one.

    Raises:
        BackupError: a file cannot be read, or is not what it must be.
        DecryptionError: a passphrase is wrong, or nobody can be asked for it.
    """
    keys = _keys()
    # Without a standard input at all there is no object for it.
    ask = _ask if sys.stdin is not None and sys.stdin.isatty() else None
    passphrase = None
    if keys.passphrase_file is not None:
        passphrase = _first_line(keys.passphrase_file)
    elif keys.passphrase:
        if ask is None:
            raise BackupError("--passphrase: there is no terminal to ask on; use --passphrase-file")
        passphrase = _ask("the repository", confirm=confirm_passphrase)
    identities = [
        identity
        for path in keys.identity
        for identity in parse_identities(_content(path), what=path, ask=ask)
    ]
    trusted = [key for path in keys.verify_key for key in parse_allowed_signers(_content(path), what=path)]
    signer = None
    if keys.sign_key is not None:
        key = parse_ssh_private_key(_content(keys.sign_key), what=keys.sign_key, ask=ask)
        signer = Signer(key, what=keys.sign_key)
    return Protection(
        recipients=named_recipients(),
        recipients_of=find_recipients,
        passphrase=passphrase,
        identities=tuple(identities),
        signer=signer,
        verifier=Verifier(frozenset(trusted)) if trusted else None,
    )


def asks_for_passphrase() -> bool:
    """Whether a person will be asked for the repository's passphrase."""
    keys = _keys()
    return keys.passphrase and keys.passphrase_file is None


def open_chosen(settings: Settings, cache_root: str | None = None) -> Repository:
    """The repository that the options name, with their keys.

    Args:
        cache_root: the directory of the local cache, where a command has an option of its own for it.

    Raises:
        RepositoryNotFoundError: there is none.
        DecryptionError: the identities do not open it.
        BackupError: a key file cannot be read.
    """
    return open_place(settings.repository_place, cache_root)


def open_place(place: str | os.PathLike[str] | None, cache_root: str | None = None) -> Repository:
    """The repository at *place*, None for the user's own, with the keys that the options name.

    Raises:
        as :func:`open_chosen`.
    """
    repository = open_repository(
        place,
        protection=read_protection(),
        cache_root=cache_root or _keys().cache_dir or None,
    )
    repository.check_identities()
    return repository


def tell_of_rollback(repository: Repository, history: History) -> None:
    """Warn where this machine has seen a newer backup; where states are signed, remember the newest."""
    rollback = describe_rollback(repository, history)
    if rollback is not None:
        say("warning", rollback)
    elif repository.protection.verifier is not None:
        remember_newest(repository.cache(history.key), repository, history.key, history.newest_point())


def _keys() -> _Keys:
    context = click.get_current_context()
    keys: _Keys = context.meta.setdefault(_META, _Keys())
    return keys


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(KEY_FILE_LEN_MAX + 1)
    except OSError as error:
        raise BackupError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > KEY_FILE_LEN_MAX:
        raise LimitExceededError(f"{path}: more than {KEY_FILE_LEN_MAX} bytes: not a key file")
    return data


def _first_line(path: str) -> str:
    line = _content(path).split(b"\n", 1)[0].removesuffix(b"\r")
    if not line:
        raise BackupError(f"{path}: its first line is empty: no passphrase")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        raise BackupError(f"{path}: its first line is not UTF-8: no passphrase") from None


def _ask(what: str, *, confirm: bool = False) -> str:
    answer: str = click.prompt(
        f"Passphrase of {what}", hide_input=True, err=True, confirmation_prompt=confirm
    )
    return answer
