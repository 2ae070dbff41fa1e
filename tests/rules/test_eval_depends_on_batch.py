"""Outputs that depend on neighbours by amounts done by hand; modules that mix; sequences, masks and rounding."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from kit.findings import finding_of, is_quiet, repaired
from normscope import checking
from normscope.evidence import Case, examples

UNTRACKED = nn.BatchNorm1d(4, affine=False, track_running_stats=False)


def batch(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def case_of(model, inputs, *, labels=True, **options):
    y = torch.arange(len(inputs)) % 4

    def loss_fn(model, batch):
        out = model(batch[0])
        return F.cross_entropy(out.flatten(1)[:, :4], batch[1]) if labels else out.square().mean()

    return Case(model.train(), loss_fn, [(inputs, y) if labels else (inputs,)] * 2, **options)


def why_unseen(case):
    found = checking.check(case, ["NS129"], gap=False)
    assert len(found) == 0
    ((code, why),) = found.unmeasured
    assert code == "NS129"
    return why


class Share(nn.Module):
    """Takes a share of the batch's mean off."""

    def __init__(self, share):
        super().__init__()
        self.share = share

    def forward(self, x):
        return x - self.share * x.mean(0)


class Standardised(nn.Module):
    """A norm of the user's own, written out, whose name says nothing."""

    def forward(self, x):
        return (x - x.mean(0)) / (x.std(0) + 1e-5)


class Functional(nn.Module):
    """``batch_norm`` in training mode, in the code of the whole network."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 4)

    def forward(self, x):
        return self.linear(F.batch_norm(x, None, None, training=True))


class Crowd(nn.Module):
    """Adds how near the others are, as minibatch discrimination does."""

    def forward(self, x):
        return x + torch.exp(-torch.cdist(x, x)).sum(1, keepdim=True)


@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
def test_the_change_is_that_of_the_formula(share):
    x = torch.tensor([-1.0, 5.0] * 8)[:, None].repeat(1, 4)  # mean 2; that of every second sample -1
    finding = finding_of(case_of(Share(share), x), "NS129")
    out = x - 2 * share
    assert finding.measured == pytest.approx(3 * share / float(out.square().mean().sqrt()), rel=1e-6)
    assert finding.details["the_batch_reversed"] == pytest.approx(0, abs=1e-9)
    assert (finding.severity.value, finding.places) == ("error" if share == 1 else "warning", ("",))


@pytest.mark.parametrize(
    ("mixing", "severity", "words"),
    [
        (nn.BatchNorm1d(12, track_running_stats=False), "error", "keeps no running statistics"),
        (Standardised(), "error", "the same mean whatever is in it"),
        (Functional(), "error", "batch_norm with training=True"),
        (Share(0.4), "warning", "whatever their order"),
        (Crowd(), "warning", "whatever their order"),
    ],
)
def test_modules_that_mix_are_named_wherever_they_are(mixing, severity, words):
    model = (
        examples.seeded(
            lambda: nn.Sequential(
                nn.Linear(12, 12), mixing, nn.Linear(mixing(batch(8, 12)).shape[1], 12), mixing, nn.Linear(12, 4)
            )
        )
        if not isinstance(mixing, Functional)
        else nn.Sequential(nn.Linear(12, 12), mixing)
    )
    finding = finding_of(case_of(model, batch(16, 12)), "NS129")
    assert finding.severity.value == severity
    assert finding.places == ("1",)  # a module that is called twice has one name
    assert words in finding.message
    assert finding.fixable is isinstance(mixing, nn.BatchNorm1d)


@pytest.mark.parametrize("time_first", [False, True])
def test_samples_are_found_where_an_axis_holds_positions_too(time_first):
    class Folded(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(5, 4), UNTRACKED

        def forward(self, x):
            x = x.transpose(0, 1) if time_first else x
            out = self.norm(self.linear(x.flatten(0, 1))).unflatten(0, x.shape[:2])
            return out.mean(0 if time_first else 1)

    assert finding_of(case_of(Folded(), batch(8, 6, 5)), "NS129").places == ("norm",)


def test_half_precision_is_judged_in_double_precision():
    wide = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).bfloat16()
    x = batch(16, 3, 8, 8).bfloat16()
    assert is_quiet(case_of(wide, x), "NS129")
    wide[1] = nn.BatchNorm2d(8, track_running_stats=False).bfloat16()
    finding = finding_of(case_of(wide, x), "NS129")
    assert (finding.places, finding.bound) == (("1",), 1e-3)


def test_types_of_the_networks_own_choice_are_no_obstacle():
    class Cast(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.head = UNTRACKED, nn.Linear(4, 4)

        def forward(self, x):
            return self.head(self.norm(x).float())

    assert finding_of(case_of(Cast(), batch(16, 4)), "NS129").places == ("norm",)


class Packed(nn.Module):
    """Runs along sequences of several lengths, each to its own end."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTM(5, 4, batch_first=True), nn.Linear(4, 4)

    def forward(self, x):
        lengths = (x != 0).any(2).sum(1)  # sorted, or torch refuses them
        out, _ = pad_packed_sequence(self.cell(pack_padded_sequence(x, lengths, batch_first=True))[0], True)
        return self.head(out.sum(1))


