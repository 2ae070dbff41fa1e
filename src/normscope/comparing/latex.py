"""Text for LaTeX: whatever it holds is set as it reads, and nothing of it is a command."""

import re
import unicodedata
from collections.abc import Sequence

_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\symbol{34}", "`": r"\symbol{96}", "[": "{[}", "]": "{]}", "*": "{*}",
}  # fmt: skip
_MATHS = {
    "×": r"\times", "−": "-", "·": r"\cdot", "±": r"\pm", "≤": r"\le", "≥": r"\ge", "≠": r"\ne", "≈": r"\approx",
    "∞": r"\infty", "→": r"\to", "⇄": r"\rightleftharpoons", "≡": r"\equiv", "∼": r"\sim", "√": r"\surd",
    "²": "^2", "³": "^3", "¹": "^1", "°": r"^\circ", "∂": r"\partial", "∇": r"\nabla", "∈": r"\in", "‖": r"\|",
    "∑": r"\sum",
    "α": r"\alpha", "β": r"\beta", "γ": r"\gamma", "δ": r"\delta", "ε": r"\varepsilon", "η": r"\eta",
    "θ": r"\theta", "κ": r"\kappa", "λ": r"\lambda", "μ": r"\mu", "µ": r"\mu", "ν": r"\nu", "ξ": r"\xi",
    "π": r"\pi", "ρ": r"\rho", "σ": r"\sigma", "τ": r"\tau", "φ": r"\varphi", "χ": r"\chi", "ψ": r"\psi",
    "ω": r"\omega", "Γ": r"\Gamma", "Δ": r"\Delta", "Θ": r"\Theta", "Λ": r"\Lambda", "Σ": r"\Sigma",
    "Φ": r"\Phi", "Ψ": r"\Psi", "Ω": r"\Omega",
}  # fmt: skip
_LETTERS = {
    "ß": r"\ss{}", "ø": r"\o{}", "Ø": r"\O{}", "æ": r"\ae{}", "Æ": r"\AE{}", "œ": r"\oe{}", "Œ": r"\OE{}",
    "å": r"\aa{}", "Å": r"\AA{}", "ł": r"\l{}", "Ł": r"\L{}", "ı": r"\i{}", "–": r"\textendash{}",
    "—": r"\textemdash{}", "…": r"\ldots{}", "‘": r"\textquoteleft{}", "’": r"\textquoteright{}",
    "“": r"\textquotedblleft{}", "”": r"\textquotedblright{}", "§": r"\S{}", "\u00a0": "~",
}  # fmt: skip
_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": ".",
    "\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0327": "c",
}  # fmt: skip
_LIGATURES = re.compile(r"(?<=([-',]))(?=\1)")  # two of these would be set as one sign


def escaped(text: str) -> str:
    """Write a text so that LaTeX sets it as it reads, with nothing beyond ASCII.

    Signs of mathematics become formulas, accented letters commands; a letter that plain LaTeX has no sign for is
    written by its number, ``[U+4E2D]``. Lines and tabs become spaces.
    """
    return _LIGATURES.sub("{}", "".join(map(_sign, unicodedata.normalize("NFC", text))))


def _sign(sign: str) -> str:
    """Write one character."""
    if sign in _SPECIAL:
        return _SPECIAL[sign]
    if " " <= sign <= "~":
        return sign
    if sign.isspace() and sign not in _LETTERS:
        return " "
    if sign in _MATHS:
        return f"\\ensuremath{{{_MATHS[sign]}}}"
    if sign in _LETTERS:
        return _LETTERS[sign]
    base, *accents = list(unicodedata.normalize("NFD", sign))
    if len(accents) == 1 and accents[0] in _ACCENTS and base.isascii() and base.isalpha():
        return f"\\{_ACCENTS[accents[0]]}{{{base}}}"
    return f"{{[}}U+{ord(sign):04X}{{]}}"


def booktabs(heads: Sequence[str], rows: Sequence[Sequence[str]], columns: str, *, comments: Sequence[str] = ()) -> str:
    r"""Return a table of the package ``booktabs`` in small letters, to be read by ``\input``.

    Args:
        heads: Heads of the columns.
        rows: Text of the cells; all is escaped.
        columns: The columns as LaTeX takes them: ``"lrl"``.
        comments: Lines before the table, which LaTeX does not read.
    """
    said = [f"% {' '.join(comment.split()).encode('ascii', 'replace').decode()}" for comment in comments]
    lines = [" & ".join(map(escaped, row)) + r" \\" for row in (heads, *rows)]
    head, *body = lines
    begun, ended = rf"{{\small\begin{{tabular}}{{{columns}}}", r"\end{tabular}}"
    return "\n".join([*said, begun, r"\toprule", head, r"\midrule", *body, r"\bottomrule", ended, ""])
