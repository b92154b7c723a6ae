#!/usr/bin/env bash
# The paper's table of perplexities: WildChat and PRISM, each without and with intents. See README.md.
#
#   MODELS="ROW=MODEL ..." [WILDCHAT=...] [PRISM=...] [INTENTS=...] [OUT=...] recipes/table1_perplexity/run.sh [OPTIONS]
#
# MODELS gives the model of each row: a row of the paper, such as UserLM-1b=trained:runs/userlm-1b/train, or your own
# name. WILDCHAT is a folder or file of conversations with intents, PRISM what `userlm import` takes, INTENTS are
# options of `userlm intents`, OPTIONS go to `userlm ppl`. The same command resumes an interrupted run.
set -euo pipefail
here=$(dirname "$0")
out=${OUT:-runs}
table=$out/table1_perplexity
wildchat=${WILDCHAT:-$out/wildchat/intents}
userlm=${USERLM:-.venv/bin/userlm}

# All of PRISM is held out, so it is not split.
$userlm import "${PRISM:-hf://datasets/HannahRoseKirk/prism-alignment/conversations.jsonl}" --out "$out/prism/import"
$userlm intents "$out/prism/import" ${INTENTS:-} --out "$out/prism/intents"
for pair in ${MODELS:?give ROW=MODEL, such as UserLM-1b=trained:runs/userlm-1b/train}; do
  row=${pair%%=*} model=${pair#*=}
  $userlm ppl "$wildchat" --model "$model" "$@" --out "$table/$row/wildchat"
  $userlm ppl "$out/prism/intents" --model "$model" "$@" --out "$table/$row/prism"
done
python=${userlm%userlm}python   # in the same environment
"$python" "$here/table.py" "$table" | tee "$table/table.md"
