"""``python -m sitemaker TARGET``."""

import sys
from pathlib import Path

from sitemaker.site import make
from sitemaker.tree import SiteError

if len(sys.argv) != 2:
    raise SystemExit("usage: python -m sitemaker TARGET")
try:
    count = make(Path(sys.argv[1]).resolve())
except SiteError as error:
    raise SystemExit(f"the site was not made: {error}") from None
print(f"{count} pages: {sys.argv[1]}/index.html")
