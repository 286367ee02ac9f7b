#!/usr/bin/env bash
# The chain on a Slurm cluster, in shards. Run it where sbatch is; it submits itself, step by step:
#
#   MODEL=gpt2 CORPUS=run/corpus QUERIES=queries.jsonl RUN=run SHARDS=16 \
#     RESOURCES="--gpus=1 --mem=64G --time=08:00:00" bash slurm.sh
#
# CORPUS is what prepare made. Each shard is a task of an array job and needs no other one while it
# runs; each step waits for the one before. Whatever stopped it, run the same line again: what is
# done is left alone, and what was begun goes on. Options of the stages go into FIT, PRECONDITION,
# SCAN, ATTRIBUTE and REPORT, sbatch's for the steps that compute into RESOURCES; for all steps sbatch
# reads SBATCH_PARTITION, SBATCH_ACCOUNT and so on.
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

: "${MODEL:?a model folder or hub name}" "${CORPUS:?a folder that prepare made}"
: "${QUERIES:?a JSONL file}" "${RUN:?the folder for what is made}"
export MODEL CORPUS QUERIES RUN SHARDS="${SHARDS:-8}"
inflcli=${INFLCLI:-inflcli}

submit() { # STEP AFTER [OPTION...]: the number of the job
  local step=$1 after=$2 id
  shift 2
  id=$(sbatch --parsable --export=ALL --job-name="inflcli-$step" --kill-on-invalid-dep=yes \
    ${after:+"--dependency=afterok:$after"} "$@" "$0" "$step")
  echo "$step: job ${id%%;*}" >&2
  echo "${id%%;*}"
}

submit_all() {
  local last resources
  read -ra resources <<<"${RESOURCES:-}"
  local shards=("${resources[@]}" "--array=0-$((SHARDS - 1))")
  last=$(submit fit "" "${shards[@]}")
  last=$(submit merge-fit "$last" "${resources[@]}")
  # The second pass needs the eigenvectors of the first; the same command knows which is due.
  last=$(submit fit "$last" "${shards[@]}")
  last=$(submit merge-fit "$last" "${resources[@]}")
  last=$(submit queries "$last" "${resources[@]}")
  last=$(submit scan "$last" "${shards[@]}")
  submit finish "$last" "${resources[@]}" >/dev/null
}

# Not SLURM_ARRAY_TASK_COUNT, which is less where only some tasks are submitted again.
shard() { echo "${SLURM_ARRAY_TASK_ID:?runs in an array job}/$SHARDS"; }
scanned=(--model "$MODEL" --queries "$RUN/queries" --corpus "$CORPUS")

case ${1:-submit} in
  submit) submit_all ;;
  fit)
    read -ra options <<<"${FIT:-}"
    "$inflcli" fit-factors --model "$MODEL" --corpus "$CORPUS" --out "$RUN/factors" \
      --shard "$(shard)" "${options[@]}"
    ;;
  merge-fit) "$inflcli" merge "$RUN/factors" ;;
  queries)
    read -ra options <<<"${PRECONDITION:-}"
    "$inflcli" precondition --model "$MODEL" --factors "$RUN/factors" --queries "$QUERIES" \
      --out "$RUN/queries" "${options[@]}"
    ;;
  scan)
    read -ra options <<<"${SCAN:-}"
    "$inflcli" scan "${scanned[@]}" --out "$RUN/scan" --shard "$(shard)" "${options[@]}"
    ;;
  finish)
    "$inflcli" merge "$RUN/scan"
    read -ra options <<<"${ATTRIBUTE:-}"
    "$inflcli" attribute "${scanned[@]}" --scan "$RUN/scan" --out "$RUN/attribution" "${options[@]}"
    read -ra options <<<"${REPORT:-}"
    "$inflcli" report --run "$RUN" --out "$RUN/report" "${options[@]}"
    ;;
  *) echo "slurm.sh: no step $1" >&2; exit 2 ;;
esac
