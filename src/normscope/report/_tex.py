r"""TeX of docstrings as readable signs, superscripts and subscripts: ``\frac{\gamma}{\sigma}`` becomes ``γ/σ``."""

import re
from collections.abc import Iterator
from itertools import pairwise

from markupsafe import Markup, escape

_SIGNS = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "varepsilon": "ε", "eta": "η", "theta": "θ",
    "kappa": "κ", "lambda": "λ", "mu": "μ", "nu": "ν", "xi": "ξ", "pi": "π", "rho": "ρ", "sigma": "σ", "tau": "τ",
    "phi": "φ", "varphi": "φ", "chi": "χ", "psi": "ψ", "omega": "ω", "Gamma": "Γ", "Delta": "Δ", "Theta": "Θ",
    "Lambda": "Λ", "Sigma": "Σ", "Phi": "Φ", "Psi": "Ψ", "Omega": "Ω", "nabla": "∇", "partial": "∂", "sum": "Σ",
    "prod": "∏", "int": "∫", "infty": "∞", "times": "×", "cdot": "·", "odot": "⊙", "otimes": "⊗", "pm": "±",
    "le": "≤", "leq": "≤", "ge": "≥", "geq": "≥", "ne": "≠", "neq": "≠", "approx": "≈", "sim": "∼", "propto": "∝",
    "equiv": "≡", "to": "→", "rightarrow": "→", "mapsto": "↦", "in": "∈", "langle": "⟨", "rangle": "⟩", "ell": "ℓ",
    "leftarrow": "←", "Rightarrow": "⇒", "iff": "⇔", "ll": "≪", "gg": "≫", "notin": "∉", "subset": "⊂", "cup": "∪",
    "cap": "∩", "circ": "∘", "ast": "*", "star": "⋆", "prime": "′", "perp": "⊥", "forall": "∀", "exists": "∃",
    "lfloor": "⌊", "rfloor": "⌋", "lceil": "⌈", "rceil": "⌉", "zeta": "ζ", "iota": "ι", "upsilon": "υ", "Xi": "Ξ",
    "Pi": "Π", "Upsilon": "Υ", "mp": "∓", "div": "÷", "neg": "¬",
    "top": "ᵀ", "mid": "|", "ldots": "…", "dots": "…", "cdots": "…", "quad": "  ", "qquad": "   ", "lVert": "‖",
    "rVert": "‖", "Vert": "‖", "|": "‖", "lvert": "|", "rvert": "|", "left": "", "right": "", "big": "", "Big": "",
    "bigl": "", "bigr": "", "Bigl": "", "Bigr": "", "limits": "", "displaystyle": "", "\\": " ", "{": "{", "}": "}",
    ",": " ", ";": " ", ":": " ", "!": "", " ": " ", "%": "%", "_": "_", "#": "#", "&": "&",
}  # fmt: skip
_ACCENTS = {
    "hat": "\u0302", "widehat": "\u0302", "bar": "\u0304", "overline": "\u0304", "tilde": "\u0303", "dot": "\u0307",
    "vec": "\u20d7",
}  # fmt: skip
_PLAIN = {"mathrm", "mathbf", "mathcal", "mathbb", "text", "operatorname", "boldsymbol", "mathit", "textrm"}
_OPENING = {"lVert", "lvert", "langle", "lfloor", "lceil", "nabla", "partial", "left"}  # close to what follows them
_CLOSING = {"rVert", "rvert", "rangle", "rfloor", "rceil"}  # close to what stands before them
_BETWEEN = set("±∓×·⊙⊗∘÷≤≥≠≈∼∝≡→←↦⇒⇔≪≫∈∉⊂∪∩|")  # as far from one side as from the other
_TOKEN = re.compile(r"\\([A-Za-z]+|.)|([{}^_&])|(\s+)|(.)", re.DOTALL)
_SUPERSCRIPTS = dict(zip("0123456789T−", "⁰¹²³⁴⁵⁶⁷⁸⁹ᵀ⁻", strict=True))
_SUBSCRIPTS = dict(zip("0123456789", "₀₁₂₃₄₅₆₇₈₉", strict=True))
_NUMBER = re.compile(r"−?\d+")
_APART = re.compile(r"^[ ]*\$\$(.+?)\$\$[ ]*(?:\n|\Z)", re.MULTILINE | re.DOTALL)
_SCRIPT = re.compile(r"<(sup|sub)>((?:(?!</?su[pb]>).)*)</\1>", re.DOTALL)
_OVER = re.compile(r'<span class="over">([^<]*)</span>')
_TERMS = re.compile(r"[+−\s·×]")


def mathematics(source: str) -> Markup:
    """Write TeX as HTML; what is not understood stands as it was written."""
    tokens = _spaced([match[0] for match in _TOKEN.finditer(source.strip())])
    parts = []
    position = 0
    while position < len(tokens):  # a closing brace too many ends a group, not the text
        group, position = _group(tokens, position)
        parts.append(group)
        position += 1
    return Markup('<span class="math">{}</span>').format(Markup("").join(parts))


