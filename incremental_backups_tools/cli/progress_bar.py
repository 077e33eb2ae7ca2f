"""The progress bar: bytes, files, speed and the time that is left."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from incremental_backups_tools.exceptions import BackupError


@contextmanager
def progress_bar(
    title: str, sizes: Callable[[], Iterable[int]]
) -> Iterator[Callable[[bytes | str, int], None]]:
    """A bar on the standard error for as long as the block lasts; it is gone afterwards.

    Yields:
        A function that takes a name and how many more bytes of it are done.
    """
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        DownloadColumn(binary_units=True),
        TextColumn("{task.fields[files]}"),
        TransferSpeedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        expand=True,
    )
    task = bar.add_task(title, total=None, files="0 files")
    counter = _Counter(bar, task)
    stop = threading.Event()
    tally = threading.Thread(target=_tally, args=(sizes, counter, stop), name="ibt tally", daemon=True)
    with bar:
        tally.start()
        try:
            yield counter.advance
        finally:
            stop.set()


class _Counter:
    """What is done, of how much."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar = bar
        self._task = task
        self._files = 0
        self._total_files: int | None = None
        self._last: bytes | str | None = None

    def advance(self, name: bytes | str, size: int) -> None:
        """Count *size* bytes of *name* as done."""
        if name != self._last:
            self._last = name
            self._files += 1
        self._bar.update(self._task, advance=size, files=self._text())

    def set_total(self, total_bytes: int, total_files: int) -> None:
        """Now the end is known."""
        self._total_files = total_files
        self._bar.update(self._task, total=total_bytes, files=self._text())

    def _text(self) -> str:
        total = "" if self._total_files is None else f"/{max(self._total_files, self._files):,}"
        return f"{self._files:,}{total} files"


def _tally(sizes: Callable[[], Iterable[int]], counter: _Counter, stop: threading.Event) -> None:
    """Add up how much there is to do. What cannot be looked at the work itself reports; the bar goes without."""
    total_bytes = total_files = 0
    try:
        for size in sizes():
            total_bytes += size
            total_files += 1
            if stop.is_set():
                return
    except (BackupError, OSError):
        return
    counter.set_total(total_bytes, total_files)
