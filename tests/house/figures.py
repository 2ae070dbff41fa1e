"""Print the figures of the house: lines, long functions and files, circles, private names, concepts.

python tests/house/figures.py [CHECKOUT]
python tests/house/figures.py --debts > tests/house/debts.toml   # after something was mended
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1]))

from kit.house import House  # noqa: E402

HEAD = (
    "# What breaks a wall of the house today. The lists may only shrink: a mended line must go, no line may be added.\n"
)


def debts(house):
    """Return ``debts.toml`` as it must be for what breaks a wall now."""
    import test_walls as walls

    lines = [HEAD]
    files = len({use.path for use in house.private_in_tests()})
    if files > walls.FILES_WITH_PRIVATE_NAMES:
        lines.append(f"files_with_private_names = {files}\n")
    for name, present in walls.present(house).items():
        lines.append(
            f"{name} = [" + "".join(f'\n    "{item}",' for item in sorted(present)) + "\n" * bool(present) + "]\n"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:] == ["--debts"]:
        print(debts(House(HERE.parents[2])), end="")
    else:
        for name, value in House(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parents[2]).figures().items():
            print(f"{name:48} {' / '.join(map(str, value)) if isinstance(value, tuple) else value}")
