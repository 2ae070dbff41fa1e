"""What a scope saw: its records and findings as a page."""

from normscope.seen._findings import checked as checked
from normscope.seen._page import write as write
