"""A share of work that several processes or hosts divide without talking: every n-th part."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TypeVar

from uniadapter_jax.common.errors import UserError

MOST = 100_000

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Share:
    """Share `index` of `count`, counted from 0."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @classmethod
    def parse(cls, flag: str, text: str) -> Share:
        """Parses `I/N`; raises `UserError` that names the flag."""
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        share = cls(int(match[1]), int(match[2])) if match else cls(0, 0)
        if not 0 <= share.index < share.count <= MOST:
            raise UserError(
                f"{flag}={text}: I/N is meant, I from 0 to N - 1; the shares of 4 are 0/4, 1/4, "
                "2/4 and 3/4"
            )
        return share

    def of(self, parts: Sequence[T]) -> Sequence[T]:
        """The parts of this share."""
        return parts[self.index :: self.count]
