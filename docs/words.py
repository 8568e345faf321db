"""Find words in docstrings, comments and pages that this project has better ones for."""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent

#: What not to write, and what to write in its place or why not.
WORDS: Final = {
    r"whoever": "name the caller, the user, the task",
    r"so many": "give the number, or name it",
    r"in the air": "in flight",
    r"noes": "refusals",
    r"l(ies|ay|ie) about": "waits, expires; say for how long",
    r"anew": "again",
    r"for ever": "forever, without end",
    r"as ever": "as usual",
    r"nobody|somebody|anybody|everybody": "name the user, the caller, the program",
    r"can be had": "can be fetched, can be returned",
    r"is as good as": "counts as",
    r"heard|hears": "received, recorded",
    r"indiscre(et|tions?)": "leaks, quotes",
    r"looks at (it|them|a task|the task|its task)": "polls",
    r"errands?": "actions, work",
    r"purse": "budget",
    r"take note": "record",
    r"see to it": "say what the code does",
    r"deliver(y|ies)": "webhook",
    r"unless told otherwise": "by default",
    r"told (once|a|the|of)": "reported, named",
    r"it is told|was told|is told|are told": "is reported, is raised, is set",
}
#: What not to write on a page, besides.
PAGE_WORDS: Final = {
    r"told|hear": "report, record, learn",
    r"look(s|ed)? at (a|the|its) task": "poll",
    r"(in|from) the books": "in the journal, in the store",
}
#: How no docstring begins: with the verb a Python programmer expects instead.
OPENINGS: Final = {
    r"Gives?": "Return",
    r"Tells?": "Return, or Report",
    r"Have": "say what the call does",
    r"Says?": "Return, or Report",
}
#: A page that quotes the gateways, and this list itself.
EXEMPT: Final = {ROOT / "docs/reference/api-facts.md", Path(__file__).resolve()}


def texts(path: Path) -> Iterator[tuple[int, str, bool]]:
    """Yield each piece of prose in a file: its line, its text, and whether it is a docstring."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        # Tables that are generated have the words of the docstrings, which are checked there.
        blocks = re.compile(
            r"^```.*?^```$|^<!-- generated: .*?<!-- end -->$", re.DOTALL | re.MULTILINE
        )
        prose = blocks.sub(lambda block: "\n" * block[0].count("\n"), source)
        for number, line in enumerate(prose.splitlines(), 1):
            yield number, re.sub(r"`[^`]*`", "", line), False
        return
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string, False
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            if docstring is not None:
                yield node.body[0].lineno, docstring, not isinstance(node, ast.Module)


def found(path: Path) -> Iterator[str]:
    """Yield a line for each word in a file that has a better one."""
    name = path.relative_to(ROOT).as_posix()
    is_page = path.suffix == ".md"
    words = WORDS | PAGE_WORDS if is_page and path.name != "CHANGELOG.md" else WORDS
    for number, text, is_docstring in texts(path):
        for word, instead in words.items():
            for hit in re.finditer(rf"\b({word})\b", text, re.IGNORECASE):
                at = number + text.count("\n", 0, hit.start())
                yield f"{name}:{at}: {hit[0]!r}: {instead}"
        for word, instead in OPENINGS.items():
            opening = re.match(rf"\s*({word})\b", text) if is_docstring else None
            if opening:
                yield f"{name}:{number}: a docstring begins with {opening[1]!r}: {instead}"


def main() -> None:
    """Print what was found, and exit with 1 if there is any."""
    paths = [
        *ROOT.glob("fuhu_runway/**/*.py"),
        *ROOT.glob("tests/**/*.py"),
        *ROOT.glob("docs/*.py"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("*.md"),
        ROOT / "noxfile.py",
    ]
    hits = [
        hit
        for path in sorted({*paths} - EXEMPT)
        if "_build" not in path.parts
        for hit in found(path)
    ]
    print(*hits, sep="\n", file=sys.stderr)
    sys.exit(bool(hits))


if __name__ == "__main__":
    main()
