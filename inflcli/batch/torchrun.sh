#!/usr/bin/env bash
# The chain on the GPUs of one machine. torchrun spreads the two long stages over them, and starts
# its workers again should one be lost; the others take one GPU.
#
#   MODEL=gpt2 CORPUS=run/corpus QUERIES=queries.jsonl RUN=run GPUS=8 bash torchrun.sh
#
# CORPUS is what prepare made. Whatever stopped it, run the same line again: what is done is left
# alone, and what was begun goes on. Options of the stages go into FIT, PRECONDITION, SCAN,
# ATTRIBUTE and REPORT.
set -euo pipefail

: "${MODEL:?a model folder or hub name}" "${CORPUS:?a folder that prepare made}"
: "${QUERIES:?a JSONL file}" "${RUN:?the folder for what is made}"
: "${GPUS:?the number of processes, one a GPU}"
inflcli=${INFLCLI:-inflcli}

spread() {
  "${TORCHRUN:-torchrun}" --standalone --nproc-per-node "$GPUS" --max-restarts 3 -m inflcli "$@"
}
scanned=(--model "$MODEL" --queries "$RUN/queries" --corpus "$CORPUS")

read -ra options <<<"${FIT:-}"
spread fit-factors --model "$MODEL" --corpus "$CORPUS" --out "$RUN/factors" "${options[@]}"

read -ra options <<<"${PRECONDITION:-}"
"$inflcli" precondition --model "$MODEL" --factors "$RUN/factors" --queries "$QUERIES" \
  --out "$RUN/queries" "${options[@]}"

read -ra options <<<"${SCAN:-}"
spread scan "${scanned[@]}" --out "$RUN/scan" "${options[@]}"

read -ra options <<<"${ATTRIBUTE:-}"
"$inflcli" attribute "${scanned[@]}" --scan "$RUN/scan" --out "$RUN/attribution" "${options[@]}"

read -ra options <<<"${REPORT:-}"
"$inflcli" report --run "$RUN" --out "$RUN/report" "${options[@]}"
