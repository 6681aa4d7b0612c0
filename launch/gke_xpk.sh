#!/usr/bin/env bash
# A run on GKE: through xpk, or where there is no xpk by the JobSet of jobset.yaml.
#
#   launch/gke_xpk.sh run    --cluster=C --zone=Z --name=NAME --type=v5litepod-16 \
#                            -- --config=configs/msrvtt.py --workdir=/data/runs/a
#   launch/gke_xpk.sh list   --cluster=C --zone=Z
#   launch/gke_xpk.sh logs   --name=NAME
#   launch/gke_xpk.sh delete --cluster=C --zone=Z --name=NAME
#   launch/gke_xpk.sh jobset --name=NAME --image=IMAGE --bucket=BUCKET --topology=4x4 --hosts=4 \
#                            -- --config=configs/msrvtt.py --workdir=/data/runs/a
#   launch/gke_xpk.sh prepare --name=NAME --image=IMAGE --bucket=BUCKET --hosts=4 \
#                            -- --config=configs/msrvtt.py --input=/data/raw --output=/data/msrvtt
#   launch/gke_xpk.sh benchmark --name=NAME --image=IMAGE --bucket=BUCKET --topology=2x2 --hosts=4 \
#                            -- --config=configs/benchmark/emoji.py --output=/data/grid
#
# `run` layers this checkout over the image python:3.11 (--base-image=...) and installs it when it
# starts; `jobset` fills jobset.yaml and hands it to kubectl, `prepare` prepare.yaml, `benchmark`
# benchmark.yaml. --dry-run prints the commands, and the filled manifest, instead. See
# docs/launch.md.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$here/common.sh"

SETTINGS=(cluster zone project name type base-image restarts image bucket accelerator topology
  hosts chips cpus)
CLUSTER="" ZONE="" PROJECT="" NAME="" TYPE="" BASE_IMAGE="python:3.11" RESTARTS=20
# shellcheck disable=SC2034 # read by name
IMAGE="" BUCKET="" ACCELERATOR="tpu-v5-lite-podslice" TOPOLOGY="" HOSTS="" CHIPS=4 CPUS=16

usage() { sed -n "2,/^set/{/^set/d;s/^# \{0,1\}//;p;}" "$0"; }

action=${1:-help}
(($#)) && shift
read_arguments "$@"

where() {
  need cluster zone
  WHERE=("--cluster=$CLUSTER" "--zone=$ZONE")
  [[ $PROJECT ]] && WHERE+=("--project=$PROJECT")
  return 0
}

# Of every host; see until_done.sh.
main_command() {
  need_main
  echo "bash launch/until_done.sh --distributed $(quoted "${MAIN[@]}")"
}

# Status 1 is a lost or stopped process and is started again, 2 is wrong input and is not.
submit() {
  where
  need name type
  local command flags
  command="pip install --quiet '.[tpu]' && exec $(main_command)"
  flags=("--workload=$NAME" "--tpu-type=$TYPE" "--num-slices=1"
    "--base-docker-image=$BASE_IMAGE" "--script-dir=$here/.." "--max-restarts=$RESTARTS"
    --restart-on-exit-codes=1 --termination-grace-period-seconds=120)
  run xpk workload create "${WHERE[@]}" "${flags[@]}" "--command=$command"
}

# A manifest with its ${NAMES} filled in; $COMMAND is what the hosts run.
filled() {
  local text name
  text=$(grep -v '^#' "$here/$1")
  for name in NAME IMAGE BUCKET ACCELERATOR TOPOLOGY HOSTS CHIPS CPUS RESTARTS COMMAND; do
    text=${text//"\${$name}"/"${!name}"}
  done
  echo "$text"
}

apply() {
  run kubectl apply --filename=- <<<"$1"
  [[ $DRY_RUN ]] && echo "$1"
  return 0
}

# What a host does of a command that is shared.
share_command() {
  need_flags "$@"
  echo "python -m uniadapter_jax.$action $(quoted "${MAIN[@]}")"
}

case $action in
  run) submit ;;
  list)
    where
    run xpk workload list "${WHERE[@]}"
    ;;
  logs)
    need name
    run kubectl logs --follow --prefix --max-log-requests=256 \
      "--selector=jobset.sigs.k8s.io/jobset-name=$NAME"
    ;;
  delete)
    where
    need name
    run xpk workload delete "${WHERE[@]}" "--workload=$NAME"
    ;;
  jobset)
    need name image bucket topology hosts
    COMMAND=$(main_command)
    manifest=$(filled jobset.yaml)
    apply "$manifest"
    ;;
  prepare)
    need name image bucket hosts
    COMMAND=$(share_command config input output)
    manifest=$(filled prepare.yaml)
    apply "$manifest"
    ;;
  benchmark)
    need name image bucket topology hosts
    # shellcheck disable=SC2034 # read by name
    COMMAND=$(share_command config output)
    manifest=$(filled benchmark.yaml)
    apply "$manifest"
    ;;
  help | --help) usage ;;
  *)
    usage >&2
    fail "no action $action"
    ;;
esac
