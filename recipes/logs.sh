#!/usr/bin/env bash
# From the logs that recipes/tiny/README.md lists to conversations with intents, split by person.
#
#   [DATA=...] recipes/logs.sh OUT MIX
#
# DATA holds the logs. OUT gets import/, clean/ and intents/; then the script MIX selects from intents/ what is learned
# and held out, in data/. What is finished is not repeated.
set -euo pipefail
out=$1 mix=$2
data=${DATA:-../shared/data}
userlm=${USERLM:-.venv/bin/userlm}
python=${userlm%userlm}python   # in the same environment

[ ! -f "$out/data/counts.json" ] || exit 0
sources=(wildchat chatbot_arena oasst1_en_train oasst1_en_val halie realhumaneval star multiwoz ikat sharegpt_sample)
files=("${sources[@]/%/.jsonl.gz}")
$userlm import "${files[@]/#/$data/}" --out "$out/import"
$userlm clean "$out/import" --duplicates near --scrub --shares 90/3/7 --out "$out/clean"
$userlm intents "$out/clean" --out "$out/intents"
"$python" "$mix" "$out/intents" "$out/data"
