"""The command line: `bptt learn`, `predict`, `models`, `serve` and others; see `bptt --help`."""

import os
import sys

from bptt.exit_status import INTERRUPTED


def main() -> None:
    """Run the command line and exit with its status."""
    # gRPC reads this variable when it is imported. Its log lines would repeat our own messages.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from bptt.cli.main import run
    except KeyboardInterrupt:  # during the imports
        sys.exit(INTERRUPTED)
    sys.exit(run())
