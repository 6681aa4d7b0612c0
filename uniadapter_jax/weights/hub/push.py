"""Uploads an exported directory to the hub."""

from __future__ import annotations

import os
from typing import NamedTuple

from uniadapter_jax.common.errors import MachineError, UserError
from uniadapter_jax.weights.hub import errors
from uniadapter_jax.weights.hub.names import Name


class Commit(NamedTuple):
    """What was uploaded: its name with the commit, and where people can see it."""

    name: str
    address: str


def push(directory: str | os.PathLike[str], repository: str) -> Commit:
    """Uploads a directory to a repository, which is made if need be.

    Raises:
      UserError: no permission, or no name of a repository; the directory stays as it is.
      MachineError: no connection.
    """
    from huggingface_hub import HfApi  # takes half a second, and only this needs it

    again = (
        f". {os.fspath(directory)} is complete; push it again with `hf upload {repository} "
        f"{os.fspath(directory)}`"
    )
    hub = HfApi(endpoint=errors.endpoint())
    try:
        with errors.explained("--push", Name(repository)):
            name = hub.create_repo(repository, exist_ok=True).repo_id
            made = hub.upload_folder(
                repo_id=name,
                folder_path=os.fspath(directory),
                commit_message="Adapter by uniadapter_jax",
            )
            return Commit(str(Name(name, made.oid)), made.commit_url)
    except errors.Unreachable as error:
        where = f"{errors.endpoint()} cannot be reached"
        raise MachineError(f"--push={repository}: {where} ({error}){again}") from error
    except UserError as error:
        raise UserError(f"{error}{again}") from error
