"""The files of launch/: they are valid, print what they would do, and start the run that exists."""

from __future__ import annotations

import json
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
import yaml
from absl import flags

from uniadapter_jax import main as command_module  # its flags, and launch's
from uniadapter_jax.config import base_config

ROOT = pathlib.Path(__file__).parent.parent
PLACE = ROOT / "launch"
SCRIPTS = sorted([*PLACE.glob("*.sh"), *PLACE.glob("*.sbatch")])
# A value with a blank in it has to arrive in one piece.
RUN = ("--config=configs/msrvtt.py:method=lora", "--workdir=/data/runs/a b", "--config.seed=1")
WHERE = ("--name=n", "--zone=z")
TPU_VM = ("tpu_vm.sh", "run", *WHERE, "--", *RUN)
XPK = ("gke_xpk.sh", "run", *WHERE, "--cluster=c", "--type=v5litepod-16", "--", *RUN)
SLICE = ("--name=n", "--image=i", "--bucket=b", "--topology=4x4", "--hosts=4")
JOBSET = ("gke_xpk.sh", "jobset", *SLICE, "--", *RUN)
PREPARE = ("--config=configs/msrvtt.py", "--input=/data/a b", "--output=/data/msrvtt")
KUBERNETES = ("gke_xpk.sh", "prepare", *SLICE[:3], "--hosts=4", "--", *PREPARE)
GRID = ("--config=configs/benchmark/emoji.py", "--output=/data/a grid")
SKYPILOT = ("skypilot.sh", "run", "--name=n", "--accelerators=A100:8", "--bucket=b", "--", *RUN)


