"""What went wrong between us and the hub, in words that say what to do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from uniadapter_jax.common.disk import disk_errors
from uniadapter_jax.common.errors import MachineError, UserError
from uniadapter_jax.common.packaged import models_hint
from uniadapter_jax.weights.errors import printable
from uniadapter_jax.weights.hub.cache import root
from uniadapter_jax.weights.hub.names import Name

OR_A_PATH = "or pass the path of a directory"


class Unreachable(Exception):
    """The hub gives no answer, so that the cache has to do."""


def endpoint() -> str:
    """The hub's address, which HF_ENDPOINT moves."""
    from huggingface_hub import constants

    return constants.ENDPOINT


@contextmanager
def explained(field: str, name: Name) -> Iterator[None]:
    """Turns the errors of huggingface_hub into `UserError`, or `Unreachable`.

    Args:
      field: of the config, or a flag or argument, that holds the name.
    """
    from huggingface_hub import errors

    at = f"{field}={name}"
    try:
        with disk_errors(root()):
            yield
    except (UserError, Unreachable):
        raise
    except errors.GatedRepoError as error:
        raise UserError(
            f"{at}: the repository is gated. Accept its terms at {endpoint()}/{name.repository}, "
            f"then {_log_in()}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"{at}: the repository {name.repository} has no revision {name.revision!r}; name a "
            "branch, a tag or a commit, or leave @... out"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{at}: there is no such directory, and {endpoint()} has no such repository, or a "
            f"private one. Check the spelling, {OR_A_PATH}; if it is private, {_log_in()}"
        ) from error
    except errors.HFValidationError as error:
        raise UserError(f"{at} is no name that the hub can have: {printable(error)}") from error
    except errors.OfflineModeIsEnabled as error:
        raise Unreachable("HF_HUB_OFFLINE is set") from error
    except errors.HfHubHTTPError as error:
        raise _refused(at, error) from error
    except (getattr(errors, "HTTPError"), OSError, ValueError) as error:  # noqa: B009 (its library's)
        raise Unreachable(printable(str(error) or type(error).__name__, 200)) from error


def _refused(at: str, error: OSError) -> Exception:
    """The error for a status that huggingface_hub has no class for."""
    status = getattr(getattr(error, "response", None), "status_code", 0)
    said = printable(getattr(error, "server_message", None) or str(error).strip(), 300)
    if status in (401, 403):
        return UserError(f"{at}: {endpoint()} refuses ({status}: {said}); {_log_in()}")
    if status >= 500 or status in (0, 408, 429):
        return Unreachable(f"it answers {status}: {said}" if status else said)
    return UserError(f"{at}: {endpoint()} answers {status}: {said}")


def _log_in() -> str:
    if os.environ.get("HF_TOKEN"):
        return "check that the token in HF_TOKEN has the right to it"
    return "log in with `hf auth login`, or set HF_TOKEN"


def also(what: str) -> str:
    """The tiny models of the package, where a backbone is needed."""
    return f". {models_hint('')}" if what in ("backbone", "config") else ""


def cannot_reach(field: str, name: Name, what: str, reason: object) -> MachineError:
    """The error where neither hub nor cache has what is needed."""
    from huggingface_hub import constants

    without = ", without HF_HUB_OFFLINE," if constants.HF_HUB_OFFLINE else ""
    return MachineError(
        f"{field}={name}: there is no such directory, {endpoint()} cannot be reached ({reason}), "
        f"and the cache {root()} has no complete copy of that {what}. "
        f"Connect{without} and run the same command again, {OR_A_PATH}{also(what)}"
    )
