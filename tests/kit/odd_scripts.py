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

#: Changes of the template of a study: (what stands there, what is put in its place), by name.
STUDIES = {
    "abstract": (
        "def contrasts(",
        "def others(",
    ),
    "no class": (
        "class MyClaim(AbstractTraining)",
        "class MyClaim",
    ),
    "code": (
        'CODE = "my-claim"',
        'CODE = "My Claim"',
    ),
    "code taken": (
        'CODE = "my-claim"',
        'CODE = "noisy-batchnorm"',
    ),
    "code escapes": (
        'CODE = "my-claim"',
        'CODE = "../../up"',
    ),
    "code number": (
        'CODE = "my-claim"',
        "CODE = 3",
    ),
    "claim escapes": (
        'CLAIM = "With',
        'CLAIM = "\\x1b[31mWith',
    ),
    "margin nan": (
        "math.log(1.1)",
        "math.nan",
    ),
    "margin text": (
        "math.log(1.1)",
        "'small'",
    ),
    "sources text": (
        'SOURCES = ("my own question",)',
        'SOURCES = "mine"',
    ),
    "sources of numbers": (
        'SOURCES = ("my own question",)',
        "SOURCES = (1, None)",
    ),
    "no quick": (
        "quick={",
        "slow={",
    ),
    "presets none": (
        "PRESETS = presets(",
        "PRESETS = dict(",
    ),
    "presets of text": (
        "PRESETS = presets(",
        """\
PRESETS = {'quick': 'slow'}
    OTHERS = presets(""",
    ),
    "points without setting": (
        "POINTS = {}",
        'POINTS = {"lr": "lrs"}',
    ),
    "points of number": (
        "POINTS = {}",
        "POINTS = {'lr': 3}",
    ),
    "points to a number": (
        "POINTS = {}",
        "POINTS = {'lr': 'lr'}",
    ),
    "points empty": (
        "POINTS = {}",
        "POINTS = {'lr': 'none'}",
        '"batch": 64,',
        '"batch": 64, "none": [],',
    ),
    "points reserved": (
        "POINTS = {}",
        "POINTS = {'seed': 'sizes'}",
        '"batch": 64,',
        '"batch": 64, "sizes": [1],',
    ),
    "points huge": (
        "POINTS = {}",
        "POINTS = {'a': 'many', 'b': 'many'}",
        '"batch": 64,',
        '"batch": 64, "many": list(range(100_000)),',
    ),
    "points endless": (
        "POINTS = {}",
        "POINTS = {'a': 'many'}",
        '"batch": 64,',
        '"batch": 64, "many": __import__("itertools").count(),',
    ),
    "arms none": (
        "ARMS = {",
        """\
ARMS = {}
    OTHERS = {""",
    ),
    "arms of nonsense": (
        'Arm("eps of 1e-5", batch_norm(eps=1e-5))',
        "3",
    ),
    "arm named oddly": (
        '"small": Arm',
        '"\\x1b[31m/../small": Arm',
    ),
    "arm of number": (
        '"small": Arm',
        "3: Arm",
    ),
    "arm raises": (
        "batch_norm(eps=1e-5)",
        "lambda *a, **k: 1 / 0",
    ),
    "arm exits": (
        "batch_norm(eps=1e-5)",
        "lambda *a, **k: __import__('sys').exit(0)",
    ),
    "arm _exits": (
        "batch_norm(eps=1e-5)",
        "lambda *a, **k: __import__('os')._exit(0)",
    ),
    "arm interrupts": (
        "batch_norm(eps=1e-5)",
        "lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt)",
    ),
    "network": (
        '{"name": "mlp", "depth": 3, "width": 64}',
        '"mlp"',
    ),
    "network unknown": (
        '"name": "mlp"',
        '"name": "gpt"',
    ),
    "network huge": (
        '"width": 64',
        '"width": 10**9',
    ),
    "depth negative": (
        '"depth": 3',
        '"depth": -3',
    ),
    "batch zero": (
        '"batch": 64',
        '"batch": 0',
    ),
    "batch text": (
        '"batch": 64',
        '"batch": "many"',
    ),
    "lr none": (
        '"lr": 0.1',
        '"lr": None',
    ),
    "lr huge": (
        '"lr": 0.1',
        '"lr": 1e300',
    ),
    "steps none": (
        '"steps": 3',
        '"steps": None',
    ),
    "steps zero": (
        '"steps": 3',
        '"steps": 0',
    ),
    "steps negative": (
        '"steps": 3',
        '"steps": -3',
    ),
    "setting nan": (
        '"lr": 0.1',
        '"lr": float("nan")',
    ),
    "setting object": (
        '"batch": 64',
        '"batch": object()',
    ),
    "setting missing": (
        '"batch": 64,',
        "",
    ),
    "train huge": (
        '"train": None',
        '"train": 10**30',
    ),
    "train negative": (
        '"train": None',
        '"train": -5',
    ),
    "contrasts none": (
        "        yield Contrast(",
        """\
        return
        yield Contrast(""",
    ),
    "contrasts nonsense": (
        "        yield Contrast(",
        """\
        yield 3
        yield Contrast(""",
    ),
    "contrasts raise": (
        "        yield Contrast(",
        """\
        1 / 0
        yield Contrast(""",
    ),
    "contrasts exit": (
        "        yield Contrast(",
        """\
        raise SystemExit(0)
        yield Contrast(""",
    ),
    "contrasts endless": (
        "        yield Contrast(",
        """\
        for i in __import__('itertools').count():
            yield Contrast(steps_to(0.9), 'large', 'small', scale='log-ratio', name=str(i))
        yield Contrast(""",
    ),
    "contrasts after records": (
        "        yield Contrast(",
        """\
        if evidence.frame.height == 0: 1 / 0
        return
        yield Contrast(""",
    ),
    "contrasts async": (
        "    def contrasts(",
        "    async def contrasts(",
    ),
    "contrasts signature": (
        "def contrasts(self, evidence: Evidence)",
        "def contrasts(self)",
    ),
    "contrasts escape": (
        'says="training takes',
        'says="\\x1b[31m\\ntraining takes',
    ),
    "scale": (
        'scale="log-ratio"',
        'scale="nothing"',
    ),
    "says": (
        "{effect}",
        "{nothing}",
    ),
    "arm unknown": (
        """\
"large",
            "small\"""",
        """\
"huge",
            "tiny\"""",
    ),
    "quantity": (
        "steps_to(0.9)",
        "3",
    ),
    "steps to": (
        "steps_to(0.9)",
        "steps_to(-3)",
    ),
    "figures none": (
        "return [*super()",
        "return None and [*super()",
    ),
    "figures nonsense": (
        "return [*super()",
        "return [3, *super()",
    ),
    "figures raise": (
        "return [*super()",
        "return 1 / 0 and [*super()",
    ),
    "figures exit": (
        "return [*super()",
        """\
raise SystemExit(0)
        return [*super()""",
    ),
    "docstring": (
        "    ## Threats\n",
        "",
    ),
    "no docstring": (
        '    """A larger eps',
        '    TEXT = """A larger eps',
    ),
    "init": (
        "    CODE =",
        """\
    def __init__(self, more): pass
    CODE =""",
    ),
    "init raises": (
        "    CODE =",
        """\
    def __init__(self): 1 / 0
    CODE =""",
    ),
    "run_cell": (
        "    CODE =",
        """\
    def run_cell(self, cell, data, device): return None
    def together(self, cell): return False
    CODE =""",
    ),
    "run_cell of numbers": (
        "    CODE =",
        """\
    def run_cell(self, cell, data, device): return [1, 2]
    def together(self, cell): return False
    CODE =""",
    ),
    "run_cell exits": (
        "    CODE =",
        """\
    def run_cell(self, cell, data, device): raise SystemExit(0)
    def together(self, cell): return False
    CODE =""",
    ),
    "run_cell _exits": (
        "    CODE =",
        """\
    def run_cell(self, cell, data, device): __import__('os')._exit(0)
    def together(self, cell): return False
    CODE =""",
    ),
    "run_cell raises": (
        "    CODE =",
        """\
    def run_cell(self, cell, data, device): raise RuntimeError('\\x1b[31m\\nno')
    def together(self, cell): return False
    CODE =""",
    ),
    "run_cell takes less": (
        "    CODE =",
        """\
    def run_cell(self, cell): return []
    def together(self, cell): return False
    CODE =""",
    ),
    "run_cell empty": (
        "    CODE =",
        """\
    def run_cell(self, cell, data, device): return []
    def together(self, cell): return False
    CODE =""",
    ),
    "run_cells less": (
        "    CODE =",
        """\
    def run_cells(self, cells, data, device): return []
    CODE =""",
    ),
    "together raises": (
        "    CODE =",
        """\
    def together(self, cell): 1 / 0
    CODE =""",
    ),
    "grid endless": (
        "    CODE =",
        """\
    def grid(self, settings):
        while True: yield 'small', {}
    CODE =""",
    ),
    "grid nonsense": (
        "    CODE =",
        """\
    def grid(self, settings): return [1, 2]
    CODE =""",
    ),
    "grid none": (
        "    CODE =",
        """\
    def grid(self, settings): return None
    CODE =""",
    ),
    "grid exits": (
        "    CODE =",
        """\
    def grid(self, settings): raise SystemExit(0)
    CODE =""",
    ),
    "grid of objects": (
        "    CODE =",
        """\
    def grid(self, settings): yield 'small', {'x': object()}
    CODE =""",
    ),
    "judge none": (
        "    CODE =",
        """\
    def judge(self, evidence): return None
    CODE =""",
    ),
    "judge exits": (
        "    CODE =",
        """\
    def judge(self, evidence): raise SystemExit(0)
    CODE =""",
    ),
    "judge interrupts": (
        "    CODE =",
        """\
    def judge(self, evidence): raise KeyboardInterrupt
    CODE =""",
    ),
    "title": (
        '"""A larger eps in batch norm slows training down.',
        '"""\\x1b[31mA larger <script>alert(1)</script>',
    ),
    "version": (
        "    CODE =",
        """\
    VERSION = 'one'
    CODE =""",
    ),
    "version object": (
        "    CODE =",
        """\
    VERSION = object()
    CODE =""",
    ),
    "topic": (
        'TOPIC = "my own"',
        "TOPIC = None",
    ),
    "metaclass": (
        "class MyClaim(AbstractTraining)",
        "class MyClaim(AbstractTraining, metaclass=3)",
    ),
    "two classes": (
        "class MyClaim(",
        """\
class Other(AbstractTraining):
    pass


class MyClaim(""",
    ),
}
