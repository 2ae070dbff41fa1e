"""What a scope saw: its records and findings in sentences, on a page, in a notebook, and as a program reads them."""

from normscope.seen._document import document as document
from normscope.seen._facts import (
    CellFacts as CellFacts,
    Seen as Seen,
    in_memory as in_memory,
    is_scope as is_scope,
    read as read,
    read_facts as read_facts,
)
from normscope.seen._findings import checked as checked, facts_of as facts_of
from normscope.seen._page import html_page as html_page, page_of as page_of, write as write
from normscope.seen._sentences import (
    Said as Said,
    quiet as quiet,
    sentences_by_cell as sentences_by_cell,
    stands_out as stands_out,
)
from normscope.seen._words import html_of as html_of, summary_of as summary_of