class Padded(nn.Module):
    """Attends to what is no padding, over one padded tensor."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2)

    def forward(self, x):
        padding = torch.arange(x.shape[1]) >= 3 + x[:, :1, 0].abs().long()
        return self.body(x, src_key_padding_mask=padding)[:, 0]


class Experts(nn.Module):
    """Samples go to one of two layers, by themselves."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(5, 4) for _ in range(2))

    def forward(self, x):
        out, which = x.new_zeros(len(x), 4), (x.mean(1) > 0).long()
        for index, part in enumerate(self.parts):
            rows = (which == index).nonzero()[:, 0]
            out = out.index_add(0, rows, part(x[rows]))
        return out


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.InstanceNorm2d(4), nn.Flatten()), batch(8, 3, 6, 6)),
        (Padded(), batch(8, 9, 8)),
        (Experts(), batch(8, 5)),
        (nn.Sequential(nn.Linear(5, 400), *[nn.Linear(400, 400) for _ in range(6)]), 1e3 * batch(64, 5)),
    ],
)
def test_masks_routes_and_rounding_are_no_defect(model, inputs):
    case = case_of(examples.seeded(lambda: model), inputs)
    found = checking.check(case, ["NS129"], gap=False)
    assert (list(found), found.unmeasured) == ([], ())


def test_sequences_packed_by_length_are_no_defect():
    ends = torch.tensor([9, 9, 7, 5, 4, 4, 2, 1])
    x = torch.where(torch.arange(9) < ends[:, None], 1.0, 0.0)[:, :, None] * batch(8, 9, 5)
    found = checking.check(case_of(Packed(), x), ["NS129"], gap=False)
    assert (list(found), found.unmeasured) == ([], ())


def test_time_before_samples_is_no_defect():
    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.cell = nn.Embedding(20, 8), nn.LSTM(8, 8)

        def forward(self, x):
            return self.cell(self.words(x))[0]

    words = torch.randint(20, (12, 6), generator=torch.Generator().manual_seed(1))
    model = examples.seeded(Language)
    assert "the first axis" in why_unseen(Case(model.train(), lambda m, b: m(b).square().mean(), [words]))
    with_labels = Case(model, lambda m, b: m(b[0]).square().mean(), [(words, torch.zeros(12))])
    finding = finding_of(with_labels, "NS129")  # twelve labels: twelve samples, and batch_first is wrong
    assert (finding.severity.value, finding.places) == ("info", ("cell",))
    assert "batch_first" in finding.message
    assert "batch_first=True" in finding.fix


def test_graphs_and_models_of_one_sample_or_none_are_left():
    class Graph(nn.Module):
        def __init__(self, edges):
            super().__init__()
            self.edges, self.linear = edges, nn.Linear(5, 4)

        def forward(self, x):
            return self.edges @ self.linear(x)

    nodes = batch(8, 5)
    assert "half of a batch" in why_unseen(case_of(Graph(batch(8, 8)), nodes))
    two = Case(nn.Bilinear(5, 5, 4).train(), lambda m, b: m(*b).mean(), [(nodes, nodes)])
    assert is_quiet(two, "NS129")
    assert "one sample" in why_unseen(case_of(nn.Linear(5, 4), batch(1, 5)))
    assert "axis of samples" in why_unseen(case_of(nn.Sequential(nn.Flatten(0), nn.Linear(40, 4)), nodes, labels=False))


def test_random_numbers_in_evaluation_are_told_from_neighbours():
    class Noise(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)

    assert is_quiet(case_of(nn.Sequential(Noise(), nn.Linear(4, 4)), batch(8, 4)), "NS129")
    model = nn.Sequential(Noise(), UNTRACKED, nn.Linear(4, 4))
    assert finding_of(case_of(model, batch(8, 4)), "NS129").places == ("1",)


def test_a_loss_that_calls_parts_of_the_model_is_followed():
    model = nn.ModuleDict({"a": nn.Linear(5, 4), "norm": UNTRACKED, "b": nn.Linear(4, 4)}).train()

    def loss_fn(model, batch):
        return model["b"](model["norm"](model["a"](batch))).square().mean()

    assert finding_of(Case(model, loss_fn, [batch(8, 5)]), "NS129").places == ("norm",)


def test_the_cost_is_that_of_the_gap_and_the_fix_takes_statistics_of_the_training_data():
    case = examples.healthy(examples.mlp, norm=lambda width: nn.BatchNorm1d(width, track_running_stats=False))
    x, y = (torch.cat(part) for part in zip(*case.eval_loader, strict=True))
    order = y.argsort(stable=True)
    case.eval_loader = list(zip(x[order].split(64), y[order].split(64), strict=True))
    found = checking.check(case, ["NS129"])
    share = found.gap.of("evaluation depends on the batch")
    assert share > 0.1
    assert f"as batched is {found.gap.eval:.4g}; in mixed batches" in found[0].cost
    assert f"it is {found.gap.eval - share:.4g}" in found[0].cost
    assert repaired(case, "NS129") == "gave 3 norms running statistics, of the training data"
    norm = examples.norms(case.model)[0]
    given = torch.cat([case.model[0](batch) for batch, _ in case.loader])
    torch.testing.assert_close(norm.running_mean, given.mean(0), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(norm.running_var, given.var(0), rtol=1e-2, atol=1e-3)
    gap = checking.check(case, ["NS129"]).gap
    assert gap.eval < found.gap.eval - 0.5 * share
