#!/usr/bin/env bash
# One run on two machines. Here both are this machine, so that it can be tried anywhere; on a cluster give each of the
# two commands on a machine of its own, with the address of the first (docs/tutorials/two_nodes.md).
#
#   examples/two_nodes.sh configs/experiments/demo.yaml [--set KEY=VALUE ...]
set -euo pipefail
[[ $# -ge 1 ]] || { echo "usage: examples/two_nodes.sh CONFIG [--set KEY=VALUE ...]" >&2; exit 2; }
launcher=$(dirname "${BASH_SOURCE[0]}")/../launchers/multinode.sh
export NUM_NODES=2 MAIN_ADDRESS=127.0.0.1 MAIN_PORT=${MAIN_PORT:-29517} PROCESSES_PER_NODE=1

"$launcher" --node-rank 1 run --config "$@" &
second=$!
trap 'kill "$second" 2>/dev/null || true' EXIT
"$launcher" --node-rank 0 run --config "$@"
wait "$second"
