"""`python -m shortviz` is `shortviz`."""

from shortviz.cli.main import main

if __name__ == "__main__":
    main()
