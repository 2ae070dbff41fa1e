"""What ``normscope`` alone prints: the four things that one can do, above the list of commands."""

from normscope.cli._print import print_lines

#: What can be done, and the command that does it; the commands of a line are joined by ``&&``.
TASKS = (
    ("Compare your network with its norms and without them", "normscope compare train.py:make_case"),
    ("Check a model and its training for defects of normalization", "normscope check train.py:make_case"),
    ("Watch a training in the browser while it runs", "normscope watch runs/mine --open"),
    ("Study a published claim about batch normalization", "normscope study run fewer-iterations"),
)


def print_start(commands: str) -> None:
    """Print the four things that one can do, each with a command, and then the commands.

    Args:
        commands: The help that lists all commands.
    """
    lines = ["Four things to do:", ""]
    for task, command in TASKS:
        lines += [f"  {task}:", f"      {command}"]
    script = "`normscope example > train.py` writes a training script to begin with; `normscope demo` needs no script."
    print_lines(*lines, "", script, "", *commands.splitlines())
