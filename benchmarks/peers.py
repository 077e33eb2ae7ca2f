"""The tools that are compared: how each makes a repository, backs up, and restores.

A tool is used where its programs are on PATH, or named by ``PEER_`` and the program's name in capitals:
``PEER_RDIFF_BACKUP=/opt/rdiff-backup/bin/rdiff-backup``. Commands are lines of bash in which ``{source}``,
``{repository}``, ``{out}`` (an empty directory), ``{home}``, ``{number}`` (of the newest backup), ``{file}``,
``{version}`` (what a tool calls a backup) and ``{name of a program}`` are replaced.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

OURS: Final = "ibt"
PROJECT: Final = Path(__file__).resolve().parent.parent
_MANY_NAMES: Final = 1000


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool. Nothing is encrypted where the tool can do without; compression is zstd's level 3 where it has it.

    Attributes:
        programs: what must be installed; the first is asked for its version.
        restore: restores the newest backup.
        backup: makes a backup, or empty where the tool only copies.
        incremental: makes all backups after the first, where that is another command.
        one_file: restores ``{file}`` of the newest backup.
        is_mirror: it keeps no history, so that only its first run adds.
        restored_at: where a restore puts what was the source's content.
        version: the argument that prints the version.
    """

    name: str
    programs: tuple[str, ...]
    restore: str
    init: str = ""
    backup: str = ""
    incremental: str = ""
    one_file: str = ""
    restored_at: str = "{out}"
    is_mirror: bool = False
    version: str = "--version"


TOOLS: Final = (
    Tool(
        OURS,
        ("ibt",),
        backup="exec {ibt} backup -q -r {repository} --key source {source}",
        restore="exec {ibt} restore -q -r {repository} source {out}",
        one_file="exec {ibt} restore -q -r {repository} source {out} {file}",
    ),
    Tool(
        "tar+zstd",
        ("tar", "zstd"),
        backup="cd {source} && {tar} --listed-incremental={repository}/snapshot -cf - . "
        "| {zstd} -q -3 -T2 -o {repository}/{number}.tar.zst",
        restore="cd {out} && for volume in {repository}/*.tar.zst; do "
        '{zstd} -dcq "$volume" | {tar} --listed-incremental=/dev/null -xf - || exit 1; done',
    ),
    Tool(
        "restic",
        ("restic",),
        init="{restic} init --repository-version 2 -r {repository}",
        backup="exec {restic} -q -r {repository} backup {source}",
        restore="exec {restic} -q -r {repository} restore latest --target {out}",
        one_file="exec {restic} -q -r {repository} restore latest --target {out} --include {source}/{file}",
        restored_at="{out}{source}",
        version="version",
    ),
    Tool(
        "borg",
        ("borg",),
        init="{borg} init -e none {repository}",
        backup="cd {source} && exec {borg} create -C zstd,3 {repository}::{number} .",
        restore="cd {out} && exec {borg} extract {repository}::{number}",
        one_file="cd {out} && exec {borg} extract {repository}::{number} {file}",
    ),
    Tool(
        "rdiff-backup",
        ("rdiff-backup",),
        backup="exec {rdiff-backup} backup {source} {repository}",
        restore="exec {rdiff-backup} --force restore --at now {repository} {out}",
    ),
    Tool(
        "duplicity",
        ("duplicity",),
        backup="exec {duplicity} full --no-encryption --archive-dir {home} {source} file://{repository}",
        incremental="exec {duplicity} incremental --no-encryption --archive-dir {home} {source} file://{repository}",
        restore="exec {duplicity} restore --force --no-encryption --archive-dir {home} file://{repository} {out}",
    ),
    Tool(
        "bup",
        ("bup",),
        init="{bup} init",
        backup="{bup} index {source} && {bup} save -q -n source {source}",
        restore="exec {bup} restore -q -C {out} source/latest{source}/.",
    ),
    Tool(
        "rsync",
        ("rsync",),
        backup="exec {rsync} -a --delete {source}/ {repository}/",
        restore="exec {rsync} -a {repository}/ {out}/",
        is_mirror=True,
    ),
    Tool("cp -a", ("cp",), restore="exec {cp} -a {source}/. {out}/"),
)


