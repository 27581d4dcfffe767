"""What tools/gpu/run_all.sh came to, as one JSON file and as a table to read.

    .venv/bin/python tools/gpu/results.py OUT

Reads what the parts have written to OUT; a part that was cut off is named as absent.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from trec_semid.core.versions import code_commit, package_versions

PARTS = {
    "speed": "speed.json",
    "against_cpu": "against_cpu/against_cpu.json",
    "whole_way": "whole_way/whole_way.json",
}


def read(out: Path) -> dict[str, Any]:
    """Return all that was measured, with the machine and the day."""
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    told: dict[str, Any] = {
        "device": device,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": code_commit(),
        "versions": package_versions(),
    }
    for part, name in PARTS.items():
        told[part] = json.loads((out / name).read_text()) if (out / name).exists() else None
    return told


def table(told: dict[str, Any]) -> str:
    """Return it as Markdown."""
    lines = [
        f"{told['device']}, {told['date']}, commit {told['commit']}",
        "",
        "| part | result |",
        "|---|---|",
    ]
    for part, values in (told["speed"] or {}).items():
        lines.append(f"| {part} | {_told(values)} |")
    for part in ("against_cpu", "whole_way"):
        for facts in told[part] or []:
            known = {key: value for key, value in facts.items() if key not in ("name", "holds", "said")}
            lines.append(f"| {facts['name']} | {'holds' if facts['holds'] else 'FAILS'}: {_told(known)} |")
    absent = [part for part in PARTS if told[part] is None]
    lines += [f"| {part} | was cut off |" for part in absent]
    return "\n".join(lines) + "\n"


def _told(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:,.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in values.items()
    )


def main() -> int:
    """Write both files; 1 where a part is absent."""
    out = Path(sys.argv[1])
    told = read(out)
    (out / "results.json").write_text(json.dumps(told, indent=1) + "\n")
    (out / "results.md").write_text(table(told))
    print(table(told))
    return int(any(told[part] is None for part in PARTS))


if __name__ == "__main__":
    sys.exit(main())
