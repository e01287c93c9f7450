#!/usr/bin/env bash
# Starts csrec_dist on several processes of this machine, on its GPUs or without any on its CPUs.
set -euo pipefail
launcher=local.sh
# shellcheck source=launchers/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'TEXT'
usage: launchers/local.sh NUM_PROCESSES COMMAND [ARGUMENT ...]

Starts `csrec-dist COMMAND ARGUMENT ...` on NUM_PROCESSES processes of this machine and prints the command
it runs. One process needs no launcher and, without ACCELERATE_CONFIG or MAX_RESTARTS, gets none.

  launchers/local.sh 2 run --config configs/experiments/demo.yaml
  launchers/local.sh 4 teach --config configs/experiments/demo.yaml --set teachers.num=4

environment:
  PYTHON             interpreter (default: .venv/bin/python of this checkout if it is there, else python3)
  MAIN_PORT          port on which the processes meet (default, and with MAX_RESTARTS: a free one)
  MAX_RESTARTS       how often all processes are started again when one of them dies (default: 0)
  ACCELERATE_CONFIG  a config of accelerate to start with (default: none); the engine is the run's own setting
TEXT
}

case "${1:-}" in
  -h | --help) usage; exit 0 ;;
  "") stop "the number of processes is missing; see launchers/local.sh --help." ;;
esac
need_number "the number of processes" "$1" 1
[[ $# -ge 2 ]] || stop "the command is missing, e.g. run; see launchers/local.sh --help."
num_processes=$1
shift

find_python
set_engine
set_restarts PET_STANDALONE=1
set_single "$@"
if [[ $num_processes -gt 1 || -n ${ACCELERATE_CONFIG:-} ]]; then
  command=("${variables[@]}" "$PYTHON" -m accelerate.commands.launch "${engine[@]}" --num_machines 1
    --num_processes "$num_processes" --main_process_port "${MAIN_PORT:-0}" -m csrec_dist "$@")
fi
show "${command[@]}"
exec "${command[@]}"