def command_of(program: str) -> str | None:
    """How a program is started, quoted for a shell; None where it is not installed."""
    named = os.environ.get("PEER_" + program.upper().replace("-", "_"))
    if named is None and program == OURS:
        return shlex.join([sys.executable, "-m", "incremental_backups_tools"])
    path = shutil.which(named or program)
    return None if path is None else shlex.quote(path)


def missing_programs(tool: Tool) -> list[str]:
    return [program for program in tool.programs if command_of(program) is None]


def version_of(tool: Tool) -> str:
    """The first line of what an installed tool says of its version."""
    asked = subprocess.run(
        ["bash", "-c", f"{command_of(tool.programs[0])} {tool.version}"],
        env={**os.environ, **(_own_path() if tool.name == OURS else {})},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = (asked.stdout.strip() or asked.stderr.strip() or "unknown version").splitlines()
    return lines[0]


def _own_path() -> dict[str, str]:
    return {"PYTHONPATH": str(PROJECT)}


@dataclass(slots=True)
class Place:
    """Where one tool works, and how many backups it has made there."""

    tool: Tool
    source: Path
    top: Path
    number: int = 0

    @property
    def repository(self) -> Path:
        return self.top / "repository"

    @property
    def out(self) -> Path:
        return self.top / "out"

    @property
    def log(self) -> Path:
        return self.top / "log"

    def prepare(self) -> None:
        """Make the directories anew; ``init`` is the tool's own."""
        remove(self.top)
        for directory in (self.repository, self.out, self.top / "home", self.top / "tmp"):
            directory.mkdir(parents=True)

    def next_backup(self) -> str:
        """The template of the command that makes one backup more, which is counted."""
        self.number += 1
        return self.tool.backup if self.number == 1 else self.tool.incremental or self.tool.backup

    def line(self, template: str, file: str = "", *, version: str = "") -> str:
        """A command of the tool as bash is to run it."""
        return template.format_map(
            {
                **{program: command_of(program) for program in self.tool.programs},
                "source": shlex.quote(str(self.source)),
                "repository": shlex.quote(str(self.repository)),
                "out": shlex.quote(str(self.out)),
                "home": shlex.quote(str(self.top / "home")),
                "number": f"{self.number:06d}",
                "file": shlex.quote(file),
                "version": shlex.quote(version),
            }
        )

    def restored(self) -> Path:
        """Where a restore puts what was the source's content."""
        return Path(self.tool.restored_at.format(out=self.out, source=self.source))

    def empty_out(self) -> None:
        remove(self.out)
        self.out.mkdir()

    def environment(self) -> Mapping[str, str]:
        """Nothing of the user's own caches and settings is used, and none are left behind."""
        home = str(self.top / "home")
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        own = {**_own_path(), "IBT_CACHE_DIR": f"{home}/cache"} if self.tool.name == OURS else {}
        return {
            **kept,
            **own,
            "HOME": home,
            "XDG_CACHE_HOME": f"{home}/cache",
            "TMPDIR": str(self.top / "tmp"),
            "RESTIC_PASSWORD": "x",
            "RESTIC_CACHE_DIR": f"{home}/cache",
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
            "BUP_DIR": str(self.repository),
        }


def remove(directory: Path) -> None:
    """Take a tree away, if it is there: one of many names only aside, since it is removed with everything at the end.

    For minutes after an inode was deleted, ext4 passes it over when it makes new ones, one by one: whoever is measured
    next would pay for it.
    """
    if not directory.exists():
        return
    if _has_many_names(directory):
        directory.rename(directory.with_name(f".removed-{secrets.token_hex(8)}"))
    else:
        subprocess.run(["rm", "-rf", "--", str(directory)], check=True)


def _has_many_names(directory: Path) -> bool:
    names = (name for _, directories, files in os.walk(directory) for name in (*directories, *files))
    return next(islice(names, _MANY_NAMES, None), None) is not None
