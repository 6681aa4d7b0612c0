"""Processes that meet, do not come, come twice, and go."""

from __future__ import annotations

import concurrent.futures
import signal
import socket
import subprocess
import sys
import time

import pytest
from small_run import ROOT

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.parallel.peers import meet

CHILD = """
import os, sys, time
from uniadapter_jax.parallel.peers import meet
index, count, port, then = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
peers = meet(f"127.0.0.1:{port}", index, count, 20)
peers.watch(0.5)
print("met", flush=True)
sys.stdin.readline()
if then == "abort":
    time.sleep(0.5)
    os.abort()
if then == "fail":
    peers.fail("no space left")
if then == "close":
    peers.close()
if then == "wait":
    time.sleep(30)
"""


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def all_meet(port, *processes, seconds=0.6):
    """(index, count) of each: what `meet` returns or raises in each, in a thread of its own."""

    def one(process):
        try:
            return meet(f"127.0.0.1:{port}", *process, seconds)
        except UserError as error:
            return str(error)

    with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:
        return list(pool.map(one, processes))


def test_all_meet_in_any_order_and_leave_the_port_free(port):
    found = all_meet(port, (2, 3), (0, 3), (1, 3), seconds=10)
    assert [peers.index for peers in found] == [2, 0, 1]
    for peers in found:
        assert [name.split(" (")[0] for name in peers.names] == [f"process {i}" for i in range(3)]
        assert peers.on_this_host == 3
    # JAX's service listens there next, while the connections stay.
    with socket.create_server(("127.0.0.1", port)):
        assert found[1].lost(0) is None


def test_everyone_names_who_is_missing(port):
    for said in all_meet(port, (0, 4), (2, 4)):
        assert "2 of 4 processes are missing: 1, 3. Here are process 0 (" in said
        assert "process 2 (" in said and "--initialization-timeout" in said


def test_a_coordinator_that_never_answers_is_said(port):
    (said,) = all_meet(port, (1, 2))
    assert f"process 0 does not answer at --coordinator=127.0.0.1:{port} for 0.6 s" in said
    assert "Connection refused" in said


def test_a_coordinator_that_is_something_else_is_said(port):
    with socket.create_server(("127.0.0.1", port)):  # takes connections, and says nothing
        (said,) = all_meet(port, (1, 2))
    assert f"process 0 does not answer at --coordinator=127.0.0.1:{port}" in said


def test_a_host_that_has_no_name_is_said():
    with pytest.raises(UserError, match="does not answer at --coordinator=nowhere"):
        meet("nowhere.invalid:1", 1, 2, 0.3)


def test_two_of_one_number_are_named(port):
    for said in all_meet(port, (0, 3), (1, 3), (1, 3), seconds=10):
        assert said.count("process 1 (") == 2 and "two have --process-id=1" in said


def test_another_number_of_processes_is_said(port):
    for said in all_meet(port, (0, 2), (1, 3), seconds=10):
        assert "has --num-processes=3" in said and "has 2" in said


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("127.0.0.1", 0, 2), "is not HOST:PORT"),
        (("127.0.0.1:1", 2, 2), "--process-id=2 is none of 2 processes, 0 to 1"),
        (("127.0.0.1:1", -1, 2), "--process-id=-1"),
    ],
)
def test_wrong_flags_are_said(arguments, expected):
    with pytest.raises(UserError, match=expected):
        meet(*arguments, 1)


def test_a_port_that_is_taken_is_said(port):
    with socket.create_server(("", port)):
        (said,) = all_meet(port, (0, 2))
    assert f"process 0 cannot listen on port {port}" in said and "in use" in said


def test_strangers_are_not_counted(port):
    """Someone else's connection, before and after ours; then all meet."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        host = pool.submit(meet, f"127.0.0.1:{port}", 0, 2, 10)
        for words in (b"GET / HTTP/1.1\r\n\r\n", b'{"index": 1}\n', b"[1]\n", b"\xff\n", b""):
            stranger = _connect(port)
            stranger.sendall(words)
            stranger.close()
        silent = _connect(port)
        assert meet(f"127.0.0.1:{port}", 1, 2, 10).index == 1
        assert host.result().index == 0
        silent.close()


def _connect(port):
    end = time.monotonic() + 5
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            assert time.monotonic() < end
            time.sleep(0.01)


def children(port, *then):
    """A process for each, which has met the others; it goes on when it gets a line."""
    found = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(i), str(len(then)), str(port), what],
            env={"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i, what in enumerate(then)
    ]
    for child in found:
        assert child.stdout.readline() == "met\n", child.stderr.read()
    return found


def go_on(*some):
    for child in some:
        child.stdin.write("\n")
        child.stdin.flush()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_all_others(port, victim):
    """Also one that a library ends by `abort()`, as Gloo does, before it has read who is gone."""
    others = [i for i in range(3) if i != victim]
    then = ["wait"] * 3
    then[others[-1]] = "abort"
    found = children(port, *then)
    go_on(found[others[0]])
    found[victim].send_signal(signal.SIGKILL)
    began = time.monotonic()
    go_on(found[others[1]])
    for i in others:
        _, said = found[i].communicate(timeout=10)
        assert found[i].returncode == 1, said
        assert f"error: process {victim} (" in said and "is gone: killed, crashed" in said
        assert said.count("error: ") == 1
    assert time.monotonic() - began < 5
    found[victim].communicate()


def test_a_process_that_fails_says_why(port):
    found = children(port, "wait", "fail", "wait")
    go_on(*found)
    for i in (0, 2):
        _, said = found[i].communicate(timeout=10)
        assert found[i].returncode == 1
        assert "error: process 1 (" in said and ") failed: no space left" in said
    found[1].communicate()


def test_processes_that_end_well_end_nobody(port):
    found = children(port, "close", "close", "close")
    go_on(found[1])
    found[1].communicate(timeout=10)
    go_on(found[0])
    found[0].communicate(timeout=10)
    go_on(found[2])
    found[2].communicate(timeout=10)
    assert [child.returncode for child in found] == [0, 0, 0]


def test_an_abort_for_another_reason_stays_one(port):
    found = children(port, "abort", "close")
    go_on(found[1])
    go_on(found[0])
    _, said = found[0].communicate(timeout=20)
    assert found[0].returncode == -signal.SIGABRT and "error: " not in said
    found[1].communicate()
