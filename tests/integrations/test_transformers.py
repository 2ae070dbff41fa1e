"""The callback under transformers' own Trainer: training stays as it is, and probes read what it trains with."""

import pytest

from kit.traces import differences

pytestmark = [
    pytest.mark.extras,
    pytest.mark.filterwarnings(
        "ignore", "error::normscope.probes.ProbeWarning", "error::normscope.probes.WiringWarning"
    ),  # the trainer's own: not of interest
]
REPLAYING = ["descent", "gradient_flow", "update_ratio"]
WAYS = {
    "plain": {},
    "accumulating": {"gradient_accumulation_steps": 2},  # the last step of an epoch has one batch
    "bf16": {"bf16": True},
    "unclipped": {"max_grad_norm": 0.0},
    "clipped": {"max_grad_norm": 1e-3},
    "checkpointed": {"gradient_checkpointing": True},
    "all": {"gradient_accumulation_steps": 2, "bf16": True, "max_grad_norm": 1e-3},
}
KINDS = ["language", "images"]


@pytest.fixture
def kit():
    pytest.importorskip("accelerate", reason="Accelerate is not installed")
    return pytest.importorskip("kit.transformers_training", reason="transformers is not installed")


@pytest.fixture
def watching(kit):
    from normscope.integrations.transformers import NormscopeCallback

    return NormscopeCallback


def value(callback, probe, name, step, site=""):
    frame = callback.scope.records()
    rows = frame.filter((frame["probe"] == probe) & (frame["name"] == name) & (frame["step"] == step))
    return rows.filter(rows["site"] == site)["value"].item()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_training_is_bit_identical_and_probes_read_its_loss(kit, watching, tmp_path, kind, way):
    if (kind, way) == ("images", "checkpointed"):
        pytest.skip("transformers' ResNet has no checkpointing")
    made = getattr(kit, kind)
    without = kit.train(made, tmp_path, **WAYS[way])
    callback = watching(probes=REPLAYING, every=2)
    trainer, ear = kit.train(made, tmp_path, [callback], **WAYS[way])
    assert differences(kit.left_behind(*without), kit.left_behind(trainer, ear)) == []
    assert sorted(set(callback.scope.records()["step"])) == [0, 2, 4]
    assert set(callback.scope.records()["probe"]) == set(REPLAYING)
    assert callback.scope.index == 6
    for step in (0, 2, 4):
        assert value(callback, "descent", "loss", step) == pytest.approx(trainer.loss_of(step), rel=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_read_as_they_are_before_clipping(kit, watching, tmp_path, way):
    callback = watching(probes=["gradient_flow"], every=1)
    options = WAYS[way] | {"max_grad_norm": 0.0}
    _, ear = kit.train(kit.language, tmp_path, **options, steps=1)
    kit.train(kit.language, tmp_path, [callback], **WAYS[way], steps=1)
    site = "transformer.h.0.mlp.c_fc"
    whole = sum(ear.norms[0][f"{site}.{part}"] ** 2 for part in ("weight", "bias")) ** 0.5
    assert value(callback, "gradient_flow", "norm", 0, site) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_training_counts_on(kit, watching, tmp_path, kind):
    made, saving = getattr(kit, kind), {"save_strategy": "steps", "save_steps": 3}
    kit.train(made, tmp_path, [watching(every=2)], steps=3, **saving)
    without = kit.train(made, tmp_path / "a", resume=str(tmp_path / "checkpoint-3"), **saving)
    callback = watching(every=2)
    resumed = kit.train(made, tmp_path / "b", [callback], resume=str(tmp_path / "checkpoint-3"), **saving)
    assert differences(kit.left_behind(*without), kit.left_behind(*resumed)) == []
    assert sorted(set(callback.scope.records()["step"])) == [4]
    assert callback.scope.index == 6


def test_evaluation_between_steps_is_not_watched(kit, watching, tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True, "steps": 3}

    class Evaluating(kit.Loud):
        def __init__(self, *args, **options):
            super().__init__(*args, eval_dataset=options["train_dataset"], **options)

    without = kit.train(kit.images, tmp_path, trainer=Evaluating, **options)
    callback = watching(probes=REPLAYING, every=1)
    trainer, ear = kit.train(kit.images, tmp_path, [callback], trainer=Evaluating, **options)
    assert differences(kit.left_behind(*without), kit.left_behind(trainer, ear)) == []
    for step in range(3):
        assert value(callback, "descent", "loss", step) == pytest.approx(trainer.loss_of(step), rel=1e-5)


def test_an_exception_in_the_middle_leaves_nothing_on_the_model_once_closed(kit, watching, tmp_path):
    callback, made = watching(probes=REPLAYING, every=1), []

    def keeping():
        made.append(kit.images())
        return made[0]

    class Failing(kit.Loud):
        def compute_loss(self, *args, **options):
            if self.state.global_step == 2:
                raise KeyError("planted")
            return super().compute_loss(*args, **options)

    with pytest.raises(KeyError, match="planted"):
        kit.train(keeping, tmp_path, [callback], trainer=Failing)
    callback.close()
    callback.close()
    assert callback.scope.index == 2  # the step that failed does not count
    for part in made[0][0].modules():
        assert not part._forward_hooks
        assert not part._forward_pre_hooks


def test_a_loss_of_the_trainers_own_is_given(kit, watching, tmp_path):
    def compute(outputs, labels, num_items_in_batch=None):
        return outputs.logits.square().mean()

    class Own(kit.Loud):
        def __init__(self, *args, **options):
            super().__init__(*args, compute_loss_func=compute, **options)

    def loss_fn(model, batch):
        return compute(model(pixel_values=batch["pixel_values"]), None)

    callback = watching(probes=["descent"], every=1, loss_fn=loss_fn)
    trainer, _ = kit.train(kit.images, tmp_path, [callback], trainer=Own, steps=2)
    for step in range(2):
        assert value(callback, "descent", "loss", step) == pytest.approx(trainer.loss_of(step), rel=1e-5)
