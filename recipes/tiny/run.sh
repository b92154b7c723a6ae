#!/usr/bin/env bash
# Train the tiny models that come with the package (userlm-tiny, assistant-tiny), and two user models for
# the paper's ablations: one without intents, and one from the assistant instead of the base model.
#
#   [DATA=...] [OUT=...] [SIZE=...] [EPOCHS=...] [LAUNCH=...] recipes/tiny/run.sh [MODEL ...]
#
# DATA holds the logs that README.md lists. SIZE is WIDTHxLAYERSxVOCABULARY, EPOCHS multiplies all epochs. LAUNCH may be
# "torchrun --nproc-per-node 2 -m userlm". A MODEL is base, assistant, userlm, no-intent or from-assistant; by default
# all. The same command resumes an interrupted run.
set -euo pipefail
here=$(dirname "$0")
out=${OUT:-runs/tiny}
size=${SIZE:-192x3x8192}
times=${EPOCHS:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}   # a model this small is faster on one thread
userlm=${USERLM:-.venv/bin/userlm}

"$here/../logs.sh" "$out" "$here/mix.py"

train() {   # NAME DATA EPOCHS [OPTION...]
  local name=$1 side=$2 epochs=$3
  shift 3
  ${LAUNCH:-$userlm} train "$out/data/$side" --side "${side/echo/both}" --epochs $((epochs * times)) --max-tokens 1024 \
    --overlong drop --pack "${PACK:-512}" --precision bf16 --save-every 50 --out "$out/$name" "$@"
}
tuned=(--batch 64 --lr 1.5e-3)   # for the models that start from another
for model in "${@:-base assistant userlm no-intent from-assistant}"; do
  for name in $model; do
    case $name in
      base)
        train base-1 both 3 --base "scratch:$size" --batch 32 --lr 3e-3 --overlong truncate
        train base-2 echo 1 --base "$out/base-1" --batch 32 --lr 2e-3
        train base both 1 --base "$out/base-2" --batch 64 --lr 1e-3 --steps 60
        ;;
      assistant) train assistant assistant 1 --base "$out/base" "${tuned[@]}" ;;
      userlm) train userlm user 1 --base "$out/base" "${tuned[@]}" ;;
      no-intent) train no-intent user 1 --base "$out/base" "${tuned[@]}" --no-intent ;;
      from-assistant) train from-assistant user 1 --base "$out/assistant" --init instruct "${tuned[@]}" ;;
      *) echo "$name: give base, assistant, userlm, no-intent or from-assistant" >&2; exit 2 ;;
    esac
  done
done
