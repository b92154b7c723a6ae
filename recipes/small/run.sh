#!/usr/bin/env bash
# Train userlm-small: SmolLM2-135M-Instruct, tuned on what people say to AI assistants.
#
#   [DATA=...] [OUT=...] [MODEL=...] [STEPS=...] [LAUNCH=...] recipes/small/run.sh [RUN ...]
#
# DATA holds the logs that recipes/tiny/README.md lists. MODEL is another base model (a folder, a hub id or a name of
# ours), with the options in TRAIN; its runs have its name behind theirs. STEPS replaces the one pass over the data.
# LAUNCH may be ".venv/bin/torchrun --nproc-per-node 2 -m userlm". A RUN is userlm; with-intent or no-intent, the
# ablation, both of SHORT steps; or curve: the perplexity of userlm on held-out people, and the scaling curve of all
# models that were trained so, in curve.svg. By default userlm. The same command resumes an interrupted run.
set -euo pipefail
here=$(dirname "$0")
out=${OUT:-runs/small}
model=${MODEL:-small}
short=${SHORT:-60}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}   # give each core a process of its own with LAUNCH
userlm=${USERLM:-.venv/bin/userlm}
python=${userlm%userlm}python   # in the same environment

"$here/../logs.sh" "$out" "$here/mix.py"

# Answers are context only, so that most tokens are those of people; the lower layers stay as they are, which is
# faster and keeps the adapter small.
case $model in
  small) options="--init instruct --lora 16 --trainable-layers 18 --lr 4e-4 --precision fp32" suffix= ;;
  *) options=${TRAIN:---lora 16 --lr 2e-4} suffix=-$(basename "$model") ;;
esac
train() {   # NAME [OPTION...]
  # shellcheck disable=SC2086  # several options
  ${LAUNCH:-$userlm} train "$out/data" --base "$model" $options --batch 32 --seed 1 --max-answer-tokens 40 \
    --max-tokens 512 --pack "${PACK:-1024}" --eval-every 60 --save-every 10 --valid-limit 100 \
    ${STEPS:+--steps "$STEPS"} --out "$out/$1$suffix" "${@:2}"
}
for name in "${@:-userlm}"; do
  case $name in
    userlm) train userlm ;;
    with-intent) STEPS=$short train with-intent ;;
    no-intent) STEPS=$short train no-intent --no-intent ;;
    curve)
      $userlm ppl "$out/data/people" --model "trained:$out/userlm$suffix" --limit "${LIMIT:-150}" \
        --out "$out/curve/userlm$suffix"
      "$python" "$here/curve.py" "$out" "$out/curve.svg"
      ;;
    *) echo "$name: give userlm, with-intent, no-intent or curve" >&2; exit 2 ;;
  esac
done
