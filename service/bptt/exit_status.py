"""Exit statuses that the command line and the server share. Imports nothing."""

INTERRUPTED = 130  # shells use this status for a program that Ctrl-C ended
