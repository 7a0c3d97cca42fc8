"""What `make bench` measures, always as a ratio to something measured in the same run."""
