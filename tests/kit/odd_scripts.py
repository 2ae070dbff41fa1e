"""Users' Python files that do what no file should: as factories of set-ups, and as studies of one's own."""

#: At the top of a file, by name; whatever a file of Python can do when it is imported.
AT_IMPORT = {
    "syntax": "def f(:\n",
    "indent": """\
def f():
return 1
""",
    "nul": "x = 1\x00\n",
    "coding": """\
# -*- coding: nonsense -*-
x = 1
""",
    "bytes": "x = '\udcff'\n",
    "raises": "raise ValueError('two\\nlines \\x1b[31m')\n",
    "exit 0": """\
import sys
sys.exit(0)
""",
    "exit text": """\
import sys
sys.exit('a\\nb')
""",
    "exit 3": "raise SystemExit(3)\n",
    "_exit 0": """\
import os
os._exit(0)
""",
    "_exit 5": """\
import os
os._exit(5)
""",
    "group": "raise ExceptionGroup('several', [ValueError(1), TypeError(2)])\n",
    "base": """\
class Stop(BaseException): pass
raise Stop('now')
""",
    "generator exit": "raise GeneratorExit\n",
    "str raises": """\
class E(Exception):
    def __str__(self): raise RuntimeError
raise E
""",
    "long message": "raise ValueError('x' * 1_000_000)\n",
    "recursion": """\
def f(): return f()
f()
""",
    "memory": "raise MemoryError\n",
    "memory taken": "x = bytearray(1 << 40)\n",
    "missing import": "import nothing_like_it\n",
    "circular": """\
import script
script.make
""",
    "prints": """\
import sys
print('hello' * 1000)
print('\\x1b[31mred', file=sys.stderr)
""",
    "closes stdout": """\
import sys
sys.stdout.close()
""",
    "closes stderr": """\
import sys
sys.stderr.close()
""",
    "no stdout": """\
import sys
sys.stdout = None
""",
    "takes argv": """\
import argparse
argparse.ArgumentParser().parse_args()
""",
    "forks": """\
import os
if os.fork() == 0:
    raise SystemExit(0)
""",
    "forks and both go on": """\
import os
os.fork()
""",
    "thread": """\
import threading, time
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
""",
    "warns": """\
import warnings
warnings.warn('odd \\x1b[31m')
""",
    "changes folder": """\
import os
os.chdir('home')
""",
    "removes folder": """\
import os, shutil
shutil.rmtree(os.getcwd())
""",
    "empty": "",
    "all": "__all__ = 3\n",
    "getattr": "def __getattr__(name): raise RuntimeError('no ' + name)\n",
    "deletes modules": """\
import sys
for name in list(sys.modules):
    if name.startswith('json'): del sys.modules[name]
""",
    "alarm": """\
import signal
signal.alarm(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
""",
}

SETUP = """
import torch
import normscope as ns

def case():
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3))
    data = [(torch.randn(16, 6), torch.randint(3, (16,))) for _ in range(2)]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return ns.Case(model, loss, data, optimizer, data)

def loss(model, batch):
    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
"""

#: Instead of a function ``make``, by name.
FACTORIES = {
    "none": "def make(): pass",
    "number": "make = 3",
    "text": "make = 'case'",
    "lambda of args": "make = lambda a, b: case()",
    "wrong seed": "def make(seed, other): return case()",
    "async": "async def make(): return case()",
    "generator": "def make(): yield case()",
    "endless": """\
def make():
    import itertools
    return itertools.count()""",
    "class": "class make: pass",
    "class that raises": """\
class make:
    def __init__(self): raise ValueError('no')""",
    "tuple of nonsense": "def make(): return (1, 2, 3)",
    "tuple of one": "def make(): return (case().model,)",
    "dict of nonsense": "def make(): return {'model': 1, 'loss_fn': 2, 'loader': 3}",
    "dict of numbers": "def make(): return {1: 2}",
    "model class": "def make(): return torch.nn.Linear, loss, [1]",
    "empty loader": """\
def make():
    c = case()
    return c.model, loss, []""",
    "loader of None": """\
def make():
    c = case()
    return c.model, loss, [None, None]""",
    "loader raises": """\
def make():
    c = case()
    return c.model, loss, (1 / 0 for _ in range(3))""",
    "loss is None": """\
def make():
    c = case()
    return c.model, lambda m, b: None, c.loader, c.optimizer""",
    "loss is nan": """\
def make():
    c = case()
    return c.model, lambda m, b: loss(m, b) * float('nan'), c.loader, c.optimizer""",
    "loss exits": """\
def make():
    import sys
    c = case()
    return c.model, lambda m, b: sys.exit(0), c.loader, c.optimizer""",
    "loss _exits": """\
def make():
    import os
    c = case()
    return c.model, lambda m, b: os._exit(0), c.loader, c.optimizer""",
    "loss recurses": """\
def again(m, b): return again(m, b)
def make():
    c = case()
    return c.model, again, c.loader, c.optimizer""",
    "loss interrupts": """\
def stop(m, b): raise KeyboardInterrupt
def make():
    c = case()
    return c.model, stop, c.loader, c.optimizer""",
    "loss async": """\
async def later(m, b): return loss(m, b)
def make():
    c = case()
    return c.model, later, c.loader, c.optimizer""",
    "loss prints": """\
def loud(m, b):
    print('\\x1b[31mloud')
    return loss(m, b)
def make():
    c = case()
    return c.model, loud, c.loader, c.optimizer, c.loader""",
    "loss closes": """\
def shut(m, b):
    import sys
    sys.stdout.close()
    return loss(m, b)
def make():
    c = case()
    return c.model, shut, c.loader, c.optimizer""",
    "optimizer of nothing": """\
def make():
    c = case()
    return c.model, loss, c.loader, torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)""",
    "optimizer is text": """\
def make():
    c = case()
    return c.model, loss, c.loader, 'sgd'""",
    "model without parameters": "def make(): return torch.nn.Identity(), loss, case().loader",
    "model named oddly": """\
class Odd(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.add_module('\\x1b[31m\\nred', torch.nn.BatchNorm1d(6))
        self.last = torch.nn.Linear(6, 3)
    def forward(self, x): return self.last(getattr(self, '\\x1b[31m\\nred')(x))
def make():
    m = Odd()
    return m, loss, case().loader, torch.optim.SGD(m.parameters(), 0.1), case().loader""",
    "model of meta": "def make(): return torch.nn.Linear(6, 3).to('meta'), loss, case().loader",
    "repr raises": """\
class R(dict):
    def __repr__(self): raise RuntimeError('no repr')
def make(): return R(a=1)""",
    "same model": """\
c = case()
def make(): return c""",
    "forks": """\
def make():
    import os
    if os.fork() == 0: os._exit(0)
    return case()""",
    "forks and both": """\
def make():
    import os
    os.fork()
    return case()""",
    "thread dies": """\
def make():
    import threading
    threading.Thread(target=lambda: 1 / 0).start()
    return case()""",
    "property": """\
class _M:
    @property
    def make(self): raise ValueError('no')
import sys
sys.modules[__name__].__class__ = type('X', (type(sys),), {'make': property(lambda self: 1 / 0)})""",
}
