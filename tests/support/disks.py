"""A source, a catalogue and disks, by the command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from support.command import Ran, run_ibt


class Disks:
    """Directories that stand for disks; one that is put away is not found any more."""

    def __init__(self, top: Path, *names: str, **settings: str) -> None:
        self.top = top
        self.source = top / "source"
        self.catalogue = top / "catalogue"
        self.source.mkdir(exist_ok=True)
        self.run("init", *(f"--{name.replace('_', '-')}={value}" for name, value in settings.items()))
        self.run("map", "/", self.source)
        for name in names:
            self.path(name).mkdir()
            self.run("add", name, self.path(name))

    def path(self, name: str) -> Path:
        """Where the disk is while it is there."""
        return self.top / "media" / name if (self.top / "media").is_dir() else self.top / name

    def run(self, *arguments: str | bytes | Path, status: int = 0, **options: Any) -> Ran:
        """``ibt disk …``."""
        env = {"IBT_DISK_CATALOGUE": str(self.catalogue)}
        return run_ibt("disk", *arguments, status=status, env=env, **options)

    def json(self, *arguments: str | bytes | Path, status: int = 0, **options: Any) -> Any:
        """The document that ``ibt disk … --json`` prints."""
        return self.run(*arguments, "--json", status=status, **options).document

    def back_up(self, *names: str) -> None:
        """Update, and back up to each disk."""
        self.run("update")
        for name in names:
            self.run("backup", name)

    def objects(self, name: str) -> dict[str, Path]:
        """The objects on a disk by their digests."""
        paths = (self.path(name) / "objects").glob("??/*.zst")
        return {path.parent.name + path.stem: path for path in paths}

    def put_away(self, name: str) -> Path:
        """Take a disk out; returns where it is now, unfindable."""
        away = self.top / "shelf"
        away.mkdir(exist_ok=True)
        return self.path(name).rename(away / f"{name}-{os.urandom(4).hex()}")
