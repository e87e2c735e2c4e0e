"""TODO tests/support/command.py."""

Outcome = tuple[int, str, str]


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]
