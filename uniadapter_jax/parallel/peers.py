"""The other processes of a run: who has come, and who is gone.

JAX's own service says neither. When its time is over it ends the process by `abort()`, without the
names of those that did not come; a process that dies is missed by its heartbeats a minute later,
and what waits for it in a collective aborts or waits until then. So the processes meet here first,
on the very port that JAX's service takes afterwards, and the connections stay: a process that dies
closes its own, which the system tells process 0 at once, and process 0 tells all.

No JAX in here: everything happens before it, or beside it in a thread.
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
# A machine that vanishes closes nothing: after so many seconds without an answer it is gone.
_SILENCE, _PROBE = 10, 5
_PROBES = 4


@dataclasses.dataclass
class _Link:
    """A connection, and what came over it that is not yet a whole line."""

    socket: socket.socket
    rest: bytes = b""
    index: int | None = None  # of the process at its other end, once it has said so

    def send(self, message: dict[str, Any]) -> None:
        """Sends a line; a broken connection is seen where it is read."""
        try:
            self.socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            pass

    def receive(self) -> list[dict[str, Any]] | None:
        """The messages that are there, None at the end. Reads once.

        Raises:
          ValueError: what came is not from us.
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
        self._failed = False  # a process said why, and did not just go
        self._known = threading.Event()
        self._closed = False
        self._ending = threading.Lock()

    def watch(self, patience: float) -> None:
        """From now on, a process that is gone ends this one, with a message and status 1.

        patience: seconds that this process has to end by itself after another one said that it
          fails: mostly for the same reason, which it then tells itself.
        """
        for link in self._links:
            _keep_alive(link.socket)
        threading.Thread(target=self._watch, args=(patience,), name="peers", daemon=True).start()
        _on_abort(self._aborted)

    def lost(self, seconds: float) -> str | None:
        """Why the run cannot go on, if that is known now or within so many seconds."""
        self._known.wait(seconds)
        return self._reason

    def fail(self, reason: str) -> None:
        """Tells the others why this process ends."""
        self._tell({"failed": f"{self.names[self.index]} failed: {reason}"})

    def close(self) -> None:
        """Tells the others that this process ends well, or has said why not."""
        self._closed = True
        self._tell({"done": self.index})

    def end(self, reason: str) -> None:
        """Ends this process with a message, whatever its other threads wait for."""
        with self._ending:  # never left: the first of several says it
            # Not by sys.stderr, whose lock another thread may hold.
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
        """Takes in what a link says; False at its end."""
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
        """The first reason why the run cannot go on; process 0 has to tell all others."""
        if self._reason is None:
            self._failed = "failed" in message
            self._reason = message["failed"] if self._failed else message["gone"]
            self._tell(message)
            self._known.set()

    def _aborted(self) -> None:
        """A library gave up because of a peer, mostly before we know of which."""
        reason = self.lost(5)
        if reason is not None:
            self.end(reason)


def meet(address: str, index: int, count: int, seconds: float) -> Peers:
    """Returns when all processes have come; process 0 waits for them at `address`.

    Raises:
      UserError: the time is over (says who is missing, or that process 0 does not answer); two
        say that they are the same one, or differ in how many there are.
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
    """Process 0, while it waits for the others."""

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
        """All others, or an error that all who are here get to know."""
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
        """A hello, or the end of a connection."""
        try:
            messages = link.receive()
            for message in messages or ():
                self._welcome(link, int(message["index"]), int(message["count"]), message["where"])
        except (KeyError, TypeError, ValueError):  # a stranger; or one of us with other code
            messages = None
        if messages is None:
            self.selector.unregister(link.socket)
            link.socket.close()
            if link.index is not None:  # it will come again, or be missing
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
    """As one of the others."""
    deadline = time.monotonic() + seconds
    here: dict[int, str] = {}
    problem: object = "no answer"
    said = f"{address[0]}:{address[1]}"
    while (left := deadline - time.monotonic()) > 0:
        try:
            link = _Link(socket.create_connection(address, timeout=min(left, 5)))
            link.index = 0
            link.send({"index": index, "count": count, "where": _me()})
            # Process 0 may have begun later; once it is there its clock decides for all.
            names = _await_all(link, here, time.monotonic() + seconds + 5)
        except (OSError, ValueError) as error:
            problem = getattr(error, "strerror", None) or error
            names = None
        if names is not None:
            link.socket.settimeout(None)
            return Peers(index, [link], names)
        time.sleep(_RETRY)
    if here:
        raise UserError(missing(here, count, said, seconds))
    raise UserError(
        f"process 0 does not answer at --coordinator={said} for {seconds:g} s ({problem}); is it "
        "running, on that host, and is the port open between the hosts?"
    )


def _await_all(link: _Link, here: dict[int, str], deadline: float) -> list[str] | None:
    """The names of all, None if process 0 went away; notes in `here` who has come so far."""
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
    """Says which of `count` processes are not `here`."""
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


_HANDLERS: list[Any] = []  # C keeps a pointer only


def _on_abort(handle: Any) -> None:
    """Calls `handle` before `abort()` ends this process, which then ends as ever.

    Gloo and JAX's service end a process whose peer is gone by `abort()`, in threads of their own
    and within milliseconds. Python's own signal handlers run in the main thread, too late.
    """

    def aborted(_: int) -> None:
        handle()
        faulthandler.dump_traceback()

    _HANDLERS.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted))
    ctypes.CDLL(None).signal(int(signal.SIGABRT), _HANDLERS[-1])
