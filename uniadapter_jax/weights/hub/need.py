"""What a reader needs of a repository; the readers say it, see `weights/needed.py`."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Collection
from typing import NamedTuple

from uniadapter_jax.common.errors import UserError


class Lacking(UserError):
    """A repository that lacks what is needed; the message goes on after its name."""


class Listing(NamedTuple):
    """A repository at a commit.

    Attributes:
      name: as the user wrote it, for advice.
      there: names of its files.
      read: downloads a small file and gives its path.
    """

    name: str
    there: Collection[str]
    read: Callable[[str], pathlib.Path]

    def has(self, names: Collection[str]) -> list[str]:
        """Those of the names that are there, in their order."""
        return [name for name in names if name in self.there]


class Need(NamedTuple):
    """What is needed.

    Attributes:
      what: for people, such as "backbone"; also names the note of a complete download.
      choose: gives the names of all files that are needed; raises `Lacking`.
      within: the `what` of larger needs, which have all that this one has.
    """

    what: str
    choose: Callable[[Listing], list[str]]
    within: tuple[str, ...] = ()
