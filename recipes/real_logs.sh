#!/usr/bin/env bash
# The whole pipeline on real logs: import, clean, intents, train, perplexity, simulate, respond, score.
#
#   recipes/real_logs.sh [FOLDER OF LOGS] [RUN FOLDER]
#
# The model is small (3.4M weights, from scratch, 1,000 steps of 128 samples: about half a pass; an hour on one core).
# It shows that every stage works on uncleaned logs, and what the measures say about such a model; not how good a user
# model can be. The same command resumes an interrupted run.
set -euo pipefail
data=${1:-../shared/data}
out=${2:-runs/real_logs}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}   # a model this small is faster on one thread
userlm=${USERLM:-.venv/bin/userlm}

$userlm import "$data" --out "$out/import"
$userlm clean "$out/import" --out "$out/clean"
$userlm intents "$out/clean" --out "$out/intents"

# Held-out people, in an order that mixes the sources.
shuf -n 200 --random-source=<(yes) "$out/intents/test.jsonl" > "$out/people.jsonl"

# Tasks: GSM8K questions that were split into facts.
tasks="$data/extrinsic/gsm8k_train_shards.jsonl.gz"

scratch=(--base scratch:192x4x8192 --batch 128 --lr 3e-3 --max-tokens 1024 --valid-limit 300)
$userlm train "$out/intents" "${scratch[@]}" --steps 1000 --out "$out/trained"
$userlm train "$out/intents" "${scratch[@]}" --steps 0 --out "$out/untrained"
for model in trained untrained; do
  $userlm ppl "$out/intents" --model "$out/$model" --max-tokens 1024 --out "$out/ppl-$model"
done

user="trained:$out/trained"
$userlm simulate --user "$user" --assistant clarifier --intents "$out/people.jsonl" --limit 100 --max-turns 6 --out "$out/sim-trained"
$userlm simulate --user "replay:$out/people.jsonl" --assistant clarifier --intents "$out/people.jsonl" --limit 100 --out "$out/sim-replayed"
$userlm simulate --user "$user" --assistant oracle --tasks "$tasks" --limit 20 --max-turns 6 --out "$out/sim-tasks"
$userlm respond "$out/people.jsonl" --user "$user" --limit 40 --out "$out/respond-trained"
$userlm score "$out/sim-trained" "$out/sim-replayed" "$out/sim-tasks" "$out/respond-trained" \
  --human "$out/people.jsonl" --tasks "$tasks" --out "$out/score"
