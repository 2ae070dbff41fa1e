"""Text for LaTeX, held to a reader of its own: what is read back is what was written, and nothing is a command."""

import re

import pytest
from hypothesis import example, given, strategies as st

from normscope.comparing.latex import booktabs, escaped

COMMANDS = {
    r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^", r"\textless{}": "<",
    r"\textgreater{}": ">", r"\textbar{}": "|", r"\symbol{34}": '"', r"\symbol{96}": "`", "{[}": "[", "{]}": "]",
    "{*}": "*", "~": "\u00a0",
}  # fmt: skip
TOKEN = re.compile(
    r"(?P<nothing>\{\})"
    r"|(?P<escape>\\[{}$&#%_])"
    r"|(?P<maths>\\ensuremath\{(?:\\[A-Za-z]+|\\\||-|\^[0-9]|\^\\circ)\})"
    r"|(?P<number>\{\[\}U\+(?P<code>[0-9A-F]{4,6})\{\]\})"
    r"|(?P<command>\\text[a-z]+\{\}|\\symbol\{\d+\}|\{[\[\]*]\}|~)"
    r"|(?P<accent>\\[`'^~=.\"urHvc]\{[A-Za-z]\})"
    r"|(?P<letter>\\(?:ss|o|O|ae|AE|oe|OE|aa|AA|l|L|i|ldots|S)\{\})"
    r"|(?P<plain>[A-Za-z0-9 !'()+,./:;=?@-])"
)


def tokens(text):
    """Return the tokens of a text; a sign that LaTeX would take for something else fails."""
    found, at = [], 0
    while at < len(text):
        match = TOKEN.match(text, at)
        assert match, f"not to be set as it reads: {text[at : at + 20]!r}"
        found += [] if match["nothing"] else [match]
        at = match.end()
    return found


def read(match):
    if match["code"]:
        return chr(int(match["code"], 16))
    if match["escape"]:
        return match[0][1]
    return COMMANDS.get(match[0], match[0])


@given(st.text(st.characters(codec="ascii", categories=("L", "N", "P", "S", "Zs"))))
@example(r"100 % of a_b & c#d {e} ~f ^g \h $i$ <j> |k| [l] *m* `n` 'o'' p-- --- ,, ")
def test_ascii_is_read_back_as_it_was(text):
    assert "".join(map(read, tokens(escaped(text)))) == text


@given(st.text())
@example("p-- --- o'' ,,")
@example("×−Ωé\u00a0中🎉ﬁ\x00\t\n")
def test_any_text_is_ascii_in_which_nothing_is_a_command(text):
    found = escaped(text)
    assert all(" " <= sign <= "~" for sign in found)
    tokens(found)
    for pair in ("--", "''", ",,"):
        assert pair not in found  # would be set as one sign
    assert found.count("{") - found.count(r"\{") == found.count("}") - found.count(r"\}")


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("×1.83", r"\ensuremath{\times}1.83"),
        ("−0.5", r"\ensuremath{-}0.5"),
        ("g² ≤ λ", r"g\ensuremath{^2} \ensuremath{\le} \ensuremath{\lambda}"),
        ("é", r"\'{e}"),
        ("e\u0301", r"\'{e}"),  # the same letter, written as two
        ("Weiß", r"Wei\ss{}"),
        ("–", r"\textendash{}"),
        ("中", "{[}U+4E2D{]}"),
        ("a\nb\tc", "a b c"),
    ],
)
def test_signs_and_letters(text, made):
    assert escaped(text) == made


def test_the_reader_would_catch_what_is_not_escaped():
    for text in ("50%", "a&b", "a_b", "#", "$", "{", r"\input{x}", "^", "[", "<", '"', "×"):
        with pytest.raises(AssertionError):
            tokens(text)


def test_every_row_has_as_many_cells_as_columns_whatever_they_hold():
    rows = [("a & b", r"c \\ d"), ("% e", "[2cm]"), ("* f", "é × 中")]
    table = booktabs(("First", "Second"), rows, "lr", comments=["a\nb % \\end{tabular} ×"])
    lines = table.splitlines()
    assert lines[:2] == [r"% a b % \end{tabular} ?", r"{\small\begin{tabular}{lr}"]
    assert lines[2::2][:1] == [r"\toprule"]
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}}"]
    body = lines[3:4] + lines[5:-2]
    assert len(body) == 1 + len(rows)
    for line, row in zip(body, (("First", "Second"), *rows), strict=True):
        assert line.endswith(r" \\")
        cells = re.split(r"(?<!\\)&", line.removesuffix(r" \\"))
        assert len(cells) == 2
        for cell, text in zip(cells, row, strict=True):
            seen = "".join(map(read, tokens(cell.strip())))
            assert seen.isascii() is False or seen == text
        assert not re.match(r"[\[*]", line)  # LaTeX would take it for an option of the row before


PLAIN_LATEX = """
small toprule midrule bottomrule begin end linewidth ensuremath symbol ss o O ae AE oe OE aa AA l L i ldots S u H c v r
times cdot pm le ge ne approx infty to rightleftharpoons equiv sim surd circ partial nabla in sum alpha beta gamma delta
varepsilon eta theta kappa lambda mu nu xi pi rho sigma tau varphi chi psi omega Gamma Delta Theta Lambda Sigma Phi Psi
Omega textbackslash textasciitilde textasciicircum textless textgreater textbar textendash textemdash textquoteleft
textquoteright textquotedblleft textquotedblright
"""


def columns_of(wanted):
    """Count the columns that a tabular declares: ``l``, ``c`` and ``r``, and ``p`` with its width in braces."""
    bare = re.sub(r"p\{[^{}]*\}", "p", wanted)
    assert set(bare) <= set("lcrp")
    return len(bare)


def test_a_table_is_whole_and_asks_for_nothing_but_plain_latex_and_booktabs():
    """What a compiler would stop at: an unknown command, a row of another length, braces and environments left open."""
    signs = [sign for sign in map(chr, range(0xA0, 0x2300)) if "U+" not in escaped(sign)]
    assert {"é", "ß", "×", "λ", "∞"} < set(signs)
    rows = [(sign, "\\end{tabular} & % { $", "x", "") for sign in signs]
    table = booktabs(("A", "B", "C", "D"), rows, r"p{0.38\linewidth}p{0.2\linewidth}rl", comments=["x"])
    lines = [line for line in table.splitlines() if not line.startswith("%")]
    assert set(re.findall(r"(?<!\\)\\([A-Za-z]+)", "\n".join(lines))) <= set(PLAIN_LATEX.split())
    begun = re.fullmatch(r"\{\\small\\begin\{tabular\}\{(?P<columns>.*)\}", lines[0])
    assert lines[-1] == r"\end{tabular}}"
    body = [line for line in lines[1:-1] if line not in (r"\toprule", r"\midrule", r"\bottomrule")]
    assert len(body) == 1 + len(rows)
    for line in body:
        cells = re.split(r"(?<!\\)&", line.removesuffix(r" \\"))
        assert len(cells) == columns_of(begun["columns"])
        for cell in cells:
            assert cell.count("{") - cell.count(r"\{") == cell.count("}") - cell.count(r"\}")
