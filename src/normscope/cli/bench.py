"""``normscope bench``: probes, layers, check."""

from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

from normscope._errors import UsageError
from normscope.cli._print import print_json, print_lines, print_tables, written
from normscope.cli._progress import interruptible, progress_bar, status_line
from normscope.cli._words import MOST_ROUNDS, Codes, Json, TableOut, codes, group

_ADVICE = "nothing was written"

app = group("What normscope's parts cost, measured on this machine.", "normscope bench probes --model mlp")


@app.command(epilog="Example:  normscope bench probes --out benchmarks/results/probes.md")
def probes(
    model: Annotated[list[str] | None, typer.Option(help="mlp or vgg; may be repeated.  [default: both]")] = None,
    rounds: Annotated[
        int, typer.Option(min=1, max=MOST_ROUNDS, help="Interleaved rounds; five times as many on a fast model.")
    ] = 12,
    case: Annotated[str, typer.Option(help="Only what has this in its name.  [default: all]")] = "",
    out: TableOut = None,
    as_json: Json = False,
) -> None:
    """Measure what each probe adds to a training step, in plain steps, beside what other tools cost."""
    from normscope.bench import probes, probes_page

    with interruptible(_ADVICE), progress_bar(as_json) as bars:
        result = probes.measure(model, rounds=rounds, only=case, progress=bars)
    _finish(result, probes_page, out, as_json)


@app.command(epilog="Example:  normscope bench layers --out benchmarks/results/layers.md")
def layers(
    only: Annotated[str, typer.Option(help='Only shapes with this in them: "(128, 64)".  [default: all]')] = "",
    allocator: Annotated[
        list[str] | None, typer.Option(help="recycled or default; may be repeated.  [default: both]")
    ] = None,
    compiled: Annotated[bool, typer.Option(help="Also beside torch.compile, which takes minutes.")] = True,
    whole: Annotated[bool, typer.Option(help="Also whole training steps, and peak memory.")] = True,
    device: Annotated[str, typer.Option(help="cpu, or cuda for the GPU kernels.")] = "cpu",
    rows: Annotated[
        bool, typer.Option("--rows", help="Layer, RMS, group and instance norm in place of these.")
    ] = False,
    out: TableOut = None,
    as_json: Json = False,
) -> None:
    """Measure batch norm with ReLU, forward and backward, beside torch's. Leave the machine alone meanwhile."""
    from normscope.bench import gpu, gpu_page, layers, layers_page, rows as of_rows, rows_page

    if device not in ("cpu", "cuda"):
        raise UsageError(f"--device is cpu or cuda: got {device!r}")
    if rows and device == "cuda":
        raise UsageError("--rows measures the CPU's layers: leave out --device cuda")
    with interruptible(_ADVICE), progress_bar(as_json) as bars:
        if device == "cuda":
            result = gpu.measure(bars)
        elif rows:
            result = of_rows.measure(only=only, progress=bars)
        else:
            allocators = allocator or layers.ALLOCATORS
            result = layers.measure(only=only, allocators=allocators, compiled=compiled, whole=whole, progress=bars)
    _finish(result, gpu_page if device == "cuda" else rows_page if rows else layers_page, out, as_json)


@app.command(epilog="Example:  normscope bench check --out benchmarks/results/check.md")
def check(
    select: Annotated[Codes, typer.Option(help="Only rules whose codes begin so.")] = None,
    out: TableOut = None,
    as_json: Json = False,
) -> None:
    """Run every rule on set-ups with and without its defect: how much it finds, and how often it is wrong."""
    from normscope.checking import rates
    from normscope.records.addresses import save

    others = "" if out is None else _other_sections(out)
    with interruptible(_ADVICE), status_line(as_json) as show:
        result = rates.measure(codes(select), progress=show)
    if out is not None:
        save(out, rates.markdown(result) + others)
    if as_json:
        print_json(result)
    else:
        print_lines(*rates.text(result).rstrip("\n").splitlines(), *written(out))


def _other_sections(out: Path) -> str:
    """Return what other programs have written into a page: from the first comment of HTML on."""
    from normscope.records.reading import text_of_file

    text = text_of_file(out) if out.exists() else ""
    at = text.find("\n<!-- ")
    return text[at:] if at >= 0 else ""


def _finish(result: dict[str, Any], page: ModuleType, out: Path | None, as_json: bool) -> None:
    """Write the page of a measurement, if a file is named, and print its tables or the measurement itself."""
    from normscope.records.addresses import save

    if out is not None:
        save(out, page.markdown(result))
    if as_json:
        print_json(result)
    else:
        print_tables(page.terminal(result), page.conditions(result), *written(out))
