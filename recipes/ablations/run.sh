#!/usr/bin/env bash
# Two user models that differ from the standard one in one thing each, and the table of all three:
# trained without intents, and trained from an instruct model. All are tested with and without intents.
#
#   [INSTRUCT=...] [LOGS=...] [INTENTS=...] [LAUNCH=...] [OUT=...] recipes/ablations/run.sh [OPTIONS OF userlm train]
#
# The standard model is that of recipes/userlm-1b; it is trained here if it does not exist. Options apply to all three.
# INSTRUCT is the instruct model. The same command resumes an interrupted run.
set -euo pipefail
here=$(dirname "$0")
standard=$here/../userlm-1b
out=${OUT:-runs}
intents=$out/wildchat/intents
userlm=${USERLM:-.venv/bin/userlm}
instruct=${INSTRUCT:-meta-llama/Llama-3.2-1B-Instruct}

"$standard/run.sh" "$@"
train() {   # NAME [OPTION...]
  local name=$1
  shift
  ${LAUNCH:-$userlm} train "$intents" --config "$standard/train.toml" "$@" --out "$out/ablations/$name/train"
  $userlm ppl "$intents" --model "trained:$out/ablations/$name/train" --out "$out/ablations/$name/ppl"
}
train no-intent "$@" --no-intent
train instruct "$@" --base "$instruct" --init instruct

python=${userlm%userlm}python   # in the same environment
"$python" - "$out/userlm-1b" "$out/ablations/no-intent" "$out/ablations/instruct" <<'PYTHON'
import json, sys
from pathlib import Path

print("perplexity of held-out people, 95 % intervals over people; lower is better\n")
print(f"{'':26}{'tested without intent':>28}{'tested with intent':>28}")
for name, run in zip(("standard", "trained without intent", "from an instruct model"), sys.argv[1:]):
    results = json.loads((Path(run) / "ppl" / "results.json").read_text())
    cells = []
    for column in ("without intent", "with intent"):
        found = next(one for one in results[column] if one["name"] == "perplexity")
        value, low, high = (found[key] for key in ("value", "low", "high"))
        shown = "–" if value is None else f"{value:.2f}"
        cells.append(shown if low is None else f"{shown} [{low:.2f}, {high:.2f}]")
    print(f"{name:26}{cells[0]:>28}{cells[1]:>28}")
PYTHON
