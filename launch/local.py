#!/usr/bin/env python3
"""Several processes of one run on this machine, for trying: N processes of M fake devices.

    python launch/local.py --processes=4 --devices=2 -- --config=configs/demo.py --workdir=runs/four

What follows `--` goes to `python -m uniadapter_jax.main` in each process. Every line of their
output begins with the process. SIGTERM or Ctrl-C has them save and stop, a second Ctrl-C kills
them (to reach a single one, its process id is in the first lines). When one ends with an error the
others have --grace seconds to end by themselves; then they are killed. The exit status is that of
the first that failed, or 0. --dry-run prints the commands instead.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent


def main() -> int:
    """The command."""
    options = _parse()
    environment = _environment(options.devices)
    port = options.port or _free_port()
    commands = [
        [*_command(), *_flags(port, options.processes, i), *options.main]
        for i in range(options.processes)
    ]
    if options.dry_run:
        given = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
        for line in commands:
            print(given, shlex.join(line))
        return 0
    children: list[Child] = []
    asked = _stop_with(children)
    for index, line in enumerate(commands):
        if not asked.is_set():
            children.append(_start(index, line, environment))
    if asked.is_set():  # the last one may not have been in the list yet
        _signal_all(children, signal.SIGTERM)
    return _wait(children, options.grace)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=_count, default=2, help="how many (default: 2)")
    parser.add_argument("--devices", type=_count, default=1, help="fake devices of each (1)")
    parser.add_argument("--port", type=_count, help="of the coordinator (default: a free one)")
    parser.add_argument("--grace", type=float, default=60.0, help="seconds, see above (60)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    parser.add_argument("main", nargs="*", help="arguments of main, after --")
    return parser.parse_args()


def _count(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return int(text)


def _command() -> list[str]:
    return [sys.executable, "-m", "uniadapter_jax.main"]


def _environment(devices: int) -> dict[str, str]:
    """What the processes have beyond this one's environment."""
    flags = os.environ.get("XLA_FLAGS", "")
    path = os.environ.get("PYTHONPATH")
    return {
        "JAX_PLATFORMS": "cpu",
        "PYTHONUNBUFFERED": "1",
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}".strip(),
        "PYTHONPATH": str(ROOT) if path is None else f"{ROOT}{os.pathsep}{path}",
    }


def _flags(port: int, processes: int, index: int) -> list[str]:
    return [
        f"--coordinator=127.0.0.1:{port}",
        f"--num-processes={processes}",
        f"--process-id={index}",
    ]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclasses.dataclass(frozen=True)
class Child:
    """A process, and the thread that relays what it says."""

    process: subprocess.Popen[str]
    relay: threading.Thread


def _start(index: int, command: list[str], environment: dict[str, str]) -> Child:
    process = subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        # A terminal's Ctrl-C reaches this process only.
        start_new_session=True,
    )
    _say(index, f"process id {process.pid}")
    relay = threading.Thread(target=_relay, args=(index, process), daemon=True)
    relay.start()
    return Child(process, relay)


def _relay(index: int, process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        _say(index, line.rstrip("\n"))


def _say(index: int, line: str) -> None:
    print(f"[{index}] {line}", flush=True)


def _stop_with(children: list[Child]) -> threading.Event:
    """SIGTERM and Ctrl-C reach the children; set once one came."""
    asked = threading.Event()

    def stop(number: int, _: object) -> None:
        if asked.is_set() and number == signal.SIGINT:
            _signal_all(children, signal.SIGKILL)
        asked.set()
        _signal_all(children, signal.SIGTERM)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return asked


def _signal_all(children: list[Child], number: int) -> None:
    for child in children:
        if child.process.poll() is None:
            child.process.send_signal(number)


def _ended(children: list[Child]) -> Iterator[tuple[int, int] | None]:
    """(process, status) of each as it ends, None in between; stops after the last."""
    running = dict(enumerate(children))
    while running:
        for index, child in list(running.items()):
            status = child.process.poll()
            if status is not None:
                del running[index]
                child.relay.join(5)  # longer only if a child of its own still talks
                yield index, status
        yield None
        time.sleep(0.05)


def _wait(children: list[Child], grace: float) -> int:
    failed, deadline = 0, float("inf")
    for ended in _ended(children):
        if ended is not None:
            index, status = ended
            _say(index, f"ended with status {status}")
            if status and not failed:
                # As a shell counts signals: 128 + number.
                failed, deadline = (
                    (128 - status if status < 0 else status),
                    time.monotonic() + grace,
                )
        if time.monotonic() > deadline:
            print(f"killing what still runs {grace:g} s later", flush=True)
            _signal_all(children, signal.SIGKILL)
            deadline = float("inf")
    return failed


if __name__ == "__main__":
    sys.exit(main())
