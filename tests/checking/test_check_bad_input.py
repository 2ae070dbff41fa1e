"""What is no loss, no step, no loader and no model, as users type it: one line, or a rule with its reason."""

import json

import pytest

ALONE = "it must return the loss alone, a tensor with one number"
LOSSES = {
    "loss_fn(model, batch), 1": f"an object of type tuple: {ALONE}",
    "{'loss': loss_fn(model, batch)}": f"an object of type dict: {ALONE}",
    "[loss_fn(model, batch)]": f"an object of type list: {ALONE}",
    "'0.3'": f"an object of type str: {ALONE}",
    "None": f"None: {ALONE}",
    "model": f"an object of type Sequential: {ALONE}",
    "cross_entropy(model(batch[0]), batch[1], reduction='none')": "a tensor of shape (32,): it must return one number",
    "model(batch[0])": "a tensor of shape (32, 3): it must return one number",
    "loss_fn(model, batch) + 0j": "a tensor of torch.complex64: it must return a real number",
}
IN_TRAINING = LOSSES | {
    "loss_fn(model, batch).item()": f"an object of type float: {ALONE}",
    "loss_fn(model, batch).detach()": "a tensor without gradient: leave out detach, item and no_grad",
    "loss_fn(model, batch).long()": "a tensor of torch.int64: it must return a real number, of a floating dtype",
}


def setup(body, **options):
    given = "".join(f", {name}={value}" for name, value in options.items())
    return f"""
def odd(model, batch):
    {body}

def make():
    model = trained()
    return ns.Case(model, {"loss_fn" if options else "odd"}, data(), None, data(2){given})
"""


@pytest.mark.parametrize("returned", IN_TRAINING)
def test_what_a_loss_must_not_return_is_named(refuse, write, returned):
    said = refuse(f"{write(setup(f'return {returned}'))}:make", "--json")
    assert said.startswith(f"normscope: the loss function returned {IN_TRAINING[returned]}")
    assert "(setup.py:" in said


@pytest.mark.parametrize("returned", LOSSES)
def test_in_evaluation_it_is_the_reason_of_what_needs_it_alone(run, write, returned):
    path = write(setup(f"return {returned}", eval_loss_fn="odd"))
    document = json.loads(run("check", f"{path}:make", "--json", "--select", "NS103,NS108", code=2).stdout)
    (failed,) = document["failed"]
    assert failed["code"] == "gap"
    assert failed["why"].startswith(f"the loss function returned {LOSSES[returned]}")
    assert document["rules"] == ["NS103", "NS108"]


@pytest.mark.parametrize(
    "returned", ["loss_fn(model, batch)[None]", "loss_fn(model, batch).double().reshape(1, 1)", "loss_fn(model, batch)"]
)
def test_a_tensor_with_one_number_is_a_loss(run, write, returned):
    run("check", f"{write(setup(f'return {returned}'))}:make", "--select", "NS103,NS105", "--json")


def test_a_loss_of_evaluation_may_be_any_number(run, write):
    for returned in ("0.3", "loss_fn(model, batch).item()", "__import__('numpy').float32(2)", "3"):
        run("check", f"{write(setup(f'return {returned}', eval_loss_fn='odd'))}:make", "--select", "NS103")


def test_another_kind_in_eval_mode_has_a_hint(run, write):
    path = write(setup("return loss_fn(model, batch) if model.training else {}"))
    document = json.loads(run("check", f"{path}:make", "--json", "--select", "NS103", code=2).stdout)
    assert "give Case(eval_loss_fn=...)" in document["failed"][0]["why"]


