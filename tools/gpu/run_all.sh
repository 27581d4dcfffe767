#!/usr/bin/env bash
# Everything that needs a GPU, in one go: the CPU's numbers, other precisions, tables in host memory, speed, faults.
#     tools/gpu/run_all.sh OUT [--dry-run]
# Within ten minutes on one H200: each part has a limit, and one that fails does not stop the next. Without a GPU,
# or with --dry-run, the same on little data, which shows that the scripts work and nothing else.
# OUT/results.json and OUT/results.md hold it all. PYTHON names the interpreter where there is no .venv.
set -uo pipefail
out=$(realpath -m "${1:?where the results go}")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
events=200000 faults=400000 small=() limit=(240 150 200)
if [ "${2:-}" = --dry-run ] || ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    export CUDA_VISIBLE_DEVICES=
    events=20000 faults=20000 small=(--small --turns 1) limit=(1800 600 1800)
fi
rm -rf "$out"
mkdir -p "$out"
failed=0
timeout "${limit[1]}" "$python" tools/gpu/speed.py "$out" "${small[@]}" || failed=1
timeout "${limit[0]}" "$python" tools/gpu/against_cpu.py "$out/against_cpu" --events "$events" || failed=1
timeout "${limit[2]}" "$python" tools/gpu/whole_way.py "$out/whole_way" --events "$faults" || failed=1
"$python" tools/gpu/results.py "$out" || failed=1
exit "$failed"
