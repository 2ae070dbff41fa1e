"""A norm that is deployed in train mode."""

import copy
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from normscope import layers
from normscope.evidence import Case, Deployed, Evidence, Finding, Severity, examples, exported_anew, quiet, set_mode
from normscope.records.numbers import counted
from normscope.rules._rule import AbstractRule


def _exported(net: Any, *, training: bool, how: str = "export", **options: Any) -> Case:
    case = examples.healthy(net, **options)
    assert isinstance(case.loader, list)
    x = case.loader[0][0]
    model = copy.deepcopy(case.model).train(training)
    with quiet():
        if how == "export":
            case.exported = torch.export.export(model, (x,))
        elif how == "decomposed":
            case.exported = torch.export.export(model, (x,)).run_decompositions()
        elif how == "trace":
            case.exported = torch.jit.trace(model, (x,), check_trace=False)
        else:
            case.exported = model
    return case


def _deployed(training: bool) -> Case:
    """A deployed module one of whose norms is in train mode, or none."""
    case = examples.healthy(examples.mlp, trained=0)
    case.exported = copy.deepcopy(case.model).eval()
    case.exported[4].train(training)
    return case


class ExportedInTrainMode(AbstractRule):
    r"""What is deployed normalizes by the batch it is given.

    ## Finds
    The exported program, scripted or traced module of the case (or an ONNX model, by its ``training_mode``) is called
    once on training inputs, or on the example of its export: running statistics in it change. Where it cannot be
    called, batch norms with running statistics that are written into its graph in train mode.

    Calibrated over two seeds: planted defects found, 10 of 10; false alarms on 46 healthy set-ups under eight
    seeds, 0 of 368.

    ## Why it hurts
    In production the answer to one request depends on which others are in its batch, and a batch of one gives nonsense
    or an error. The statistics go on averaging over what is served, in each copy for itself. Accuracy measured on large
    batches before does not show it.

    ## Fix
    Unsafe, since it replaces what is deployed: it is exported anew from the model in eval mode, with ``torch.export``
    and for inputs of the same shape.
    """

    CODE = "NS128"
    SLUG = "exported-in-train-mode"
    SEVERITY = Severity.WARNING
    NEEDS = ("exported",)
    KEEPS = ("training", "evaluation")
    SOURCES = ("pytorch/pytorch#151726",)
    SICK = (
        partial(_exported, examples.mlp, training=True),
        partial(_exported, examples.cnn, training=True, how="trace"),
        partial(_exported, examples.residual, training=True, how="decomposed"),
        partial(_exported, examples.cnn, training=True, norm=layers.BatchNorm2d),
        partial(_exported, examples.mlp, training=True, how="module"),
    )
    WELL = (
        partial(examples.healthy, examples.mlp),
        partial(_exported, examples.cnn, training=False),
        partial(_exported, examples.residual, training=False, how="trace"),
        partial(_exported, examples.cnn, training=True, norm=partial(torch.nn.BatchNorm2d, track_running_stats=False)),
    )
    NEAR = (examples.Near(_deployed, found=True, quiet=False),)

    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Call what is deployed and see whether its statistics change."""
        if evidence.case.exported is None:
            return
        deployed = Deployed(evidence.case)
        changing = deployed.changing(evidence.training.inputs)
        names = changing or deployed.written_in_train_mode()
        if not names:
            return
        places = [path for path in evidence.norms if path in names]
        yield self.finding(
            f"{counted(len(names), 'norm')} of what is deployed {'is' if len(names) == 1 else 'are'} in "
            "train mode: each batch is normalized by itself"
            + (", and running statistics change with every call" if changing else ""),
            places or [""],
            quantity="norms in train mode in what is deployed",
            measured=float(len(names)),
            bound=0.0,
            cost="an answer depends on what else is in its batch",
            fix="call model.eval() before it is exported",
            fixable=deployed.module is not None,
        )

    def repair(self, case: Case, finding: Finding) -> str:
        """Export the model anew in eval mode; a plain module is put into eval mode."""
        given = case.exported
        if isinstance(given, torch.nn.Module) and not isinstance(given, torch.jit.ScriptModule):
            for module in given.modules():
                module.training = module.training and not isinstance(module, _BatchNorm)
            return "put the norms of the deployed module into eval mode"
        inputs = Evidence(case).training.inputs
        assert inputs is not None
        model = copy.deepcopy(case.model)
        set_mode(model, False)
        case.exported = exported_anew(model, inputs)
        return "exported the model anew, in eval mode, with torch.export: take it from case.exported"
