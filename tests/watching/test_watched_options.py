"""Options of a watched scope: what is refused, which probes are read, and where the records go."""

import numpy as np
import pytest
import torch
from torch import nn

import normscope as ns
from kit.watched_loops import data, entropy, make, plain_loop
from normscope._errors import UsageError
from normscope.probes import ProbeWarning


@pytest.mark.parametrize(
    ("make_scope", "says"),
    [
        (lambda m, o: ns.Scope(m, o), r"loss_fn is an optimizer \(SGD\)"),
        (lambda m, o: ns.watch(m, o, 3), "loss_fn must be a function"),
        (lambda m, o: ns.watch(m, m), "optimizer must be"),
        (lambda m, o: ns.watch(m, o, probes="gradient_flows"), "did you mean gradient_flow"),
        (lambda m, o: ns.watch(m, o, probes=[3]), "a probe, its code or its class"),
        (lambda m, o: ns.watch(m, o, every=0), "every=0"),
        (lambda m, o: ns.watch(m, o, every=2.5), r"every=2\.5"),
        (lambda m, o: ns.watch(m, o, every=True), "every=True"),
        (lambda m, o: ns.watch(m, entropy), "not function: a loss function is given as loss_fn="),
        (lambda m, o: ns.watch(m, torch.optim.lr_scheduler.StepLR(o, 2)), "not StepLR"),
        (lambda m, o: ns.watch(m, o, nn.CrossEntropyLoss()), "takes outputs and targets"),
        (lambda m, o: ns.watch(m, o, scaler=5), "GradScaler, not int"),
        (lambda m, o: ns.watch(m, o, sinks=5), r"a int, which has no append\(\)"),
        (lambda m, o: ns.watch(m, o, sinks=[dict]), "give an object of it"),
        (lambda m, o: ns.watch(m, o, record_to=7), "a folder, or an object"),
        (lambda m, o: ns.watch(m, o, record_to=""), "is no path"),
        (lambda m, o: ns.watch(m, o, record_to="a\0b"), "is no path"),
        (lambda m, o: ns.watch(m, o, record_to="s3://bucket/x"), "a folder of this machine"),
        (lambda m, o: ns.watch(m, o, rules=5), "rules must be"),
        (lambda m, o: ns.watch(m, o, rules=True), "rules must be"),
        (lambda m, o: ns.watch(m, o, probes=ns.probes.GradientFlow(every=1.5)), r"every=1\.5"),
        (lambda m, o: ns.watch(m, o, start=-1), "start=-1"),
        (lambda m, o: ns.watch(m, o, start="later"), "start='later'"),
        (lambda m, o: ns.watch(m, o, start="continue"), "needs record_to"),
        (lambda m, o: ns.watch(m, o, cell="a/b"), "cell="),
        (lambda m, o: ns.watch(torch.jit.trace(m, torch.zeros(2, 8)), o), "(scripted or traced|traced or scripted)"),
        (lambda m, o: ns.watch(lambda x: x, o), "torch.nn.Module"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_misuse_is_refused_in_one_line(make_scope, says):
    model = make()
    with pytest.raises(UsageError, match=says) as caught:
        make_scope(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert "\n" not in str(caught.value)


def test_a_page_is_html_and_no_other_format(tmp_path):
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = ns.watch(model, optimizer, every=1)
    plain_loop(model, optimizer, data(1))
    with pytest.raises(UsageError, match=r"written as \.html, not as \.pdf"):
        scope.report(tmp_path / "x.pdf")
    assert not (tmp_path / "x.pdf").exists()


@pytest.mark.parametrize("given", [3, np.int64(3), torch.tensor(3)])
def test_whole_numbers_of_any_kind_are_schedules(given):
    model = make()
    scope = ns.Scope(model, entropy, every=given)
    assert [bool(scope.due(index)) for index in range(4)] == [True, False, False, True]


def test_a_probe_that_yields_no_record_is_named_and_spoils_no_other():
    class Junk(ns.probes.Loss):
        __doc__ = ns.probes.Loss.__doc__
        CODE = "junk"

        def read(self, step):
            yield from super().read(step)
            yield None

    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = ns.watch(model, optimizer, probes=[Junk(), "loss"], every=1)
    with pytest.warns(ProbeWarning, match="'junk' failed .* yields a NoneType"):
        plain_loop(model, optimizer, data(2))
    assert set(scope.records()["probe"]) == {"loss"}


def test_warnings_that_the_user_has_raised_are_warnings(monkeypatch):
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ns.watch(model, optimizer, rules=["NS122"], every=1)
    with pytest.raises(ns.checking.FindingWarning):
        plain_loop(model, optimizer, data(1))


# -- which probes ------------------------------------------------------------------------------------------------------


def test_probes_are_named_in_any_form():
    model = make()

    def codes(wanted, loss_fn=entropy):
        return [probe.CODE for probe in ns.Scope(model, loss_fn, probes=wanted).probes]

    every_probe = [probe.CODE for probe in ns.probes.all()]
    assert codes("all") == every_probe
    assert codes("gradient-flow") == codes("Gradient_Flow") == codes(ns.probes.GradientFlow) == ["gradient_flow"]
    assert codes([ns.probes.GradientFlow(trim=1), "update_ratio"]) == ["gradient_flow", "update_ratio"]
    assert codes(["gradient_flow", "gradient", ns.probes.GradientFlow])[0] == "gradient_flow"
    assert len(set(codes(["gradient_flow", "gradient", "all"]))) == len(every_probe)
    assert codes([]) == []
    found = [code for question in ns.probes.presets() for code in codes(question)]
    assert sorted(found) == every_probe  # every probe answers one question


def test_the_default_evaluates_no_loss():
    model = make()
    scope = ns.Scope(model)
    assert not any(probe.replays for probe in scope.probes)
    assert {"gradient_flow", "statistics_gap"} <= {probe.CODE for probe in scope.probes}
    assert {probe.QUESTION for probe in scope.probes} == {"gradient", "statistics"}


def test_a_probe_that_finds_nothing_says_why():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = ns.watch(model, optimizer, every=1)
    plain_loop(model, optimizer, data(1))
    assert "no non-linearity" in scope.not_read["saturation"]
    assert "no batch norm" in scope.not_read["statistics_gap"]
    assert "gradient_flow" not in scope.not_read


# -- cells of runs -----------------------------------------------------------------------------------------------------


def train_into(folder, steps=3, **options):
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = ns.watch(model, optimizer, probes="gradient_flow", every=1, record_to=folder, **options)
    plain_loop(model, optimizer, data(steps))
    scope.detach()
    scope.close()
    return scope


def test_a_second_run_into_one_folder_has_a_cell_of_its_own(tmp_path):
    cells = [train_into(tmp_path / "run").cell for _ in range(3)]
    assert cells == ["scope", "scope.run2", "scope.run3"]
    frame = train_into(tmp_path / "run", cell="other").records()
    assert set(frame["cell"]) == {*cells, "other"}
    assert frame.select("cell", "step", "probe", "site", "name").is_duplicated().sum() == 0


def test_a_training_is_taken_up_again(tmp_path):
    train_into(tmp_path / "run")
    scope = train_into(tmp_path / "run", start="continue")
    assert scope.cell == "scope"
    assert sorted(set(scope.records()["step"])) == [0, 1, 2, 3, 4, 5]
    later = train_into(tmp_path / "run", start=100)
    frame = later.records()
    assert later.cell == "scope.run2"
    assert sorted(set(frame.filter(frame["cell"] == later.cell)["step"])) == [100, 101, 102]
    assert train_into(tmp_path / "new", start="continue").index == 3  # nothing is there yet: it begins


# -- costs -------------------------------------------------------------------------------------------------------------


def test_the_cost_of_dear_probes_is_told_once_before_the_first_due_step(caplog, monkeypatch):
    monkeypatch.setattr(ns.probes.LandscapeAlongGradient, "COST", (20.0, 30.0))
    model = make()
    scope = ns.Scope(model, entropy, torch.optim.SGD(model.parameters(), lr=0.1), ["landscape"], every=10)
    assert not caplog.records
    for batch in data(2):
        with scope.step(batch):
            assert len(caplog.records) == 1
            plain_loop(model, scope.optimizers[0], [batch])
    assert "landscape takes as long as 20 to 30 plain steps" in caplog.text
    assert "3 to 4 times as long" in caplog.text
    ns.watch(model, scope.optimizers[0]).detach()
    assert len(caplog.records) == 1
