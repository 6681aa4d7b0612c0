#!/usr/bin/env bash
# Builds the sdist and, from it, the wheel; installs the wheel; uses it from an empty folder.
#
#   scripts/smoke_wheel.sh PYTHON [DIST]    # of a virtual environment; where the files go (a scratch folder)
set -euo pipefail
python=${1:?PYTHON: the interpreter of a virtual environment}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
dist=${2:-$scratch/dist}
cd "$(dirname "$0")/.."

"$python" -m pip install --quiet --disable-pip-version-check build
"$python" -m build --outdir "$dist" . >"$scratch/log" || {
  cat "$scratch/log"
  exit 1
}
"$python" -m pip install --quiet --disable-pip-version-check "$dist"/*.whl
mkdir "$scratch/empty"
cd "$scratch/empty"
PATH=$(dirname "$python"):$PATH
uniadapter | grep -q '^  main '
uniadapter main --config=msrvtt --help | grep -q 'cross_modal_adapter'
uniadapter benchmark --config=benchmark/demo --output=grid --dry-run | grep -q 'configs/demo.py'
uniadapter demo
uniadapter compare demo/*/ >/dev/null || uniadapter compare "$(dirname "$(find . -name result.json | head -1)")"
