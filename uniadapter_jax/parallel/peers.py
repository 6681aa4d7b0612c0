"""Connects the processes of a run, and detects which are missing and which have died.

JAX's own service names neither. On a timeout it ends the process by `abort()` without naming the
missing ones; it notices a dead process by its heartbeats a minute later, and until then a peer that
waits for it in a collective aborts or hangs. So the processes connect here first, on the port that
JAX's service uses afterwards, and the connections stay open: when a process dies, the system closes
its connection, process 0 sees that at once, and tells all others.

This file does not use JAX: everything happens before it starts, or beside it in a thread.
"""

from __future__ import annotations

import ctypes
import dataclasses
import faulthandler
import json
import os
import selectors
import signal
import socket
import threading
import time
from typing import Any

from uniadapter_jax.common.errors import UserError

_RETRY = 0.2  # seconds between attempts to reach process 0
_LINE = 65536  # bytes of the longest message
# A machine that vanishes closes no connection: TCP keep-alive (seconds, probes) detects it.
_SILENCE, _PROBE = 10, 5
_PROBES = 4


@dataclasses.dataclass
class _Link:
    """A connection, and the received bytes that are not yet a complete line."""

    socket: socket.socket
    rest: bytes = b""
    index: int | None = None  # index of the process at the other end, once known

    def send(self, message: dict[str, Any]) -> None:
        """Sends a line; a broken connection is noticed when it is read."""
        try:
            self.socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            pass

    def receive(self) -> list[dict[str, Any]] | None:
        """Reads once; returns the complete messages, or None if the connection has ended.

        Raises:
          ValueError: the sender is not one of our processes.
        """
        try:
            data = self.socket.recv(_LINE)
        except OSError:
            return None
        if not data:
            return None
        *lines, self.rest = (self.rest + data).split(b"\n")
        if len(self.rest) > _LINE:
            raise ValueError("a line without end")
        messages = [json.loads(line) for line in lines]
        if not all(isinstance(message, dict) for message in messages):
            raise ValueError("not a message")
        return messages


class Peers:
    """The other processes, watched by a thread from `watch` to `close`.

    names: "process 3 (host)" of every process.
    """

    def __init__(self, index: int, links: list[_Link], names: list[str]):
        self.index = index
        self.names = names
        self._links = links
        self._done: set[int] = set()
        self._reason: str | None = None
        self._failed = False  # a process reported a failure, rather than dying
        self._known = threading.Event()
        self._closed = False
        self._ending = threading.Lock()

    def watch(self, patience: float) -> None:
        """From now on, a process that dies ends this one, with a message and status 1.

        patience: seconds that this process has to end by itself after another one reported a
          failure, which usually has the same cause in both.
        """
        for link in self._links:
            _keep_alive(link.socket)
        threading.Thread(target=self._watch, args=(patience,), name="peers", daemon=True).start()
        _on_abort(self._aborted)

    def lost(self, seconds: float) -> str | None:
        """The reason why the run cannot go on, if one becomes known within so many seconds."""
        self._known.wait(seconds)
        return self._reason

    @property
    def on_this_host(self) -> int:
        """Processes on the host of this one, itself among them."""
        hosts = [name.partition("(")[2].rpartition(", process id")[0] for name in self.names]
        return hosts.count(hosts[self.index])

    def fail(self, reason: str) -> None:
        """Tells the others that this process failed, and why."""
        self._tell({"failed": f"{self.names[self.index]} failed: {reason}"})

    def close(self) -> None:
        """Tells the others that this process ends, successfully or after `fail`."""
        self._closed = True
        self._tell({"done": self.index})

    def end(self, reason: str) -> None:
        """Ends this process with a message, whatever its other threads are waiting for."""
        with self._ending:  # never released: only the first caller prints
            # Not through sys.stderr, whose lock another thread may hold.
            os.write(2, f"error: {reason}\n".encode())
            os._exit(1)

    def _tell(self, message: dict[str, Any]) -> None:
        for link in self._links:
            link.send(message)

    def _watch(self, patience: float) -> None:
        with selectors.DefaultSelector() as selector:
            for link in self._links:
                selector.register(link.socket, selectors.EVENT_READ, link)
            while not self._known.is_set():
                for key, _ in selector.select():
                    if not self._read(key.data):
                        selector.unregister(key.fileobj)
        assert self._reason is not None
        if self._failed:
            time.sleep(patience)
        if not self._closed:
            self.end(self._reason)

    def _read(self, link: _Link) -> bool:
        """Handles the messages of a link; returns False when the connection has ended."""
        messages = link.receive()
        if messages is None:
            assert link.index is not None
            if link.index not in self._done and not self._closed:
                where = self.names[link.index]
                self._learn({"gone": f"{where} is gone: killed, crashed, or out of reach"})
            return False
        for message in messages:
            if "done" in message:
                self._done.add(message["done"])
            else:
                self._learn(message)
        return True

    def _learn(self, message: dict[str, Any]) -> None:
        """Keeps the first reason why the run cannot go on, and tells the others."""
        if self._reason is None:
            self._failed = "failed" in message
            self._reason = message["failed"] if self._failed else message["gone"]
            self._tell(message)
            self._known.set()

    def _aborted(self) -> None:
        """A library aborts because of a peer, mostly before we know which peer."""
        reason = self.lost(5)
        if reason is not None:
            self.end(reason)


