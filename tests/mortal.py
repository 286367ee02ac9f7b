"""`python -m mortal NAME N ARGUMENTS...`: inflcli, whose second process dies, once, after its Nth
record of progress; it leaves NAME.died. Every record is made, however soon.
"""

import os
import signal
import sys
from pathlib import Path

from slow import at_every_chance

from inflcli.artifacts.ledger import Ledger
from inflcli.cli import main

name, left = Path(f"{sys.argv.pop(1)}.died"), [int(sys.argv.pop(1))]
record = Ledger.record


def dying(self: Ledger, *arguments: object) -> None:
    record(self, *arguments)  # type: ignore[arg-type]
    left[0] -= 1
    if self.rank == 1 and left[0] == 0 and not name.exists():
        name.touch()
        os.kill(os.getpid(), signal.SIGKILL)


Ledger.record = dying  # type: ignore[method-assign]
if __name__ == "__main__":
    at_every_chance()
    main()
