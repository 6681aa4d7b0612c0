"""Gets what is needed of a repository of the hub: from the cache, else from the hub.

A download is pinned to a commit, which config, result and adapter then name. Files are compared
with the hub's sizes and hashes once, and then noted as verified.
"""

from __future__ import annotations

import pathlib
import time
from typing import NamedTuple

from uniadapter_jax.common import packaged
from uniadapter_jax.common.disk import free_bytes
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.weights.errors import printable
from uniadapter_jax.weights.hub import errors
from uniadapter_jax.weights.hub.bar import Bytes, say
from uniadapter_jax.weights.hub.cache import Cache, hash_of_blob, measured_hash, root
from uniadapter_jax.weights.hub.names import Name, hub_name, parse
from uniadapter_jax.weights.hub.need import Lacking, Listing, Need

SECONDS = 10.0  # for the hub to list a repository
TRIES, PAUSE = 3, 1.0  # of a file, beside those of huggingface_hub; seconds between them
_SPARE = 2**26  # bytes that a download leaves free


class Located(NamedTuple):
    """Where something is.

    Attributes:
      place: what was asked for, with the commit if it is a name: to be written down.
      directory: where its files are on this machine.
    """

    place: str
    directory: str


def located(place: str, field: str, need: Need) -> Located:
    """Finds what a config, a flag or an argument names, and downloads it if need be.

    Args:
      place: a path, `random:<file>`, a model of the package, or a name on the hub; a path that
        exists wins.
      field: where the name stands, for errors.

    Raises:
      UserError: the repository is missing, private, gated, damaged, or lacks what is needed.
      MachineError: the hub cannot be reached, and the cache does not have it all.
    """
    name = hub_name(place)
    if name is None:
        return Located(place, packaged.model(place))
    found, folder = _fetch(name, field, need)
    return Located(str(found), str(folder))


def _complete(cache: Cache, commit: str, need: Need) -> pathlib.Path | None:
    """The folder of a commit, if this need, or a larger one, was downloaded and verified."""
    found = (cache.complete(commit, what) for what in (need.what, *need.within))
    return next(filter(None, found), None)


def _fetch(name: Name, field: str, need: Need) -> tuple[Name, pathlib.Path]:
    cache = Cache(name.repository)
    if name.commit and (folder := _complete(cache, name.commit, need)):
        return name, folder

    def waiting() -> None:
        say(f"{name.short}: another process downloads it, waiting")

    with cache.lock(waiting):
        try:
            return _from_hub(name, field, need)
        except errors.Unreachable as reason:
            found = name._replace(revision=name.commit or cache.commit_of(name.revision))
            folder = _from_cache(found, field, need, cache) if found.revision else None
            if folder is None:
                raise errors.cannot_reach(field, name, need.what, reason) from reason
            if not name.commit:
                say(f"{found.short} is taken from the cache: no answer of the hub ({reason})")
            return found, folder


def _from_cache(name: Name, field: str, need: Need, cache: Cache) -> pathlib.Path | None:
    """The folder of a commit that was downloaded earlier, maybe by others; None if it lacks files.

    Of what others downloaded nobody knows whether the tokenizer is complete, too.
    """
    if folder := _complete(cache, name.commit, need):
        return folder
    folder = cache.snapshot(name.commit)
    try:
        chosen = need.choose(Listing(str(name), cache.names(name.commit), folder.joinpath))
    except Lacking:
        return None
    for file in chosen:
        if expected := hash_of_blob(folder / file):
            _verify(cache, name, file, expected, field)
    cache.keep_complete(name.commit, need.what, chosen)
    return folder


class _Remote(NamedTuple):
    """A file as the hub lists it; its hash is a SHA-256, or git's SHA-1."""

    size: int
    hash: str


