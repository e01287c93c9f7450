# What the launchers share: their messages, the interpreter, and how accelerate is called. Sourced, not run.
# shellcheck shell=bash

# Apple's bash is 3.2, which knows neither empty arrays under `set -u` nor `wait -n`.
if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "${launcher:?}: this is bash $BASH_VERSION, and 4.4 or newer is needed; on macOS: brew install bash." >&2
  exit 2
fi

# stop SENTENCE: end with exit status 2.
stop() {
  echo "${launcher:?}: $1" >&2
  exit 2
}

# need_number NAME VALUE SMALLEST: stop unless VALUE is a whole number from SMALLEST.
need_number() {
  [[ $2 =~ ^(0|[1-9][0-9]*)$ && $2 -ge $3 ]] || stop "$1 is '$2'; give a whole number from $3."
}

# find_python: set PYTHON to an interpreter that has what a run needs.
find_python() {
  local root module
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  if [[ -z ${PYTHON:-} ]]; then
    PYTHON=python3
    [[ ! -x $root/.venv/bin/python ]] || PYTHON=$root/.venv/bin/python
  fi
  command -v "$PYTHON" >/dev/null || stop "the interpreter $PYTHON was not found; run make install, or set PYTHON."
  for module in accelerate csrec_dist; do
    "$PYTHON" -c "import sys, importlib.util; sys.exit(importlib.util.find_spec('$module') is None)" ||
      stop "$PYTHON has no $module; run make install, or set PYTHON to an interpreter that has it."
  done
}

# set_engine: set the array `engine` to what tells accelerate how to start ranks: the file ACCELERATE_CONFIG,
# or plain processes; csrec_dist starts fsdp and deepspeed itself. The launcher `standard` is used on every machine for itself, never pdsh.
set_engine() {
  engine=(--multi_gpu --mixed_precision no --dynamo_backend no)
  if [[ -n ${ACCELERATE_CONFIG:-} ]]; then
    [[ -f $ACCELERATE_CONFIG ]] || stop "the file ACCELERATE_CONFIG=$ACCELERATE_CONFIG does not exist."
    engine=(--config_file "$ACCELERATE_CONFIG" --deepspeed_multinode_launcher standard)
  fi
}

# set_restarts VARIABLE=VALUE ...: with MAX_RESTARTS, add it to `engine` and set the array `variables` to the
# environment that restarts need: the given words, and a store of its own for each start. From a store that is
# kept, which is torch's default, ranks read addresses of those that died.
set_restarts() {
  variables=()
  [[ ${MAX_RESTARTS:-0} != 0 ]] || return 0
  need_number MAX_RESTARTS "$MAX_RESTARTS" 0
  engine+=(--max_restarts "$MAX_RESTARTS")
  # shellcheck disable=SC2034 # read by what sources this file
  variables=(env TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 "$@")
}

# set_single ARGUMENT ...: set the array `command` to one process of csrec_dist. With MAX_RESTARTS torch's launcher starts
# it: accelerate's refuses to start one process as it starts several, and restarts none that it starts otherwise.
set_single() {
  local restarting=()
  [[ ${MAX_RESTARTS:-0} = 0 ]] ||
    restarting=(-m torch.distributed.run --standalone --nproc_per_node 1 --max_restarts "$MAX_RESTARTS")
  # shellcheck disable=SC2034 # read by what sources this file
  command=("$PYTHON" "${restarting[@]}" -m csrec_dist "$@")
}

# show WORD ...: print a command as a shell would read it.
show() {
  printf '+'
  printf ' %q' "$@"
  printf '\n'
}
