"""Runs that train from a prefix cache: the losses of those that read frames; filled once."""

import re

import numpy as np
import pytest
import small_run
import tiny
from ml_collections import ConfigDict
from test_processes import fork_all

from uniadapter_jax.adapters.registry import get_method
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.randomness import generator
from uniadapter_jax.config import base_config
from uniadapter_jax.data.prefix_cache import MARK
from uniadapter_jax.runs.prefix import checked_entries
from uniadapter_jax.tasks.registry import get_task

CUT = "--config.method.from_layer=1"
CACHED = ("--config.data.cache=prefix", "--config.eval.batch_size=1")  # eight clips in a call
TO_COMPUTE = re.compile(r"to compute: frames of (\d+) clips, (\d+) captions")


def computed(said):
    return tuple(map(int, TO_COMPUTE.search(said).groups()))


@pytest.fixture(scope="module")
def read(small):
    """The losses of a run that reads frames."""
    small.run("--workdir=read", CUT)
    return small_run.losses(small.root / "read")


def close(small, workdir, wanted):
    np.testing.assert_allclose(small_run.losses(small.root / workdir), wanted, rtol=1e-5)


@pytest.mark.slow
def test_a_cached_run_gives_the_losses_of_one_that_reads_frames(small, read):
    place = "--config.data.cache_dir=known"
    said = small.run("--workdir=filled", CUT, *CACHED, place)
    assert computed(said)[0] == 26
    close(small, "filled", read)
    # What was lost is made again, what is there is not, also on four devices.
    (cache,) = (small.root / "known").iterdir()
    for name in ("frames", "text"):
        done = np.memmap(cache / f"{name}.done", MARK, "r+")
        done[3:6] = 0
    said = small.run("--workdir=again", CUT, *CACHED, place, devices=4)
    assert computed(said) == (3, 3)
    close(small, "again", read)
    # Another method that begins there shares it; one that begins elsewhere does not.
    assert computed(small.run("--workdir=lora", CUT, *CACHED, place, method="lora")) == (0, 0)
    said = small.run("--workdir=behind", *CACHED, place, method="projection")
    assert computed(said)[0] == 26
    assert len(list((small.root / "known").iterdir())) == 2


@pytest.mark.slow
def test_a_run_killed_while_it_fills_is_resumed(small, read):
    flags = (CUT, *CACHED, "--config.data.cache_dir=killed")

    def begun():
        files = list((small.root / "killed").glob("[!.]*/frames.done"))
        return bool(files) and np.fromfile(files[0], MARK).any()

    job = small.fork(*small.arguments("--workdir=killed_run", *flags))
    job.await_(begun)
    job.signal(9)
    job.end()
    assert computed(small.run("--workdir=killed_run", *flags))[0] < 26
    close(small, "killed_run", read)


def entries(method="lora", task="retrieval", data=(), options=(), merge=0):
    config = base_config(method, task)
    config.compute.merge = merge
    config.data.update({"cache": "prefix", **dict(data)})
    config.method.update(dict(options))
    model = tiny.clip() if task == "retrieval" else tiny.blip()
    chosen = get_method(method)
    chosen.attach(model, ConfigDict(config.method), generator(0, "adapters"))
    return checked_entries(config, get_task(task), chosen, model)


def test_where_methods_begin():
    assert entries("lora", options={"from_layer": 1}) == {"vision": 1, "text": 1}
    assert entries("partial") == {"vision": 3, "text": 1}
    assert (
        entries("projection") == entries("clip_adapter") == {"vision": "behind", "text": "behind"}
    )
    assert entries("unipt") == {"vision": "all", "text": "all"}
    assert entries("lora", data={"cache": "none"}) == {} == entries("zero_shot")


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ({}, "method 'lora' acts or trains from the first layer on; set config.method.from_layer"),
        ({"method": "coop"}, "method 'coop' acts or trains from the first layer on"),
        ({"method": "partial", "options": {"layers": 2}}, "method 'partial' acts or trains"),
        ({"task": "matching"}, "config.data.cache='prefix': task 'matching' does not"),
        ({"merge": 2}, "config.compute.merge=2: config.data.cache keeps all tokens"),
        ({"data": {"augment": "crop_flip"}}, "config.data.augment='crop_flip': .* to 'none'"),
        ({"data": {"sampling": "random"}}, "config.data.sampling='random': .* set it to 'evenly'"),
    ],
)  # fmt: skip
def test_what_changes_from_step_to_step_is_refused_by_its_field(case, said):
    with pytest.raises(UserError, match=said):
        entries(**case)


REFUSED = [{}, {"method": "coop"}, {"task": "matching"}, {"merge": 2}]


@pytest.mark.parametrize("case", [*REFUSED, {"data": {"augment": "crop_flip"}}])
def test_auto_does_without_where_prefix_is_refused(case):
    assert entries(**{**case, "data": {**case.get("data", {}), "cache": "auto"}}) == {}


def test_auto_is_prefix_where_it_can_be():
    assert entries("projection", data={"cache": "auto"}) == entries("projection")


@pytest.mark.slow
def test_two_processes_fill_one_together(small, read):
    flags = (CUT, *CACHED, "--config.data.cache_dir=two")
    arguments = small.arguments("--workdir=two_run", *flags)
    said = [job.end(0, seconds=240) for job in fork_all(small, 2, *arguments)]
    assert computed(said[0])[0] == 26
    close(small, "two_run", read)
    assert computed(small.run("--workdir=one_run", *flags)) == (0, 0)
