#!/bin/sh
# What a GPU gives, in at most 8 minutes: one table and one JSON file. See bench/gpu.py for the parts and options.
#
#   [PYTHON=python3] bench/gpu.sh [OPTIONS OF gpu.py]
#
# It needs torch, transformers, accelerate and Linux. Ctrl-C keeps what was measured.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
own=$root/.venv/bin/python
[ -x "$own" ] || own=python3
export PYTHONPATH="$root/src:$root/bench${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-$own}" "$root/bench/gpu.py" "$@"
