"""Which files of a folder an index lacks, and reading them: decoded by threads, a little ahead."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import hashlib
import os
import stat
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import NamedTuple

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.media.kinds import DecodeError
from uniadapter_jax.data.preparation.folder import media_paths
from uniadapter_jax.data.sources.files import Tree
from uniadapter_jax.inference.clip_files import FileClip, Windows, read_clips
from uniadapter_jax.inference.clip_options import ClipOptions
from uniadapter_jax.inference.search import crashes
from uniadapter_jax.inference.search.crashes import Reading
from uniadapter_jax.inference.search.parts import Bad, Stamp


def media_of(root: str) -> list[str]:
    """The videos and pictures below a folder that are not hidden, in the order of their paths.

    Raises:
      UserError: it is no folder, or holds none.
    """
    paths = media_paths(Tree(root))
    if not paths:
        raise UserError(
            f"--input={root} holds no video and no picture (by suffix: .mp4, .jpg, ...)"
        )
    return paths


class Changes(NamedTuple):
    """What an index has to catch up with.

    Attributes:
      fresh: files to read: new ones, and those of another size or time.
      gone: files that are no longer there.
    """

    fresh: list[str]
    gone: list[str]


def changes(root: str, known: Mapping[str, Stamp]) -> Changes:
    """Compares a folder with the stamps of the files that were read."""
    paths = media_of(root)
    fresh = [path for path in paths if not _same(os.path.join(root, path), known.get(path))]
    there = set(paths)
    return Changes(fresh, sorted(path for path in known if path not in there))


def _same(path: str, stamp: Stamp | None) -> bool:
    """Whether a file has the size and the time that it had."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    return stamp is not None and stamp[:2] == (status.st_size, status.st_mtime_ns)


@dataclasses.dataclass(frozen=True)
class File:
    """A file that was read: at most `clip_files.GROUP` of its clips, or why it has none.

    One whose content was known is `skipped`: nothing of it was decoded.
    """

    path: str
    stamp: Stamp
    clips: Sequence[FileClip] = ()
    count: int = 0
    bad: Bad | None = None
    skipped: bool = False


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads files of a folder by some threads; `reading` notes which."""

    root: str
    options: ClipOptions
    windows: Windows | None
    threads: int
    reading: Reading

    def files(self, paths: Sequence[str], known: Container[str] = ()) -> Iterator[File]:
        """The files in their order; as many are read ahead as there are threads, and one more.

        The note of what is read stays, as the clips are not yet stored; see `Reading.end`.
        """
        with concurrent.futures.ThreadPoolExecutor(self.threads, "decode") as pool:
            ahead: collections.deque[concurrent.futures.Future[File]] = collections.deque()
            for place, path in enumerate(paths):
                self.reading.now(paths[place - len(ahead) : place + 1])
                ahead.append(pool.submit(self.read, path, 0, known))
                if len(ahead) > self.threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def read(self, path: str, first: int = 0, known: Container[str] = ()) -> File:
        """The clips of a file from the number `first` on, unless its SHA-256 is known."""
        place = os.path.join(self.root, path)
        stamp = Stamp(-1, 0, "")
        try:
            status = os.stat(place)
            stamp = Stamp(status.st_size, status.st_mtime_ns, "")
            if stat.S_ISREG(status.st_mode):  # reading a pipe might never end
                stamp = stamp._replace(digest=_digest(place))
            if stamp.digest in known:
                return File(path, stamp, skipped=True)
            clip_of = place, self.options, self.windows, first
            if path in self.reading.suspects and not crashes.survives(*clip_of):
                return File(path, stamp, bad=Bad(path, "crash", "the decoder died on this file"))
            clips, count = read_clips(*clip_of)
        except DecodeError as error:
            return File(path, stamp, bad=Bad(path, error.reason, error.detail))
        except OSError as error:
            return File(path, stamp, bad=Bad(path, "unreadable", error.strerror or str(error)))
        return File(path, stamp, clips, count)


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
