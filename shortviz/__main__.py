"""Runs the command line for `python -m shortviz`."""

from shortviz.cli.main import main

if __name__ == "__main__":
    main()
