#!/usr/bin/env bash
# Builds the sdist and, from it, the wheel; installs the wheel; uses it from an empty folder.
#
#   scripts/smoke_wheel.sh PYTHON [DIST]
#
# PYTHON: of a virtual environment. DIST: where sdist and wheel go (a scratch folder).
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
said() { # TEXT COMMAND...: that the command says it, and ends well
  local text=$1
  shift
  "$@" >"$scratch/log"
  grep -q -- "$text" "$scratch/log" || {
    cat "$scratch/log"
    echo "error: not said by $*: $text" >&2
    exit 1
  }
}
said '^  main ' uniadapter
said cross_modal_adapter uniadapter main --config=msrvtt --help
said configs/demo.py uniadapter benchmark --config=benchmark/demo --output=grid --dry-run
uniadapter demo
said cross_modal_adapter uniadapter compare runs/demo/zero_shot runs/demo/cross_modal_adapter-seed0