def _from_hub(asked: Name, field: str, need: Need) -> tuple[Name, pathlib.Path]:
    name, files = _listed(asked, field)
    if name.repository.lower() != asked.repository.lower():
        say(f"{field}={asked}: the repository is called {name.repository} now")
    cache = Cache(name.repository)
    cache.keep_commit(asked.revision, name.commit)
    folder = _complete(cache, name.commit, need)
    if folder is None:
        folder = _download(asked, name, field, need, cache, files)
    return name, folder


def _listed(name: Name, field: str) -> tuple[Name, dict[str, _Remote]]:
    """The repository as it is called now, at its commit, and its files."""
    from huggingface_hub import HfApi

    with errors.explained(field, name):
        info = HfApi(endpoint=errors.endpoint()).model_info(
            name.repository, revision=name.revision or None, files_metadata=True, timeout=SECONDS
        )
        found = Name(info.id, info.sha or "")
        if not found.commit or parse(info.id) is None:
            raise errors.Unreachable(f"{errors.endpoint()} does not answer as a hub does")
    files = {
        file.rfilename: _Remote(file.size or 0, file.lfs.sha256 if file.lfs else file.blob_id or "")
        for file in info.siblings or ()
    }
    return found, files


def _download(
    asked: Name, name: Name, field: str, need: Need, cache: Cache, files: dict[str, _Remote]
) -> pathlib.Path:
    """Downloads and verifies what is needed; returns its folder."""
    folder = cache.snapshot(name.commit)
    verified: set[str] = set()

    def get(file: str, bar: Bytes | None = None) -> pathlib.Path:
        if file not in verified:
            _get(name, field, file, bar)
            _verify(cache, name, file, files[file].hash, field, files[file].size)
            verified.add(file)
        return folder / file

    try:
        chosen = list(dict.fromkeys(need.choose(Listing(str(asked), files.keys(), get))))
    except Lacking as error:
        raise UserError(f"{field}={asked}: the repository {error}") from error
    rest = [file for file in chosen if not (folder / file).exists()]
    size = sum(files[file].size for file in rest)
    if rest:
        bar = Bytes(f"{name.short}: download", size)
        bar.begin(f"{len(rest)} files, {bar.megabytes(size)} MB, to {root()}")
        if free_bytes(root()) < size + _SPARE:
            raise UserError(
                f"{field}={asked}: {size:,} bytes are to be downloaded to {root()}, and "
                f"{free_bytes(root()):,} are free; make room, or set HF_HOME to another disk"
            )
        for file in rest:
            get(file, bar)
        bar.end()
    for file in chosen:  # those that were in the cache
        get(file)
    cache.keep_complete(name.commit, need.what, chosen)
    return folder


def _get(name: Name, field: str, file: str, bar: Bytes | None) -> None:
    """Downloads a file; a connection that breaks is taken up again."""
    for _ in range(TRIES - 1):
        try:
            return _get_once(name, field, file, bar)
        except errors.Unreachable:
            time.sleep(PAUSE)
    _get_once(name, field, file, bar)


def _get_once(name: Name, field: str, file: str, bar: Bytes | None) -> None:
    from huggingface_hub import hf_hub_download

    with errors.explained(field, name):
        hf_hub_download(
            name.repository,
            file,
            revision=name.commit,
            cache_dir=root(),
            endpoint=errors.endpoint(),
            tqdm_class=(bar or Bytes("", 0)).tqdm_class(),
        )


def _verify(
    cache: Cache, name: Name, file: str, expected: str, field: str, size: int | None = None
) -> None:
    """Raises `UserError`, and removes the file, unless it has the size and the hash."""
    path = cache.snapshot(name.commit) / file
    measured = path.stat().st_size
    if size is not None and measured != size:
        sides = f"{measured:,} bytes, and should have {size:,}"
    elif expected and (digest := measured_hash(path, expected)) != expected:
        kind = "SHA-256" if len(expected) == 64 else "git hash"
        sides = f"the {kind} {digest}, and should have {printable(expected)}"
    else:
        return
    cache.drop(name.commit, file)
    raise UserError(
        f"{field}={name}: {file} was damaged on its way or in the cache: it has {sides}. It was "
        "removed; run the same command again to download it anew"
    )
