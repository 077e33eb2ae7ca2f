"""``ibt prune``: forget points in time, and delete what no other needs."""

from __future__ import annotations

from typing import Any

import click

from incremental_backups_tools.chain.look import only_key
from incremental_backups_tools.chain.prune import PruneReport, prune_backups
from incremental_backups_tools.chain.rewrite import RewriteOptions
from incremental_backups_tools.cli.completing import complete_key
from incremental_backups_tools.cli.errors import ExitStatus
from incremental_backups_tools.cli.keeping import keep_options, policy_of
from incremental_backups_tools.cli.kernel import warn_of_slow_kernel
from incremental_backups_tools.cli.options import IbtCommand, Settings, common_options
from incremental_backups_tools.cli.output import print_document, print_line, say
from incremental_backups_tools.cli.protection import open_chosen, writing_options
from incremental_backups_tools.cli.rendering import count_text, size_text, time_text
from incremental_backups_tools.cli.writing import cache_option, wait_option
from incremental_backups_tools.repository.layout import parse_backup_id


@click.command("prune", cls=IbtCommand)
@click.argument("key", metavar="[KEY]", required=False, shell_complete=complete_key)
@keep_options
@wait_option
@cache_option
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@writing_options
@common_options
@click.pass_obj
def prune(
    settings: Settings,
    /,
    key: str | None,
    max_unused: float,
    wait_seconds: float,
    cache_root: str | None,
    dry_run: bool,
    **keep: Any,
) -> ExitStatus:
    """Forget the points in time of KEY that no rule keeps, and delete what no other point needs.

    The rules are restic's: a point that any of them keeps stays. Without one all points stay, and only what
    nothing needs is deleted: what merging and rebasing replaced, and files of runs that were killed a day ago or
    more.

    Increments between two points that stay are merged into one, and an expired full is replaced by a new one that
    is made out of the chain, as soon as that frees a share of their bytes: see --max-unused.
    """
    policy = policy_of(keep)
    repository = open_chosen(settings, cache_root)
    warn_of_slow_kernel()
    report = prune_backups(
        key if key is not None else only_key(repository),
        repository=repository,
        policy=policy,
        max_unused=max_unused,
        wait_seconds=wait_seconds,
        cache_root=cache_root or None,
        dry_run=dry_run,
        rewriting=rewrite_options(settings),
    )
    if settings.json:
        print_document(report.to_dict())
    elif not settings.quiet:
        show_pruning(report, settings)
    return ExitStatus.DONE


commands = [prune]


def rewrite_options(settings: Settings) -> RewriteOptions:
    """How volumes are written again."""
    return RewriteOptions(
        threads=settings.threads,
        on_notice=None if settings.quiet else lambda notice: say("notice", notice),
    )


def show_pruning(report: PruneReport, settings: Settings) -> None:
    """Print what was done, point by point where it is a dry run or more is wanted."""
    if report.dry_run or settings.verbosity:
        for decision in report.decisions:
            verb = "keep  " if decision.keep else "forget"
            time = time_text(parse_backup_id(decision.backup_id))
            print_line(f"{verb} {decision.backup_id}  {time}  {', '.join(decision.reasons)}".rstrip())
        for rewrite in report.plan.rewrites:
            frees = f"about {size_text(rewrite.waste.dead_bytes)} of {size_text(rewrite.waste.total_bytes)}"
            how = f"with {', '.join(rewrite.links)}" if rewrite.links else "with deltas in place of copies"
            print_line(f"{rewrite.operation:6} {rewrite.backup_id}  {how}: frees {frees}")
        for name in report.deleted if settings.verbosity else ():
            print_line(f"delete {name}")
    begin = "dry run, would " if report.dry_run else ""
    about = "about " if report.dry_run and report.plan.rewrites else ""
    points = f"keep {len(report.plan.kept)} of {count_text(len(report.decisions), 'point')}"
    parts = [f"{begin}{points}", f"delete {count_text(len(report.deleted), 'file')}"]
    if report.plan.rewrites:
        parts.append(f"write {about}{size_text(report.bytes_written)} again")
    if report.plan.unlisted:
        parts.append(f"leave {count_text(len(report.plan.unlisted), 'expired backup')} that others stand on")
    parts.append(f"free {about}{size_text(report.bytes_freed)}")
    text = ", ".join(parts)
    print_line(f"{report.backup_key}: {text if report.dry_run else _past(text)}")


def _past(text: str) -> str:
    """What was done, in the words of what would be."""
    for verb, done in (
        ("keep ", "kept "),
        ("delete ", "deleted "),
        ("write ", "wrote "),
        ("leave ", "left "),
        ("free ", "freed "),
    ):
        text = text.replace(verb, done)
    return text
