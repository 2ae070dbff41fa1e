"""Studies of a user's own that go wrong: changes of the template of a study, by name."""

_CODE = "    CODE ="  # where the class has said nothing of its own yet

#: What is put at the beginning of the class.
IN_CLASS = {
    "init": "    def __init__(self, more): pass",
    "init raises": "    def __init__(self): 1 / 0",
    "run_cell": """\
    def run_cell(self, cell, data, device): return None
    def together(self, cell): return False""",
    "run_cell of numbers": """\
    def run_cell(self, cell, data, device): return [1, 2]
    def together(self, cell): return False""",
    "run_cell exits": """\
    def run_cell(self, cell, data, device): raise SystemExit(0)
    def together(self, cell): return False""",
    "run_cell _exits": """\
    def run_cell(self, cell, data, device): __import__('os')._exit(0)
    def together(self, cell): return False""",
    "run_cell raises": """\
    def run_cell(self, cell, data, device): raise RuntimeError('\\x1b[31m\\nno')
    def together(self, cell): return False""",
    "run_cell takes less": """\
    def run_cell(self, cell): return []
    def together(self, cell): return False""",
    "run_cell empty": """\
    def run_cell(self, cell, data, device): return []
    def together(self, cell): return False""",
    "run_cells less": "    def run_cells(self, cells, data, device): return []",
    "together raises": "    def together(self, cell): 1 / 0",
    "grid endless": """\
    def grid(self, settings):
        while True: yield 'small', {}""",
    "grid nonsense": "    def grid(self, settings): return [1, 2]",
    "grid none": "    def grid(self, settings): return None",
    "grid exits": "    def grid(self, settings): raise SystemExit(0)",
    "grid of objects": "    def grid(self, settings): yield 'small', {'x': object()}",
    "judge none": "    def judge(self, evidence): return None",
    "judge exits": "    def judge(self, evidence): raise SystemExit(0)",
    "judge interrupts": "    def judge(self, evidence): raise KeyboardInterrupt",
    "version": "    VERSION = 'one'",
    "version object": "    VERSION = object()",
}

#: What stands in the template, and what is put in its place; a change may have several such pairs.
REPLACED = {
    "abstract": ("def contrasts(", "def others("),
    "no class": ("class MyClaim(AbstractTraining)", "class MyClaim"),
    "code": ('CODE = "my-claim"', 'CODE = "My Claim"'),
    "code taken": ('CODE = "my-claim"', 'CODE = "noisy-batchnorm"'),
    "code escapes": ('CODE = "my-claim"', 'CODE = "../../up"'),
    "code number": ('CODE = "my-claim"', "CODE = 3"),
    "claim escapes": ('CLAIM = "With', 'CLAIM = "\\x1b[31mWith'),
    "margin nan": ("math.log(1.1)", "math.nan"),
    "margin text": ("math.log(1.1)", "'small'"),
    "sources text": ('SOURCES = ("my own question",)', 'SOURCES = "mine"'),
    "sources of numbers": ('SOURCES = ("my own question",)', "SOURCES = (1, None)"),
    "no quick": ("quick={", "slow={"),
    "presets none": ("PRESETS = presets(", "PRESETS = dict("),
    "presets of text": (
        "PRESETS = presets(",
        """\
PRESETS = {'quick': 'slow'}
    OTHERS = presets(""",
    ),
    "points without setting": ("POINTS = {}", 'POINTS = {"lr": "lrs"}'),
    "points of number": ("POINTS = {}", "POINTS = {'lr': 3}"),
    "points to a number": ("POINTS = {}", "POINTS = {'lr': 'lr'}"),
    "points empty": ("POINTS = {}", "POINTS = {'lr': 'none'}", '"batch": 64,', '"batch": 64, "none": [],'),
    "points reserved": ("POINTS = {}", "POINTS = {'seed': 'sizes'}", '"batch": 64,', '"batch": 64, "sizes": [1],'),
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
    "arms of nonsense": ('Arm("eps of 1e-5", batch_norm(eps=1e-5))', "3"),
    "arm named oddly": ('"small": Arm', '"\\x1b[31m/../small": Arm'),
    "arm of number": ('"small": Arm', "3: Arm"),
    "arm raises": ("batch_norm(eps=1e-5)", "lambda *a, **k: 1 / 0"),
    "arm exits": ("batch_norm(eps=1e-5)", "lambda *a, **k: __import__('sys').exit(0)"),
    "arm _exits": ("batch_norm(eps=1e-5)", "lambda *a, **k: __import__('os')._exit(0)"),
    "arm interrupts": ("batch_norm(eps=1e-5)", "lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt)"),
    "network": ('{"name": "mlp", "depth": 3, "width": 64}', '"mlp"'),
    "network unknown": ('"name": "mlp"', '"name": "gpt"'),
    "network huge": ('"width": 64', '"width": 10**9'),
    "depth negative": ('"depth": 3', '"depth": -3'),
    "batch zero": ('"batch": 64', '"batch": 0'),
    "batch text": ('"batch": 64', '"batch": "many"'),
    "lr none": ('"lr": 0.1', '"lr": None'),
    "lr huge": ('"lr": 0.1', '"lr": 1e300'),
    "steps none": ('"steps": 3', '"steps": None'),
    "steps zero": ('"steps": 3', '"steps": 0'),
    "steps negative": ('"steps": 3', '"steps": -3'),
    "setting nan": ('"lr": 0.1', '"lr": float("nan")'),
    "setting object": ('"batch": 64', '"batch": object()'),
    "setting missing": ('"batch": 64,', ""),
    "train huge": ('"train": None', '"train": 10**30'),
    "train negative": ('"train": None', '"train": -5'),
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
    "contrasts async": ("    def contrasts(", "    async def contrasts("),
    "contrasts signature": ("def contrasts(self, evidence: Evidence)", "def contrasts(self)"),
    "contrasts escape": ('says="training takes', 'says="\\x1b[31m\\ntraining takes'),
    "scale": ('scale="log-ratio"', 'scale="nothing"'),
    "says": ("{effect}", "{nothing}"),
    "arm unknown": (
        """\
"large",
            "small\"""",
        """\
"huge",
            "tiny\"""",
    ),
    "quantity": ("steps_to(0.9)", "3"),
    "steps to": ("steps_to(0.9)", "steps_to(-3)"),
    "figures none": ("return [*super()", "return None and [*super()"),
    "figures nonsense": ("return [*super()", "return [3, *super()"),
    "figures raise": ("return [*super()", "return 1 / 0 and [*super()"),
    "figures exit": (
        "return [*super()",
        """\
raise SystemExit(0)
        return [*super()""",
    ),
    "docstring": (
        """\
    ## Threats
""",
        "",
    ),
    "no docstring": ('    """A larger eps', '    TEXT = """A larger eps'),
    "title": ('"""A larger eps in batch norm slows training down.', '"""\\x1b[31mA larger <script>alert(1)</script>'),
    "topic": ('TOPIC = "my own"', "TOPIC = None"),
    "metaclass": ("class MyClaim(AbstractTraining)", "class MyClaim(AbstractTraining, metaclass=3)"),
    "two classes": (
        "class MyClaim(",
        """\
class Other(AbstractTraining):
    pass


class MyClaim(""",
    ),
}

STUDIES = {name: (_CODE, f"{body}\n{_CODE}") for name, body in IN_CLASS.items()} | REPLACED
