"""`python -m slow ARGUMENTS...`: inflcli that records its progress at every chance, and takes its
time.
"""

import time

from inflcli.artifacts.ledger import Ledger
from inflcli.cli import main
from inflcli.stages.common import Checkpoints


def at_every_chance() -> None:
    Checkpoints.due = lambda self: True  # type: ignore[method-assign]


def slowly() -> None:
    record = Ledger.record

    def later(self: Ledger, *arguments: object) -> None:
        record(self, *arguments)  # type: ignore[arg-type]
        time.sleep(0.3)

    Ledger.record = later  # type: ignore[method-assign]


if __name__ == "__main__":
    at_every_chance()
    slowly()
    main()
