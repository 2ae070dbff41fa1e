"""Layer norms with a change: the forward values stay, and what is cut or scaled is what was to be."""

import math

import pytest
import torch

from normscope import ops
from normscope.studies.lab.changed_norms import cut, scaled_by_depth
from normscope.studies.lab.models import Place


def given(features=7, seed=0):
    """Input, upstream gradient, gain and shift in float64, none of which is special."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=g)  # noqa: E731
    return 2 + 3 * draw(4, 5, features), draw(4, 5, features), 0.5 + draw(features).abs(), draw(features)


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("variance", [False, True])
def test_forward_is_layer_norm_and_backward_lacks_the_terms_that_were_cut(mean, variance):
    x, upstream, weight, bias = given()
    norm = cut(mean=mean, variance=variance)(Place(0, 7)).double()
    with torch.no_grad():
        norm.weight.copy_(weight)
        norm.bias.copy_(bias)
    x.requires_grad_()
    out = norm(x)
    torch.testing.assert_close(out, torch.nn.functional.layer_norm(x, (7,), weight, bias, norm.eps))
    (gradient,) = torch.autograd.grad(out, x, upstream)
    terms = ops.layer_norm_backward_terms(upstream, x.detach(), (7,), weight, norm.eps)
    kept = terms.rescale + (0 if mean else terms.mean_coupling) + (0 if variance else terms.variance_coupling)
    torch.testing.assert_close(gradient, kept)


@pytest.mark.parametrize(
    ("index", "factor"), [(0, 1.0), (1, 1.0), (2, 1 / math.sqrt(2)), (5, 1 / math.sqrt(3)), (6, 1)]
)
def test_both_norms_of_a_block_are_divided_by_the_root_of_its_number_and_the_last_norm_is_not(index, factor):
    x, *_ = given()
    norm = scaled_by_depth(3)(Place(index, 7)).double()
    torch.testing.assert_close(norm(x), factor * torch.nn.functional.layer_norm(x, (7,)))
