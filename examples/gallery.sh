#!/usr/bin/env bash
# The reports of docs/gallery.md, made again: the demo's run, and it beside SoftRec. Some minutes on two cores.
#
#   examples/gallery.sh                                     # MovieLens-100K, after: csrec-dist fetch ml-100k
#   LOG=$PWD/clicks.csv GALLERY=/tmp/reports examples/gallery.sh --set training.max_epochs=2
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
gallery=${GALLERY:-$here/docs/gallery} python=${PYTHON:-python3} folder=$(mktemp -d)
export CSREC_DATA=${CSREC_DATA:-$PWD/data} # where `fetch` has put the log
trap 'rm -rf "$folder"' EXIT
mkdir -p "$gallery"
gallery=$(cd "$gallery" && pwd)

cd "$folder"
run() {
  "$python" -m csrec_dist run --config "$here/configs/experiments/demo.yaml" --set "dataset.source=${LOG:-ml-100k}" "$@"
}
run "$@"
run --set name=softrec --set method=softrec --set baseline=false "$@"
"$python" -m csrec_dist report runs/demo runs/softrec --output "$gallery/two_runs.html"
cp runs/demo/report/report.html "$gallery/demo.html"
