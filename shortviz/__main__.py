"""`python -m shortviz` is `shortviz`."""

from shortviz.cli import main

if __name__ == "__main__":
    main()
