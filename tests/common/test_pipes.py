"""Whoever reads what a command prints may stop: no traceback, the status of a closed pipe."""

import os
import subprocess
import sys

import pytest

from uniadapter_jax.common.pipes import STATUS, ending_with_the_reader


def run(code, *, stderr_too=False):
    """(status, stderr) of a process whose output nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as nowhere:
        process = subprocess.run(
            [sys.executable, *code],
            stdout=nowhere,
            stderr=nowhere if stderr_too else subprocess.PIPE,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            text=True,
            check=False,
        )
    return process.returncode, process.stderr


@pytest.mark.parametrize(("command", "status"), [("compare", 0), ("plan", STATUS)])
def test_help_into_a_closed_pipe(command, status):
    """A command of argparse's, which hides that by itself, and one of absl's."""
    assert run(["-m", f"uniadapter_jax.{command}", "--help"]) == (status, "")


def test_a_large_output_and_one_that_waits_in_the_buffer():
    begin = "from uniadapter_jax.common.errors import plain_command\nimport sys\n"
    begin += "@plain_command\ndef main():"
    for body in ("print('x' * 10**6)", "print('x')", "print('x', file=sys.stderr, flush=True)"):
        assert run(["-c", f"{begin} {body}\nmain()"], stderr_too=True) == (STATUS, None)


def test_other_broken_pipes_are_errors(capsys):
    with pytest.raises(BrokenPipeError), ending_with_the_reader():
        print("read by somebody")
        raise BrokenPipeError("a worker has gone")
    with ending_with_the_reader():
        print("all is well")
    assert "all is well" in capsys.readouterr().out
