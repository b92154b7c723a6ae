#!/usr/bin/env bash
# The paper's counts beside ours, on WildChat-1M: English, after the template filter, train / valid / test, and samples.
#
#   recipes/wildchat_counts.sh [LOGS] [RUN FOLDER]
#
# LOGS is what `userlm import` takes; the default is downloaded from the Hub. The same command resumes an interrupted
# run. Flagged conversations are kept, because the paper names no such filter.
set -euo pipefail
logs=${1:-hf://datasets/allenai/WildChat-1M}
out=${2:-runs/wildchat}
userlm=${USERLM:-.venv/bin/userlm}

$userlm import "$logs" --source wildchat --out "$out/import" >&2
$userlm clean "$out/import" --flagged --out "$out/clean" >&2
python=${userlm%userlm}python   # in the same environment
"$python" - "$out/clean/results.json" <<'PYTHON'
import json, sys

counts = json.load(open(sys.argv[1]))["counts"]
foreign = sum(n for why, n in counts.items() if why.startswith("dropped: language"))
paper = {"English": 478_498, "after the template filter": 384_336}
paper |= {"train": 343_951, "valid": 22_442, "test": 17_943}
ours = {"English": counts["in"] - foreign, "after the template filter": counts["out"]}
ours |= {split: counts.get(f"{split}: conversations", 0) for split in ("train", "valid", "test")}
for split, count in (("train", 1_047_930), ("valid", 118_291), ("test", 137_224)):
    paper[f"{split}, samples"] = count
    ours[f"{split}, samples"] = counts.get(f"{split}: samples", 0)
print(f"{'conversations':28}{'the paper':>12}{'ours':>12}{'ours / theirs':>16}")
for name, count in paper.items():
    print(f"{name:28}{count:12,}{ours[name]:12,}{ours[name] / count:16.3f}")
PYTHON
