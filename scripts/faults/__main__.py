"""Everything that can go wrong, on purpose: a table of what was expected and what came of it.

python -m scripts.faults [--full] [--only WORDS] [--record]. Exit status 1 where something was not as expected.
"""

from __future__ import annotations

import argparse
import sys

from scripts.faults import files, kills, machine, model, network, wishes
from scripts.faults.report import Outcome, heading, play, read, row, table, tell, write
from scripts.faults.victim import ROOT

FAULTS = (*kills.FAULTS, *machine.FAULTS, *model.FAULTS, *wishes.FAULTS, *files.FAULTS, *network.FAULTS)
RECORD = ROOT / "assets" / "bench" / "faults.json"
DOCUMENTS = ROOT / "docs" / "under-fire.md", ROOT / "docs" / "under-fire_zh.md"


def main() -> int:
    """Plays the chosen faults; 0 where all went as expected."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="as often as the report says, instead of a few times")
    parser.add_argument("--only", metavar="WORDS", help="faults whose name has these words")
    parser.add_argument("--record", action="store_true", help="write the counts into assets/bench and the documents")
    options = parser.parse_args()
    outcomes: list[Outcome] = []
    print(heading(), flush=True)
    for fault in FAULTS:
        if options.only and options.only not in fault.name:
            continue
        outcomes.append(play(fault, fault.full if options.full else fault.small))
        print(row(fault, outcomes[-1]), flush=True)
        if options.record:
            record(outcomes[-1])
    return int(any(outcome.wrong for outcome in outcomes))


def record(*outcomes: Outcome) -> None:
    """Puts outcomes beside those of earlier runs, and all of them into the documents."""
    write(RECORD, outcomes)
    for document in DOCUMENTS:
        tell(document, table(FAULTS, read(RECORD), document.stem.endswith("_zh")))


if __name__ == "__main__":
    sys.exit(main())
