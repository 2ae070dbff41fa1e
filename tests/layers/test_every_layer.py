"""Every layer with every pair of its options against its written-out formula: what each must do before it lands.

A layer that is found in the room and is not in ``FAMILIES`` fails here, and so does an option that is no factor: give
it a formula in ``kit/formulas.py`` and levels below.
"""

import dataclasses
import inspect
import math
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from kit import formulas
from kit.pairs import all_pairs, named
from normscope import layers, ops
from normscope._errors import NonFiniteError, UsageError
from normscope._unit import discover
from normscope.ops.sets import Renorm

F64 = torch.float64
#: Largest error beside the largest right value, of outputs and buffers; gradients have twice that.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 2e-2}
AFFINE = {"both": {}, "no shift": {"bias": False}, "none": {"affine": False}}


@dataclasses.dataclass
class Family:
    """Layers that are tested by one formula.

    Attributes:
        codes: The layers' codes.
        factors: Levels of every option; the first goes together with all levels of the others.
        forbidden: Pairs of levels that do not go together, and words of the error that says so.
        make: From a case, the layer.
        formula: From a layer and a case, its oracle.
        inputs: From a case, an input of the right shape, memory layout and type.
        exempt: Arguments of the constructor that are no factor, and why.
    """

    codes: set
    factors: dict
    make: object
    formula: object
    inputs: object
    forbidden: dict = dataclasses.field(default_factory=dict)
    exempt: dict = dataclasses.field(default_factory=dict)

    def apart(self, a, b):
        return any(set(pair) == {a, b} for pair in self.forbidden)


