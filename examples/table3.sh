#!/usr/bin/env bash
# One row of the paper's Table 3: a student by all five methods on Last.FM, in windows that do not leak, with tests of
# significance. STUDENT says which (gru4rec), SEEDS how many of the study's two.
#
#   examples/table3.sh PATH_OF_LOG [--set KEY=VALUE ...]     # about a quarter of an hour a seed on two cores
#   examples/table3.sh lastfm                                # HetRec 2011's own log, after: csrec-dist fetch lastfm
set -euo pipefail
[[ $# -ge 1 ]] || { echo "usage: examples/table3.sh PATH_OF_LOG [--set KEY=VALUE ...]" >&2; exit 2; }
log=$1
shift
seeds=()
for ((seed = 0; seed < ${SEEDS:-1}; seed++)); do seeds+=(--only "seed=$seed"); done
"${PYTHON:-python3}" -m csrec_dist study table3_lastfm --jobs "${JOBS:-2}" \
  --only "student=${STUDENT:-gru4rec}" --only windows=disjoint "${seeds[@]}" --set "dataset.source=$log" "$@"
sed -n '/Windows without overlap/,$p' studies/table3_lastfm/results.md