@pytest.mark.parametrize("name", ["step", "eval_loss_fn"])
@pytest.mark.parametrize("error", ["ValueError('two\\nlines')", "SystemExit(3)", "RecursionError('deep')"])
def test_a_function_that_raises_is_one_line_or_a_reason(run, write, name, error):
    target = f"{write(setup(f'raise {error!s}', **{name: 'odd'}))}:make"
    done = run("check", target, "--json", "--select", "NS103,NS108", code=2)
    told = done.stderr if name == "step" else json.loads(done.stdout)["failed"][0]["why"]
    kind = error.partition("(")[0]
    assert f"raised {kind}: " in told
    assert "(setup.py:" in told
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("place", "broken"), [("loader", 0), ("loader", 2), ("eval_loader", 0), ("eval_loader", 1)])
def test_a_loader_that_raises_is_one_line_or_a_reason(run, write, place, broken):
    loaders = ("Broken()", "data(2)") if place == "loader" else ("data()", "Broken()")
    path = write(
        f"""
        class Broken:
            def __iter__(self):
                yield from data({broken})
                raise OSError("disk")

        def make():
            return trained(), loss_fn, {loaders[0]}, None, {loaders[1]}
        """
    )
    done = run("check", f"{path}:make", "--json", "--select", "NS103,NS105", code=2)
    told = done.stderr if place == "loader" else json.loads(done.stdout)["failed"][0]["why"]
    assert f"getting batch {broken} of the {place} raised OSError: disk (setup.py:" in told


def test_data_of_evaluation_that_are_gone_are_the_reason_of_what_needs_them_alone(run, write):
    path = write(
        """
        class Once:
            def __init__(self, batches):
                self.batches = batches
            def __iter__(self):
                while self.batches:
                    yield self.batches.pop()

        def make():
            return trained(), loss_fn, data(), None, Once([])

        def make_of_training():
            return trained(), loss_fn, Once(data(4)), None, data(2)
        """
    )
    document = json.loads(run("check", f"{path}:make", "--json", "--select", "NS103,NS105", code=2).stdout)
    assert [each["code"] for each in document["failed"]] == ["gap"]
    assert document["failed"][0]["why"].startswith("the eval_loader gives no batch, or gave all to an earlier pass")
    done = run("check", f"{path}:make_of_training", "--json", "--select", "NS102,NS105", code=2)
    assert done.stderr.startswith("normscope: the loader gives no batch, or gave all to an earlier pass")


MODELS = {
    "net().to('meta')": "meta device",
    "torch.jit.script(trained())": "traced or scripted and cannot be looked into",
    "torch.jit.trace(trained(), data()[0][0])": "traced or scripted and cannot be looked into",
    "torch.export.export(trained(), (data()[0][0],)).module()": "exported and cannot be looked into",
    "nn.Sequential(torch.export.export(trained(), (data()[0][0],)).module())": "its module '0' is exported",
    "torch.export.export(trained(), (data()[0][0],))": "model must be a torch.nn.Module, not ExportedProgram",
    "trained().state_dict()": "model must be a torch.nn.Module, not OrderedDict",
    "net": "model must be a torch.nn.Module, not function",
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.filterwarnings("ignore")
def test_a_model_that_cannot_be_looked_into_is_one_line(refuse, write, model):
    path = write(f"def make():\n    return {model}, loss_fn, data()\n")
    assert MODELS[model] in refuse(f"{path}:make")


@pytest.mark.filterwarnings("ignore")
def test_a_quantised_model_and_a_graph_of_modules_are_judged_or_refused_in_a_line(run, refuse, write):
    path = write(
        """
        def graph():
            return torch.fx.symbolic_trace(trained()), loss_fn, data()

        def dynamic():
            return torch.ao.quantization.quantize_dynamic(trained(), {nn.Linear}), loss_fn, data()

        def static():
            model = torch.ao.quantization.QuantWrapper(trained().eval())
            model.qconfig = torch.ao.quantization.get_default_qconfig("qnnpack")
            torch.ao.quantization.prepare(model, inplace=True)
            model(data()[0][0])
            return torch.ao.quantization.convert(model), loss_fn, data()
        """
    )
    for factory in ("graph", "dynamic"):
        run("check", f"{path}:{factory}", "--select", "NS103,NS105,NS108")
    said = run("check", f"{path}:static", code=2).stderr.splitlines()[-1]
    assert said.startswith("normscope: training step 0 raised ")


def test_what_the_users_code_prints_breaks_no_format(run, write):
    path = write(setup("print('::error::in the loss'); return loss_fn(model, batch)"))
    done = run("check", f"{path}:make", "--format", "github", "--select", "NS103,NS105")
    assert "in the loss" not in done.stdout
    assert "in the loss" in done.stderr
