"""`python -m service.cli` is `bptt`."""

from service.cli import main

if __name__ == "__main__":
    main()
