"""How far a command is: a bar on a terminal, with ``-v`` the names, in a pipe nothing."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from incremental_backups_tools.cli.options import Settings
from incremental_backups_tools.cli.output import is_terminal, say_raw
from incremental_backups_tools.tree.entry import printable

Name = bytes | str
OnProgress = Callable[[Name, int], None]

_MAX_AT_ONCE: Final = 64  # names that threads report in turns


@contextmanager
def show_progress(
    settings: Settings, title: str, sizes: Callable[[], Iterable[int]]
) -> Iterator[OnProgress | None]:
    """Show on the standard error what the function that the block is given is called with.

    The function takes a name and how many more bytes of it are done. It is None where nobody is to be told.

    Args:
        title: what is being done.
        sizes: yields the sizes in bytes of all that will be reported. It runs in a thread of its own while the
            work goes on, so that the end is known without waiting for it; only where there is a bar.
    """
    listed = _list_names() if settings.verbosity and not settings.json else None
    if settings.quiet or settings.json or not is_terminal(sys.stderr):
        yield listed
        return
    with _bar(title, sizes) as advance:

        def both(name: Name, size: int) -> None:
            advance(name, size)
            if listed is not None:
                listed(name, size)

        yield both


def _bar(title: str, sizes: Callable[[], Iterable[int]]) -> AbstractContextManager[OnProgress]:
    # Its library takes a tenth of a second to import, which a pipe need not wait for.
    from incremental_backups_tools.cli.progress_bar import progress_bar

    return progress_bar(title, sizes)


def _list_names() -> OnProgress:
    """A function that writes each name once, however many times it is reported while others are."""
    recent: deque[Name] = deque(maxlen=_MAX_AT_ONCE)

    def write(name: Name, size: int) -> None:
        if name not in recent:
            recent.append(name)
            say_raw(f"{name if isinstance(name, str) else printable(name)}\n")

    return write
