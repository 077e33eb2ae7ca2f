"""Where the repository is, by the options, the environment and the configuration file, and how it is opened."""

from __future__ import annotations

import click

from incremental_backups_tools.cli.config import read_config
from incremental_backups_tools.cli.options import Settings, size_of
from incremental_backups_tools.repository.limits import Limits, TokenBucket
from incremental_backups_tools.repository.open import StoreAddress, is_url
from incremental_backups_tools.repository.remote_base import RemoteOptions


def find_place(settings: Settings, from_environment: str | None) -> str | StoreAddress | None:
    """Where the repository is, and what is needed to open it; None is the user's data directory.

    Raises:
        click.UsageError: the configuration file is wrong, or a directory was given a URL's options.
        OSError: the configuration file cannot be read.
    """
    config = read_config()
    place = settings.repository if settings.repository is not None else from_environment or config.repository
    if place is None or not is_url(place):
        _refuse_options_of_urls(settings)
        return place
    limits = Limits(
        upload=_bucket(settings.limit_upload, config.limit_upload, f"{config.fs_path}: limit-upload"),
        download=_bucket(settings.limit_download, config.limit_download, f"{config.fs_path}: limit-download"),
    )
    options = {**config.storage_options(place), **settings.storage_options}
    return StoreAddress(place, options, RemoteOptions(limits=limits))


def _refuse_options_of_urls(settings: Settings) -> None:
    given = (
        ("--storage-option", settings.storage_options),
        ("--limit-upload", settings.limit_upload),
        ("--limit-download", settings.limit_download),
    )
    for name, value in given:
        if value:
            raise click.UsageError(
                f"{name} is for repositories at a URL, and this one is a directory",
                click.get_current_context(silent=True),
            )


def _bucket(given: int | None, configured: str | None, what: str) -> TokenBucket | None:
    if given is None and configured is not None:
        try:
            given = size_of(configured, minimum=1)
        except click.BadParameter as error:
            raise click.UsageError(f"{what}: {error.message}") from None
    return None if given is None else TokenBucket(given)
