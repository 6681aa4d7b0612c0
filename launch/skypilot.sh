#!/usr/bin/env bash
# A run on the cloud that SkyPilot finds: skypilot.yaml with its settings.
#
#   launch/skypilot.sh run  --name=NAME --accelerators=tpu-v5litepod-8 --bucket=BUCKET \
#                           -- --config=configs/msrvtt.py --workdir=/data/runs/a
#   launch/skypilot.sh benchmark --name=NAME --accelerators=A100:1 --nodes=4 --bucket=BUCKET \
#                           -- --config=configs/benchmark/emoji.py --output=/data/grid
#   launch/skypilot.sh logs --name=NAME
#   launch/skypilot.sh down --name=NAME
#
# --nodes=2 takes several, --spot=yes preemptible ones. --dry-run prints the command and the task
# instead. See docs/launch.md.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$here/common.sh"

SETTINGS=(name accelerators nodes bucket spot)
NAME="" ACCELERATORS="" NODES=1 BUCKET="" SPOT=""

usage() { sed -n "2,/^set/{/^set/d;s/^# \{0,1\}//;p;}" "$0"; }

action=${1:-help}
(($#)) && shift
read_arguments "$@"

case $action in
  run | benchmark)
    need name accelerators bucket
    command=main
    if [[ $action == benchmark ]]; then
      command=benchmark
      need_flags config output
    else
      need_main
    fi
    flags=(--yes "--cluster=$NAME" "--gpus=$ACCELERATORS" "--num-nodes=$NODES")
    [[ $SPOT ]] && flags+=(--use-spot)
    run sky launch "${flags[@]}" --env "COMMAND=$command" --env "MAIN=$(quoted "${MAIN[@]}")" \
      --env "BUCKET=$BUCKET" "$here/skypilot.yaml"
    [[ $DRY_RUN ]] && cat "$here/skypilot.yaml"
    ;;
  logs)
    need name
    run sky logs "$NAME"
    ;;
  down)
    need name
    run sky down --yes "$NAME"
    ;;
  help | --help) usage ;;
  *)
    usage >&2
    fail "no action $action"
    ;;
esac
