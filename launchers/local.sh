#!/usr/bin/env bash
# Starts csrec_dist on several processes of this machine, on its GPUs or without any on its CPUs.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launchers/local.sh NUM_PROCESSES COMMAND [ARGUMENT ...]

Starts `csrec-dist COMMAND ARGUMENT ...` on NUM_PROCESSES processes of this machine and prints the command
it runs. One process needs no launcher and gets none.

  launchers/local.sh 2 run --config configs/experiments/demo.yaml
  launchers/local.sh 4 teach --config configs/experiments/demo.yaml --set teachers.num=4

environment:
  PYTHON      interpreter (default: .venv/bin/python of this checkout if it is there, else python3)
  MAIN_PORT   port on which the processes meet (default: a free one)
TEXT
}

stop() {
  echo "local.sh: $1" >&2
  exit 2
}

case "${1:-}" in
  -h | --help) usage; exit 0 ;;
  "") stop "the number of processes is missing; see launchers/local.sh --help." ;;
esac
[[ $1 =~ ^[1-9][0-9]*$ ]] || stop "the number of processes is '$1'; give a whole number from 1."
[[ $# -ge 2 ]] || stop "the command is missing, e.g. run; see launchers/local.sh --help."
num_processes=$1
shift

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ -z ${PYTHON:-} ]]; then
  PYTHON=python3
  [[ -x $root/.venv/bin/python ]] && PYTHON=$root/.venv/bin/python
fi
command -v "$PYTHON" >/dev/null || stop "the interpreter $PYTHON was not found; run make install, or set PYTHON."
for module in accelerate csrec_dist; do
  "$PYTHON" -c "import sys, importlib.util; sys.exit(importlib.util.find_spec('$module') is None)" ||
    stop "$PYTHON has no $module; run make install, or set PYTHON to an interpreter that has it."
done

command=("$PYTHON" -m csrec_dist "$@")
if [[ $num_processes -gt 1 ]]; then
  command=("$PYTHON" -m accelerate.commands.launch --multi_gpu --num_machines 1 --num_processes "$num_processes"
    --main_process_port "${MAIN_PORT:-0}" --mixed_precision no --dynamo_backend no -m csrec_dist "$@")
fi
printf '+'
printf ' %q' "${command[@]}"
printf '\n'
exec "${command[@]}"
