"""A pipeline in threads: read in order, work side by side, results in order."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["map_in_order"]

Task = TypeVar("Task")
Result = TypeVar("Result")


def map_in_order(
    read: Callable[[memoryview], Task | None],
    work: Callable[[Task], Result],
    *,
    buffer_len: int,
    threads: int,
) -> Iterator[Result]:
    """Yield ``work(read(buffer))`` until *read* returns None.

    *read* is called in order and never twice at once, by the thread that then does the work: what was read
    is still in that processor's cache. Each call has a buffer of *buffer_len* bytes to itself until its
    result was yielded and the next one is asked for.

    Raises:
        ValueError: *threads* is less than 1.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    if threads == 1:
        buffer = memoryview(bytearray(buffer_len))
        while (task := read(buffer)) is not None:
            yield work(task)
        return
    yield from _map_in_threads(read, work, buffer_len=buffer_len, threads=threads)


def _map_in_threads(
    read: Callable[[memoryview], Task | None],
    work: Callable[[Task], Result],
    *,
    buffer_len: int,
    threads: int,
) -> Iterator[Result]:
    lock = Lock()
    count = 0

    def read_and_work(buffer: memoryview) -> tuple[int, Result | None, bool]:
        nonlocal count
        with lock:
            number = count
            count += 1
            task = read(buffer)
        return (number, work(task), True) if task is not None else (number, None, False)

    with ThreadPoolExecutor(threads) as pool:
        free = [memoryview(bytearray(buffer_len)) for _ in range(2 * threads)]
        running: deque[tuple[Future[tuple[int, Result | None, bool]], memoryview]] = deque()
        ready: dict[int, tuple[Result | None, memoryview]] = {}
        following = 0
        is_more = True
        while is_more or running:
            while is_more and free:
                buffer = free.pop()
                running.append((pool.submit(read_and_work, buffer), buffer))
            future, buffer = running.popleft()
            number, result, was_task = future.result()
            is_more = is_more and was_task
            if was_task:
                ready[number] = (result, buffer)
            while following in ready:
                result, buffer = ready.pop(following)
                following += 1
                yield result  # type: ignore[misc]
                free.append(buffer)
