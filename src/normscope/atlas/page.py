"""The page of the atlas: the networks beside each other, and the reader's own beside them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from normscope.atlas.answers import answers_of
from normscope.atlas.atlas import Atlas, Row
from normscope.atlas.cell import Cell
from normscope.atlas.layout import KeptComparison
from normscope.records.numbers import counted
from normscope.report import NetworkCell, NetworkColumn, NetworkRow, write_atlas

_TITLE = "Atlas: what norms do in the networks that people use"


def write_page(
    path: Path,
    atlas: Atlas,
    *,
    own: Sequence[KeptComparison] = (),
    pages: Mapping[str, Mapping[str, str]] | None = None,
) -> Path:
    """Write the page.

    Args:
        path: The HTML file.
        atlas: The networks.
        own: Comparisons of the reader's own, as columns beside them.
        pages: Text under each heading of a question's page, by its code.

    Returns:
        The path written.

    Raises:
        StoreError: It cannot be written.
    """
    found = [*atlas.networks, *own]
    beside = {id(each): {answer.question.code: answer for answer in answers_of(each)} for each in own}
    rows = []
    for row in atlas.rows:
        of = {id(cell.comparison): cell for cell in row.cells}
        of |= {id(each): Cell(each, beside[id(each)][row.code]) for each in own if row.code in beside[id(each)]}
        cells = [_cell(of[id(each)]) if id(each) in of else None for each in found]
        rows.append(_row(row, cells, (pages or {}).get(row.code, {})))
    return write_atlas(
        path,
        title=_TITLE,
        lede=_lede(atlas, own),
        columns=[_column(each, own=each in own) for each in found],
        rows=rows,
        provenance={each.network.title: dict(_made(each)) for each in (*found, *atlas.variants)},
        seconds=sum(each.seconds for each in (*found, *atlas.variants)),
    )


def _lede(atlas: Atlas, own: Sequence[KeptComparison]) -> str:
    networks, count = counted(len(atlas.networks), "network"), len(atlas.variants)
    said = f"The same questions on {networks}, each with its norms and without, from the same first weights and on the"
    said += " same batches, seed by seed."
    if count:
        said += (
            f" {counted(count, 'variant')} with one thing changed {'say' if count > 1 else 'says'} what separates them."
        )
    return f"{said} Your network stands beside them." if own else said


def _row(row: Row, cells: Sequence[NetworkCell | None], page: Mapping[str, str]) -> NetworkRow:
    return NetworkRow(row.code, row.number, row.asks, row.source, row.sentences, row.tested, cells, page)


def _cell(cell: Cell) -> NetworkCell:
    return NetworkCell(cell.title, cell.answer.verdict, cell.answer.sentence, cell.why)


def _column(kept: KeptComparison, *, own: bool) -> NetworkColumn:
    network = kept.network
    return NetworkColumn(network.name, network.data, network.norms_in_words, tuple(_facts(kept)), own)


def _facts(kept: KeptComparison) -> Iterator[tuple[str, str]]:
    """Yield how a network was compared."""
    yield "layers", kept.network.layers_in_words
    yield "arms", "; ".join(kept.arms.values())
    yield "decides", " against ".join(kept.arms[arm] for arm in kept.pair)
    yield "training", f"{kept.steps} steps, {counted(len(kept.seeds), 'seed')}"
    yield "learning rates", ", ".join(f"times {rate:g}" for rate in kept.rates)


def _made(kept: KeptComparison) -> Iterator[tuple[str, str]]:
    """Yield what made the numbers of a network."""
    yield "normscope", kept.normscope
    yield "torch", kept.torch
    yield "machine", kept.machine
    yield "began", kept.began
