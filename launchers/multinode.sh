#!/usr/bin/env bash
# Starts this machine's processes of a run over several machines; the same command is given on each of them.
set -euo pipefail
launcher=multinode.sh
# shellcheck source=launchers/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[[ -z ${PID_FILE:-} ]] || echo $$ >"$PID_FILE" # deepspeed.sh tells this process to stop by it

usage() {
  cat <<'TEXT'
usage: launchers/multinode.sh [OPTION ...] COMMAND [ARGUMENT ...]

Starts this machine's processes of `csrec-dist COMMAND ARGUMENT ...` and prints the command it runs. Give it on
every machine, with the machine's own rank; the run starts when all are there. The run's folder and the dataset
must be on a disk that all machines share.

  launchers/multinode.sh --num-nodes 2 --node-rank 0 --address 10.0.0.1 run --config FILE    # on 10.0.0.1
  launchers/multinode.sh --num-nodes 2 --node-rank 1 --address 10.0.0.1 run --config FILE    # on the other

options, or environment:
  --num-nodes N      NUM_NODES           number of machines
  --node-rank R      NODE_RANK           this machine's rank, 0 ... N-1 (default: Slurm's SLURM_NODEID)
  --address HOST     MAIN_ADDRESS        name or address of machine 0, as the others reach it
  --port PORT        MAIN_PORT           port on which the machines meet (default: 29500)
  --processes K      PROCESSES_PER_NODE  processes on this and every other machine (default: its GPUs, else 1)

environment:
  PYTHON             interpreter (default: .venv/bin/python of this checkout if it is there, else python3)
  MAX_RESTARTS       how often all processes are started again when one of them dies (default: 0)
  ACCELERATE_CONFIG  a config of accelerate to start with (default: none); the engine is the run's own setting
  PET_LOCAL_ADDR     with MAX_RESTARTS: this machine's address, where the others do not know its host name
  GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME   the network device between the machines, where there are several
TEXT
}

count_gpus() {
  local listed
  if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then # those that a process may use; -1 ends the list
    tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | sed '/^ *-1/,$d' | grep -c . || true
    return
  fi
  listed=$(nvidia-smi --list-gpus 2>/dev/null) || listed=""
  grep -c . <<<"$listed" || true
}

num_nodes=${NUM_NODES:-}
node_rank=${NODE_RANK:-}
address=${MAIN_ADDRESS:-}
port=${MAIN_PORT:-29500}
processes=${PROCESSES_PER_NODE:-}
while [[ ${1:-} == -* ]]; do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --num-nodes | --node-rank | --address | --port | --processes)
      [[ $# -ge 2 ]] || stop "$1 has no value; see launchers/multinode.sh --help." ;;&
    --num-nodes) num_nodes=$2 ;;
    --node-rank) node_rank=$2 ;;
    --address) address=$2 ;;
    --port) port=$2 ;;
    --processes) processes=$2 ;;
    *) stop "there is no option $1; see launchers/multinode.sh --help." ;;
  esac
  shift 2
done

[[ -n $num_nodes ]] || stop "the number of machines is missing; give --num-nodes or set NUM_NODES."
need_number "the number of machines" "$num_nodes" 1
if [[ -z $node_rank && $num_nodes -gt 1 ]]; then node_rank=${SLURM_NODEID:-}; else node_rank=${node_rank:-0}; fi
[[ -n $node_rank ]] || stop "this machine's rank is missing; give --node-rank or set NODE_RANK."
need_number "this machine's rank" "$node_rank" 0
[[ $node_rank -lt $num_nodes ]] ||
  stop "this machine's rank is $node_rank, but the ranks of $num_nodes machines end at $((num_nodes - 1))."
[[ -n $address || $num_nodes -eq 1 ]] || stop "the address of machine 0 is missing; give --address or set MAIN_ADDRESS."
need_number "the port" "$port" 1
if [[ -z $processes ]]; then
  processes=$(count_gpus)
  [[ $processes -ge 1 ]] || processes=1
fi
need_number "the number of processes on a machine" "$processes" 1
[[ $# -ge 1 ]] || stop "the command is missing, e.g. run; see launchers/multinode.sh --help."

find_python
set_engine
meeting=(--main_process_port "$port")
if [[ $num_nodes -eq 1 ]]; then
  set_restarts PET_STANDALONE=1
else
  set_restarts
  meeting+=(--machine_rank "$node_rank" --main_process_ip "$address")
  if [[ ${MAX_RESTARTS:-0} = 0 ]]; then
    meeting+=(--same_network --rdzv_backend static)
  else # only with c10d machines meet again; the order of ranks does not follow --node-rank there
    meeting+=(--rdzv_backend c10d --rdzv_conf "is_host=$((node_rank == 0))")
  fi
fi
set_single "$@"
if [[ $((num_nodes * processes)) -gt 1 || -n ${ACCELERATE_CONFIG:-} ]]; then
  command=("${variables[@]}" "$PYTHON" -m accelerate.commands.launch "${engine[@]}" --num_machines "$num_nodes"
    --num_processes $((num_nodes * processes)) "${meeting[@]}" -m csrec_dist "$@")
fi
show "${command[@]}"
exec "${command[@]}"
