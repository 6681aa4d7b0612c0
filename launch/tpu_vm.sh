#!/usr/bin/env bash
# A run on a Cloud TPU VM or a slice of them, with gcloud.
#
#   launch/tpu_vm.sh create  --name=NAME --zone=ZONE --type=v5litepod-16
#   launch/tpu_vm.sh install --name=NAME --zone=ZONE
#   launch/tpu_vm.sh run     --name=NAME --zone=ZONE -- --config=configs/msrvtt.py --workdir=/mnt/runs/a
#   launch/tpu_vm.sh benchmark --name=NAME --zone=ZONE -- --config=configs/benchmark/emoji.py \
#                                                         --output=/mnt/grid --cells=0/4
#   launch/tpu_vm.sh logs    --name=NAME --zone=ZONE
#   launch/tpu_vm.sh stop    --name=NAME --zone=ZONE      # SIGTERM: saves; `run` again goes on
#   launch/tpu_vm.sh delete  --name=NAME --zone=ZONE
#   launch/tpu_vm.sh each    --name=NAME --zone=ZONE -- COMMAND    # on every host, such as a mount
#
# `benchmark` does a share of a grid's cells on a machine of one host; start each with its own i/n.
# --dry-run prints the commands instead. --version is the image (default: by type), --project
# gcloud's own default, --spot=yes a preemptible slice, --worker=3 of `logs` another host's. See
# docs/launch.md.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$here/common.sh"

SETTINGS=(name zone type version project spot worker)
NAME="" ZONE="" TYPE="" VERSION="" PROJECT="" SPOT="" WORKER=0

usage() { sed -n "2,/^set/{/^set/d;s/^# \{0,1\}//;p;}" "$0"; }

action=${1:-help}
(($#)) && shift
read_arguments "$@"

where() {
  need name zone
  WHERE=("$NAME" "--zone=$ZONE")
  [[ $PROJECT ]] && WHERE+=("--project=$PROJECT")
  return 0
}

# Google's image for each kind of chip.
image() {
  case $TYPE in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

tpu_vm() { run gcloud compute tpus tpu-vm "$@"; }

on_all() { tpu_vm ssh "${WHERE[@]}" --worker=all "--command=$1"; }

# The committed state of this checkout travels as a git bundle, so that every host has the same
# revision, and knows it. The images' own Python is too old; uv brings one.
install() {
  local bundle=${TMPDIR:-/tmp}/uniadapter_jax.bundle
  [[ $(git -C "$here" status --porcelain) ]] && echo "note: only what is committed is sent" >&2
  run git -C "$here/.." bundle create --quiet "$bundle" HEAD
  tpu_vm scp "$bundle" "$NAME:" "${WHERE[@]:1}" --worker=all
  on_all "set -e
rm -rf uniadapter_jax
git clone --quiet uniadapter_jax.bundle uniadapter_jax
cd uniadapter_jax
python3 -m pip install --quiet --user uv
~/.local/bin/uv venv --quiet --python=3.11 .venv
~/.local/bin/uv pip install --quiet --python=.venv/bin/python --editable='.[tpu]'"
}

# start MODULE: on all hosts, with the arguments that were given.
start() {
  on_all "cd uniadapter_jax
nohup .venv/bin/python $1 $(quoted "${MAIN[@]}")\
>>~/run.log 2>&1 </dev/null &
echo \$! >~/run.pid"
}

case $action in
  create)
    where
    need type
    flags=("--accelerator-type=$TYPE" "--version=${VERSION:-$(image)}")
    [[ $SPOT ]] && flags+=(--spot)
    tpu_vm create "${WHERE[@]}" "${flags[@]}"
    ;;
  install)
    where
    install
    ;;
  run)
    where
    need_main
    start "-m uniadapter_jax.main --distributed"
    ;;
  benchmark)
    where
    need_flags config output
    start "-m uniadapter_jax.benchmark"
    ;;
  logs)
    where
    tpu_vm ssh "${WHERE[@]}" "--worker=$WORKER" "--command=tail --lines=100 --follow run.log"
    ;;
  stop)
    where
    tpu_vm ssh "${WHERE[@]}" --worker=0 "--command=kill \$(cat run.pid)"
    ;;
  delete)
    where
    tpu_vm delete "${WHERE[@]}" --quiet
    ;;
  each)
    where
    ((${#MAIN[@]})) || fail "each needs -- COMMAND"
    on_all "${MAIN[*]}"
    ;;
  help | --help) usage ;;
  *)
    usage >&2
    fail "no action $action"
    ;;
esac
