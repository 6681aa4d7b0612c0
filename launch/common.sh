# shellcheck shell=bash
# What the scripts of this folder share: settings, `--dry-run`, and how commands are shown.

DRY_RUN=""

fail() {
  echo "error: $*" >&2
  exit 2
}

# Runs a command, or with --dry-run prints it so that it can be pasted into a shell.
run() {
  if [[ $DRY_RUN ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# One shell word for every argument: a command line that arrives as it was given.
quoted() {
  printf '%q ' "$@"
}

# The variable of a setting: base-image is BASE_IMAGE. (macOS's bash has no ${name^^}.)
variable() {
  tr 'a-z-' 'A-Z_' <<<"$1"
}

# Reads `--key=value ... -- ARGUMENTS`: sets KEY in upper case for each name that stands in
# SETTINGS, and MAIN to what follows `--`, the arguments of `python -m uniadapter_jax.main`.
read_arguments() {
  MAIN=()
  while (($#)); do
    case $1 in
      --)
        shift
        MAIN=("$@")
        return
        ;;
      --dry-run) DRY_RUN=yes ;;
      --*=*)
        local name=${1%%=*}
        name=${name#--}
        [[ " ${SETTINGS[*]} " == *" $name "* ]] || fail "no setting $1; there are: ${SETTINGS[*]}"
        printf -v "$(variable "$name")" '%s' "${1#*=}"
        ;;
      *) fail "what is $1? Settings are --key=value: ${SETTINGS[*]}; main's arguments follow --" ;;
    esac
    shift
  done
}

# Raises unless each of these settings has a value.
need() {
  local name
  for name in "$@"; do
    local value
    value=$(variable "$name")
    [[ ${!value} ]] || fail "--$name is missing"
  done
}

# Raises unless each of these flags is among the arguments of `$action`'s command.
need_flags() {
  local flag
  for flag in "$@"; do
    # shellcheck disable=SC2154 # the scripts set it
    [[ " ${MAIN[*]} " == *" --$flag="* ]] ||
      fail "$action needs -- $(printf -- '--%s=... ' "$@")"
  done
}

# Raises unless there are arguments for main, with a config and a workdir; sets WORKDIR.
need_main() {
  local argument
  WORKDIR=""
  CONFIG=""
  for argument in "${MAIN[@]}"; do
    case $argument in
      --workdir=*) WORKDIR=${argument#*=} ;;
      --config=*) CONFIG=${argument#*=} ;;
    esac
  done
  [[ $CONFIG && $WORKDIR ]] || fail "main needs -- --config=FILE --workdir=DIR"
}
