"""The keys and backups of a repository, as a shell completes them. A repository that cannot be read has none."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from incremental_backups_tools.chain.history import History, open_repository
from incremental_backups_tools.cli.completion_items import points_beginning
from incremental_backups_tools.cli.options import Settings
from incremental_backups_tools.exceptions import BackupError
from incremental_backups_tools.repository.repository import Repository


def complete_key(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Keys that begin so."""
    try:
        return [CompletionItem(key) for key in _repository(context).keys() if key.startswith(incomplete)]
    except (BackupError, OSError):
        return []


def complete_point(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Keys that begin so; behind a key's ``@`` its backups, newest first."""
    try:
        repository = _repository(context)
        return points_beginning(
            incomplete, repository.keys(), lambda key: History(repository, key).backup_ids
        )
    except (BackupError, OSError):
        return []


def _repository(context: click.Context) -> Repository:
    settings = context.find_object(Settings) or Settings()
    return open_repository(settings.repository_place)
