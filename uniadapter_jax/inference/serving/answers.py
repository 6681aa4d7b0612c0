"""Answers in JSON, and problems that become answers."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response


class Problem(Exception):
    """A request that is refused.

    Attributes:
      status: of HTTP.
      sentence: says to people what was wrong.
    """

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None):
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers

    def answer(self) -> Response:
        return as_json({"error": self.sentence}, self.status, self.headers)


def as_json(
    content: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """The content in ASCII, as names of files may be no UTF-8."""
    text = json.dumps(content, allow_nan=False)
    return Response(text, status, headers, media_type="application/json")
