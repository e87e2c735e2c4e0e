"""The public names are really there, and a missing one is said to be missing."""

import subprocess
import sys

import pytest

import shortviz


@pytest.mark.parametrize("name", sorted(shortviz.__all__))
def test_every_public_name_can_be_imported(name):
    value = getattr(shortviz, name)
    assert name == "__version__" or value.__name__.rpartition(".")[2] == name
    assert name in dir(shortviz)


def test_every_public_function_and_class_says_what_it_is():
    """A dataclass without a docstring is given its signature for one."""
    words = {name: getattr(shortviz, name).__doc__ or "" for name in shortviz.__all__ if name != "__version__"}
    assert [name for name, said in words.items() if not said or said.startswith(f"{name}(")] == []


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'shortviz' has no attribute 'nonsense'"):
        _ = shortviz.nonsense


def test_importing_the_package_does_no_work():
    program = "import shortviz, sys; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"
