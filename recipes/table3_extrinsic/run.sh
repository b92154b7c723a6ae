#!/usr/bin/env bash
# The paper's table of users on tasks, for any users. See README.md.
#
#   ROWS="ROW=ADDRESS ..." [ASSISTANT=...] [SOURCES="FILE ..."] [FACTS=JUDGE] [REPEATS=10] [TURNS=8] [OUT=...] \
#     recipes/table3_extrinsic/run.sh [OPTIONS]
#
# OPTIONS go to `userlm evaluate`: --judge, prices, --budget, --workers. The same command resumes an interrupted run.
set -euo pipefail
here=$(dirname "$0")
table=${OUT:-runs}/table3_extrinsic
userlm=${USERLM:-.venv/bin/userlm}
python=${userlm%userlm}python   # in the same environment
sources=${SOURCES:-hf://datasets/microsoft/lost_in_conversation/lost_in_conversation.json
  hf://datasets/openai/openai_humaneval/openai_humaneval/test-00000-of-00001.parquet}

mkdir -p "$table"
tasks=$table/tasks.jsonl
# shellcheck disable=SC2086
[ -f "$tasks" ] || "$python" "$here/tasks.py" "$here/ids.txt" "$tasks" $sources
if [ -n "${FACTS:-}" ]; then
  $userlm tasks facts "$tasks" --judge "$FACTS" --out "$table/facts"
  tasks=$table/facts/tasks.jsonl
fi
for pair in ${ROWS:?give ROW=ADDRESS, such as UserLM-8b=trained:microsoft/UserLM-8b}; do
  address=${pair#*=}
  sampled=()
  case $address in
    trained:*) sampled=(--temperature 1 --top-p 0.8 --guard paper) ;;
    prompted:*) sampled=(--temperature 1) ;;
  esac
  $userlm evaluate --assistant "${ASSISTANT:-openai:gpt-4o}" --user "$address" "${sampled[@]}" --tasks "$tasks" \
    --repeats "${REPEATS:-10}" --max-turns "${TURNS:-8}" --no-single --max-failed 1 "$@" --out "$table/${pair%%=*}"
done
"$python" "$here/table.py" "$table" | tee "$table/table.md"
