"""What is wrong with a command, in the words that were typed."""

import itertools
import re
from collections.abc import Iterable
from typing import Final

from cyclopts import (
    App,
    CycloptsError,
    MissingArgumentError,
    UnknownCommandError,
    UnknownOptionError,
)
from cyclopts import UnusedCliTokensError as TooManyError
from cyclopts import ValidationError as InvalidError

from fuhu_runway import errors
from fuhu_runway._guesses import meant
from fuhu_runway._redact import redact
from fuhu_runway.models import usage_error

_OPTION: Final = re.compile(r"--?[a-z][\w-]*(=.*)?", re.IGNORECASE | re.DOTALL)
_NOT_CONVERTED: Final = re.compile(r"unable to convert (.*) into (float|datetime)\.", re.DOTALL)
_TYPES: Final = {"float": "number", "datetime": "date"}
_COMMAND: Final = re.compile(r"[a-z-]{1,20}", re.IGNORECASE)


def explained(error: CycloptsError) -> errors.UsageError:
    """Return what is wrong with the arguments, without the words that may be a prompt or a key."""
    command = " ".join(["fuhu-runway", *(error.command_chain or ())])
    tokens = error.root_input_tokens or ()
    text = _NOT_CONVERTED.sub(lambda found: f"{found[1]} is not a {_TYPES[found[2]]}.", str(error))
    match error:
        case TooManyError() | UnknownOptionError() if "--" in tokens:
            text = "There are too many arguments after --. Put options before it."
        case TooManyError():
            text = "There are too many arguments. Put a prompt of several words in quotes."
        case UnknownCommandError(unused_tokens=[word, *_]) if not _COMMAND.fullmatch(word):
            text = text.replace(f' "{word}"', "", 1)
        case UnknownOptionError(token=token) if _is_prompt(token.keyword or token.value, tokens):
            text = "Use -- before a prompt that begins with -, and options before that."
        case UnknownOptionError(token=token, argument_collection=arguments):
            options = {_bare(name): name for argument in arguments for name in argument.names}
            wrong = (token.keyword or token.value).partition("=")[0]
            right = meant(_bare(wrong), options)
            text = f"Unknown option: {wrong}. Did you mean {options[right]}?" if right else text
        case MissingArgumentError(argument=argument) if argument:
            typed = set(tokens) & set(argument.names)
            # In capitals, as in the help, even if it may be given as an option as well.
            positional = argument.index is not None
            name = argument.field_info.name.upper() if positional else argument.name
            text = f"{typed.pop()} needs a value." if typed else f"{name} is missing."
        case InvalidError(argument=argument) if argument and argument.tokens:
            token = argument.tokens[0]
            name = token.keyword or argument.name
            text = f'Invalid value "{token.value}" for {name}. {error.exception_message}'
    # Prompts, and URLs with a password.
    parts = [part for word in tokens for part in (word, word.partition("=")[2])]
    private = [part for part in parts if " " in part or "@" in part]
    return usage_error("command", redact(text, private), f"See {command} --help")


def _bare(option: str) -> str:
    return option.lstrip("-").replace("-", "_")


def _is_prompt(option: str, tokens: Iterable[str]) -> bool:
    # cyclopts splits "-a kitten" into flags, and may name only the first one.
    starts = {word.split()[0] for word in tokens if " " in word.strip()}
    return option in starts or not _OPTION.fullmatch(option)


def name_as_typed(error: errors.RunwayError, command: App) -> None:
    """Replace the names of Python's arguments in *error* with the options of *command*."""
    options = {
        argument.keys[-1] if argument.keys else argument.field_info.name: argument.name
        for argument in command.assemble_argument_collection()
        if argument.name.startswith("--")
    }
    names = {name for name in options if "_" in name}
    error.advice = _replaced(error.advice, names, options).replace("overwrite=True, or ", "")
    # Other names are also plain words, such as image, where they are not the subject.
    names |= options.keys() & set(re.findall(r"\A\w+", error.happened))
    error.happened = _replaced(error.happened, names, options)


def _replaced(text: str, names: Iterable[str], options: dict[str, str]) -> str:
    for name in names:
        text = re.sub(rf"(?<![\w-]){name}(?![\w-])", options[name], text)
    return text


def wants_json(tokens: Iterable[str]) -> bool:
    """Return whether --json is among the options."""
    return "--json" in itertools.takewhile("--".__ne__, tokens)
