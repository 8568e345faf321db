"""Whether an error contains secrets, anywhere in it."""

import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path
from traceback import walk_tb

TESTS = str(Path(__file__).parent.parent)


def chain(error: BaseException) -> Iterator[BaseException]:
    """Return *error* and all its causes and contexts."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        link = waiting.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            waiting += [link.__cause__, link.__context__]
            yield link


def told(error: BaseException, secrets: Iterable[str]) -> list[tuple[str, str]]:
    """Return each of the *secrets* in *error*, with the class that contains it."""
    return [
        (secret, type(link).__name__)
        for link in chain(error)
        for secret in secrets
        if _tells(link, secret)
    ]


def _tells(error: BaseException, secret: str) -> bool:
    texts = (str(error), repr(error), "\n".join(getattr(error, "__notes__", ())))
    return any(secret in text for text in texts) or secret.encode() in pickle.dumps(error)


def in_frames(error: BaseException, secrets: Iterable[str]) -> list[tuple[str, str, str]]:
    """Return each secret that a tool which prints the variables of frames would show, and where."""
    return [
        (secret, frame.f_code.co_qualname, name)
        for link in chain(error)
        for frame, _ in walk_tb(link.__traceback__)
        # What a caller calls its own variables is the caller's affair.
        if not frame.f_code.co_filename.startswith(TESTS)
        for name, value in frame.f_locals.items()
        for secret in secrets
        if secret in _shown(value)
    ]


def _shown(value: object) -> str:
    try:
        return repr(value)
    except Exception as error:  # noqa: BLE001  (of an object whose making failed)
        return type(error).__name__
