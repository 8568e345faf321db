"""The public names: complete, sorted, and from public modules."""

import importlib
import importlib.metadata
import inspect

import pytest

import fuhu_runway


def in_order(name: str) -> tuple[bool, bool, str]:
    """Sort constants before classes, and both before modules and functions."""
    return not name.isupper(), not name[0].isupper(), name


def test_names_are_sorted() -> None:
    """`__all__` is sorted, without duplicates."""
    assert list(fuhu_runway.__all__) == sorted(set(fuhu_runway.__all__), key=in_order)


@pytest.mark.parametrize("name", fuhu_runway.__all__)
def test_each_name_resolves(name: str) -> None:
    """Each name of `__all__` exists, and is the same object each time."""
    assert getattr(fuhu_runway, name) is getattr(fuhu_runway, name)


def has_a_home(name: str) -> bool:
    """Return whether a value is a class or a function, which have a module."""
    thing = getattr(fuhu_runway, name)
    return inspect.isclass(thing) or inspect.isfunction(thing)


@pytest.mark.parametrize("name", list(filter(has_a_home, fuhu_runway.__all__)))
def test_each_name_is_from_a_public_module(name: str) -> None:
    """The `__module__` of a class or function is where a user may import it from."""
    thing = getattr(fuhu_runway, name)
    assert not any(part.startswith("_") for part in thing.__module__.split("."))
    assert getattr(importlib.import_module(thing.__module__), thing.__qualname__) is thing


def test_dir_shows_the_public_names() -> None:
    """`dir(fuhu_runway)` lists the public names, also before they are imported."""
    assert set(fuhu_runway.__all__) <= set(dir(fuhu_runway))


def test_a_star_import_gives_the_public_names() -> None:
    """`from fuhu_runway import *` imports exactly `__all__`."""
    namespace: dict[str, object] = {}
    exec("from fuhu_runway import *", namespace)  # noqa: S102 - the statement itself is the subject
    assert namespace.keys() - {"__builtins__"} == set(fuhu_runway.__all__)


def test_the_version_is_that_of_the_installed_package() -> None:
    """It is read when it is asked for, and `dir` shows it."""
    assert fuhu_runway.__version__ == importlib.metadata.version("fuhu-runway")
    assert "__version__" in dir(fuhu_runway)


def test_an_unknown_name_is_an_attribute_error() -> None:
    """The error contains the misspelt name, as with any module."""
    with pytest.raises(AttributeError, match=r"'fuhu_runway'.*'Klient'"):
        fuhu_runway.Klient  # noqa: B018 - looking is enough
    assert not hasattr(fuhu_runway, "__wrapped__")
