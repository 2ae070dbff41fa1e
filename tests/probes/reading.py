"""One reading of one probe, as a dictionary."""

from normscope.probes import Scope


def read(model, loss_fn, batch, probe, optimizer=None, block=None):
    """Take one step, forward and backward if no block is given, and return {(site, name): value}."""
    scope = Scope(model, loss_fn, optimizer, [probe], every=1)
    with scope.step(batch):
        if block is not None:
            block()
        else:
            loss_fn(model, batch).backward()
            if optimizer is not None:
                for one in optimizer if isinstance(optimizer, list) else [optimizer]:
                    one.step()
    return {(record.site, record.name): record.value for record in scope.drain()}


def by_name(found, name):
    """Return {site: value} of one name."""
    return {site: value for (site, key), value in found.items() if key == name}
