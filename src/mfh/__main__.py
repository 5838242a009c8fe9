"""`python -m mfh` is the command line."""

from mfh.cli.commands import main

if __name__ == "__main__":
    main()
