"""What a run records of its model: classes, order, sizes; and questions 1 to 4 on a small network of branches."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import normscope as ns
from normscope.comparing.described import model_records, order_records, weight_norm
from normscope.records import Record


class Branched(nn.Module):
    """Layers that are not registered in the order of their use, a skip, and pooling."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.stem, self.stem_norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.block, self.block_norm = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)

    def forward(self, x):
        x = F.relu(self.stem_norm(self.stem(x)))
        x = F.max_pool2d(x + F.relu(self.block_norm(self.block(x))), 2)
        return self.head(x.mean((2, 3)))


def make_case(seed):
    model = Branched()
    batches = [(torch.randn(12, 1, 6, 6), torch.randint(0, 3, (12,))) for _ in range(3)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return ns.Case(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), batches, optimizer)


def test_classes_are_recorded_in_the_order_of_registration():
    found = [(r.site, r.name, r.value) for r in model_records(Branched(), "c")]
    assert found[:3] == [("", "Branched", 0.0), ("head", "Linear", 1.0), ("stem", "Conv2d", 2.0)]


def test_the_norm_is_that_of_all_parameters_that_train():
    model = nn.Linear(2, 2)
    nn.init.constant_(model.weight, 3.0)
    nn.init.constant_(model.bias, 100.0)
    model.bias.requires_grad_(False)
    assert weight_norm(model, "c", 7) == Record("c", 7, "model", "", "weight_norm", 6.0)


def test_the_order_is_that_in_which_records_come():
    read = [Record("c", step, "gradient_flow", site, "output_norm", 1.0) for step in (0, 1) for site in ("z", "a")]
    assert [(r.site, r.value) for r in order_records(read, "c")] == [("z", 0.0), ("a", 1.0)]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    codes = ["gradients", "step", "smoothness", "shift"]
    folder = tmp_path_factory.mktemp("compare") / "run"
    return ns.compare(make_case, seeds=2, steps=4, questions=codes, workers=1, out=folder)


def test_a_run_keeps_the_order_of_use(compared):
    order = compared.evidence.select(probe="model", name="order", arm="own", seed=0)
    assert order.sort("value")["site"].to_list() == ["stem", "block", "head"]


def test_the_length_of_all_weights_is_there_wherever_the_length_of_a_step_is(compared):
    steps = {
        probe: set(compared.evidence.select(probe=probe, name=name)["step"].to_list())
        for probe, name in (("model", "weight_norm"), ("descent", "safe_step"))
    }
    assert steps["model"] == steps["descent"]


def test_two_seeds_are_described_for_every_question_and_no_number_is_missing(compared, tmp_path):
    said = str(compared)
    assert said.count("Described, not judged (2 seeds)") == 4
    assert "nan" not in said
    assert compared.report(tmp_path / "page.html").stat().st_size > 10_000
    rows = compared.answers().filter(compared.answers()["question"] != "step")  # a step may have no bound
    assert rows["effect"].is_finite().all()


def test_the_first_layer_has_no_shift_and_is_left_out(compared):
    read = compared.evidence.select(probe="covariate_shift", name="l2")
    assert set(read.filter(read["site"] == "stem")["value"]) == {0.0}
    assert all(math.isfinite(value) and value > 0 for value in read.filter(read["site"] == "block")["value"])
