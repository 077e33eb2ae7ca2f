"""Where the repository is, by the options, the environment and the configuration file, and how it is opened."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

import click

from incremental_backups_tools.cli.config import Config, read_config
from incremental_backups_tools.cli.options import Settings, size_of
from incremental_backups_tools.repository.address import StoreAddress, is_url
from incremental_backups_tools.repository.limits import UNLIMITED, Limits, TokenBucket
from incremental_backups_tools.repository.locations import default_repository
from incremental_backups_tools.repository.remote_base import RemoteOptions
from incremental_backups_tools.repository.tiered import TieredAddress


def find_place(settings: Settings, from_environment: str | None) -> str | StoreAddress | TieredAddress | None:
    """Where the repository is, and what is needed to open it; None is the user's data directory.

    Raises:
        click.UsageError: the configuration file is wrong, or a directory was given a URL's options.
        OSError: the configuration file cannot be read.
    """
    config = read_config()
    named = settings.repository if settings.repository is not None else from_environment or None
    place = named if named is not None else config.repository
    # The file's is that of the file's repository.
    hot = settings.hot_prefix or (config.hot_prefix if named is None else None)
    limits = UNLIMITED
    if any(one is not None and is_url(one) for one in (place, hot)):
        limits = _limits(settings, config)
    else:
        _refuse_options_of_urls(settings, "repositories at a URL, and this one is a directory")

    def address(one: str) -> str | StoreAddress:
        return _address(one, settings, config, limits) if is_url(one) else one

    if hot is not None:
        return TieredAddress(address(place if place is not None else default_repository()), address(hot))
    return address(place) if place is not None else None


def find_places(
    settings: Settings, from_environment: str | None, to: str, to_options: dict[str, object]
) -> tuple[str | os.PathLike[str] | None, str | os.PathLike[str]]:
    """Where backups are copied from and where to; limits may be given if one of the two is at a URL.

    Args:
        to_options: storage options of *to*.

    Raises:
        click.UsageError, OSError: as :func:`find_place`.
    """
    target_settings = replace(settings, repository=to, hot_prefix=None, storage_options=to_options)
    source = (
        settings.repository
        if settings.repository is not None
        else from_environment or read_config().repository
    )
    is_source_url = source is not None and is_url(source)
    if is_url(to) and not is_source_url:
        settings = replace(settings, limit_upload=None, limit_download=None)
    elif is_source_url and not is_url(to):
        target_settings = replace(target_settings, limit_upload=None, limit_download=None)
    target = find_place(target_settings, None)
    assert target is not None  # it was given
    return find_place(settings, from_environment), target


# What a place is to a command, such as ``heap``; a directory or URL; storage options for it alone.
NamedPlace = tuple[str, str, Mapping[str, object]]


def find_addresses(settings: Settings, places: Sequence[NamedPlace]) -> list[StoreAddress]:
    """What is needed to open each of several directories and URLs, none of which is a repository.

    A place's own options win over those that ``--storage-option`` says for all, and these over the configuration
    file's. Limits are for all of them together.

    Raises:
        click.UsageError: the configuration file is wrong, or a directory was given a URL's options.
        OSError: the configuration file cannot be read.
    """
    config = read_config()
    limits = UNLIMITED
    if any(is_url(url) for _, url, _ in places):
        limits = _limits(settings, config)
    else:
        _refuse_options_of_urls(settings, "places at a URL, and there is none")
    addresses = []
    for whose, url, own in places:
        if is_url(url):
            addresses.append(_address(url, settings, config, limits, own))
        elif own:
            raise click.UsageError(
                f"--{whose}-option is for a place at a URL, and {url} is a directory",
                click.get_current_context(silent=True),
            )
        else:
            addresses.append(StoreAddress(url))
    return addresses


def _address(
    url: str, settings: Settings, config: Config, limits: Limits, own: Mapping[str, object] | None = None
) -> StoreAddress:
    options = {**config.storage_options(url), **settings.storage_options, **(own or {})}
    return StoreAddress(url, options, RemoteOptions(limits=limits))


def _limits(settings: Settings, config: Config) -> Limits:
    return Limits(
        upload=_bucket(settings.limit_upload, config.limit_upload, f"{config.fs_path}: limit-upload"),
        download=_bucket(settings.limit_download, config.limit_download, f"{config.fs_path}: limit-download"),
    )


def _refuse_options_of_urls(settings: Settings, what_for: str) -> None:
    given = (
        ("--storage-option", settings.storage_options),
        ("--limit-upload", settings.limit_upload),
        ("--limit-download", settings.limit_download),
    )
    for name, value in given:
        if value:
            raise click.UsageError(f"{name} is for {what_for}", click.get_current_context(silent=True))


def _bucket(given: int | None, configured: str | None, what: str) -> TokenBucket | None:
    if given is None and configured is not None:
        try:
            given = size_of(configured, minimum=1)
        except click.BadParameter as error:
            raise click.UsageError(f"{what}: {error.message}") from None
    return None if given is None else TokenBucket(given)
