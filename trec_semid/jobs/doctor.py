"""`trec-semid doctor`: does the installed stack work on this machine, and if not, what mends it?"""

import json
import sys

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from trec_semid.core.errors import StackError
from trec_semid.doctor.checks import Check, run_checks
from trec_semid.doctor.facts import gather_facts

_COLOURS = {"ok": "green", "warn": "yellow", "FAIL": "red"}


def run(*, quick: bool = False, as_json: bool = False) -> list[Check]:
    """Print every check, then the command that mends each one that is not ok.

    Raises:
        StackError: at least one check failed.
    """
    facts = gather_facts(quick=quick)
    checks = run_checks(facts)
    if as_json:
        shown = facts._asdict() | {"probes": {name: probe._asdict() for name, probe in facts.probes.items()}}
        content = {"facts": shown, "checks": [check._asdict() for check in checks]}
        sys.stdout.write(json.dumps(content, indent=1) + "\n")
    else:
        show(checks, Console())
    failed = [check.name for check in checks if check.status == "FAIL"]
    if failed:
        raise StackError(f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}.")
    return checks


def show(checks: list[Check], console: Console) -> None:
    """Print the table, then the remedies unbroken, so that they can be copied."""
    table = Table("check", "", Column("found", overflow="fold"), box=None, pad_edge=False)
    for check in checks:
        status = f"[{_COLOURS[check.status]}]{check.status}[/]"
        table.add_row(check.name, status, escape(check.found))
    console.print(table)
    for check in checks:
        if check.status != "ok" and check.remedy:
            console.print(f"\nTo mend {check.name}:", style="bold", highlight=False)
            console.print(f"  {check.remedy}", soft_wrap=True, highlight=False, markup=False)
