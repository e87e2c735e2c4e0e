"""Reading what a command printed."""

Outcome = tuple[int, str, str]


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]
