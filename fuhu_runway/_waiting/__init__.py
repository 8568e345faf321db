"""Waiting for tasks: polls, intervals, and the list of unfinished tasks."""
