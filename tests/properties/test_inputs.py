"""Properties of every input file."""

import contextlib
import json
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from properties.strategies import BODIES, JSON_VALUES, texts

from fuhu_runway.errors import UsageError
from fuhu_runway.inputs import KINDS, READERS, check_items, read_items
from fuhu_runway.items import Item

NAMES = st.sampled_from(
    [
        *("prompt", "Prompt ", "image", "video", "seconds", "ratio", "seed", "motion.x", "motion"),
        *("kind", "custom_id", "extra", "flip", "model", "notes", ""),
    ]
)
VALUES = JSON_VALUES | st.sampled_from([*KINDS, "https://example.com/1", "TRUE", "5.0", "1E400"])
TABLES = st.builds(
    lambda rows, delimiter: "\n".join(delimiter.join(row) for row in rows).encode(),
    st.lists(st.lists(NAMES | texts(max_size=8) | VALUES.map(json.dumps), max_size=5), max_size=5),
    st.sampled_from(",;\t"),
)
OBJECTS = st.builds(
    lambda entries: "\n".join(map(json.dumps, entries)).encode(),
    st.lists(st.dictionaries(NAMES, VALUES, max_size=5) | VALUES, max_size=5),
)


@given(st.sampled_from(sorted(READERS)), TABLES | OBJECTS | BODIES | st.binary())
def test_every_file_gives_items_or_a_usage_error(ending: str, content: bytes) -> None:
    """Reading and checking a file returns items or raises a UsageError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"a{ending}")
        path.write_bytes(content)
        skipped: list[UsageError] = []
        try:
            items = list(read_items(path, skip_bad=skipped.append))
        except UsageError:
            items = []
        assert all(isinstance(item, Item) for item in items)
        with contextlib.suppress(UsageError):
            assert check_items(path) == len(items)
            assert not skipped
