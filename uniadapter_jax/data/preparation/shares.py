"""Decodes a share of the work on one of several hosts, which only share a file system.

All hosts divide the input into the same shards, and share i of n takes every n-th one, from i on.
Nobody waits for anybody: a shard is whole or absent, hosts that decode the same one write the same
bytes, and what no share has done is done by the command that assembles.
"""

from __future__ import annotations

import os
import sys

from uniadapter_jax.common.disk import disk_errors
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.shares import Share
from uniadapter_jax.data.preparation import planning
from uniadapter_jax.data.preparation.making import Making, decode


def decode_share(making: Making, share: Share) -> None:
    """Decodes what a share lacks, and assembles nothing."""
    job = making.job
    if making.state.up_to_date:
        print(f"{job.output} is up to date; share {share} has nothing to do")
        return
    plan = making.plan(making.state.found)
    mine = share.of(plan.shards)
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
        f"share {share} is decoded: {len(mine)} of {len(plan.shards)} shards. "
        "Once all are, the same command without --share assembles the records"
    )


def _assembled(making: Making) -> bool:
    """Whether another command has finished the records."""
    return Making(making.job).state.up_to_date
