"""The command line: `bptt serve`, `learn`, `predict`, `models`, `demo`."""

from service.cli.main import bptt, main

__all__ = ["bptt", "main"]
