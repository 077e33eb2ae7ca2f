"""``ibt key``: whom an encrypted repository's files are encrypted to."""

from __future__ import annotations

import os
from collections.abc import Sequence

import click

from incremental_backups_tools.chain.history import open_repository
from incremental_backups_tools.chain.rewrap import rewrap_backups
from incremental_backups_tools.cli.completing import complete_key
from incremental_backups_tools.cli.errors import ExitStatus
from incremental_backups_tools.cli.options import IbtCommand, Settings, common_options
from incremental_backups_tools.cli.output import print_document, print_line, say
from incremental_backups_tools.cli.protection import (
    named_recipients,
    open_chosen,
    recipient_options,
    writing_options,
)
from incremental_backups_tools.cli.rendering import count_text, size_text
from incremental_backups_tools.cli.writing import cache_option, wait_option
from incremental_backups_tools.durable import atomic_write
from incremental_backups_tools.exceptions import RepositoryError
from incremental_backups_tools.repository.client_recipients import read_recipients, write_recipients
from incremental_backups_tools.repository.identities import generate_identity
from incremental_backups_tools.repository.repository import Repository


@click.group("key")
def key() -> None:
    """Say whom an encrypted repository's files are encrypted to.

    Recipients are kept on this machine, for each repository, and hold for what is written from then on where
    no option names others. They are never taken from the repository.
    """


@key.command("new", cls=IbtCommand)
@click.argument("file", metavar="FILE")
@common_options
@click.pass_obj
def new(settings: Settings, file: str) -> ExitStatus:
    """Make an age identity, write it to FILE, and print its recipient.

    Who has FILE reads what is encrypted to the recipient, and without it nobody does: keep a copy elsewhere.
    FILE must not exist.
    """
    identity, recipient = generate_identity()
    with atomic_write(file, mode=0o600, exclusive=True) as out:
        out.write(f"# public key: {recipient}\n{identity}\n".encode("ascii"))
    if settings.json:
        print_document({"recipient": recipient, "file": os.path.abspath(file)})
    else:
        print_line(recipient)
    return ExitStatus.DONE


@key.command("list", cls=IbtCommand)
@common_options
@click.pass_obj
def list_recipients(settings: Settings) -> ExitStatus:
    """List the recipients that this machine keeps for the repository."""
    repository = _encrypted(settings)
    _show(settings, read_recipients(repository.repository_id))
    return ExitStatus.DONE


@key.command("add", cls=IbtCommand)
@recipient_options
@common_options
@click.pass_obj
def add(settings: Settings) -> ExitStatus:
    """Keep more recipients for the repository. 'ibt key rewrap' lets them read what is there already."""
    repository = _encrypted(settings)
    known = read_recipients(repository.repository_id)
    recipients = tuple(dict.fromkeys((*known, *_required_recipients())))
    write_recipients(repository.repository_id, repository.base.url, recipients)
    _show(settings, recipients)
    return ExitStatus.DONE


@key.command("remove", cls=IbtCommand)
@recipient_options
@common_options
@click.pass_obj
def remove(settings: Settings) -> ExitStatus:
    """Keep recipients for the repository no longer.

    What is encrypted to them already stays readable to them: until 'ibt key rewrap' and 'ibt prune', and in
    every copy that was made before.
    """
    repository = _encrypted(settings)
    known = read_recipients(repository.repository_id)
    gone = _required_recipients()
    for recipient in gone:
        if recipient not in known:
            raise click.UsageError(f"{recipient} is not among the recipients", click.get_current_context())
    recipients = tuple(recipient for recipient in known if recipient not in gone)
    write_recipients(repository.repository_id, repository.base.url, recipients)
    _show(settings, recipients)
    return ExitStatus.DONE


@key.command("rewrap", cls=IbtCommand)
@click.argument("keys", metavar="[KEY]...", nargs=-1, shell_complete=complete_key)
@wait_option
@cache_option
@writing_options
@common_options
@click.pass_obj
def rewrap(
    settings: Settings, keys: tuple[str, ...], wait_seconds: float, cache_root: str | None
) -> ExitStatus:
    """Encrypt what is stored again, to the recipients of today: all of it, or the backups of each KEY.

    An identity is needed that opens it. Every backup is written as its next generation; 'ibt prune' deletes
    what it replaces, and until then the former recipients can read that.
    """
    repository = open_chosen(settings, cache_root)
    repository.require_identity("encrypting again")
    chosen = keys or tuple(name for name in repository.keys() if repository.backups(name))
    reports = [
        rewrap_backups(
            name,
            repository=repository,
            cache_root=cache_root or None,
            wait_seconds=wait_seconds,
            on_notice=None if settings.quiet else lambda notice: say("notice", notice),
        )
        for name in chosen
    ]
    if settings.json:
        print_document({"rewrapped": [report.to_dict() for report in reports]})
    elif not settings.quiet:
        for report in reports:
            count = count_text(len(report.backups), "backup")
            print_line(
                f"{report.backup_key}: {count} encrypted again, {size_text(report.bytes_written)} written"
            )
    return ExitStatus.DONE


commands: list[click.Command] = [key]


def _encrypted(settings: Settings) -> Repository:
    repository = open_repository(settings.repository_place)
    if not repository.is_encrypted:
        raise RepositoryError(f"{repository.base.url} is not encrypted: it has no recipients")
    return repository


def _required_recipients() -> tuple[str, ...]:
    recipients = named_recipients()
    if not recipients:
        raise click.UsageError(
            "name recipients with --recipient or --recipients-file", click.get_current_context()
        )
    return recipients


def _show(settings: Settings, recipients: Sequence[str]) -> None:
    if settings.json:
        print_document({"recipients": list(recipients)})
    else:
        for recipient in recipients:
            print_line(recipient)
