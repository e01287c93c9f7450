#!/usr/bin/env bash
# A catalog in slices: the same few steps of one run with whole item tables and with tables in two slices, and the peak
# memory of a rank of each. ITEMS, USERS and INTERACTIONS set the sizes of the log, which is simulated.
#
#   examples/large_catalog.sh                 # 200,000 items, some minutes on two cores
set -euo pipefail
items=${ITEMS:-200000} users=${USERS:-4000} interactions=${INTERACTIONS:-80000}
python=${PYTHON:-python3}

world=worlds/large_${items}_${users}_${interactions}
[[ -d $world ]] || "$python" -m csrec_dist simulate "$world" \
  --items "$items" --users "$users" --interactions "$interactions" --popularity 0
cat >large.yaml <<TEXT
name: large
dataset: {source: $world/log, window: 20, min_interactions: 1, num_shards: 8}
model: {name: gru4rec, width: 64}
method: model_level
teachers: {num: 1}
training: {batch_size: 128, max_epochs: 1, max_steps: ${STEPS:-20}, patience: 1}
evaluation: {top_n: [10]}
TEXT
"$python" -m csrec_dist prepare --config large.yaml
"$python" -m csrec_dist plan --config large.yaml --num-processes 2
for slices in 1 2; do
  "$python" -m accelerate.commands.launch --multi_gpu --num_processes 2 -m csrec_dist run --config large.yaml \
    --set "name=large_$slices" --set "distributed.catalog_parallel=$slices"
done
"$python" - <<'TEXT'
import json
from pathlib import Path

for slices in (1, 2):
    record = json.loads(Path(f"runs/large_{slices}/distill.done.json").read_text())
    peak = max(usage["peak_memory_mib"] for usage in record["usage"])
    print(f"{slices} slice{'s' * (slices > 1)}: a rank's peak memory {peak:,.0f} MiB")
TEXT
