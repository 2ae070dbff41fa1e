"""Print the figures of the house: lines, long functions and files, circles, private names, concepts.

python tests/house/figures.py [CHECKOUT]
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1]))

from kit.house import House  # noqa: E402

if __name__ == "__main__":
    for name, value in House(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parents[2]).figures().items():
        print(f"{name:48} {' / '.join(map(str, value)) if isinstance(value, tuple) else value}")
