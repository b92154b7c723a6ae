#!/usr/bin/env bash
# How many conversations are enough? The same training on the first 100, 300, 1,000, ... of your logs in an order drawn
# once, as many passes each, and a table of what it gains. Run recipes/own-logs/run.sh first.
#
#   [LIMITS="100 300 1000"] [LAUNCH=...] [OUT=...] recipes/own-logs/how_many.sh [OPTIONS OF userlm train]
set -euo pipefail
here=$(dirname "$0")
out=${OUT:-runs/own-logs}
userlm=${USERLM:-.venv/bin/userlm}
python=${userlm%userlm}python   # of the same environment

mkdir -p "$out/how-many"
"$python" - "$out/intents/train.jsonl" > "$out/how-many/train.jsonl" <<'PYTHON'
import random, sys

lines = open(sys.argv[1], "rb").readlines()
random.Random(0).shuffle(lines)   # logs come in the order of their sources
sys.stdout.buffer.writelines(lines)
PYTHON
all=$(($(wc -l < "$out/how-many/train.jsonl")))
limits=()
for limit in ${LIMITS:-100 300 1000 3000 10000 30000 100000}; do
  if [ "$limit" -lt "$all" ]; then limits+=("$limit"); fi
done
limits+=("$all")
for limit in "${limits[@]}"; do
  ${LAUNCH:-$userlm} train "$out/how-many/train.jsonl" --valid "$out/intents" --config "$here/train.toml" "$@" \
    --limit "$limit" --out "$out/how-many/$limit"
done
"$python" - "${limits[@]/#/$out/how-many/}" <<'PYTHON'
import json, sys
from pathlib import Path

columns = ("conversations", "samples", "steps", "perplexity", "gain", "termination F1", "hours")
print("".join(f"{column:>15}" for column in columns))
before = None
for run in sys.argv[1:]:
    found = json.loads((Path(run) / "results.json").read_text())
    if before is None and (begun := found["untrained"]):
        before = begun["valid_perplexity"]
        print(f"{0:15,}{0:15,}{0:15,}{before:15.2f}")
    best = found["best"] or {"valid_perplexity": None, "valid_termination_f1": None}
    now, f1 = best["valid_perplexity"], best["valid_termination_f1"]
    cells = [f"{found[name]:,}" for name in columns[:3]]
    cells.append("–" if now is None else f"{now:.2f}")
    cells.append("–" if now is None or before is None else f"{100 * (1 - now / before):.1f} %")
    cells += ["–" if f1 is None else f"{f1:.1f} %", f"{found['throughput']['hours']:.3g}"]
    print("".join(f"{cell:>15}" for cell in cells))
    before = now
PYTHON
