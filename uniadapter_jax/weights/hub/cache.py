"""The hub's cache of one repository on this machine, in the layout of huggingface_hub.

models--OWNER--NAME/refs/REVISION            the commit that a branch or tag was last
models--OWNER--NAME/snapshots/COMMIT/FILE    a link to a file in `blobs`, named after its hash
models--OWNER--NAME/uniadapter_jax/          ours: notes of complete, verified downloads
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator

from uniadapter_jax.common.disk import disk_errors
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.files import open_regular, read_json, write_json

_HASH = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


def root() -> pathlib.Path:
    """The folder of the cache, which HF_HUB_CACHE and HF_HOME move."""
    from huggingface_hub import constants

    return pathlib.Path(constants.HF_HUB_CACHE)


class Cache:
    """The cached files of a repository."""

    def __init__(self, repository: str):
        self.folder = root() / f"models--{repository.replace('/', '--')}"

    def snapshot(self, commit: str) -> pathlib.Path:
        """The folder of the files of a commit."""
        return self.folder / "snapshots" / commit

    def names(self, commit: str) -> list[str]:
        """The files of a commit that are there, none of folders below."""
        folder = self.snapshot(commit)
        return [file.name for file in folder.iterdir() if file.is_file()] if folder.is_dir() else []

    def commit_of(self, revision: str) -> str:
        """The commit that a branch or tag was when it was last asked for; "" if it never was."""
        try:
            return (self.folder / "refs" / (revision or "main")).read_text().strip()
        except (OSError, UnicodeDecodeError):
            return ""

    def keep_commit(self, revision: str, commit: str) -> None:
        """Notes the commit for `commit_of`, as huggingface_hub does."""
        path = self.folder / "refs" / (revision or "main")
        if revision != commit and self.commit_of(revision) != commit:
            with contextlib.suppress(OSError):  # a cache that can only be read
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(commit)

    def complete(self, commit: str, what: str) -> pathlib.Path | None:
        """The folder of a commit, if all that is needed is there as it was verified."""
        try:
            noted = read_json(self._note(commit, what))
            folder = self.snapshot(commit)
            sound = noted and all(_stamp(folder / name) == noted[name] for name in noted)
        except (OSError, UserError):
            return None
        return folder if sound else None

    def keep_complete(self, commit: str, what: str, names: Iterable[str]) -> None:
        """Notes that these files are all that is needed, and were verified."""
        note, folder = self._note(commit, what), self.snapshot(commit)
        with contextlib.suppress(OSError, UserError):  # a cache that can only be read
            note.parent.mkdir(parents=True, exist_ok=True)
            write_json(note, {name: _stamp(folder / name) for name in names})

    def _note(self, commit: str, what: str) -> pathlib.Path:
        return self.folder / "uniadapter_jax" / f"{commit}-{what}.json"

    def drop(self, commit: str, name: str) -> None:
        """Removes a file that is not what it should be, so that it is downloaded again."""
        pointer = self.snapshot(commit) / name
        blob = pointer.resolve()
        for path in (pointer, blob):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def lock(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Keeps other processes of this machine from downloading the same; they wait.

        waiting: is called before this process waits.
        """
        path = root() / ".locks" / self.folder.name / "uniadapter_jax.lock"
        with contextlib.ExitStack() as stack:
            try:
                with disk_errors(path):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    file = stack.enter_context(path.open("w"))
                    try:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        waiting()
                        fcntl.flock(file, fcntl.LOCK_EX)
            except (OSError, UserError):  # only readable, or without locks: a download says so
                pass
            yield


def _stamp(path: pathlib.Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def hash_of_blob(path: pathlib.Path) -> str:
    """The hash that a cached file should have, by the name of its blob; "" if it tells none."""
    name = path.resolve().name
    return name if path.is_symlink() and _HASH.fullmatch(name) else ""


def measured_hash(path: pathlib.Path, expected: str) -> str:
    """The hash of a file, of the kind that `expected` is: SHA-256, or git's SHA-1 of a blob."""
    with open_regular(path) as file:
        if len(expected) == 64:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha1(b"blob %d\0" % os.fstat(file.fileno()).st_size)
        while piece := file.read(1 << 20):
            digest.update(piece)
        return digest.hexdigest()
