#!/usr/bin/env bash
# Everything that needs a GPU, in one go: the CPU's numbers, other precisions, tables in host memory, speed, faults.
#     tools/gpu/run_all.sh OUT [--dry-run]
# OUT is a folder that is not there yet. Within ten minutes on one H200: each part has a limit, and one that fails does
# not stop the next. Without a GPU, or with --dry-run, the same on little data and without what only a GPU has, which
# shows that the scripts work and nothing else. OUT/results.json and OUT/results.md hold it all. PYTHON names the
# interpreter where there is no .venv.
set -euo pipefail
case "${1:-}" in
'' | -*)
    echo "usage: tools/gpu/run_all.sh OUT [--dry-run]" >&2
    exit 2
    ;;
esac
if [ -e "$1" ]; then
    echo "$1 is there already: name a folder that is not" >&2
    exit 2
fi
mkdir -p "$1"
out=$(realpath "$1")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
events=200000 faults=400000 small=() limits=(130 220 190)
if [ "${2:-}" = --dry-run ] || ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    export CUDA_VISIBLE_DEVICES=
    events=${EVENTS:-20000} faults=${EVENTS:-20000} small=(--small --turns 1) limits=(600 1800 1800)
fi
failed=0
part() { # seconds, script, words...: every part writes what it has after each of its checks
    timeout "$1" "$python" "tools/gpu/$2" "${@:3}" || failed=1
}
part "${limits[0]}" speed.py "$out" "${small[@]}"
part "${limits[1]}" against_cpu.py "$out/against_cpu" --events "$events"
part "${limits[2]}" whole_way.py "$out/whole_way" --events "$faults"
part 60 results.py "$out"
exit "$failed"
