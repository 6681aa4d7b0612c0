"""A clean install: every module imports, TensorFlow never, the version has one home."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import subprocess
import sys

import yaml

import uniadapter_jax

ROOT = pathlib.Path(uniadapter_jax.__file__).parent

# Imports every module of the package; the first attempt to import tensorflow ends the process with
# a trace, whoever makes it and whatever they catch.
GUARD = """
import importlib, os, pkgutil, sys, traceback

class NoTensorFlow:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tensorflow":
            print("import of", name, file=sys.stderr)
            traceback.print_stack()
            os._exit(3)

sys.meta_path.insert(0, NoTensorFlow())
import uniadapter_jax
names = [m.name for m in pkgutil.walk_packages(uniadapter_jax.__path__, "uniadapter_jax.")]
for name in names:
    importlib.import_module(name)
print(len(names))
{extra}
"""


def run_guarded(extra: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", GUARD.format(extra=extra)],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        cwd=ROOT.parent,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_no_module_imports_tensorflow():
    done = run_guarded()
    assert done.returncode == 0, done.stderr
    # A folder without __init__.py would be left out silently.
    assert int(done.stdout.split()[0]) >= len(list(ROOT.rglob("*.py"))) - 1


def test_the_guard_sees_tensorflow():
    done = run_guarded("try:\n    import tensorflow.io\nexcept ImportError:\n    pass")
    assert done.returncode == 3
    assert "import of tensorflow" in done.stderr


def test_every_folder_of_modules_is_a_package():
    folders = {path.parent for path in ROOT.rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_version_has_one_home():
    assert importlib.metadata.version("uniadapter_jax") == uniadapter_jax.__version__


def test_citation_and_changelog_know_the_version():
    version = uniadapter_jax.__version__
    assert yaml.safe_load((ROOT.parent / "CITATION.cff").read_text())["version"] == version
    assert f"\n## {version} " in (ROOT.parent / "CHANGELOG.md").read_text()
