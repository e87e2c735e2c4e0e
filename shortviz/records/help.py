"""What a field means, said once: its option's help on the command line, its widget's, its line in the docs."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Help:
    """Metadata of a request's field: `steps: Annotated[int, Help("Updates.")]`."""

    text: str
    option: str = ""
    """How the option is spelled where it is not `--name`."""
    metavar: str = ""


def spelled(name: str) -> str:
    """Return how a field is written on the command line: `--batch-size` for `batch_size`."""
    return "--" + name.replace("_", "-")
