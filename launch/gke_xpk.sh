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
#
# `run` layers this checkout over the image python:3.11 (--base-image=...) and installs it when it
# starts; `jobset` fills jobset.yaml and hands it to kubectl. --dry-run prints the commands, and the
# filled manifest, instead. See docs/launch.md.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$here/common.sh"

SETTINGS=(cluster zone project name type base-image restarts image bucket accelerator topology
  hosts chips)
CLUSTER="" ZONE="" PROJECT="" NAME="" TYPE="" BASE_IMAGE="python:3.11" RESTARTS=20
# shellcheck disable=SC2034 # read by name
IMAGE="" BUCKET="" ACCELERATOR="tpu-v5-lite-podslice" TOPOLOGY="" HOSTS="" CHIPS=4

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

# jobset.yaml with its ${NAMES} filled in.
manifest() {
  need name image bucket topology hosts
  local text name
  text=$(grep -v '^#' "$here/jobset.yaml")
  # shellcheck disable=SC2034
  COMMAND=$(main_command)
  for name in NAME IMAGE BUCKET ACCELERATOR TOPOLOGY HOSTS CHIPS RESTARTS COMMAND; do
    text=${text//"\${$name}"/"${!name}"}
  done
  echo "$text"
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
    filled=$(manifest)
    run kubectl apply --filename=- <<<"$filled"
    [[ $DRY_RUN ]] && echo "$filled"
    ;;
  help | --help) usage ;;
  *)
    usage >&2
    fail "no action $action"
    ;;
esac
