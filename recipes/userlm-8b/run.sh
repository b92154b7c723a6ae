#!/usr/bin/env bash
# The same as recipes/userlm-1b/run.sh, with an 8B model on four GPUs.
#
#   [LOGS=...] [INTENTS=...] [LAUNCH=...] [OUT=...] recipes/userlm-8b/run.sh [OPTIONS OF userlm train]
set -euo pipefail
here=$(dirname "$0")
export RECIPE=$here
export LAUNCH=${LAUNCH:-.venv/bin/accelerate launch --config_file $here/fsdp2.yaml -m userlm}
exec "$here/../userlm-1b/run.sh" "$@"
