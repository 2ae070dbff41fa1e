"""Docstrings as plain text: mathematics in signs that a terminal shows, and no markup left."""

import re

import pytest

from normscope import comparing, layers, probes, report, rules, studies
from normscope._unit import discover
from normscope.layers import AbstractLayer


@pytest.mark.parametrize(
    ("markup", "shown"),
    [
        ("$x^2$ and $x_{10}$", "x² and x₁₀"),
        ("$H^T v$, $H^\\top v$", "Hᵀ v, Hᵀ v"),
        ("$\\lambda_{max}$, $a^{i+1}$, $e^{x_1}$", "λ_max, a^(i+1), e^x₁"),
        ("$\\frac{\\gamma}{\\sigma + 1}$", "γ/(σ + 1)"),
        ("$\\overline{g}$ $\\overline{gx^2}$ $a < b$ $\\{1\\}$", "g\u0304 bar(gx²) a < b {1}"),
        ("$10^{-8}$, $e^{-\\lambda}$, $a^*$", "10⁻⁸, e^(−λ), a*"),
        ("$\\lVert H v - \\lambda v\\rVert$, $\\langle x \\rangle$", "‖H v − λv‖, ⟨x⟩"),
        ("$i\\ne j$, $i \\ne j$, $6\\cdot 10$, $\\gamma (x)$", "i≠j, i ≠ j, 6·10, γ (x)"),
        ("so\n\n$$y = \\mu,\nz$$\n\nend", "so\n\n    y = μ, z\n\nend"),
        ("``a*b*c`` `d` *e* **f** :class:`~g.H`", "`a*b*c` `d` e f `g.H`"),
        ("[text](https://a.b/c)", "text (https://a.b/c)"),
        ("costs $5 and $6, `$HOME/$USER`", "costs $5 and $6, `$HOME/$USER`"),
        ("- $x$\n  more\n\n    code", "- x\n  more\n\n    code"),
    ],
)
def test_a_terminal_shows_signs(markup, shown):
    assert report.terminal(markup) == shown


FUNCTIONS = {"log", "ln", "max", "min", "exp", "cos", "sin", "tanh", "det", "sup", "inf", "lim", "arg", "arccos"}


def units():
    yield from studies.all()
    yield from rules.all()
    yield from probes.all()
    yield from discover(layers, AbstractLayer)
    yield from comparing.all_questions()


def test_no_unit_shows_markup_in_a_terminal():
    for unit in units():
        for text in (unit.title(), *unit.page().values()):
            shown = report.terminal(text)
            code = re.compile(r"```.*?```|`[^`]*`|^ {4,}.*?$", re.DOTALL | re.MULTILINE)  # stands as it was written
            left = re.findall(r"\$|``|\\[A-Za-z]+|:[a-z]+:|</?su[bp]>|<span|\u0305", shown)
            left += re.findall(r"[\\{}]", code.sub("", shown))
            assert not left, f"{unit.CODE}: {left}"


def test_every_command_of_a_formula_has_a_sign():
    for unit in units():
        for text in (unit.title(), *unit.page().values()):
            for formula in re.findall(r"\$\$?([^$]+)\$\$?", text):
                commands = set(re.findall(r"\\([A-Za-z]+)", formula)) - FUNCTIONS
                named = [name for name in commands if name in report.terminal(f"$\\{name}{{x}}{{y}}$")]
                assert not named, f"{unit.CODE}: {named} of ${formula}$"
