"""Records of probes as a scope would have made them, with values of one's own."""

from normscope import seen
from normscope.records import MemoryStore, Record
from normscope.seen import CellFacts, Seen

STEPS = (0, 10, 20, 30)


def records(probe, values, cell="scope", steps=STEPS):
    """Make records from ``{name: {site: value or values by step}}``."""
    for name, sites in values.items():
        for site, value in sites.items():
            series = value if isinstance(value, (list, tuple)) else [value] * len(steps)
            for step, each in zip(steps, series, strict=False):
                yield Record(cell, step, probe, site, name, float(each))


def seen_of(*groups, modules=None, model="Net", steps=31, cells=("scope",), **facts):
    """Make what a scope saw from groups of records."""
    store = MemoryStore()
    for group in groups:
        store.append(group)
    known = tuple(CellFacts(cell, model, modules or {}, steps, **facts) for cell in cells)
    return Seen(store.frame(), known)


def sentences(probe, values, modules=None, steps=STEPS):
    """Return what stands out in the records of one probe."""
    return [said.remark.says for said in seen.stands_out(seen_of(records(probe, values, steps=steps), modules=modules))]
