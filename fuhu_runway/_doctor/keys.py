"""Whether a text looks like a key. Pure functions."""

import re
from contextlib import suppress
from typing import Final

from fuhu_runway._arguments import KEY_VARIABLE, checked_key
from fuhu_runway.errors import UsageError

from .findings import Finding, Verdict

COPY: Final = "Copy it again from the gateway's page."
_FAULTS: Final = (
    (r"[*…]|\.\.\.", "A part of the key is masked with dots or stars.", COPY),
    (r"[<>{}]|^(?:sk-)?(?:your|my)[_-]", "The key is a placeholder.", COPY),
    (rf"^(?:export\b|{KEY_VARIABLE})", "The key begins with the variable's name.", "Remove that."),
    ("^[\"'`]|[\"'`]$", "The key has quotes around it.", "Remove the quotes."),
    ("^authorization", "The key begins with the name of the header.", "Remove that."),
    ("^bearer", "The key begins with 'Bearer', which is added to it.", "Use the key alone."),
    (r"\s", "The key has spaces or line breaks.", "Remove them, also at its end."),
    ("^sk-sk-", "The key begins with 'sk-' twice.", "Remove one of them."),
    (r"[^!-~]", "The key has a character that no header can carry.", COPY),
    (r"^.{1,7}$", "The key is shorter than any known key.", COPY),
)
"""Patterns that no key matches, what each shows, and what to change; the first counts."""
_AROUND: Final = re.compile(
    rf"^(?:export\s|{KEY_VARIABLE}\s*=|authorization\s*:|bearer(?:\s|$)|[\"'`\s])+|[\"'`\s]+$",
    re.IGNORECASE,
)


def examined_key(key: str | None) -> tuple[str | None, Finding]:
    """Return the key without what does not belong to it, or None, and what is wrong with it."""
    if key is None or not key.strip():
        advice = f"Set {KEY_VARIABLE}, or use --api-key-file, or api_key in Python."
        return None, Finding("key", Verdict.MISFIT, "There is no key.", advice)
    faults = [
        (found, advice)
        for pattern, found, advice in _FAULTS
        if re.search(pattern, key, re.DOTALL | re.IGNORECASE)
    ]
    if not faults:
        start = "begins" if key.startswith("sk-") else "does not begin"
        found = f"It has {len(key)} characters and {start} with 'sk-'."
        return key, Finding("key", Verdict.FITS, found)
    # The first fault says what to do; the others may come from the same one.
    found, advice = faults[0]
    bare = _AROUND.sub("", key)
    with suppress(UsageError):
        checked_key(bare)
        if bare != key:
            found += " The other checks are made without that."
        return bare, Finding("key", Verdict.MISFIT, found, advice)
    return None, Finding("key", Verdict.MISFIT, found, advice)
