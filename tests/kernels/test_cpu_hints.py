"""How the CPU kernels go about memory: from which caches it follows, how it is calibrated; no bit rests on it."""

import itertools
import subprocess
import sys

import pytest
import torch
from cpu_oracles import by_kernel, draw

from normscope import ops
from normscope.kernels import cpu
from normscope.kernels.cpu import hints

RULES = hints.by_rules(hints.Caches(32 << 10, 1 << 20, 32 << 20, 2), "AuthenticAMD")
needs_kernel = pytest.mark.skipif(bool(cpu.why_not()), reason=cpu.why_not() or "runs")


def planted(folder, *caches):
    for index, words in enumerate(caches):
        at = folder / f"index{index}"
        at.mkdir()
        for name, word in zip(("level", "type", "size", "shared_cpu_list"), words, strict=True):
            (at / name).write_text(f"{word}\n")
    return folder


def test_caches_are_those_that_the_system_tells(tmp_path):
    folder = planted(
        tmp_path,
        ("1", "Data", "48K", "0"),
        ("1", "Instruction", "64K", "0"),
        ("2", "Unified", "2048K", "0"),
        ("3", "Unified", "105M", "0-3,8"),
    )
    found = hints.caches(folder)
    assert found == (48 << 10, 2 << 20, 105 << 20, 5)
    assert str(found) == "L1 48 KiB, L2 2 MiB, L3 105 MiB of 5"


def test_caches_that_are_not_told_are_small(tmp_path):
    assert hints.caches(tmp_path) == hints.Caches() == (32 << 10, 1 << 20, 0, 1)
    folder = planted(tmp_path, ("2", "Unified", "none", "0"), ("2", "Unified", "8K", "0"))
    found = hints.caches(folder)
    assert found.own == 128 << 10
    assert str(found) == "L1 32 KiB, L2 128 KiB"


def test_the_vendor_is_read_or_nobody(tmp_path):
    told = tmp_path / "cpuinfo"
    told.write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\n")
    assert hints.vendor(told) == "AuthenticAMD"
    assert hints.vendor(tmp_path / "none") == ""


def test_rules_follow_the_last_level_and_the_vendor():
    amd, other = RULES, hints.by_rules(hints.Caches(32 << 10, 2 << 20, 400 << 20, 32), "GenuineIntel")
    assert (amd.hints.own, amd.hints.shared, amd.hints.stream, amd.hints.ahead) == (1 << 20, 32 << 20, 4 << 20, 0)
    assert (other.hints.own, other.hints.stream, other.hints.ahead) == (2 << 20, 64 << 20, 512)
    assert hints.by_rules(hints.Caches()).hints.stream == 8 << 20
    assert str(amd).endswith("(L1 32 KiB, L2 1 MiB, L3 32 MiB of 2; by rules for AMD, not calibrated)")


def timer(cheap, calls):
    """Times that fall for each of the planted wishes that hints fulfil."""

    def time_of(asked, problem):
        calls.append((asked, problem))
        return 1.0 - sum(worth for wish, worth in cheap if all(getattr(asked, k) == v for k, v in wish.items()))

    return time_of


@pytest.mark.parametrize(
    "wish",
    [
        {"stream": 0, "ahead": 512},
        {"stream": 0, "ahead": 0},
        {"pairs": False},
        {"stretch": 0, "next": False},
        {"stretch": 65536, "next": False},
    ],
    ids=str,
)
def test_a_calibration_takes_what_is_faster_and_nothing_else(wish):
    calls = []
    found = hints.calibrate(timer([(wish, 0.1)], calls), RULES, 60.0)
    changed = {key for key in RULES.hints._fields if getattr(found.hints, key) != getattr(RULES.hints, key)}
    assert changed <= {*wish, "stream_fresh"}
    assert all(getattr(found.hints, key) == value for key, value in wish.items())
    assert {problem for _, problem in calls} == {*hints.RUNS, *hints.ROWS}
    assert "calibrated in" in found.reason


def test_a_calibration_keeps_to_the_rules_where_little_is_gained_and_hurries_where_time_is_up():
    little, calls = [({"pairs": False}, 0.02), ({"stream": 0}, 0.02)], []
    assert hints.calibrate(timer(little, calls), RULES, 60.0).hints == RULES.hints
    turns = len(calls)
    calls.clear()
    hints.calibrate(timer(little, calls), RULES, 0.0)
    assert len(calls) * 3 == turns


