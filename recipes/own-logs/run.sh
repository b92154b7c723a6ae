#!/usr/bin/env bash
# From your own logs to a user model that talks as your users do, its perplexity and a report.
#
#   LOGS=... [CLEAN=...] [INTENTS=...] [LAUNCH=...] [OUT=...] recipes/own-logs/run.sh [OPTIONS OF userlm train]
#
# LOGS is what `userlm import` takes; CLEAN and INTENTS are options of `userlm clean` and `userlm intents`; LAUNCH runs
# `userlm train` on several GPUs; OUT holds all runs. The same command resumes
# an interrupted run.
set -euo pipefail
here=$(dirname "$0")
out=${OUT:-runs/own-logs}
userlm=${USERLM:-.venv/bin/userlm}

$userlm import "${LOGS:?give the files or the folder of your logs}" --out "$out/import"
$userlm clean "$out/import" ${CLEAN:---languages all --duplicates exact --scrub --shares 80/10/10} --out "$out/clean"
$userlm intents "$out/clean" ${INTENTS:-} --out "$out/intents"
${LAUNCH:-$userlm} train "$out/intents" --config "$here/train.toml" "$@" --out "$out/train"
$userlm ppl "$out/intents" --model "trained:$out/train" --out "$out/ppl"
$userlm report "$out"/{import,clean,intents,train,ppl} --out "$out/report"
