"""Everything that can go wrong, on purpose: a table of what was expected and what came of it.

python -m scripts.faults [--full] [--only WORDS] [--json FILE]. Exit status 1 where something was not as expected.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from scripts.faults import files, kills, machine, model, network, wishes
from scripts.faults.report import Outcome, heading, play, row, to_json

FAULTS = (*kills.FAULTS, *machine.FAULTS, *model.FAULTS, *wishes.FAULTS, *files.FAULTS, *network.FAULTS)


def main() -> int:
    """Plays the chosen faults; 0 where all went as expected."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="as often as the report says, instead of a few times")
    parser.add_argument("--only", metavar="WORDS", help="faults whose name has these words")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcomes there as well")
    options = parser.parse_args()
    outcomes: list[Outcome] = []
    print(heading(), flush=True)
    for fault in FAULTS:
        if options.only and options.only not in fault.name:
            continue
        outcomes.append(play(fault, fault.full if options.full else fault.small))
        print(row(outcomes[-1]), flush=True)
        if options.json:
            options.json.write_text(to_json(outcomes) + "\n", encoding="utf-8")
    return int(any(outcome.wrong for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
