"""Shares of work: every part once, and none that is not meant."""

from __future__ import annotations

import pytest

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.shares import Share


@pytest.mark.parametrize("count", [1, 3, 7, 20])
def test_shares_are_everything_once(count):
    parts = list(range(10))
    shares = [Share.parse("--cells", f"{i}/{count}").of(parts) for i in range(count)]
    assert sorted(part for share in shares for part in share) == parts


@pytest.mark.parametrize(
    "text", ["", "4/4", "1", "-1/4", "1/0", "a/b", "1/4/2", "0.5/2", "0/100001"]
)
def test_no_such_share(text):
    with pytest.raises(UserError, match=r"--cells=.*I from 0 to N - 1"):
        Share.parse("--cells", text)
