#!/usr/bin/env bash
# One process of a run under an engine that starts failed jobs again (JobSet, xpk):
#
#   bash launch/until_done.sh ARGUMENTS    # of `python -m uniadapter_jax.main`, with --workdir=DIR
#
# A run that SIGTERM stopped has saved and ends with status 0; to the engine that would be a job
# that is done. Here the status is 0 once WORKDIR/result.json is there, 1 for "start it again", and
# otherwise main's own (2: wrong input, do not). --dry-run prints the command.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$here/common.sh"

if [[ ${1:-} == --dry-run ]]; then
  DRY_RUN=yes
  shift
fi
MAIN=("$@")
need_main

command=("${PYTHON:-python}" -m uniadapter_jax.main "${MAIN[@]}")
if [[ $DRY_RUN ]]; then
  run "${command[@]}"
  exit
fi
# A function in the background would be a shell, which keeps the signal to itself.
"${command[@]}" &
main=$!
trap 'kill -TERM "$main"' TERM INT
wait "$main"
status=$?
trap - TERM INT
if ((status > 128)); then # a signal ended the wait, or main
  wait "$main"
  status=$?
fi
((status)) && exit "$status"
[[ -e $WORKDIR/result.json ]]
