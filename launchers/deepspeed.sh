#!/usr/bin/env bash
# Starts a run over the machines of a DeepSpeed hostfile: multinode.sh on each of them over ssh, never pdsh.
set -euo pipefail
launcher=deepspeed.sh
# shellcheck source=launchers/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'TEXT'
usage: launchers/deepspeed.sh [OPTION ...] COMMAND [ARGUMENT ...]

Starts `csrec-dist COMMAND ARGUMENT ...` on all machines of a hostfile, prints the command of each, and shows what
all of them print. Each machine is reached by ssh without a password and has this checkout and the current folder
under the same paths. The first one that fails ends all; Ctrl-C and SIGTERM are passed on to the ranks.

  launchers/deepspeed.sh --hostfile hostfile --dry-run run --config FILE
  launchers/deepspeed.sh --hostfile hostfile run --config FILE --set distributed.engine=deepspeed \
    --set distributed.deepspeed=configs/deepspeed/zero2.json

The engine is the run's own setting (docs/engines.md); any other runs on the machines of a hostfile too.

A line of the hostfile is `HOST slots=K`: K processes, the same number on every machine. The first is machine 0.

options, or environment:
  --hostfile FILE  HOSTFILE      the machines
  --address HOST   MAIN_ADDRESS  name or address of machine 0, as the others reach it (default: as in the hostfile)
  --port PORT      MAIN_PORT     port on which the machines meet (default: 29500)
  --dry-run                      print the commands and start nothing

environment:
  SSH                            command that reaches a machine (default: ssh -o BatchMode=yes)
  PYTHON, MAX_RESTARTS, ACCELERATE_CONFIG   see launchers/multinode.sh --help; passed on, as are PYTHONPATH,
                                 OMP_NUM_THREADS and all that begin with CSREC_, DS_, GLOO_ or NCCL_
TEXT
}

# read_hostfile: set the array `hosts` and the number `slots`.
read_hostfile() {
  local line host given rest
  hosts=() slots=""
  while read -r line || [[ -n $line ]]; do
    read -r host given rest <<<"${line%%#*}" || true
    [[ -n $host ]] || continue
    [[ $given =~ ^slots=([1-9][0-9]*)$ && -z $rest ]] || stop "$hostfile has the line '$line'; write HOST slots=K."
    [[ ${slots:=${BASH_REMATCH[1]}} = "${BASH_REMATCH[1]}" ]] ||
      stop "$hostfile gives $host ${BASH_REMATCH[1]} slots, but $slots before; give every machine the same number."
    hosts+=("$host")
  done <"$hostfile"
  [[ ${#hosts[@]} -ge 1 ]] || stop "$hostfile names no machine."
}

# remote_command RANK WORD ...: what a machine's shell is given. multinode.sh leaves its process id for tell_ranks, in a
# folder that is made for it: where something of that name stands already, nothing is started.
remote_command() {
  local folder=$pid_folder-$1
  shift
  printf 'cd %q && mkdir -m 700 %q && { env PID_FILE=%q' "$PWD" "$folder" "$folder/pid"
  printf ' %q' "$@"
  # shellcheck disable=SC2016 # for the machine's shell
  printf '; status=$?; rm -rf %q; exit $status; }' "$folder"
}

# shellcheck disable=SC2329 # called by the traps
tell_ranks() {
  local rank file
  told=$((told + 1))
  [[ $told -eq 1 ]] || return 0
  echo "deepspeed.sh: the ranks are told to stop"
  for rank in "${!hosts[@]}"; do
    file=$pid_folder-$rank/pid
    "${ssh[@]}" "${hosts[$rank]}" "test ! -f $file || kill -TERM \$(cat $file)" </dev/null || true
  done
}

hostfile=${HOSTFILE:-} address=${MAIN_ADDRESS:-} port=${MAIN_PORT:-29500} dry_run=""
while [[ ${1:-} == -* ]]; do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --dry-run) dry_run=1; shift; continue ;;
    --hostfile | --address | --port) [[ $# -ge 2 ]] || stop "$1 has no value; see launchers/deepspeed.sh --help." ;;&
    --hostfile) hostfile=$2 ;;
    --address) address=$2 ;;
    --port) port=$2 ;;
    *) stop "there is no option $1; see launchers/deepspeed.sh --help." ;;
  esac
  shift 2
done
[[ -n $hostfile ]] || stop "the hostfile is missing; give --hostfile or set HOSTFILE."
[[ -f $hostfile ]] || stop "the hostfile $hostfile does not exist."
need_number "the port" "$port" 1
[[ $# -ge 1 ]] || stop "the command is missing, e.g. run; see launchers/deepspeed.sh --help."
read -ra ssh <<<"${SSH:-ssh -o BatchMode=yes}"
command -v "${ssh[0]}" >/dev/null || stop "${ssh[0]} was not found; install openssh-client, or set SSH."
set_engine
read_hostfile

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# mktemp makes the folder here and so finds a name that is free and that nobody can guess. Each machine makes a folder of
# its own of that name with the rank behind it (remote_command): /tmp is the one place that all of them have.
pid_folder=$(mktemp -d /tmp/csrec-XXXXXXXXXXXX)
trap 'rm -rf "$pid_folder"' EXIT
variables=()
for name in $(compgen -e | grep -E '^(PYTHON|PYTHONPATH|MAX_RESTARTS|ACCELERATE_CONFIG|OMP_NUM_THREADS|(CSREC|DS|GLOO|NCCL)_.*)$'); do
  variables+=("$name=${!name}")
done

told=0
trap 'tell_ranks' INT TERM
for rank in "${!hosts[@]}"; do
  command=("${variables[@]}" bash "$here/multinode.sh" --num-nodes "${#hosts[@]}" --node-rank "$rank"
    --address "${address:-${hosts[0]}}" --port "$port" --processes "$slots" "$@")
  remote=$(remote_command "$rank" "${command[@]}")
  echo "+ ${ssh[*]} ${hosts[$rank]} '${remote//\'/\'\\\'\'}'"
  [[ -n $dry_run ]] && continue
  "${ssh[@]}" "${hosts[$rank]}" "$remote" </dev/null &
done

# Each turn waits for the next machine that ends, or for a signal, after which the same machines are waited for.
status=0
while [[ -n $(jobs -p) ]]; do
  before=$told one=0
  wait -n || one=$?
  [[ $before -eq $told ]] || continue
  [[ $one -eq 0 || $status -ne 0 ]] || { status=$one; tell_ranks; }
done
exit "$status"
