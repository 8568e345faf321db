"""The rules of a journal, as values, statements and pure functions, and its SQLite file."""
