"""``ibt backup``: back up a directory."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from incremental_backups_tools.chain.backup import full_backup, incremental_backup
from incremental_backups_tools.chain.backup_options import DEFAULT_LEVEL
from incremental_backups_tools.chain.backup_source import key_of
from incremental_backups_tools.chain.history import open_repository
from incremental_backups_tools.chain.report import BackupReport
from incremental_backups_tools.chain.volumes import MIN_VOLUME_SIZE
from incremental_backups_tools.cli.completion_items import complete_directory
from incremental_backups_tools.cli.config import read_config
from incremental_backups_tools.cli.errors import ExitStatus
from incremental_backups_tools.cli.excluding import exclusion_options, exclusion_rules
from incremental_backups_tools.cli.keeping import keep_options, policy_of
from incremental_backups_tools.cli.kernel import warn_of_slow_kernel
from incremental_backups_tools.cli.options import (
    IbtCommand,
    Settings,
    common_options,
    named_values,
    share_option,
    size_of,
)
from incremental_backups_tools.cli.output import print_document, print_line, say
from incremental_backups_tools.cli.progress import show_progress
from incremental_backups_tools.cli.protection import (
    asks_for_passphrase,
    open_chosen,
    read_protection,
    writing_options,
)
from incremental_backups_tools.cli.rendering import count_text, duration_text, size_text
from incremental_backups_tools.cli.writing import cache_option, wait_option
from incremental_backups_tools.exceptions import DecryptionError, RepositoryNotFoundError
from incremental_backups_tools.points.when import parse_age
from incremental_backups_tools.repository.address import StoreAddress, is_url
from incremental_backups_tools.repository.layout import validate_key
from incremental_backups_tools.repository.protection import Protection
from incremental_backups_tools.tree.source import walk_source

if TYPE_CHECKING:
    from incremental_backups_tools.chain.prune import PruneReport


def _check_key(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    try:
        return value if value is None else validate_key(value)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from None


def _age(context: click.Context, parameter: click.Parameter, value: str | None) -> timedelta | None:
    try:
        return None if value is None else parse_age(value)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from None


def _volume_size(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    return None if value is None else size_of(value, minimum=MIN_VOLUME_SIZE)


def _check_tags(
    context: click.Context, parameter: click.Parameter, value: tuple[str, ...]
) -> tuple[str, ...]:
    for tag in value:
        if not tag or not tag.isprintable():
            raise click.BadParameter(f"{tag!r} is not printable text", context, parameter)
    return value


@click.command("backup", cls=IbtCommand)
@click.argument("source", metavar="SOURCE", shell_complete=complete_directory)
@click.option(
    "--key",
    metavar="KEY",
    callback=_check_key,
    help="Name under which the directory is kept.  [default: its own]",
)
@click.option("--full", is_flag=True, help="Begin a new chain instead of adding what has changed.")
@exclusion_options
@click.option("--one-file-system", is_flag=True, help="Do not enter other file systems.")
@click.option(
    "--volume-size",
    metavar="SIZE",
    callback=_volume_size,
    help="Begin a new archive file after so much data: 256M, 1GiB.  [default: 1GiB, 256MiB where encrypted]",
)
@click.option(
    "--level",
    metavar="N",
    type=click.IntRange(-7, 22),
    default=DEFAULT_LEVEL,
    show_default=True,
    help="Level of zstd's compression, -7 to 22.",
)
@click.option(
    "--tag",
    "tags",
    metavar="TAG",
    multiple=True,
    callback=_check_tags,
    help="A word to keep with the backup.",
)
@click.option(
    "--source-option",
    "source_options",
    metavar="NAME=VALUE",
    multiple=True,
    callback=named_values,
    help="What the library behind a SOURCE that is a URL is told, as --storage-option. Several times.",
)
@wait_option
@cache_option
@click.option(
    "--max-deleted",
    metavar="SHARE",
    default="50%",
    show_default=True,
    callback=share_option,
    help="Stop where SOURCE has shrunk by more than this share of its entries: it may not be mounted.",
)
@click.option(
    "--full-every",
    metavar="AGE",
    callback=_age,
    help="Begin a new chain when the full that the newest backup stands on is as old as this: 30d.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Find out what would be done, and write nothing.")
@keep_options
@writing_options
@common_options
@click.pass_obj
def backup(
    settings: Settings,
    /,
    source: str,
    key: str | None,
    full: bool,
    patterns: tuple[str, ...],
    pattern_files: tuple[BinaryIO, ...],
    tag_files: tuple[str, ...],
    exclude_caches: bool,
    gitignore: bool,
    one_file_system: bool,
    volume_size: int | None,
    level: int,
    tags: tuple[str, ...],
    source_options: dict[str, object],
    wait_seconds: float,
    cache_root: str | None,
    max_deleted: float,
    full_every: timedelta | None,
    dry_run: bool,
    max_unused: float,
    **keep: Any,
) -> ExitStatus:
    """Back up SOURCE: what has changed since its newest backup, everything where there is none.

    SOURCE is a directory, or a URL such as s3://bucket/prefix.

    A file .exclude in SOURCE names what is left out, in gitignore's language, whatever the options say.

    Source files that cannot be read are named, the others are backed up, and the exit status is 3.

    With any of the rules --keep-..., which are those of 'ibt prune', points in time that none of them keeps are
    forgotten afterwards, unless there were such files.
    """
    policy = policy_of(keep)
    _check_source(source, key)
    tree = _source_of(source, source_options)
    rules = exclusion_rules(patterns, pattern_files, tag_files, exclude_caches, gitignore)
    protection = read_protection(confirm_passphrase=asks_for_passphrase() and not _is_there(settings))
    warn_of_slow_kernel()

    def iter_sizes() -> Iterator[int]:
        if is_url(source):
            return  # every listing would be asked for twice
        walk = walk_source(
            source, rules=rules, one_file_system=one_file_system, on_problem=lambda path, message: None
        )
        for found in walk:
            yield found.stat.st_size if stat.S_ISREG(found.stat.st_mode) else 0

    if not (policy.is_empty or dry_run):
        _require_identity_for_pruning(settings, protection)
    run = full_backup if full else incremental_backup
    with show_progress(settings, "Backing up", iter_sizes) as on_progress:
        report = run(
            tree,
            settings.repository_place,
            key=key,
            rules=rules,
            one_file_system=one_file_system,
            volume_size=volume_size,
            level=level,
            threads=settings.threads,
            tags=tags,
            cache_root=cache_root or None,
            protection=protection,
            wait_seconds=wait_seconds,
            max_deleted=max_deleted,
            full_every=full_every,
            dry_run=dry_run,
            on_progress=on_progress,
            on_notice=None if settings.quiet else lambda notice: say("notice", notice),
        )
    pruned = None
    if not (policy.is_empty or report.problems or dry_run):
        # Most backups do without, and start sooner for it.
        from incremental_backups_tools.chain.prune import prune_backups
        from incremental_backups_tools.cli.prune import rewrite_options

        pruned = prune_backups(
            report.backup_key,
            repository=open_chosen(settings, cache_root),
            policy=policy,
            max_unused=max_unused,
            wait_seconds=wait_seconds,
            cache_root=cache_root or None,
            rewriting=rewrite_options(settings),
        )
    _show(report, pruned, settings)
    return ExitStatus.INCOMPLETE if report.problems else ExitStatus.DONE


commands = [backup]


def _require_identity_for_pruning(settings: Settings, protection: Protection) -> None:
    """Backing up needs none; that the pruning after it does is said before either."""
    if protection.identities or protection.passphrase is not None:
        return
    try:
        open_repository(settings.repository_place).require_identity("pruning")
    except RepositoryNotFoundError:
        if protection.wants_encryption:
            raise DecryptionError("pruning what is encrypted needs an identity (--identity)") from None


def _is_there(settings: Settings) -> bool:
    """Whether there is a repository, so that a passphrase is one that it knows."""
    try:
        open_repository(settings.repository_place)
    except RepositoryNotFoundError:
        return False
    return True


def _check_source(source: str, key: str | None) -> None:
    context = click.get_current_context()
    if not source:
        raise click.UsageError("SOURCE is empty", context)
    if key is None and (is_url(source) or os.path.isdir(source)):
        try:
            key_of(source)
        except ValueError as error:
            raise click.UsageError(str(error), context) from None


def _source_of(source: str, options: dict[str, object]) -> str | StoreAddress:
    if is_url(source):
        return StoreAddress(source, {**read_config().storage_options(source), **options})
    if options:
        raise click.UsageError(
            "--source-option is for a SOURCE at a URL, and this one is a directory",
            click.get_current_context(),
        )
    return source


def _show(report: BackupReport, pruned: PruneReport | None, settings: Settings) -> None:
    for problem in report.problems:
        say("problem", str(problem))
    if not settings.quiet:
        for notice in report.notices:
            say("notice", str(notice))
    if settings.json:
        document = report.to_dict()
        if pruned is not None:
            document["prune"] = pruned.to_dict()
        print_document(document)
    elif not settings.quiet:
        if settings.verbosity:
            for file in report.files:
                print_line(f"{file.size:>14} {file.path}")
        print_line(_summary(report))
        if pruned is not None:
            from incremental_backups_tools.cli.prune import show_pruning

            show_pruning(pruned, settings)


def _summary(report: BackupReport) -> str:
    begin = "dry run, would be " if report.dry_run else ""
    counts = report.counts
    what = f"{count_text(counts.files, 'file')}, {size_text(report.bytes.total)}"
    parts = [f"{begin}{report.kind} backup of {what}"]
    if report.parent is not None:
        parts.append(_changes(report))
    parts.append(f"{size_text(report.total)} added in {duration_text(report.duration)}")
    if report.problems:
        parts.append(f"{count_text(len(report.problems), 'problem')}")
    return f"{report.backup_key}@{report.backup_date}: {'; '.join(parts)}"


def _changes(report: BackupReport) -> str:
    counts = report.counts
    words = (
        (counts.created, "new"),
        (counts.updated, "changed"),
        (counts.metadata, "with new metadata"),
        (counts.deleted, "deleted"),
    )
    return ", ".join(f"{number:,} {word}" for number, word in words if number) or "nothing changed"
