"""`python -m service.cli` is `bptt`."""

from service.cli.main import main

if __name__ == "__main__":
    main()
