"""``ibt cache``: what this machine keeps to make the next backup fast, and at all possible without a secret."""

from __future__ import annotations

from typing import Any

import click

from incremental_backups_tools.chain.newest import recall_newest
from incremental_backups_tools.cli.errors import ExitStatus
from incremental_backups_tools.cli.options import IbtCommand, Settings, common_options
from incremental_backups_tools.cli.output import print_document, print_line
from incremental_backups_tools.cli.rendering import count_text, size_text
from incremental_backups_tools.cli.writing import cache_option
from incremental_backups_tools.repository.cache import Cache, CacheInfo, list_caches
from incremental_backups_tools.repository.locations import default_cache_root


@click.group("cache")
def cache() -> None:
    """Look at the local cache, or remove parts of it.

    It may be removed at any time. The next backup of a plain repository then reads every file once; of an
    encrypted one it needs an identity, or has to be a full.
    """


@cache.command("ls", cls=IbtCommand)
@cache_option
@common_options
@click.pass_obj
def ls(settings: Settings, cache_root: str | None) -> ExitStatus:
    """List what is cached: repository and key, bytes, the newest backup, and where the repository was then."""
    records = [_record(info, cache_root) for info in list_caches(cache_root or default_cache_root())]
    if settings.json:
        print_document({"caches": records})
        return ExitStatus.DONE
    for record in records:
        newest = record["newest"] or "-"
        line = f"{record['repository']}/{record['key']}  {size_text(record['bytes']):>10}  {newest}"
        print_line(f"{line}  {record['url'] or ''}".rstrip())
    return ExitStatus.DONE


@cache.command("rm", cls=IbtCommand)
@click.argument("names", metavar="[REPOSITORY[/KEY]]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Remove all of it.")
@cache_option
@common_options
@click.pass_obj
def rm(settings: Settings, names: tuple[str, ...], everything: bool, cache_root: str | None) -> ExitStatus:
    """Remove the cache of each REPOSITORY, by its id, or of one KEY of it, as 'ibt cache ls' shows them."""
    if everything == bool(names):
        raise click.UsageError("name what is to go, or --all", click.get_current_context())
    root = cache_root or default_cache_root()
    known = list_caches(root)
    chosen = known if everything else [info for name in names for info in _matching(known, name)]
    for info in chosen:
        Cache(root, info.repository_id, info.key).remove_all()
    if settings.json:
        print_document({"removed": [f"{info.repository_id}/{info.key}" for info in chosen]})
    elif not settings.quiet:
        size = size_text(sum(info.size for info in chosen))
        print_line(f"{count_text(len(chosen), 'cache')} removed, {size}")
    return ExitStatus.DONE


commands: list[click.Command] = [cache]


def _record(info: CacheInfo, cache_root: str | None) -> dict[str, Any]:
    place = Cache(cache_root or default_cache_root(), info.repository_id, info.key)
    newest = recall_newest(place, info.repository_id, info.key)
    return {
        "repository": info.repository_id,
        "key": info.key,
        "bytes": info.size,
        "newest": newest.id if newest is not None else None,
        "url": newest.url if newest is not None else None,
    }


def _matching(known: list[CacheInfo], name: str) -> list[CacheInfo]:
    repository_id, _, key = name.partition("/")
    found = [info for info in known if info.repository_id == repository_id and key in ("", info.key)]
    if not found:
        raise click.UsageError(f"nothing is cached of {name!r}", click.get_current_context())
    return found
