"""The commands that there are, as the program itself knows them: their functions, options and parsers."""

import typing

import typer.main
import typer.models

from normscope import cli


def leaves(app, words=()):
    """Yield (words, function) for every command below a group."""
    for info in app.registered_commands:
        yield (*words, info.name or info.callback.__name__), info.callback
    for group in app.registered_groups:
        yield from leaves(group.typer_instance, (*words, group.name))


def options(function):
    """Yield (name, kind, what typer was told) for every option and argument."""
    for name, hint in typing.get_type_hints(function, include_extras=True).items():
        if name != "return":
            kind, *told = typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint, None)
            yield name, kind, told[0]


def long_name(name, told):
    """Return the long name; within Annotated, typer keeps the first name that it is given as the default."""
    names = [word for word in (told.default, *(told.param_decls or ())) if isinstance(word, str)]
    return next((word for word in names if word.startswith("--")), "--" + name.replace("_", "-"))


FUNCTIONS = dict(leaves(cli.app))
GROUPS = [(), *dict.fromkeys(words[:-1] for words in FUNCTIONS if len(words) > 1)]
OPTIONS = [
    (words, long_name(name, told), kind, told)
    for words, function in FUNCTIONS.items()
    for name, kind, told in options(function)
    if isinstance(told, typer.models.OptionInfo) and kind is not bool
]


def parser(words):
    found = typer.main.get_command(cli.app)
    for word in words:
        found = found.commands[word]
    return found


def named(words):
    return " ".join(words) or "normscope"
