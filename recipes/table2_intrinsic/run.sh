#!/usr/bin/env bash
# The paper's table of six intrinsic measures on PRISM, for any users. See README.md.
#
#   USERS="ROW=ADDRESS ..." [PRISM=...] [INTENTS=...] [LIMIT=...] [OUT=...] recipes/table2_intrinsic/run.sh [OPTIONS]
#
# USERS gives the user of each row: a row of the paper, such as UserLM-8b=trained:microsoft/UserLM-8b, or your own name.
# PRISM is what `userlm import` takes, INTENTS are options of `userlm intents`, LIMIT is the number of conversations.
# OPTIONS go to `userlm assess`: --detector, --judge, --role-items, --intent-items. The same command resumes an
# interrupted run.
set -euo pipefail
here=$(dirname "$0")
out=${OUT:-runs}
table=$out/table2_intrinsic
userlm=${USERLM:-.venv/bin/userlm}

# All of PRISM is held out, so it is not split.
$userlm import "${PRISM:-hf://datasets/HannahRoseKirk/prism-alignment/conversations.jsonl}" --out "$out/prism/import"
$userlm intents "$out/prism/import" ${INTENTS:-} --out "$out/prism/intents"
for pair in ${USERS:?give ROW=ADDRESS, such as UserLM-8b=trained:microsoft/UserLM-8b}; do
  $userlm assess --user "${pair#*=}" --reference "$out/prism/intents" --limit "${LIMIT:-2000}" "$@" \
    --out "$table/${pair%%=*}"
done
python=${userlm%userlm}python   # in the same environment
"$python" "$here/table.py" "$table" | tee "$table/table.md"
