"""Errors that a user can act on; a command that meets one ends with a report and a status."""

from __future__ import annotations

import difflib
import functools
import io
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from absl import app, flags, logging

import uniadapter_jax
from uniadapter_jax.common import signals
from uniadapter_jax.common.packaged import did_you_mean, with_packaged
from uniadapter_jax.common.pipes import ending_with_the_reader


class UserError(Exception):
    """Wrong input, configuration or environment. The message says what, where, and what to do."""

    status = 2  # exit status of a command that ends with it


class MachineError(UserError):
    """A failure outside the input; running the same command again may succeed."""

    status = 1


def run_app(main: Callable[[Sequence[str]], int | None]) -> None:
    """Runs an absl command; a `UserError` or a wrong flag ends it with one report, status 2."""

    def guarded(argv: Sequence[str]) -> int | None:
        if len(argv) > 1:
            return _report(f"unexpected arguments {list(argv[1:])}; see --help")
        return signals.run(reporting(lambda: main(argv)))

    _silence_libraries()
    with ending_with_the_reader():
        app.run(guarded, flags_parser=_parse_flags)


def _silence_libraries() -> None:
    """Silences Orbax and TFDS, which log every file at INFO.

    Orbax also logs the errors of its threads with a traceback; they reach us as exceptions anyway.
    """
    logging.set_verbosity(logging.WARNING)
    logging.get_absl_logger().addFilter(_no_traceback_of_orbax)
    sys.unraisablehook = _unraisable


def _no_traceback_of_orbax(record: Any) -> bool:
    return not ("orbax" in record.pathname and record.exc_info)


def _unraisable(problem: Any) -> None:
    """Python's own hook, except for signals and for errors that follow from an earlier one.

    A signal's exception that is raised where Python cannot pass it on, such as in the garbage
    collector, is lost; the command then ends after a grace (see `common.signals`). Orbax closes
    its event loop on the first failure, which reaches us as an exception; tensorstore's pending
    writes then find the loop closed, once per array.
    """
    interrupted = isinstance(problem.exc_value, KeyboardInterrupt)
    if not interrupted and str(problem.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(problem)


def reporting(command: Callable[..., int | None]) -> Callable[..., int | None]:
    """Wraps a command so that a `UserError` ends it with a report and the error's status."""

    @functools.wraps(command)
    def guarded(*args: Any) -> int | None:
        _silence_libraries()
        if isinstance(sys.stdout, io.TextIOWrapper):  # names may have bytes beyond the encoding
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            return command(*args)
        except UserError as error:
            return _report(error)

    return guarded


def plain_command(
    main: Callable[..., int | None], stopped: str = signals.STOPPED
) -> Callable[..., int | None]:
    """Wraps a command without absl so that it ends on a `UserError` or a signal as in `run_app`.

    `stopped` is the line that it prints when a signal has ended it.
    """

    @functools.wraps(main)
    def guarded(*args: Any) -> int | None:
        with ending_with_the_reader():
            return signals.run(lambda: reporting(main)(*args), stopped)

    return guarded


def _report(problem: Any) -> int:
    print(f"error: {problem}", file=sys.stderr, flush=True)
    return getattr(problem, "status", 2)


MISSING = "no such file"
_HELP = {"help", "?", "helpshort", "helpfull", "helpxml"}


def _parse_flags(argv: list[str]) -> list[str]:
    """The arguments that are not flags; a wrong flag ends the command."""
    argv = with_packaged(argv)
    if "--version" in argv[1:]:
        print(uniadapter_jax.__version__)
        sys.exit(0)
    try:
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS and flags.FLAGS["config"].value is not None:
            # A file that cannot be read is kept as an error that any attribute raises.
            flags.FLAGS["config"].value.lock  # noqa: B018
        return rest
    except SystemExit as end:  # absl has shown the help, and ends with 1
        sys.exit(0 if _HELP & {argument.lstrip("-") for argument in argv[1:]} else end.code)
    except UserError as error:
        sys.exit(_report(error))
    except flags.Error as error:
        sys.exit(_report(_wrong_line(argv, str(error)) or f"{error}; see --help"))
    except BrokenPipeError:  # --help, and its reader has exited
        raise
    except OSError as error:
        file = str(_config_file(argv))
        cause = _first_cause(error)
        hint = did_you_mean(file.partition(":")[0]) if cause == MISSING else ""
        sys.exit(_report(f"--config={file}: {cause}{hint}"))
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # from --config.some.field
        if problem := _unknown_field(argv):
            raise SystemExit(_report(problem)) from error
        raise


def _wrong_line(argv: Sequence[str], message: str) -> str | None:
    """The line of a config file that raised a TypeError or ValueError; None for other errors.

    message: the message of ml_collections, which includes the traceback.
    """
    if "Error whilst parsing config file" not in message:
        return None
    file = str(_config_file(argv)).split(":")[0]
    lines = re.findall(rf'File "{re.escape(file)}", line (\d+)', message)
    where = f", line {lines[-1]}" if lines else ""
    return f"{file}{where}: {message.rstrip().splitlines()[-1]}"


def _first_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    missing = "No such file or directory" in str(error)
    return MISSING if missing else str(error)


def _config_file(argv: Sequence[str]) -> str | None:
    """The value of --config in a command line."""
    for place, argument in enumerate(argv):
        if re.fullmatch("--?config", argument):
            return argv[place + 1] if place + 1 < len(argv) else None
        if match := re.match("--?config=(.*)", argument, re.DOTALL):
            return match[1]
    return None


def _unknown_field(argv: Sequence[str]) -> str | None:
    """A message about the first --config.some.field that the config does not have."""
    file = _config_file(argv)
    if file is None:
        return None
    config = flags.FLAGS["config"].parser.parse(file)
    for argument in argv:
        match = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        node: Any = config
        path = "config"
        for name in match[1].split(".") if match else ():
            if not hasattr(node, "keys"):
                return f"{argument}: {path} is {node!r}, it has no fields"
            if name not in node:
                return f"{argument}: {unknown(path, name, node)}"
            node, path = node[name], f"{path}.{name}"
    return None


def unknown(path: str, name: str, known: Iterable[str]) -> str:
    """A message that `path` has no field `name`, with the fields that it has."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{path} has no field {name!r}; {hint}it has {', '.join(names)}"
