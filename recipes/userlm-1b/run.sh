#!/usr/bin/env bash
# From WildChat-1M to a user model, its perplexity and a report. See README.md.
#
#   [LOGS=...] [INTENTS=...] [LAUNCH=...] [OUT=...] recipes/userlm-1b/run.sh [OPTIONS OF userlm train]
#
# LOGS is what `userlm import` takes; INTENTS are options of `userlm intents`; LAUNCH runs `userlm train` on several
# GPUs; OUT holds all runs. The same command resumes an interrupted run.
set -euo pipefail
recipe=${RECIPE:-$(dirname "$0")}
name=$(basename "$(cd "$recipe" && pwd)")
out=${OUT:-runs}
data=$out/wildchat
userlm=${USERLM:-.venv/bin/userlm}

$userlm import "${LOGS:-hf://datasets/allenai/WildChat-1M}" --out "$data/import"
$userlm clean "$data/import" --flagged --out "$data/clean"
$userlm intents "$data/clean" ${INTENTS:-} --out "$data/intents"
${LAUNCH:-$userlm} train "$data/intents" --config "$recipe/train.toml" "$@" --out "$out/$name/train"
$userlm ppl "$data/intents" --model "trained:$out/$name/train" --out "$out/$name/ppl"
$userlm report "$data"/{import,clean,intents} "$out/$name"/{train,ppl} --out "$out/$name/report"
