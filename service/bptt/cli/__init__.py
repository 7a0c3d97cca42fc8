"""The command line: `bptt serve`, `learn`, `predict`, `models`, `demo`, `gradients`."""

import os
import sys


def main() -> None:
    """Run the command line and exit with its status."""
    # gRPC reads this when it is loaded. It would log what is wrong beside our own message.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from bptt.cli.main import run
    except KeyboardInterrupt:  # while all is still being loaded
        sys.exit(130)
    sys.exit(run())
