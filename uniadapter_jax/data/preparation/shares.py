"""Decodes a share of the work on one of several hosts, which only share a file system.

All hosts divide the input into the same shards, and share i of n takes every n-th one, from i on.
Nobody waits for anybody: a shard is whole or absent, hosts that decode the same one write the same
bytes, and what no share has done is done by the command that assembles.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys

from uniadapter_jax.common.disk import disk_errors
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.preparation import planning
from uniadapter_jax.data.preparation.making import Making, decode

MOST = 100_000


@dataclasses.dataclass(frozen=True)
class Share:
    """Share `index` of `count`, counted from 0."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Share:
        """Parses `I/N`; raises `UserError`."""
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        share = cls(int(match[1]), int(match[2])) if match else cls(0, 0)
        if not 0 <= share.index < share.count <= MOST:
            raise UserError(
                f"--share={text}: I/N is meant, I from 0 to N - 1; the shares of 4 hosts are 0/4, "
                "1/4, 2/4 and 3/4"
            )
        return share


def decode_share(making: Making, share: Share) -> None:
    """Decodes what a share lacks, and assembles nothing."""
    job = making.job
    if making.state.up_to_date:
        print(f"{job.output} is up to date; share {share.index}/{share.count} has nothing to do")
        return
    plan = making.plan(making.state.found)
    mine = plan.shards[share.index :: share.count]
    directory = os.path.join(job.work, "shards")
    with disk_errors(directory):
        os.makedirs(directory, exist_ok=True)
    planning.check_done(mine)
    try:
        decode(mine, making.source.root, job)
    except UserError:
        if not _assembled(making):
            raise
        print(f"{job.output} was assembled meanwhile", file=sys.stderr)
        return
    print(
        f"share {share.index}/{share.count} is decoded: {len(mine)} of {len(plan.shards)} shards. "
        "Once all are, the same command without --share assembles the records"
    )


def _assembled(making: Making) -> bool:
    """Whether another command has finished the records."""
    return Making(making.job).state.up_to_date