def draw(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def laid_out(layout, seed):
    """Return values whose channels differ in mean and spread, in a memory layout; 8 samples of 3 channels."""
    shape = {"2d": (8, 3), "3d": (8, 3, 5), "5d": (8, 3, 2, 2, 3)}.get(layout.split()[0], (8, 3, 2, 5))
    x = draw(shape, seed) * formulas.per_channel(torch.tensor([0.5, 1.0, 3.0], dtype=F64), torch.empty(shape))
    x = x + formulas.per_channel(torch.tensor([1.0, -2.0, 0.3], dtype=F64), x) + 0.2 * seed
    if "last" in layout:
        x = x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
    if "strided" in layout:
        x = torch.stack([x, -x], -1)[..., 0]
        assert not x.is_contiguous()
    return x


# Batch norm.

STATISTICS = {
    "batch": {},
    "ghost of 3": {"statistics": "ghost", "group_size": 3},
    "ghost of 4": {"statistics": "ghost", "group_size": 4},
    "ghost of 7": {"statistics": "ghost", "group_size": 7},
    "renorm": {"statistics": "renorm", "renorm": Renorm(2.0, 1.0, (0, 2), (0, 2))},
    "sync": {"statistics": "sync"},  # without other processes; with them: test_synchronised
}
SUBSETS = ("all", "mask of positions", "mask of channels", "lengths", "empty channel")
BATCH_NORM = {
    "layout": ("3d", "2d", "4d", "4d last", "4d strided", "5d last"),
    "statistics": tuple(STATISTICS),
    "activation": (None, "relu", "leaky_relu"),
    "inplace": (False, True),
    "subset": SUBSETS,
    "accumulate": (1, 2),
    "on_bad_update": ("track", "skip", "warn", "raise"),
    "unbiased_variance": (True, False),
    "float32_statistics": (False, True),
    "use_running": (None, True, False),
    "update_statistics": (True, False),
    "momentum": (0.3, None),
    "affine": tuple(AFFINE),
    "track_running_stats": (True, False),
    "dtype": (F64, torch.float32, torch.bfloat16),
    "way": ("chosen", "torch", "written_out"),
    "lazy": (False, True),
}
TOGETHER = {"num_features", "eps", "device", "bias", "group_size", "renorm", "process_group", "negative_slope"}
APART = {
    **{(("statistics", name), ("inplace", True)): "inplace is for" for name in STATISTICS if name != "batch"},
    (("activation", "relu"), ("inplace", True)): "cannot be inverted",
    (("statistics", "renorm"), ("track_running_stats", False)): "renorm' needs track_running_stats",
    (("use_running", True), ("track_running_stats", False)): "use_running=True needs track_running_stats",
    (("layout", "2d"), ("subset", "lengths")): "lengths are for values with positions",
}
AXES = {"2d": 1, "3d": 1, "4d": 2, "5d": 3}


def batch_norm(case):
    options = {name: case[name] for name in BATCH_NORM if name not in ("layout", "subset", "way", "lazy", "statistics")}
    options |= {"eps": 0.05, "negative_slope": 0.2, **STATISTICS[case["statistics"]]}
    options |= {"affine": True, **AFFINE[case["affine"]]}
    name = f"BatchNorm{AXES[case['layout'].split()[0]]}d"
    if not case["lazy"]:
        return getattr(layers, name)(3, **options)
    lazy = getattr(layers, f"Lazy{name}")(**options)
    lazy.initialize_parameters(laid_out(case["layout"], 0))
    return lazy


def batch_norm_formula(layer, case):
    settings = {**case, "negative_slope": 0.2, **{"statistics": "batch", **STATISTICS[case["statistics"]]}}
    return formulas.BatchNormFormula(layer, settings)


def subset(case, x, seed):
    """Return what the layer is called with beside the input, and the mask ``(N, C, *)`` that it stands for."""
    positions = (x.shape[0], *x.shape[2:])
    match case["subset"]:
        case "mask of positions":
            mask = draw(positions, 50 + seed) > -0.6
            return {"mask": mask}, mask.unsqueeze(1).expand_as(x)
        case "mask of channels":
            mask = draw(x.shape, 50 + seed) > -0.6
            return {"mask": mask}, mask
        case "empty channel":
            mask = draw(x.shape, 50 + seed) > -0.6
            mask[:, 1] = False
            return {"mask": mask}, mask
        case "lengths":
            lengths = torch.tensor([3, 1, 0, 2, 2, 3, 1, 3]) * x.shape[-1] // 3
            return {"lengths": lengths}, (torch.arange(x.shape[-1]) < lengths.view(-1, *(1,) * (x.ndim - 1))).expand_as(
                x
            )
    return {}, None


# The other norms.

ROWS = {
    "layer": lambda case: layers.LayerNorm(case["shape"], 0.05, case["affine"] != "none", case["affine"] == "both"),
    "rms": lambda case: layers.RMSNorm(case["shape"], case["eps"], case["affine"] != "none"),
}
ROW_FACTORS = {
    "shape": ((3, 5), (5,)),
    "affine": ("both", "none"),
    "dtype": (F64, torch.float32, torch.bfloat16),
}
DTYPES = {"dtype": (F64, torch.float32, torch.bfloat16)}
PARAMETRIZED = "one weight, no batch: its file is test_weight_standardization"


def in_type(make):
    return lambda case: make(case).to(case["dtype"])


FAMILIES = {
    "batch norm": Family(
        {f"{lazy}batch_norm_{axes}d" for lazy in ("", "lazy_") for axes in (1, 2, 3)},
        BATCH_NORM,
        batch_norm,
        batch_norm_formula,
        lambda case, seed: laid_out(case["layout"], seed).to(case["dtype"]),
        APART,
        dict.fromkeys(TOGETHER, "given with another factor, or in the tests below"),
    ),
    "layer norm": Family(
        {"layer_norm"},
        {**ROW_FACTORS, "affine": ("both", "no shift", "none"), "kind": ("layer",)},
        in_type(ROWS["layer"]),
        formulas.RowNormFormula,
        lambda case, seed: laid_out("3d", seed).to(case["dtype"]),
        exempt=dict.fromkeys(("normalized_shape", "eps", "elementwise_affine", "bias", "device"), "shape, affine"),
    ),
    "rms norm": Family(
        {"rms_norm"},
        {**ROW_FACTORS, "eps": (0.05, None), "kind": ("rms",)},
        in_type(ROWS["rms"]),
        formulas.RowNormFormula,
        lambda case, seed: laid_out("3d", seed).to(case["dtype"]),
        exempt=dict.fromkeys(("normalized_shape", "elementwise_affine", "device"), "shape, affine"),
    ),
    "dynamic tanh": Family(
        {"dynamic_tanh"},
        {**ROW_FACTORS, "affine": ("both", "no shift", "none"), "alpha": (0.5, 2.0)},
        in_type(
            lambda case: layers.DynamicTanh(
                case["shape"],
                alpha=case["alpha"],
                elementwise_affine=case["affine"] != "none",
                bias=case["affine"] == "both",
            )
        ),
        formulas.DynamicTanhFormula,
        lambda case, seed: laid_out("3d", seed).to(case["dtype"]),
        exempt=dict.fromkeys(("normalized_shape", "elementwise_affine", "bias", "device"), "shape, affine"),
    ),
    "group norm": Family(
        {"group_norm"},
        {"layout": BATCH_NORM["layout"], "groups": (1, 3), "affine": ("both", "none"), **DTYPES, "kind": ("group",)},
        in_type(lambda case: layers.GroupNorm(case["groups"], 3, 0.05, case["affine"] != "none")),
        formulas.RowNormFormula,
        lambda case, seed: laid_out(case["layout"], seed).to(case["dtype"]),
        exempt=dict.fromkeys(
            ("num_groups", "num_channels", "eps", "device", "bias"), "groups; torch's bias is new in 2.13"
        ),
    ),
    "instance norm": Family(
        {f"instance_norm_{axes}d" for axes in (1, 2, 3)},
        {
            "layout": ("3d", "4d", "4d last", "4d strided", "5d last"),
            "affine": ("both", "none"),
            "track_running_stats": (True, False),
            "momentum": (0.3, None),
            **DTYPES,
        },
        in_type(
            lambda case: getattr(layers, f"InstanceNorm{AXES[case['layout'].split()[0]]}d")(
                3, 0.05, case["momentum"], case["affine"] != "none", case["track_running_stats"]
            )
        ),
        formulas.InstanceNormFormula,
        lambda case, seed: laid_out(case["layout"], seed).to(case["dtype"]),
        exempt=dict.fromkeys(("num_features", "eps", "device", "bias"), "torch's bias is new in 2.13"),
    ),
    "lp norm": Family(
        {"lp_norm"},
        {
            "layout": BATCH_NORM["layout"],
            "p": (2, 1, math.inf),
            "centred": (False, True),
            "gaussian": (False, True),
            "affine": ("both", "none"),
            "track_running_stats": (True, False),
            "momentum": (0.3, None),
            **DTYPES,
        },
        lambda case: layers.LpNorm(
            3,
            case["p"],
            0.05,
            case["momentum"],
            case["affine"] != "none",
            case["track_running_stats"],
            centred=case["centred"],
            gaussian=case["gaussian"],
            dtype=case["dtype"],
        ),
        formulas.LpNormFormula,
        lambda case, seed: laid_out(case["layout"], seed).to(case["dtype"]),
        exempt=dict.fromkeys(("num_features", "eps", "device"), "given"),
    ),
    "scalar gain": Family(
        {"scalar_gain"},
        {"learn": (True, False), **DTYPES, "kind": ("gain",)},
        in_type(lambda case: layers.ScalarGain(1.7, learn=case["learn"])),
        formulas.ScalarFormula,
        lambda case, seed: laid_out("3d", seed).to(case["dtype"]),
        exempt={"init": "given"},
    ),
    "scalar bias": Family(
        {"scalar_bias"},
        {**DTYPES, "kind": ("bias",)},
        in_type(lambda case: layers.ScalarBias()),
        formulas.ScalarFormula,
        lambda case, seed: laid_out("3d", seed).to(case["dtype"]),
    ),
    "weight standardization": Family(
        {"weight_standardization"},
        {"scaled": (True, False), "axis": (0, 1), "learn_gain": (False, True), **DTYPES},
        in_type(
            lambda case: layers.WeightStandardization(
                (8, 3)[case["axis"]],
                1.7,
                scaled=case["scaled"],
                eps=0.05,
                axis=case["axis"],
                learn_gain=case["learn_gain"],
            )
        ),
        formulas.WeightStandardizationFormula,
        lambda case, seed: laid_out("3d", seed).to(case["dtype"]),
        exempt=dict.fromkeys(("units", "gain", "eps"), "given"),
    ),
}
# Without options, and in place, a batch norm takes ways through its forward that few of the cases above go.
SHORT = ("layout", "activation", "momentum", "affine", "track_running_stats", "dtype", "way", "lazy")
WITHOUT_OPTIONS = {name: levels if name in SHORT else levels[:1] for name, levels in BATCH_NORM.items()}
FAMILIES["batch norm without options"] = dataclasses.replace(FAMILIES["batch norm"], factors=WITHOUT_OPTIONS)
FAMILIES["batch norm in place"] = dataclasses.replace(
    FAMILIES["batch norm"],
    factors={**WITHOUT_OPTIONS, "inplace": (True,), "activation": (None, "leaky_relu"), "momentum": (0.3,)},
)
#: What has no formula: its output is drawn.
ELSEWHERE = {"time_varying_noise": "test_time_varying_noise"}
CASES = [
    pytest.param(family, case, id=f"{name}: {named(case, family.factors)}")
    for name, family in FAMILIES.items()
    for case in all_pairs(family.factors, family.apart)
]


def state_drawn(layer):
    """Give parameters and running statistics values: none is 1 or 0, and a gain is negative."""
    with torch.no_grad():
        for at, (name, values) in enumerate(layer.named_parameters()):
            start = 0.7 if "bias" in name or values.ndim == 0 else 1.5
            values.copy_(start + 0.3 * draw(values.shape, 10 + at))
            if values.numel() > 2 and "weight" in name:
                values.view(-1)[1] *= -1
        for at, (name, values) in enumerate(layer.named_buffers()):
            if name.startswith("running"):
                values.copy_(draw(values.shape, 20 + at).square() + 0.5)
    return layer


def close(found, right, tolerance, what):
    assert found.shape == right.shape, what
    largest = max(float(right.detach().abs().max()), 1e-3) if right.numel() else 1.0
    off = float((found.detach().to(F64) - right.detach()).abs().max()) / largest if right.numel() else 0.0
    assert off < tolerance, f"{what}: off by {off:.2g} of the largest"


def compare(layer, formula, case, x, more, mask, training, tolerance):
    """Compare output and gradients of one forward."""
    leaf, right_leaf = x.clone().requires_grad_(), x.to(F64).requires_grad_()
    parameters = dict(layer.named_parameters())
    right = formula(right_leaf, training, mask)
    g = draw(right.shape, 30) + 0.5  # else sums over all values cancel, and low precision shows nothing
    if formula.at_kink is not None:
        g[formula.at_kink] = 0.0
    y = layer.train(training)(leaf * 1, **more)
    assert y.dtype == x.dtype
    assert not y.requires_grad or y.shape == x.shape
    close(y, right, tolerance, "output")
    leaves = (leaf, *parameters.values())
    found = torch.autograd.grad(y, leaves, g.to(x.dtype))
    expected = torch.autograd.grad(right, (right_leaf, *formula.parameters.values()), g.to(x.dtype).to(F64))
    for name, a, b in zip(("input", *parameters), found, expected, strict=True):
        close(a, b, 2 * tolerance, f"gradient of {name}")


@pytest.mark.parametrize(("family", "case"), CASES)
def test_is_its_formula(family, case):
    layer = state_drawn(family.make(case))
    formula = family.formula(layer, case)
    tolerance = TOLERANCE[case["dtype"]]
    way = case.get("way", "chosen")
    refused = empties(case)
    with nullcontext() if way == "chosen" else ops.using(way):
        for step in range(2):
            x = family.inputs(case, step)
            more, mask = subset({"subset": "all", **case}, x, step)
            with refused():
                compare(layer, formula, case, x, more, mask, True, tolerance)
        for name, right in formula.buffers.items():
            found = dict(layer.named_buffers())[name]
            close(found, right, tolerance, name)
            if name.startswith("running") and case.get("float32_statistics"):
                assert found.dtype == torch.promote_types(case["dtype"], torch.float32)
        x = family.inputs(case, 5)
        more, mask = subset({"subset": "all", **case}, x, 5)
        compare(layer, formula, case, x, more, mask, False, tolerance)
        copied = family.make(case)
        copied.load_state_dict(layer.state_dict())
        assert torch.equal(copied.eval()(x * 1, **more), layer(x * 1, **more))


def empties(case):
    """Return the context of a training forward: a channel of which nothing counts is said, where that was asked for."""
    tracks = case.get("track_running_stats") and case.get("update_statistics")
    if case.get("subset") != "empty channel" or not tracks:
        return nullcontext
    if case["on_bad_update"] == "raise":
        return lambda: pytest.raises(NonFiniteError, match="a channel without values")
    if case["on_bad_update"] == "warn":
        return lambda: pytest.warns(UserWarning, match="a channel without values; running statistics left")
    return nullcontext


TRACKED = [param for param in CASES if "on_bad_update" in param.values[1]]


@pytest.mark.parametrize(("family", "case"), TRACKED)
def test_a_bad_batch_is_treated_as_asked(family, case):
    layer = state_drawn(family.make(case))
    before = {name: values.clone() for name, values in layer.named_buffers()}
    x = family.inputs({**case, "subset": "all"}, 0)
    bad = x.clone()
    bad[4, 1] = torch.inf
    moves = case["track_running_stats"] and case["update_statistics"]
    context = nullcontext()
    if moves and case["on_bad_update"] == "raise":
        context = pytest.raises(NonFiniteError, match="a batch that is not finite: look at its input")
    if moves and case["on_bad_update"] == "warn":
        context = pytest.warns(UserWarning, match="a batch that is not finite; running statistics left as they were")
    for _ in range(case["accumulate"]):
        with context:
            layer(bad * 1)
    moved = [name for name, values in layer.named_buffers() if not torch.equal(values, before[name])]
    if moves and case["on_bad_update"] == "track":  # as torch does
        assert "num_batches_tracked" in moved
        assert not layer.running_mean.isfinite().all()
    else:
        assert not moved


REFUSED = [
    pytest.param(FAMILIES["batch norm"], pair, words, id=f"{pair[0][0]}={pair[0][1]}, {pair[1][0]}={pair[1][1]}")
    for pair, words in APART.items()
]


@pytest.mark.parametrize(("family", "pair", "words"), REFUSED)
def test_pairs_that_do_not_go_together_are_refused_in_words(family, pair, words):
    case = {name: levels[0] for name, levels in family.factors.items()} | dict(pair)
    x = family.inputs(case, 0)
    with pytest.raises(UsageError, match=words):
        family.make(case)(x, **(subset(case, x, 0)[0] if "subset" in dict(pair) else {}))


OTHERS = ("batch", "sync", "ghost", "renorm")
ONE_KIND_ONLY = {
    "group_size": (4, {"ghost"}, "'ghost'"),
    "renorm": (Renorm(), {"renorm"}, "'renorm'"),
    "process_group": (object(), {"sync", "renorm"}, "'sync' or 'renorm'"),
    "inplace": (True, {"batch"}, "'batch'"),
}


@pytest.mark.parametrize("statistics", OTHERS)
@pytest.mark.parametrize("option", ONE_KIND_ONLY)
def test_an_option_of_one_kind_of_statistics_is_refused_by_the_others(option, statistics):
    value, kinds, words = ONE_KIND_ONLY[option]
    options = {"statistics": statistics, **({"group_size": 4} if statistics == "ghost" else {}), option: value}
    if statistics in kinds:
        assert getattr(layers.BatchNorm1d(3, **options), option) is value
    else:
        with pytest.raises(UsageError, match=f"{option} is for statistics={words}$"):
            layers.BatchNorm1d(3, **options)


# What the room promises of itself.


def test_every_layer_has_a_formula():
    codes = {unit.CODE for unit in discover(layers, layers.AbstractLayer)}
    assert codes == set(ELSEWHERE).union(*(family.codes for family in FAMILIES.values()))


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_every_argument_is_a_factor(family):
    for unit in discover(layers, layers.AbstractLayer):
        if unit.CODE in family.codes:
            arguments = set(inspect.signature(unit).parameters) - {"options"}
            if issubclass(unit, layers.AbstractBatchNorm):
                arguments |= {field.name for field in dataclasses.fields(layers.BatchNormOptions)}
            assert arguments <= set(family.factors) | set(family.exempt), unit.CODE


def test_the_cases_have_every_pair():
    for family in FAMILIES.values():
        names = list(family.factors)
        cases = all_pairs(family.factors, family.apart)
        for at, a in enumerate(names):
            for b in names[at + 1 :]:
                there = {(case[a], case[b]) for case in cases}
                for pair in ((x, y) for x in family.factors[a] for y in family.factors[b]):
                    assert (pair in there) is not family.apart((a, pair[0]), (b, pair[1])), (a, b, pair)


class ForgetsTheMask(layers.BatchNorm1d):
    """Ghost statistics of all values, whatever the mask."""

    def forward(self, input, mask=None, lengths=None, *, population=None):
        y = super().forward(input)
        return y if mask is None else torch.where(mask.unsqueeze(1), y, 0.0)


def test_a_layer_that_forgets_its_mask_is_caught():
    case = {name: levels[0] for name, levels in BATCH_NORM.items()}
    case |= {"statistics": "ghost of 3", "subset": "mask of positions"}
    options = {"eps": 0.05, "momentum": 0.3, "dtype": F64, **STATISTICS["ghost of 3"]}
    layer = state_drawn(ForgetsTheMask(3, **options))
    x = laid_out("3d", 0)
    more, mask = subset(case, x, 0)
    with pytest.raises(AssertionError, match="output"):
        compare(layer, batch_norm_formula(layer, case), case, x, more, mask, True, 1e-6)


def test_torchs_layers_pass_where_they_offer_the_same():
    """The formulas are no description of this package alone."""
    plain = {name: levels[0] for name, levels in BATCH_NORM.items()}
    layer = state_drawn(nn.BatchNorm1d(3, 0.05, 0.3, dtype=F64))
    formula = batch_norm_formula(layer, plain)
    for training in (True, True, False):
        compare(layer, formula, plain, laid_out("3d", 1), {}, None, training, 1e-10)
    for name, right in formula.buffers.items():
        close(layer.get_buffer(name), right, 1e-10, name)
