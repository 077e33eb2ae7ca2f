"""``ibt disk map unmap rule``: what is backed up, and how well."""

from __future__ import annotations

import click

from incremental_backups_tools.cli.disk.options import catalogue_option, usage_error
from incremental_backups_tools.cli.errors import ExitStatus
from incremental_backups_tools.cli.options import IbtCommand, Settings, common_options
from incremental_backups_tools.cli.output import print_document, print_line
from incremental_backups_tools.heap.disk.catalogue import Catalogue
from incremental_backups_tools.heap.disk.rules import (
    PathRule,
    map_source,
    read_maps,
    read_rules,
    remove_rule,
    set_rule,
    unmap_source,
)
from incremental_backups_tools.tree.entry import ROOT, printable


@click.command("map", cls=IbtCommand)
@click.argument("path", metavar="[PATH]", required=False)
@click.argument("source", metavar="[DIRECTORY]", required=False, type=click.Path(file_okay=False))
@catalogue_option
@common_options
@click.pass_obj
def map_(settings: Settings, /, path: str | None, source: str | None, directory: str) -> ExitStatus:
    """Keep DIRECTORY under PATH; / is the root of all. A path may lie in another one's. Alone, list the maps."""
    if (path is None) != (source is None):
        raise usage_error("PATH and DIRECTORY are given together, or neither")
    if path is not None and source is not None:
        with Catalogue.open(directory) as catalogue:
            map_source(catalogue, path, source)
    with Catalogue.open(directory, writing=False) as catalogue:
        maps = [(_shown(item.virtual), printable(item.real)) for item in read_maps(catalogue)]
    if settings.json:
        print_document({"maps": [{"path": virtual, "source": real} for virtual, real in maps]})
    elif not settings.quiet or path is None:
        for virtual, real in maps:
            print_line(f"{virtual}  {real}")
    return ExitStatus.DONE


@click.command("unmap", cls=IbtCommand)
@click.argument("path", metavar="PATH")
@catalogue_option
@common_options
@click.pass_obj
def unmap(settings: Settings, /, path: str, directory: str) -> ExitStatus:
    """Keep nothing more under PATH: from the next update on, what is there counts as deleted."""
    with Catalogue.open(directory) as catalogue:
        unmap_source(catalogue, path)
    if settings.json:
        print_document({"unmapped": path})
    return ExitStatus.DONE


@click.command("rule", cls=IbtCommand)
@click.argument("pattern", metavar="[PATTERN]", required=False)
@click.option("--copies", metavar="N", type=click.IntRange(min=0), help="How many copies; 0 leaves it out.")
@click.option("--priority", metavar="N", type=int, help="What has more comes first.  [default: 0]")
@click.option("--remove", is_flag=True, help="Remove the rule.")
@catalogue_option
@common_options
@click.pass_obj
def rule(
    settings: Settings,
    /,
    pattern: str | None,
    copies: int | None,
    priority: int | None,
    remove: bool,
    directory: str,
) -> ExitStatus:
    """Say what holds for the paths that the gitignore pattern PATTERN matches, and all below them.

    The last rule that matches decides. Alone, list the rules. What is left out altogether may also stand in a file
    .exclude in each mapped directory.
    """
    asked = copies is not None or priority is not None
    if (pattern is None and (asked or remove)) or (pattern is not None and asked == remove):
        raise usage_error("a PATTERN needs --copies or --priority, or else --remove")
    if pattern is not None:
        with Catalogue.open(directory) as catalogue:
            if remove:
                remove_rule(catalogue, pattern)
            else:
                set_rule(catalogue, PathRule(pattern, copies, priority))
    with Catalogue.open(directory, writing=False) as catalogue:
        rules = read_rules(catalogue)
    if settings.json:
        print_document(
            {
                "rules": [
                    {"pattern": item.pattern, "copies": item.copies, "priority": item.priority}
                    for item in rules
                ]
            }
        )
    elif not settings.quiet or pattern is None:
        for item in rules:
            parts = [f"copies {item.copies}"] if item.copies is not None else []
            parts += [f"priority {item.priority}"] if item.priority is not None else []
            print_line(f"{item.pattern}  {', '.join(parts)}")
    return ExitStatus.DONE


def _shown(virtual: bytes) -> str:
    return "/" if virtual == ROOT else "/" + printable(virtual)


commands = [map_, unmap, rule]
