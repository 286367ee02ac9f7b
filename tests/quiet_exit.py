"""`python -m quiet_exit ARGUMENTS...`: inflcli, which aborts if it comes to the interpreter's end.

With threads of gloo still there, it now and then does so by itself.
"""

import atexit
import os

from inflcli.cli import main

if __name__ == "__main__":
    atexit.register(os.abort)
    main()
