"""The cost of the probes as text: rows for the terminal, a page in Markdown for the repository."""

from collections.abc import Mapping
from typing import Any

from normscope.bench._tables import Table, machine, markdown_table

NOTES = """\
## What bounds the costs

- *Streaming probes, mlp*: a plain step is about fifty calls into torch: 260 operations with those inside them, and 160
  calls of Python's functions. A step that is read adds 320 operations, 1900 calls of Python's functions and 2700 of
  functions in C, for 135 records. Tensors of up to 16384 numbers are copied as they pass, once for all probes, and
  reduced together when the step is over: layers of one batch size lie side by side. Of what is added, setting hooks
  costs an eighth; calling them in both passes, with copies and products of weights and gradients, a quarter; reading as
  the step ends three fifths: a sort for the percentiles (a twentieth), sums in float64, and some hundred operations of
  NumPy on few numbers. No cause stands out, and calls bound it, not numbers: with layers a tenth as wide and a quarter
  of the batch it adds six tenths as much. Most reductions take half as long when they are called again at once, which
  points to what has left the processor's caches between steps. With six blocks in place of three a step that is read
  takes 3.2 plain steps in place of 3.1.
- *Streaming probes, vgg*: every layer's output, and every norm's output gradient, is read from memory once (sums,
  squares and maxima on pieces that stay in the cache). The sums of the gradient, and of its product with the input,
  are those that batch norm's own backward pass has made.
- *9 points with gradients*: nine forward and backward passes and the step's own; they are bound by the arithmetic, and
  each is a plain step without the update. Ten is the floor on one thread.
- *Losses alone*: nine forward passes at .4 of a plain step each, and the step's own.
- *covariate_shift*: a pass of the updated prefix, and for each layer the old suffix from there on, forward and back.
- *Top eigenvalue*: a Hessian-vector product is a second backward pass through the first, 2 to 3.5 plain steps; from a
  random start 9 to 13 are needed on these untrained models, near the last eigenvector 5.
"""

COLUMNS = ("what is attached", "model", "cost", "quartiles", "at most", "holds")

PEER_COLUMNS = ("other tools here, at every step", "model", "cost", "quartiles", "trace")


def rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the measured table, case by case: one tuple of ``COLUMNS`` for each case and model."""
    cases = list(dict.fromkeys(cost["case"] for cost in result["costs"]))
    ordered = sorted(result["costs"], key=lambda cost: cases.index(cost["case"]))
    return [
        (
            cost["case"],
            cost["model"],
            _ratio(cost["ratio"]),
            f"{_ratio(cost['low'])} to {_ratio(cost['high'])}",
            _bound(cost),
            _bytes(cost["held"]),
        )
        for cost in ordered
    ]


def conditions(result: Mapping[str, Any]) -> str:
    """Return a sentence on the machine, its load, and the one thread that was timed."""
    return machine(result, "one thread")


def terminal(result: Mapping[str, Any]) -> list[Table]:
    """Return the tables for the terminal: the probes, and other tools."""
    tables: list[Table] = [(COLUMNS, rows(result)), (("other tools", "mlp", "vgg", "trace, conduct"), _peers(result))]
    if result["peers_here"]:
        tables.append((PEER_COLUMNS, _peers_here(result)))
    return tables


def _peers_here(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            peer["tool"],
            peer["model"],
            _ratio(peer["ratio"]),
            f"{_ratio(peer['low'])} to {_ratio(peer['high'])}",
            peer["trace"],
        )
        for peer in result["peers_here"]
    ]


def _peers(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [(peer["tool"], peer["mlp"], peer["vgg"], peer["conduct"]) for peer in result["peers"]]


def markdown(result: Mapping[str, Any], *, notes: str = "") -> str:
    """Return the whole page.

    Args:
        result: What ``measure`` returned.
        notes: Paragraphs to put between the table and the peers; what bounds the costs if left out.
    """
    notes = notes or NOTES
    models = "\n".join(
        f"- **{name}**: {about}; a plain step takes {result['plain_ms'][name]:.2f} ms"
        for name, about in result["about"].items()
    )
    here = ""
    if result["peers_here"]:
        here = f"\nMeasured here, in the same run:\n\n{markdown_table(PEER_COLUMNS, _peers_here(result))}"
    return f"""# What the probes cost

Processor time of (step + probe) / plain step at a step at which the probe reads. One process; in each round the plain
step and every case once, in random order; the median over rounds of the ratio within a round, and its quartiles.
*Holds*: bytes of tensors alive at the peak of the step, beyond the plain step's own peak. *At most*: the bound that was
set beforehand.

{conditions(result)} Made by `normscope bench probes --out benchmarks/results/probes.md`.

{models}

{markdown_table(COLUMNS, rows(result))}
{notes.strip()}{chr(10) * 2 if notes.strip() else chr(10)}## What other tools cost

Measured once, with torch 2.13 on the CPU of a two-core machine, on the same two models and by the same measure; not
measured again here.

{markdown_table(("tool", "mlp", "vgg", "trace it leaves, conduct with batch norm"), _peers(result))}{here}"""


def _bound(cost: Mapping[str, Any]) -> str:
    if cost["target"] is None:
        return ""
    return f"{cost['target']:g}" if cost["ratio"] <= cost["target"] else f"{cost['target']:g} missed"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 9.95 else f"{value:.1f}"


def _bytes(count: int) -> str:
    return f"{count / 2**20:.2f} MiB" if count < 10 * 2**20 else f"{count / 2**20:.0f} MiB"
