#!/usr/bin/env bash
# Check the paper's findings on userlm-small, as it lies in the package, beside its base model, the runs with-intent
# and no-intent of run.sh, userlm-tiny and people. The runs go to findings/ in OUT, the tables to findings.md there.
#
#   [DATA=...] [OUT=...] [PEOPLE=...] [UNSEEN=...] [PROMPTED=...] [TALKS=...] [GSM8K=...]
#     recipes/small/findings.sh [PART ...]
#
# A PART is people, wildchat, chats or goals (perplexity on that source), talk, ends, assess (five users beside the same
# people) or table; by default all. All but the last may run at the same time, in several processes. DATA and OUT are those of run.sh; the others are numbers of
# conversations: PEOPLE held-out ones and UNSEEN of each source that no model learned from are scored, but at most
# PROMPTED of each with the prompted assistant, which processes its instructions and the whole conversation again at
# every turn. TALKS real ones are continued by the users, who also get GSM8K tasks. The same command resumes an
# interrupted run.
set -euo pipefail
here=$(dirname "$0")
data=${DATA:-../shared/data}
out=${OUT:-runs/small}
people=${PEOPLE:-200} unseen=${UNSEEN:-60} prompted=${PROMPTED:-20} talks=${TALKS:-60} gsm8k=${GSM8K:-20}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}   # a model this small is faster on one thread
userlm=${USERLM:-.venv/bin/userlm}
python=${userlm%userlm}python   # in the same environment
to=$out/findings
mkdir -p "$to"

need() {   # MODEL: model/ alone is no proof, since a running training has one too
  [ -f "$out/$1/results.json" ] || { echo "$out/$1 is not trained; first: recipes/small/run.sh $1" >&2; exit 2; }
}
make_file() {   # NAME COMMAND [ARGUMENT...]: write the output to a file, which appears only when it is complete
  "${@:2}" > "$to/$1.$$"
  mv "$to/$1.$$" "$to/$1"
}
mix() {   # FOLDER: print its conversations in an order that mixes the sources
  shuf --random-source=<(yes) "$out/data/$1/test.jsonl"
}

perplexity() {   # SOURCE MOST
  local pair name most
  make_file "$1.jsonl" mix "$1"
  for pair in trained:userlm-small trained:with-intent trained:no-intent trained:userlm-tiny base:small \
      prompted:assistant-small; do
    name=${pair#*:} most=$2
    if [ "$name" = assistant-small ] && [ "$prompted" -lt "$most" ]; then most=$prompted; fi
    case $name in *-intent) need "$name"; pair=${pair%%:*}:$out/$name ;; esac
    $userlm ppl "$to/$1.jsonl" --model "$pair" --limit "$most" --max-tokens 1024 --out "$to/ppl/$1/$name"
  done
}

gsm8k() {   # questions that were split into facts
  gzip -dc "$data/extrinsic/gsm8k_train_shards.jsonl.gz" | sed -n "1,${gsm8k}p"
}
embedded() {
  "$python" -c 'import sys; from userlm import assets; print(getattr(assets, sys.argv[1])())' "$1"
}
simulate() {   # NAME USER ASSISTANT [OPTION...]
  $userlm simulate --user "$2" --assistant "$3" --max-turns 4 --max-answer-tokens 80 --out "$to/$1" "${@:4}"
}
talk() {
  local tasks logs pair name user
  tasks=$(embedded sample_tasks) logs=$(embedded sample_task_logs)
  make_file people.jsonl mix people
  make_file talks.jsonl head -n "$talks" "$to/people.jsonl"
  make_file gsm8k.jsonl gsm8k
  make_file tasks.jsonl cat "$tasks" "$to/gsm8k.jsonl"
  for pair in userlm=trained:userlm-small prompted=prompted:assistant-small swapped=swapped:assistant-small \
      tiny=trained:userlm-tiny; do
    name=${pair%%=*} user=${pair#*=}
    $userlm respond "$to/talks.jsonl" --user "$user" --out "$to/respond-$name"
    simulate "talk-$name" "$user" assistant-small --intents "$to/talks.jsonl" --limit $(((talks + 1) / 2))
    simulate "tasks-$name" "$user" oracle --tasks "$tasks"
    simulate "gsm8k-$name" "$user" oracle --tasks "$to/gsm8k.jsonl"
  done
  simulate talk-people "replay:$to/talks.jsonl" assistant-small --intents "$to/talks.jsonl" --limit $(((talks + 1) / 2))
  simulate tasks-people "replay:$logs" oracle --tasks "$tasks"
  $userlm score "$to"/{respond,talk,tasks,gsm8k}-{userlm,prompted,swapped,tiny} "$to"/{talk,tasks}-people \
    --human "$to/talks.jsonl" --tasks "$to/tasks.jsonl" --out "$to/score"
}

ends() {   # of held-out chats
  "$python" "$here/ends.py" "$out" "$to"
  $userlm respond "$to/ends.jsonl" --user trained:userlm-small --no-first --out "$to/respond-ends"
  "$python" "$here/ends.py" "$out" "$to" | tee "$to/ends.md"
}

assess() {   # from people themselves to a user who always says the same
  local pair
  make_file assess.jsonl mix people
  make_file constant.txt printf 'Can you tell me more?\n%.0s' {1..20}
  for pair in people=replay:"$to/assess.jsonl" userlm=trained:userlm-small tiny=trained:userlm-tiny \
      prompted=prompted:assistant-small constant=script:"$to/constant.txt"; do
    $userlm assess --quick --user "${pair#*=}" --reference "$to/assess.jsonl" --assistant clarifier \
      --out "$to/assess-${pair%%=*}"
  done
}

table() {
  "$python" "$here/findings.py" "$to" | tee "$to/findings.md"
}

for part in "${@:-people wildchat chats goals talk ends assess table}"; do
  for name in $part; do
    case $name in
      people) perplexity people "$people" ;;
      wildchat | chats | goals) perplexity "$name" "$unseen" ;;
      talk | ends | assess | table) $name ;;
      *) echo "$name: give people, wildchat, chats, goals, talk, ends, assess or table" >&2; exit 2 ;;
    esac
  done
done
