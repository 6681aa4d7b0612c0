"""Names of repositories on the hub: `owner/name`, `owner/name@revision`."""

from __future__ import annotations

import os
import pathlib
import re
from typing import NamedTuple

COMMIT = re.compile(r"[0-9a-f]{40}")
# One slash, so a path that is absolute, deeper or begins with a dot is none.
_NAME = re.compile(
    r"(?P<repository>\w[\w.-]{0,95}/\w[\w.-]{0,95})(@(?P<revision>\w[\w./+-]{0,199}))?", re.ASCII
)
# Folders where this package's configs and documents have things; nobody's repositories.
LOCAL = ("data", "runs", "weights")


class Name(NamedTuple):
    """A repository on the hub, at a branch, a tag or a commit; "" is its main branch."""

    repository: str
    revision: str = ""

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision}" if self.revision else self.repository

    @property
    def commit(self) -> str:
        """The revision, if it is a commit, which cannot change; else ""."""
        return self.revision if COMMIT.fullmatch(self.revision) else ""

    @property
    def short(self) -> str:
        """The name for people, with a few digits of the commit."""
        return str(self._replace(revision=self.commit[:8] or self.revision))


def parse(text: str) -> Name | None:
    """The name that a text is, None where it can only be a path."""
    match = _NAME.fullmatch(text)
    if match is None or ".." in text or text.partition("/")[0] in LOCAL:
        return None
    return Name(match["repository"], match["revision"] or "")


def hub_name(place: str) -> Name | None:
    """The name that a place is; a path that exists is none, whatever it looks like."""
    return None if os.path.exists(place) else parse(place)


def public(place: str) -> str:
    """A place for others to read: a name as it is, of a path only its last part.

    Where files are on the author's machine is nobody's business.
    """
    return place if hub_name(place) else pathlib.PurePath(place).name