@needs_kernel
def test_a_calibration_of_this_machine_ends_in_time_and_can_be_switched_off(monkeypatch):
    module = cpu.build("_baseline")
    found = hints.settle(module, RULES)
    assert found.reason.startswith("calibrated in ")
    for word in ("off", "0", "NO"):
        monkeypatch.setenv(hints.SWITCH, word)
        assert hints.settle(module, RULES).hints == RULES.hints
        assert hints.SWITCH in hints.settle(module, RULES).reason
    monkeypatch.delenv(hints.SWITCH)
    monkeypatch.setattr(hints.mmap, "mmap", lambda *_, **__: (_ for _ in ()).throw(OSError("no memory")))
    assert hints.settle(module, RULES) == RULES


FIRST = """
import torch
from normscope import ops
from normscope.kernels import cpu
small, large = torch.randn(64, 64), torch.randn(16, 64, 32, 32)
for x in (small, large, large):
    before = cpu.memory()
    ops.batch_norm(x)
    print("not calibrated" in str(cpu.memory()), cpu.memory() is before, cpu._kernel().hints() == cpu.memory().hints)
print(ops.explain(small))
"""


@needs_kernel
def test_the_first_large_input_is_calibrated_for_and_no_other():
    ran = subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True, check=True)
    *told, line = ran.stdout.splitlines()
    assert told == ["True True True", "False False True", "False True True"]
    assert line.startswith("kernel: ")
    assert "calibrated in" in line


@needs_kernel
def test_a_calibration_that_fails_is_not_seen():
    module, x = cpu.build("_baseline"), torch.randn(64, 50)
    calls = []

    def fail():
        calls.append(1)
        raise RuntimeError("nothing to time by")

    module.before_first_large(fail, x.nbytes + 1)
    assert module.plan(x, *[None] * 5) is not None
    module.before_first_large(fail, x.nbytes)
    for _ in range(2):
        assert module.plan(x, *[None] * 5) is not None
    assert calls == [1]
    with pytest.raises(ValueError, match="no cache is so small"):
        module.set_hints(0, *RULES.hints[1:])
    with pytest.raises(TypeError, match="expected 9 arguments"):
        module.set_hints(1 << 20)


# Runs and columns, with lines that are no whole ones; the others with the extras.
SHAPES = [
    (64, 24, 10, 10),
    (9, 64, 7, 7),  # rows of whole lines, channels of none
    *(
        pytest.param(shape, marks=pytest.mark.long)
        for shape in [(128, 64, 8, 8), (40, 300, 4, 4), (700, 96), (3, 5, 90, 91), (9, 33, 11, 13), (9, 33, 4, 4)]
    ),
]


def ways():
    """Return hints of every kind: caches that hold nothing and all, each way of writing, reading and blocking."""
    small, large = 4096, 1 << 24
    for own, stream, stretch in itertools.product((small, large), (0, 1), (0, 65536)):
        yield hints.Hints(own, 0, stretch, 0, stream, bool(stream), False, False)
        yield hints.Hints(own, large, stretch, 512, stream, bool(stream), True, True)


@needs_kernel
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_bit_depends_on_hints_or_threads(build, shape):
    module, threads = cpu.build(build), torch.get_num_threads()
    before = module.hints()
    try:
        for layout in ("contiguous", "channels_last", "unaligned"):
            for dtype in (torch.float32, torch.bfloat16):
                x, w, b, g = draw(shape, dtype, layout=layout)
                first = None
                for count, way in enumerate(ways()):
                    torch.set_num_threads(1 + count % 3)
                    module.set_hints(*way)
                    found = by_kernel(x, w, b, g, "relu")
                    first = first or found
                    assert all(torch.equal(one, other) for one, other in zip(first, found, strict=True)), (layout, way)
    finally:
        module.set_hints(*before)
        torch.set_num_threads(threads)


@needs_kernel
def test_no_bit_of_rows_depends_on_hints(build):
    module = cpu.build(build)
    before = module.hints()
    x, w = torch.randn(40, 64, 5, 5), torch.randn(64)
    try:
        for norm in (
            lambda x: ops.layer_norm(x.flatten(1)[:, :960], (960,)),
            lambda x: ops.group_norm(x, 8, w, w),
            lambda x: ops.rms_norm(x.flatten(0, 1).flatten(1).contiguous(), (25,)),
        ):
            results = []
            for way in ways():
                module.set_hints(*way)
                leaf = x.clone().requires_grad_()
                y = norm(leaf)
                results.append((y.detach(), *torch.autograd.grad(y, leaf, torch.ones_like(y) * y.detach())))
            for other in results[1:]:
                assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))
    finally:
        module.set_hints(*before)
