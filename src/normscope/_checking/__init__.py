"""``normscope check``: what joins the rules, the user's own code and the formats in which findings are said."""

from normscope._checking.command import register as register