def meet(address: str, index: int, count: int, seconds: float) -> Peers:
    """Connects all processes and returns; process 0 waits for the others at `address`.

    Raises:
      UserError: the time is over (says which are missing, or that process 0 does not answer), or
        two processes have the same index or disagree on how many there are.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--coordinator={address} is not HOST:PORT")
    if not 0 <= index < count:
        raise UserError(f"--process-id={index} is none of {count} processes, 0 to {count - 1}")
    if index == 0:
        return _Host(address, int(port), count, seconds).gather()
    return _join((host.strip("[]"), int(port)), index, count, seconds)


def _me() -> str:
    return f"{socket.gethostname()}, process id {os.getpid()}"


def _title(index: int, where: str) -> str:
    return f"process {index} ({where})"


class _Host:
    """The side of process 0 while it waits for the others."""

    def __init__(self, address: str, port: int, count: int, seconds: float):
        self.address = address
        self.count = count
        self.seconds = seconds
        self.names = {0: _title(0, _me())}
        self.links: dict[int, _Link] = {}
        try:
            self.listener = _listen(port)
        except OSError as error:
            raise UserError(
                f"process 0 cannot listen on port {port} of --coordinator={address}: "
                f"{error.strerror}; choose another port"
            ) from error

    def gather(self) -> Peers:
        """Waits for all others; an error is sent to all that are connected."""
        deadline = time.monotonic() + self.seconds
        with self.listener, selectors.DefaultSelector() as self.selector:
            self.selector.register(self.listener, selectors.EVENT_READ)
            while len(self.names) < self.count:
                left = deadline - time.monotonic()
                if left <= 0:
                    self._refuse(missing(self.names, self.count, self.address, self.seconds))
                for key, _ in self.selector.select(left):
                    if key.data is None:
                        self._accept()
                    else:
                        self._hear(key.data)
        names = [self.names[i] for i in range(self.count)]
        for link in self.links.values():
            link.send({"go": names})
        return Peers(0, list(self.links.values()), names)

    def _accept(self) -> None:
        connection, _ = self.listener.accept()
        self.selector.register(connection, selectors.EVENT_READ, _Link(connection))

    def _hear(self, link: _Link) -> None:
        """Handles the greeting of a process, or the end of its connection."""
        try:
            messages = link.receive()
            for message in messages or ():
                self._welcome(link, int(message["index"]), int(message["count"]), message["where"])
        except (KeyError, TypeError, ValueError):  # not our process, or one with other code
            messages = None
        if messages is None:
            self.selector.unregister(link.socket)
            link.socket.close()
            if link.index is not None:  # it may connect again, or will be missing
                del self.names[link.index], self.links[link.index]

    def _welcome(self, link: _Link, index: int, count: int, where: str) -> None:
        name = _title(index, where)
        if count != self.count:
            self._refuse(
                f"{name} has --num-processes={count}, {self.names[0]} has {self.count}", link
            )
        if index in self.names:
            self._refuse(f"two have --process-id={index}: {self.names[index]} and {name}", link)
        link.index = index
        self.names[index], self.links[index] = name, link
        for other in self.links.values():
            other.send({"here": sorted(self.names.items())})

    def _refuse(self, reason: str, stranger: _Link | None = None) -> None:
        for link in [*self.links.values(), *([stranger] if stranger else [])]:
            link.send({"error": reason})
        raise UserError(reason)


def _join(address: tuple[str, int], index: int, count: int, seconds: float) -> Peers:
    """The side of the other processes: connects to process 0."""
    deadline = time.monotonic() + seconds
    here: dict[int, str] = {}
    problem: object = "no answer"
    target = f"{address[0]}:{address[1]}"
    while (left := deadline - time.monotonic()) > 0:
        try:
            link = _Link(socket.create_connection(address, timeout=min(left, 5)))
            link.index = 0
            link.send({"index": index, "count": count, "where": _me()})
            # Process 0 may have started later; once it answers, its timeout counts for all.
            names = _await_all(link, here, time.monotonic() + seconds + 5)
        except (OSError, ValueError) as error:
            problem = getattr(error, "strerror", None) or error
            names = None
        if names is not None:
            link.socket.settimeout(None)
            return Peers(index, [link], names)
        time.sleep(_RETRY)
    if here:
        raise UserError(missing(here, count, target, seconds))
    raise UserError(
        f"process 0 does not answer at --coordinator={target} for {seconds:g} s ({problem}); is it "
        "running, on that host, and is the port open between the hosts?"
    )


def _await_all(link: _Link, here: dict[int, str], deadline: float) -> list[str] | None:
    """The names of all, None if process 0 went away; `here` gets those connected so far."""
    while (left := deadline - time.monotonic()) > 0:
        link.socket.settimeout(left)
        messages = link.receive()
        if messages is None:
            break
        for message in messages:
            if "error" in message:
                raise UserError(message["error"])
            if "go" in message:
                return message["go"]
            here.clear()
            here.update((int(i), name) for i, name in message["here"])
    link.socket.close()
    return None


def missing(here: dict[int, str], count: int, address: str, seconds: float) -> str:
    """A message that says which of `count` processes are not `here`."""
    absent = [str(i) for i in range(count) if i not in here]
    return (
        f"after {seconds:g} s at {address}, {len(absent)} of {count} processes are missing: "
        f"{', '.join(absent)}. Here are {', '.join(here[i] for i in sorted(here))}. Look at what "
        "the missing ones say; --initialization-timeout waits longer"
    )


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", _SILENCE),
        ("TCP_KEEPINTVL", _PROBE),
        ("TCP_KEEPCNT", _PROBES),
    ):
        if hasattr(socket, option):  # not on every system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


_HANDLERS: list[Any] = []  # keeps them alive: C has only a pointer


def _on_abort(handle: Any) -> None:
    """Calls `handle` before `abort()` ends this process.

    Gloo and JAX's service abort a process whose peer is gone within milliseconds, in their own
    threads. Python's signal handlers run in the main thread, which would be too late.
    """

    def aborted(_: int) -> None:
        handle()
        faulthandler.dump_traceback()

    _HANDLERS.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted))
    ctypes.CDLL(None).signal(int(signal.SIGABRT), _HANDLERS[-1])