def script(name, *arguments, status=0):
    """Runs a script with --dry-run; what it printed."""
    first = arguments[:1] if arguments and not arguments[0].startswith("-") else ()
    command = ["bash", str(PLACE / name), *first, "--dry-run", *arguments[len(first) :]]
    if name == "shares.sbatch":
        command = ["bash", str(PLACE / name), "--dry-run", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


def words(line):
    """A command as the shell of a host reads it, with the shell's own words split once more."""
    line = re.sub(r"\$'((?:[^'\\]|\\.)*)'", lambda m: shlex.quote(_unescape(m[1])), line)
    return shlex.split(line)


def _unescape(text):
    return text.encode().decode("unicode_escape")


def test_shellcheck_finds_nothing():
    assert shutil.which("shellcheck", path=str(pathlib.Path(sys.executable).parent))
    tool = str(pathlib.Path(sys.executable).parent / "shellcheck")
    done = subprocess.run([tool, "-x", *SCRIPTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", sorted(PLACE.glob("*.yaml")), ids=lambda path: path.name)
def test_yaml_is_valid(path):
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_tpu_vm_runs_on_all_workers():
    (line,) = script(*TPU_VM).splitlines()
    command = words(line)
    assert command[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "n"]
    assert "--worker=all" in command and "--zone=z" in command
    remote = next(word for word in command if word.startswith("--command="))
    _assert_starts(words(remote.removeprefix("--command=")), "--distributed")


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ("create", "create n --zone=z --accelerator-type=v6e-8 --version=v2-alpha-tpuv6e"),
        ("install", "scp /"),
        ("logs", "--worker=0"),
        ("stop", "kill"),
        ("delete", "delete n --zone=z --quiet"),
    ],
)
def test_tpu_vm_has_every_step(action, expected):
    assert expected in script("tpu_vm.sh", action, *WHERE, "--type=v6e-8")


def test_the_bundle_of_install_is_a_checkout(tmp_path):
    """`git clone` of it has the very revision; made as the script makes it."""
    line = script("tpu_vm.sh", "install", *WHERE).splitlines()[0]
    command = shlex.split(line)
    bundle = tmp_path / "uniadapter_jax.bundle"
    command[-2] = str(bundle)
    subprocess.run(command, check=True)
    subprocess.run(["git", "clone", "--quiet", bundle, tmp_path / "clone"], check=True)

    def head(place):
        return subprocess.check_output(["git", "-C", place, "rev-parse", "HEAD"])

    assert head(tmp_path / "clone") == head(ROOT)


def test_xpk_runs_main():
    command = words(script(*XPK))
    assert command[:3] == ["xpk", "workload", "create"]
    assert "--tpu-type=v5litepod-16" in command
    remote = next(word for word in command if word.startswith("--command="))
    until_done = words(remote.removeprefix("--command="))
    place = until_done.index("launch/until_done.sh")
    assert until_done[place + 1 :] == ["--distributed", *RUN]


def test_jobset_is_filled():
    first, _, text = script(*JOBSET).partition("\n")
    assert first.split() == ["kubectl", "apply", "--filename=-"]
    assert "$" not in text
    manifest = yaml.safe_load(text)
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    assert (job["parallelism"], job["completions"]) == (4, 4)
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["google.com/tpu"] == 4
    wanted = ["exec", "bash", "launch/until_done.sh", "--distributed", *RUN]
    assert words(container["args"][0]) == wanted
    # Status 2, wrong input, ends it for good.
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [2]


def test_prepare_on_kubernetes_is_shares_and_then_the_assembly():
    first, _, text = script(*KUBERNETES).partition("\n")
    assert first.split() == ["kubectl", "apply", "--filename=-"]
    assert set(re.findall(r"\$\w*", text)) == {"$JOB_COMPLETION_INDEX"}
    share, assembly = yaml.safe_load(text)["spec"]["replicatedJobs"]
    job = share["template"]["spec"]
    assert (job["completionMode"], job["parallelism"], job["completions"]) == ("Indexed", 4, 4)
    assert assembly["dependsOn"] == [{"name": "share", "status": "Complete"}]
    commands = [
        words(of["template"]["spec"]["template"]["spec"]["containers"][0]["args"][0])
        for of in (share, assembly)
    ]
    wanted = ["exec", "python", "-m", "uniadapter_jax.prepare", *PREPARE]
    assert commands == [[*wanted, "--share=$JOB_COMPLETION_INDEX/4"], wanted]


def test_prepare_on_slurm_is_an_array_that_submits_the_assembly():
    *header, share, assembly = script("shares.sbatch", "prepare", *PREPARE).splitlines()
    assert "#SBATCH --array=0-3" in header
    wanted = [".venv/bin/python", "-m", "uniadapter_jax.prepare", *PREPARE]
    assert words(share) == [*wanted, "--share=0/4"]
    command = words(assembly)
    assert command[0] == "sbatch" and "--dependency=afterany:JOB" in command
    assert words(command[-1].removeprefix("--wrap=")) == wanted


@pytest.mark.parametrize(
    ("task", "restarts", "said"), [(5, 0, ["sbatch", "2/3"]), (5, 1, ["2/3"]), (3, 0, ["0/3"])]
)
def test_a_task_of_the_array_decodes_its_share(tmp_path, task, restarts, said):
    for name, text in (("python", 'echo "${*: -1}"'), ("sbatch", 'echo "${0##*/}"')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    numbers = {"TASK_ID": task, "TASK_MIN": 3, "TASK_MAX": 5, "TASK_COUNT": 3, "JOB_ID": 9}
    environment = {f"SLURM_ARRAY_{name}": str(value) for name, value in numbers.items()}
    environment |= {"PYTHON": str(tmp_path / "python"), "SLURM_RESTART_COUNT": str(restarts)}
    environment["PATH"] = f"{tmp_path}:/usr/bin:/bin"
    command = ["bash", PLACE / "shares.sbatch", "prepare", *PREPARE]
    lines = subprocess.check_output(command, env=environment, text=True).splitlines()
    assert [line.removeprefix("--share=") for line in lines] == said


def test_a_grid_on_slurm_is_an_array_that_submits_the_report():
    *_, share, report = script("shares.sbatch", "benchmark", *GRID).splitlines()
    wanted = [".venv/bin/python", "-m", "uniadapter_jax.benchmark", *GRID]
    assert words(share) == [*wanted, "--cells=0/4"]
    assert words(words(report)[-1].removeprefix("--wrap=")) == [*wanted, "--report"]


def test_a_grid_on_kubernetes_is_shares_and_then_the_report():
    _, _, text = script("gke_xpk.sh", "benchmark", *SLICE, "--", *GRID).partition("\n")
    assert set(re.findall(r"\$\w*", text)) == {"$JOB_COMPLETION_INDEX"}
    share, report = yaml.safe_load(text)["spec"]["replicatedJobs"]
    assert report["dependsOn"] == [{"name": "share", "status": "Complete"}]
    wanted = ["exec", "python", "-m", "uniadapter_jax.benchmark", *GRID]
    ends = ("--cells=$JOB_COMPLETION_INDEX/4", "--report")
    for job, end in zip((share, report), ends, strict=True):
        pod = job["template"]["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert words(container["args"][0]) == [*wanted, end]
        assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
        assert container["resources"]["limits"]["google.com/tpu"] == 4


def test_a_grid_on_a_tpu_vm_is_the_share_that_was_given():
    (line,) = script("tpu_vm.sh", "benchmark", *WHERE, "--", *GRID, "--cells=1/4").splitlines()
    remote = next(word for word in words(line) if word.startswith("--command="))
    command = words(remote.removeprefix("--command="))
    place = command.index("uniadapter_jax.benchmark")
    assert command[place + 1 : place + 4] == [*GRID, "--cells=1/4"]


def test_until_done_runs_main():
    _assert_starts(words(script("until_done.sh", *RUN)), None)


@pytest.mark.parametrize(
    ("main", "status"),
    [("exit 0", 1), ("touch $2; exit 0", 0), ("exit 2", 2), ("exit 1", 1)],
)
def test_until_done_asks_for_the_result(tmp_path, main, status):
    """What ends well without a result was stopped, and is to be started again."""
    python = tmp_path / "python"
    result = tmp_path / "result.json"
    python.write_text(f"#!/bin/sh\n{main.replace('$2', str(result))}\n")
    python.chmod(0o755)
    command = ["bash", PLACE / "until_done.sh", "--config=c", f"--workdir={tmp_path}"]
    assert subprocess.run(command, env={"PYTHON": str(python)}, check=False).returncode == status


def test_until_done_hands_sigterm_on(tmp_path):
    python = tmp_path / "python"
    saved = tmp_path / "saved"
    python.write_text(
        f"#!/bin/bash\ntrap 'touch {saved}; exit 0' TERM\necho up\nwhile :; do sleep .05; done\n"
    )
    python.chmod(0o755)
    command = ["bash", PLACE / "until_done.sh", "--config=c", f"--workdir={tmp_path}"]
    with subprocess.Popen(
        command, env={"PYTHON": str(python), "PATH": "/usr/bin:/bin"}, stdout=subprocess.PIPE
    ) as job:
        job.stdout.readline()
        job.terminate()
        assert job.wait(10) == 1
    assert saved.exists()


def test_slurm_starts_one_process_a_gpu():
    *header, line = script("slurm.sbatch", *RUN).splitlines()
    options = dict(re.fullmatch(r"#SBATCH --([\w-]+)=?(\S*)", row).groups() for row in header)
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert options["signal"] == "TERM@180" and "requeue" in options
    command = words(line)
    assert command[0] == "srun"
    _assert_starts(command, "--distributed")


@pytest.mark.parametrize(("command", "given"), [("run", RUN), ("benchmark", GRID)])
def test_skypilot_gives_every_host_its_number(tmp_path, command, given):
    """The task's own `run`, by a shell, with a `python` that says what it was given."""
    where = SKYPILOT[2:5]
    line, _, task = script("skypilot.sh", command, *where, "--", *given).partition("\n")
    started = words(line)
    assert started[:2] == ["sky", "launch"] and "--gpus=A100:8" in started
    environment = dict(
        word.split("=", 1) for word in started if word.startswith(("COMMAND=", "MAIN=", "BUCKET="))
    )
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    python.chmod(0o755)
    said = subprocess.check_output(
        ["bash", "-c", yaml.safe_load(task)["run"]],
        env={
            **environment,
            "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
            "SKYPILOT_NODE_RANK": "1",
            "PATH": "/usr/bin:/bin",
        },
        cwd=tmp_path,
        text=True,
    ).splitlines()
    hosts = ["--coordinator=10.0.0.1:8476", "--num-processes=2", "--process-id=1"]
    wanted = {
        "run": ["-m", "uniadapter_jax.main", *hosts, *RUN],
        "benchmark": ["-m", "uniadapter_jax.benchmark", *GRID, "--cells=1/2"],
    }
    assert said == wanted[command]


def test_local_starts_every_process():
    command = [sys.executable, PLACE / "local.py", "--dry-run", "--processes=3", "--devices=2"]
    lines = subprocess.check_output([*command, "--", *RUN], text=True).splitlines()
    assert len(lines) == 3
    for index, line in enumerate(lines):
        found = words(line)
        assert "XLA_FLAGS=" in line and "--xla_force_host_platform_device_count=2" in line
        assert f"--process-id={index}" in found and "--num-processes=3" in found
        assert found[-len(RUN) :] == list(RUN)
        _assert_starts(found, "--coordinator")


LOCAL = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("local", sys.argv.pop(1))
local = importlib.util.module_from_spec(spec)
sys.modules["local"] = local
spec.loader.exec_module(local)
command = ["bash", "-c", sys.argv.pop(1), "main"]
local._command = lambda: command
sys.exit(local.main())
"""


def start_local(script_, *arguments):
    """local.py with a script of bash in the place of main; $3 is `--process-id=N`."""
    return subprocess.Popen(
        [sys.executable, "-c", LOCAL, PLACE / "local.py", script_, *arguments],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_local_tells_processes_apart_and_returns_the_first_failure():
    with start_local("echo $3 $4; exit ${3#*=}", "--processes=3", "--", "--x=1") as job:
        said, _ = job.communicate(timeout=60)
    assert job.returncode in (1, 2)
    for i in range(3):
        assert f"[{i}] --process-id={i} --x=1" in said
        assert f"[{i}] ended with status {i}" in said


def test_local_kills_what_does_not_end():
    script_ = "[[ $3 == *=1 ]] && kill -9 $$; exec sleep 30"
    with start_local(script_, "--processes=2", "--grace=0.3") as job:
        said, _ = job.communicate(timeout=60)
    assert job.returncode == 128 + signal.SIGKILL
    assert "[1] ended with status -9" in said and "killing what still runs 0.3 s later" in said
    assert "[0] ended with status -9" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_local_has_all_save_and_stop(number):
    # Not a loop: bash can lose a signal that comes while it forks.
    script_ = "sleep 60 >&- & trap 'kill $!; echo saved; exit 0' TERM; echo up; wait"
    with start_local(script_, "--processes=2") as job:
        lines = iter(job.stdout)
        up: set[str] = set()
        while len(up) < 2:
            line = next(lines)
            up |= {line} if line.endswith(" up\n") else set()
        job.send_signal(number)
        said = "".join(lines)
        assert job.wait(20) == 0
    assert "[0] saved" in said and "[1] saved" in said


@pytest.mark.parametrize(
    "arguments",
    [
        ("tpu_vm.sh", "run", *WHERE),
        ("tpu_vm.sh", "create", "--name=n"),
        ("tpu_vm.sh", "create", *WHERE, "--colour=red"),
        ("tpu_vm.sh", "paint"),
        ("gke_xpk.sh", "jobset", "--name=n", "--", *RUN),
        ("skypilot.sh", "run", "--name=n"),
        ("slurm.sbatch", "--config=c"),
        ("shares.sbatch", "prepare", "--config=c", "--input=i"),
        ("shares.sbatch", "benchmark", "--config=c"),
        ("shares.sbatch", "paint", *PREPARE),
        ("gke_xpk.sh", "benchmark", *SLICE, "--", "--config=c"),
        ("skypilot.sh", "benchmark", *SKYPILOT[2:5], "--", "--config=c"),
        ("tpu_vm.sh", "benchmark", *WHERE, "--", "--config=c"),
        ("gke_xpk.sh", "prepare", *SLICE[:3], "--hosts=4", "--", "--config=c"),
        ("until_done.sh", "--workdir=w"),
    ],
    ids=" ".join,
)
def test_what_is_missing_is_said(arguments):
    assert "error: " in script(*arguments, status=2)


@pytest.mark.parametrize("path", [*SCRIPTS, *PLACE.glob("*.yaml"), ROOT / "docs/launch.md"])
def test_what_is_named_exists(path):
    """Flags of main, fields of the config, files."""
    text = path.read_text()
    for field in re.findall(r"--config\.([\w.]+)=", text):
        node = base_config()
        for name in field.split("."):
            node = node[name]
    for line in text.splitlines():
        if "uniadapter_jax.main" in line:
            for flag in re.findall(r"(?<=\s)--([a-z][a-z-]*)(?==|\s|$)", line.split("main", 1)[1]):
                assert flag in flags.FLAGS, (flag, line)
    for name in re.findall(r"(?:configs|launch)/\w+\.\w+", text):
        assert (ROOT / name).is_file(), name


def _assert_starts(command, distributed):
    """`python -m uniadapter_jax.main` with exactly the arguments of `RUN`, and started so."""
    place = command.index("uniadapter_jax.main")
    assert command[place - 1] == "-m"
    assert "python" in pathlib.Path(command[place - 2]).name
    rest = command[place + 1 :]
    if distributed:
        assert any(word.startswith(distributed) for word in rest)
        assert distributed.lstrip("-") in flags.FLAGS
    where = rest.index(RUN[0])
    assert rest[where : where + len(RUN)] == list(RUN)
    assert command_module.__name__ == "uniadapter_jax.main"


PLAN = {
    "fits": True,
    "slice": {"name": "v5e:4x4", "chips": 16},
    "batch": {"global": 128},
    "estimate": {"step_seconds": 0.05, "samples": 12800},
}


@pytest.mark.parametrize(
    ("flags_", "expected"),
    [
        (("--steps=7200",), "16 chips x 0.1 hours x 2.5 = 4.00 (7200 steps of 50.0 ms, the least"),
        (("--epochs=72", "--slower=2"), "16 chips x 0.2 hours x 2.5 = 8.00 (7200 steps of 100.0"),
    ],
)
def test_cost_is_chips_times_hours_times_price(tmp_path, flags_, expected):
    assert expected in _cost(tmp_path, PLAN, *flags_)


@pytest.mark.parametrize(
    ("plan", "flags_", "expected"),
    [
        ({**PLAN, "fits": False}, ("--steps=1",), "does not fit"),
        ({**PLAN, "estimate": {"step_seconds": 1}}, ("--epochs=1",), "--steps"),
        (PLAN, (), "--steps or --epochs"),
    ],
)
def test_cost_says_what_it_lacks(tmp_path, plan, flags_, expected):
    assert expected in _cost(tmp_path, plan, *flags_, status=2)


def _cost(tmp_path, plan, *flags_, status=0):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan))
    command = [sys.executable, PLACE / "cost.py", path, "--price=2.5", *flags_]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr
