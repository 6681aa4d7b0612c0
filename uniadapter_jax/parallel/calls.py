"""Compiled calls one after another, with several under way while the host prepares the next."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator
from typing import TypeVar

from uniadapter_jax.common.types import PyTree
from uniadapter_jax.parallel.mesh import fetch

AHEAD = 2  # calls whose results stay on the devices while the host goes on

_Label = TypeVar("_Label")


def fetched(calls: Iterable[tuple[_Label, PyTree]]) -> Iterator[tuple[_Label, PyTree]]:
    """Each label with its call's results as host arrays, in order.

    `calls` gives (label, results that every device has); it is asked for the next `AHEAD` calls
    before the results of one are waited for.
    """
    under_way: collections.deque[tuple[_Label, PyTree]] = collections.deque()
    for call in calls:
        under_way.append(call)
        if len(under_way) > AHEAD:
            label, results = under_way.popleft()
            yield label, fetch(results)
    for label, results in under_way:
        yield label, fetch(results)