def _spaced(tokens: list[str]) -> list[str]:
    """Leave out the spaces that TeX asks for behind a command and no reader wants to see."""
    kept: list[str] = []
    for token, following in pairwise([*tokens, ""]):
        if not (token.isspace() and kept and _idle_space(kept, following)):
            kept.append(token)
    return kept


def _idle_space(before: list[str], following: str) -> bool:
    """Say whether a space between tokens only ends the name of a command."""
    command = before[-1][1:] if before[-1].startswith("\\") else ""
    sign = _SIGNS.get(command, "")
    if command in _OPENING or following[1:] in _CLOSING:
        return True
    if sign in _BETWEEN:
        return len(before) > 1 and not before[-2].isspace()
    return len(sign) == 1 and sign.isalpha() and command != "top" and following.isalnum()


def _group(tokens: list[str], position: int) -> tuple[Markup, int]:
    """Write tokens up to the brace that closes the group, and return where it is."""
    out = Markup("")
    while position < len(tokens) and tokens[position] != "}":
        shown, position = _one(tokens, position)
        out += shown
    return out, position


def _one(tokens: list[str], position: int) -> tuple[Markup, int]:
    """Write the token at a position, with what belongs to it, and return where the next begins."""
    token, position = tokens[position], position + 1
    if token == "{":
        group, position = _group(tokens, position)
        return group, position + 1
    if token in "^_":
        shown, position = _argument(tokens, position)
        return Markup("<{0}>{1}</{0}>").format(Markup("sup" if token == "^" else "sub"), shown), position
    if not token.startswith("\\"):
        return escape({"&": "", "-": "−"}.get(token, " " if token.isspace() else token)), position
    name = token[1:]
    if name in {"frac", "dfrac", "tfrac"}:
        above, position = _argument(tokens, position)
        below, position = _argument(tokens, position)
        return Markup("{}/{}").format(_bracketed(above), _bracketed(below)), position
    if name == "sqrt":
        shown, position = _argument(tokens, position)
        return Markup("√({})").format(shown), position
    if name in _ACCENTS:
        shown, position = _argument(tokens, position)
        return _accented(name, shown), position
    if name in _PLAIN:
        return _argument(tokens, position)
    return escape(_SIGNS.get(name, name)), position


def _argument(tokens: list[str], position: int) -> tuple[Markup, int]:
    """Write the argument of a command: the next token that is no space, or the group that it opens."""
    while position < len(tokens) and tokens[position].isspace():
        position += 1
    if position >= len(tokens) or tokens[position] == "}":
        return Markup(""), position
    return _one(tokens, position)


def _accented(name: str, shown: Markup) -> Markup:
    """Put an accent over one letter; over more, a line."""
    if len(shown) == 1:
        return shown + Markup(_ACCENTS[name])
    return Markup('<span class="over">{}</span>').format(shown) if shown else shown


def _bracketed(side: Markup) -> Markup:
    """Put a side of a fraction in brackets where it has more than one term."""
    bare = re.sub(r"<[^>]*>", "", str(side)).strip()
    return Markup("({})").format(side) if _TERMS.search(bare) else Markup(str(side).strip())


def formulas(text: str) -> Iterator[str]:
    """Yield a text in parts: prose, then by turns the TeX of a formula set apart (``$$...$$``) and prose."""
    for number, part in enumerate(_APART.split(text.expandtabs(4))):
        yield " ".join(part.split()) if number % 2 else part


def plain(source: str) -> str:
    """Write TeX as plain text for a terminal: signs of Unicode, ``x²``, ``λ_max``, ``a^(i,j)``, ``bar(xy)``."""
    shown = str(mathematics(source))
    while (bare := _SCRIPT.sub(_script, shown)) != shown:  # the innermost first
        shown = bare
    # Terminals draw a line over several letters in pieces, and lose it over a superscript.
    lined = _OVER.sub(r"bar(\1)", shown)
    return " ".join(Markup(re.sub(r"<[^>]*>", "", lined)).unescape().split())


def _script(match: re.Match[str]) -> str:
    """Write a superscript or subscript by letters of Unicode, else behind ``^`` or ``_``."""
    kind, body = match[1], Markup(match[2]).striptags()
    letters = _SUPERSCRIPTS if kind == "sup" else _SUBSCRIPTS
    if (body in letters or _NUMBER.fullmatch(body)) and all(sign in letters for sign in body):
        return "".join(letters[sign] for sign in body)
    if kind == "sup" and body in ("ᵀ", "*", "′", "⋆"):
        return body
    sign = "^" if kind == "sup" else "_"
    return str(escape(f"{sign}{body}" if body.isalnum() else f"{sign}({body})"))
