"""A TCP proxy that cuts, delays, corrupts, refuses and swallows, as networks and busy servers do."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto

_CHUNK_LEN = 64 << 10
_SLOW_DOWN_BODY = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate</Message></Error>"
_SLOW_DOWN = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_SLOW_DOWN_BODY), _SLOW_DOWN_BODY)
)


class Action(Enum):
    """What is done to a request."""

    CUT = auto()  # the connection, before the server has seen it
    CUT_MIDDLE = auto()  # after half of what came in with it
    LOSE_REPLY = auto()  # it is done, and nobody hears of it
    SLOW_DOWN = auto()  # it is answered with 503
    CORRUPT = auto()  # a byte of its body is another one
    DELAY = auto()  # it waits for a moment


@dataclass
class Fault:
    """What happens to the next requests that contain some bytes.

    Attributes:
        times: how many more of them.
        hits: how many there were.
    """

    matching: bytes
    action: Action
    times: int = 1
    hits: int = 0


class FaultProxy:
    """Stands before a server on this machine.

    Attributes:
        port: where it listens.
        faults: looked through for each request; the first that fits and has times left is done.
    """

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self.faults: list[Fault] = []
        self._target_port = target_port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server | None = None
        self._connections: list[_Connection] = []

    def start(self) -> None:
        """Listen on a free port."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    def stop(self) -> None:
        """End all connections."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def cut_all(self) -> None:
        """Cut the connections that there are."""
        asyncio.run_coroutine_threadsafe(self._cut_all(), self._loop).result(10)

    async def _cut_all(self) -> None:
        for connection in self._connections:
            connection.close()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.close()
            return
        state = _Connection(writer, up_writer)
        self._connections.append(state)
        try:
            await asyncio.gather(self._send_up(reader, state), self._send_down(up_reader, state))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            state.close()

    async def _send_up(self, reader: asyncio.StreamReader, state: _Connection) -> None:
        while data := await reader.read(_CHUNK_LEN):
            fault = self._fault_for(data)
            if fault is not None:
                state.action = fault.action
            if state.action is Action.CUT:
                state.close()
                return
            if state.action is Action.CUT_MIDDLE:
                state.upstream.write(data[: len(data) // 2])
                await state.upstream.drain()
                state.close()
                return
            if state.action is Action.SLOW_DOWN:
                state.downstream.write(_SLOW_DOWN)
                await state.downstream.drain()
                state.close()
                return
            if state.action is Action.DELAY:
                state.action = None
                await asyncio.sleep(0.3)
            if state.action is Action.CORRUPT:
                data = state.corrupt(data)
            state.upstream.write(data)
            await state.upstream.drain()
        with suppress(OSError):
            state.upstream.write_eof()

    async def _send_down(self, reader: asyncio.StreamReader, state: _Connection) -> None:
        while data := await reader.read(_CHUNK_LEN):
            if state.action is Action.LOSE_REPLY and not data.startswith(b"HTTP/1.1 100"):
                state.close()
                return
            state.downstream.write(data)
            await state.downstream.drain()
        state.close()

    def _fault_for(self, data: bytes) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and fault.matching in data:
                fault.times -= 1
                fault.hits += 1
                return fault
        return None


@dataclass
class _Connection:
    downstream: asyncio.StreamWriter
    upstream: asyncio.StreamWriter
    action: Action | None = None

    def corrupt(self, data: bytes) -> bytes:
        """Change the last byte of a request's first piece of body."""
        end_of_head = data.find(b"\r\n\r\n")
        if end_of_head == len(data) - 4:
            return data  # the body comes next
        self.action = None
        return data[:-1] + bytes([data[-1] ^ 1])

    def close(self) -> None:
        self.downstream.close()
        self.upstream.close()


@contextmanager
def proxy_before(target_port: int) -> Iterator[FaultProxy]:
    """A proxy that runs."""
    proxy = FaultProxy(target_port)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
