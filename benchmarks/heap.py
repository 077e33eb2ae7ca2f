"""What each form keeps of one history: the chain, snapshots, the heap, a disk, and other tools beside them.

    python -m benchmarks.heap [--trees DIR] [--versions N] [--below PATH] [--quick] [--forms NAME,…]
                             [--work DIR] [--json FILE]

DIR holds releases of Linux, in directories named by their version; fewer than three are fetched. Where there are fewer
than N (ten), versions of our own come between two releases: each takes over what changed in one more part of the
directories, by the digest of their names. With --below only that directory of each release is taken. --quick has a
small made tree, every version of which is an edit of the one before.

All forms keep the same source directory, one after the other, before it goes on to the next version. As in a tree that
is worked on, a file that does not change is not touched, and one that does gets a new modification time. Printed are
the bytes that each version adds to what a form keeps (each inode's once), what that comes to, the space that it takes
on the disk with directories and blocks that are not full, and how many inodes it has. Last come plain copies, one of
each version; they are not made but added up. The third version and the last are restored from each form and compared
with what the source was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final

import platformdirs

from benchmarks.corpora import CannotFetchError, linux_trees, made_trees
from benchmarks.measure import MIB, SAME, let_clocks_tick, processor, run
from benchmarks.peers import OURS, Place, Tool, missing_programs, version_of
from benchmarks.trees import Difference, apply_differences, differences, verdict

VERSIONS: Final = 10
RESTORED: Final = 3  # which version is restored, beside the last
QUICK_FILES: Final = 300
CHAIN: Final = "chain"
COPIES: Final = "plain copies"  # the sum of all versions as they are


@dataclass(frozen=True, slots=True)
class Form:
    """A way to keep versions.

    Attributes:
        tool: the commands; its ``restore`` restores ``{version}``.
        versions: prints what the versions are called, oldest first, one a line.
    """

    tool: Tool
    versions: str


_CATALOGUE: Final = "--catalogue {repository}/catalogue"

FORMS: Final = (
    Form(
        Tool(
            CHAIN,
            (OURS,),
            backup="exec {ibt} backup -q -r {repository} --key source {source}",
            restore="exec {ibt} restore -q -r {repository} source@{version} {out}",
        ),
        versions="ls {repository}/source | sed -n 's/[.]state[.].*//p'",
    ),
    Form(
        Tool(
            "snapshot",
            (OURS,),
            backup="exec {ibt} snapshot create -q -d {repository} --name source {source}",
            restore="exec {ibt} snapshot restore -q -d {repository} source@{version} {out}",
        ),
        versions="ls {repository}/source",
    ),
    Form(
        Tool(
            "heap",
            (OURS,),
            backup="exec {ibt} heap snapshot -q --heap {repository} {source}",
            restore="exec {ibt} heap restore -q --heap {repository} --no-undo {out} {version}",
        ),
        versions="ls {repository}/snapshots | sed 's/[.]jsonl.*//'",
    ),
    Form(
        # A disk's versions are told by their times: one second after the backup, before the next version is made.
        Tool(
            "disk",
            (OURS,),
            init=f"mkdir {{repository}}/disk && {{ibt}} disk init -q {_CATALOGUE} --copies 1 && "
            f"{{ibt}} disk map -q {_CATALOGUE} / {{source}} && "
            f"{{ibt}} disk add -q {_CATALOGUE} disk {{repository}}/disk",
            backup=f"{{ibt}} disk update -q {_CATALOGUE} && {{ibt}} disk backup -q {_CATALOGUE} disk && "
            "date -d '1 second' +%Y-%m-%dT%H:%M:%S >>{home}/times",
            restore=f"exec {{ibt}} disk restore -q {_CATALOGUE} --at {{version}} {{out}}",
        ),
        versions="cat {home}/times",
    ),
    Form(
        Tool(
            "restic",
            ("restic",),
            init="{restic} init -q --repository-version 2 -r {repository}",
            backup="exec {restic} -q -r {repository} backup {source}",
            restore="exec {restic} -q -r {repository} restore {version} --target {out}",
            restored_at="{out}{source}",
            version="version",
        ),
        versions="{restic} -r {repository} snapshots | grep -oE '^[0-9a-f]{{8}} '",
    ),
    Form(
        Tool(
            "borg",
            ("borg",),
            init="{borg} init -e none {repository}",
            backup="cd {source} && exec {borg} create -C zstd,3 {repository}::{number} .",
            restore="cd {out} && exec {borg} extract {repository}::{version}",
        ),
        versions="{borg} list --short {repository}",
    ),
    Form(
        Tool(
            "rsync links",
            ("rsync",),
            backup="newest=$(ls {repository} | tail -n 1) && "
            "exec {rsync} -a ${{newest:+--link-dest=../$newest}} {source}/ {repository}/{number}/",
            restore="exec {rsync} -a {repository}/{version}/ {out}/",
        ),
        versions="ls {repository}",
    ),
)


@dataclass(frozen=True, slots=True)
class Version:
    """One version of the source.

    Attributes:
        steps: what makes it out of the version before, and the release that has it; nothing in the first.
    """

    name: str
    release: Path
    steps: tuple[Difference, ...] = ()


@dataclass(frozen=True, slots=True)
class Kept:
    """What a form keeps after a version.

    Attributes:
        bytes: sizes of the regular files, each inode once.
        disk_bytes: blocks of all inodes, those of directories too.
        cpu_seconds: user and system time of keeping this version.
    """

    bytes: int
    disk_bytes: int
    inodes: int
    cpu_seconds: float

    def beside(self, before: Sequence[Kept]) -> Kept:
        """All this and what was kept before."""
        if not before:
            return self
        last = before[-1]
        return Kept(
            self.bytes + last.bytes,
            self.disk_bytes + last.disk_bytes,
            self.inodes + last.inodes,
            self.cpu_seconds,
        )


@dataclass(slots=True)
class History:
    """What was measured of one form; *restored* says how the two versions compare, in words."""

    name: str
    program: str
    kept: list[Kept] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)

    def added(self) -> list[int]:
        sizes = [0, *(kept.bytes for kept in self.kept)]
        return [new - old for old, new in pairwise(sizes)]


def main() -> int:
    options = parse_options()
    forms = [form for form in FORMS if form.tool.name in options.forms]
    for form in list(forms):
        if missing := missing_programs(form.tool):
            print(f"{form.tool.name}: {', '.join(missing)} not installed, left out")
            forms.remove(form)
    with tempfile.TemporaryDirectory(prefix="ibt-benchmark-", dir=options.work) as work:
        top = Path(work)
        try:
            releases = find_releases(options, top)
        except CannotFetchError as error:
            print(f"no releases: {error}; --quick has a made tree", file=sys.stderr)
            return 1
        versions = plan_versions(releases, options.versions)
        histories = keep_all(forms, versions, top)
        print(
            table(versions, histories), end="", flush=True
        )  # what took long is not lost with the clearing away
        if options.json is not None:
            options.json.write_text(json.dumps(document(versions, histories), indent=1) + "\n")
    return 0 if all(verdict == SAME for of in histories for verdict in of.restored) else 1


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.heap", description=(__doc__ or "").split("\n", 1)[0]
    )
    default = Path(platformdirs.user_cache_dir("ibt-benchmarks", appauthor=False)) / "trees"
    parser.add_argument(
        "--trees", type=Path, default=default, help="where the releases are, or are to be fetched to"
    )
    parser.add_argument("--below", default="", help="take only this directory of each release")
    parser.add_argument("--versions", type=int, default=VERSIONS)
    parser.add_argument("--quick", action="store_true", help=f"a made tree of {QUICK_FILES} files")
    names = [form.tool.name for form in FORMS]
    parser.add_argument("--forms", type=lambda text: text.split(","), default=names, help=", ".join(names))
    parser.add_argument("--work", type=Path, help="where the work is done (default: for temporary files)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if unknown := set(options.forms) - set(names):
        parser.error(f"--forms: {', '.join(sorted(unknown))}: none of {', '.join(names)}")
    if options.versions < RESTORED:
        parser.error(f"--versions: at least {RESTORED}")
    return options


def find_releases(options: argparse.Namespace, top: Path) -> dict[str, Path]:
    """The trees that the history is made of, by their names, oldest first."""
    if options.quick:
        return {path.name: path for path in made_trees(top / "made", QUICK_FILES, count=options.versions)}
    found = linux_trees(options.trees, most=options.versions)
    return {path.name: path / options.below for path in found}


def plan_versions(releases: Mapping[str, Path], count: int) -> list[Version]:
    """A history of *count* versions: the releases, and where there are fewer, mixtures of two that follow each other.

    The steps that are wanted are dealt out evenly to the gaps between releases, what is left over to those in which
    most changes.
    """
    trees = list(releases.values())
    gaps = [tuple(differences(old, new, times=False)) for old, new in pairwise(trees)]
    each, left = divmod(count - 1, len(gaps))
    largest = sorted(range(len(gaps)), key=lambda number: -len(gaps[number]))[:left]
    (first, tree), *later = releases.items()
    versions = [Version(first, tree)]
    for number, (gap, (release, tree)) in enumerate(zip(gaps, later, strict=True)):
        parts = split(gap, each + (number in largest))
        before = versions[-1].name
        names = [f"{before}+{part}/{len(parts)}" for part in range(1, len(parts))]
        versions += [Version(name, tree, steps) for name, steps in zip([*names, release], parts, strict=True)]
    return versions


def split(gap: Sequence[Difference], count: int) -> list[tuple[Difference, ...]]:
    """The differences in *count* parts; what lies in one directory is in one part."""
    parts: list[list[Difference]] = [[] for _ in range(count)]
    for difference in gap:
        directory = os.path.dirname(difference.rel_path)
        digest = hashlib.sha256(os.fsencode(directory)).digest()
        parts[int.from_bytes(digest[:8], "big") % count].append(difference)
    return [tuple(part) for part in parts]


def keep_all(forms: Sequence[Form], versions: Sequence[Version], top: Path) -> list[History]:
    """Let the source go through the versions, and each form keep each of them."""
    source, third = top / "source", top / "third"
    subprocess.run(["cp", "-a", "--", versions[0].release, source], check=True)
    places = [Place(form.tool, source, top / form.tool.name.replace(" ", "-")) for form in forms]
    histories = [History(form.tool.name, version_of(form.tool)) for form in forms]
    copies = History(COPIES, "")
    for place in places:
        place.prepare()
        execute(place, place.tool.init)
    for number, version in enumerate(versions, start=1):
        apply_differences(version.steps, version.release, source, in_place=False)
        if number == RESTORED:
            subprocess.run(["cp", "-a", "--", source, third], check=True)
        copies.kept.append(count_kept(source, 0.0).beside(copies.kept))
        let_clocks_tick()
        for place, history in zip(places, histories, strict=True):
            seconds = execute(place, place.next_backup())
            history.kept.append(count_kept(place.repository, seconds))
            added = history.added()[-1]
            print(f"  {version.name} {history.name}: {added:,} bytes, {seconds:.1f} s", file=sys.stderr)
        let_clocks_tick()
    for form, place, history in zip(forms, places, histories, strict=True):
        history.restored = [
            restore(form, place, RESTORED - 1, third),
            restore(form, place, len(versions) - 1, source),
        ]
        print(f"  {history.name} restored: {', '.join(history.restored)}", file=sys.stderr)
    return [*histories, copies]


def execute(place: Place, template: str, version: str = "") -> float:
    """Run a command of a tool, and return the seconds of processor time that it took.

    Raises:
        RuntimeError: it failed; the message has what it printed.
    """
    done = run(place.line(template, version=version), env=place.environment(), log=place.log)
    if done.status:
        raise RuntimeError(
            f"{place.tool.name}: status {done.status}\n{place.log.read_text(errors='replace')}"
        )
    return done.cpu_seconds


def restore(form: Form, place: Place, number: int, expected: Path) -> str:
    """Restore the version of that number, and say how it compares with *expected*."""
    listed = subprocess.run(
        ["bash", "-c", place.line(form.versions)],
        env=place.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    place.empty_out()
    execute(place, form.tool.restore, listed.stdout.split()[number])
    words = verdict(expected, place.restored())
    place.empty_out()
    return words


def count_kept(directory: Path, cpu_seconds: float) -> Kept:
    """What lies below a directory, itself not counted."""
    size = blocks = inodes = 0
    seen: set[int] = set()
    pending = [os.fspath(directory)]
    while pending:
        with os.scandir(pending.pop()) as listing:
            for item in listing:
                status = item.stat(follow_symlinks=False)
                is_directory = item.is_dir(follow_symlinks=False)
                if is_directory:
                    pending.append(item.path)
                elif status.st_nlink > 1:
                    if status.st_ino in seen:
                        continue
                    seen.add(status.st_ino)
                if item.is_file(follow_symlinks=False):
                    size += status.st_size
                blocks += status.st_blocks
                inodes += 1
    return Kept(size, blocks * 512, inodes, cpu_seconds)


def table(versions: Sequence[Version], histories: Sequence[History]) -> str:
    """All figures as text."""
    width = max(len(version.name) for version in versions) + 2
    head = "".join(f"{history.name:>14}" for history in histories)
    lines = [machine(), "", "MiB that each version adds", f"{'':{width}}{'paths':>8}{head}"]
    for number, version in enumerate(versions):
        added = "".join(f"{history.added()[number] / MIB:14.2f}" for history in histories)
        lines.append(f"{version.name:{width}}{len(version.steps):8,}{added}")
    lines += ["", "MiB kept, up to each version", f"{'':{width + 8}}{head}"]
    for number, version in enumerate(versions):
        kept = "".join(f"{history.kept[number].bytes / MIB:14.2f}" for history in histories)
        lines.append(f"{version.name:{width + 8}}{kept}")
    first = histories[0]
    titles = ("MiB", "ratio", "MiB later", "ratio", "on disk", "ratio", "inodes", "cpu s", "later")
    lines += [
        "",
        f"all versions, in proportion to {first.name}; 'later' is all but the first, of cpu their median",
    ]
    lines.append(f"{'':14}" + "".join(f"{title:>11}" for title in titles) + "  restored")
    lines += [summary_line(history, first) for history in histories]
    return "\n".join(lines) + "\n"


def summary_line(history: History, first: History) -> str:
    """What a form came to, beside another one."""
    ours, theirs = history.kept[-1], first.kept[-1]
    later, their_later = (sum(of.added()[1:]) for of in (history, first))
    seconds = [kept.cpu_seconds for kept in history.kept]
    verdicts = sorted(set(history.restored))
    return (
        f"{history.name:14}{ours.bytes / MIB:11,.1f}{ours.bytes / theirs.bytes:11.2f}"
        f"{later / MIB:11,.1f}{later / their_later:11.2f}"
        f"{ours.disk_bytes / MIB:11,.1f}{ours.disk_bytes / theirs.disk_bytes:11.2f}{ours.inodes:11,}"
        f"{seconds[0]:11.1f}{statistics.median(seconds[1:]):11.1f}  {'; '.join(verdicts)}"
    )


def machine() -> str:
    return f"{processor()}, {platform.system()} {platform.release()}, Python {platform.python_version()}"


def document(versions: Sequence[Version], histories: Sequence[History]) -> dict[str, object]:
    """All figures for JSON."""
    return {
        "machine": machine(),
        "versions": [{"name": version.name, "changed_paths": len(version.steps)} for version in versions],
        "forms": {history.name: asdict(history) for history in histories},
    }


if __name__ == "__main__":
    sys.exit(main())
