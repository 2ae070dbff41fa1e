"""Every study runs as a whole, gives finite records of the names it promises, and draws its figures and tables."""

import math

import pytest

from kit.small_studies import SMALL, cell_records, run_small
from normscope import studies

#: Records that a study must have, as probe:name.
NAMES = {
    "beta-smoothness-is-edge-of-stability": {"descent:sharpness", "descent:beta_relative", "descent:diverged"},
    "flat-minima": {"minimum:reached", "minimum:steps", "curvature:layer_sharpness@train", "law:error"},
    "high-order-effects": {"interaction:interaction_size@c=0.1", "interaction:cross_share", "chain:error"},
    "ln-backward-terms": {"token_terms:full_error", "token_terms:error", "token_terms:error_few"},
    "lp-normalisation": {"lp:kurtosis", "lp:spread"},
    "normaliser-free-competitors": {"signal:mean_square"},
    "noisy-batchnorm": {"channel_shift:mean_shift", "activation_distribution:std"},
    "stable-activation-distributions": {"trail:path", "trail:shape_path", "trail:displacement", "trail:settled"},
    "adversarial-vulnerability": {"attack:accuracy", "attack:gradient"},
    "affine-before-linear-useless": {"algebra:linear", "algebra:valid", "algebra:padded", "algebra:border_8"},
    "batch-norm-in-transformers": {"batch_distance:mean", "evaluated:running", "chance:loss"},
    "beta-overfits": {"training:train_accuracy"},
    "bias-before-bn-redundant": {"bias:ratio", "bias:drift"},
    "bn-noise-regularises": set(),
    "bn-only-training": {"affine:count", "affine:off"},
    "conditioning": {"conditioning:condition_95", "outlier:outlier_64", "outlier:outlier_256"},
    "dropout-variance-shift": {"dropout:measured", "dropout:theory", "dropout:log_ratio", "dropout:evaluation"},
    "dyt-replaces-norm": {"text:frequency_loss", "gradient:norm", "gradient:norm_glorot"},
    "exploding-gradient-at-init": {"chain:rate", "chain:squared_gradient"},
    "exploding-gradient-in-training": {"relative_gradient:relative", "relative_gradient:spread"},
    "fewer-iterations": set(),
    "gamma-cures-vanishing": {"gamma:mean", "gamma:invariance", "gamma:euler", "gamma:sensitivity"},
    "identity-recoverable": {
        "identity:error_times_m",
        "identity:eval_error",
        "identity:nonlinear_eval",
        "identity:nonlinear_train",
        "identity:gamma_away",
        "identity:beta_away",
    },
    "init-tolerance": {"law:difference"},
    "layernorm-gradients-matter": {"chance:loss"},
    "learning-rate-tolerance": set(),
    "norm-before-or-after-activation": {"conditioning:condition_95"},
    "output-moments-hessian": {"curvature:top_eigenvalue@frozen", "output_moments:overlap_mean@frozen"},
    "pre-ln-depth-curse": {"stream:variance", "stream:angle", "stream:worth"},
    "post-ln-needs-warmup": {"text:frequency_loss"},
    "pre-ln-post-ln-gradients": {"gradient:position", "gradient:batch", "gradient:stream"},
    "qk-norm-stability": {"attention:largest_logit", "attention:largest_weight", "text:frequency_loss"},
    "relu-half-saturated": {"rectifier:inactive", "rectifier:dead", "rectifier:beta"},
    "rmsnorm-equals-layernorm": {"stream:mean_share", "stream:centred_loss", "stream:identity_error"},
    "scale-invariance-auto-rate": {"scale:cosine", "scale:gradient_slope", "scale:rotation", "scale:equilibrium"},
    "tanh-saturation": {"tanh:beyond_3", "tanh:flat", "tanh:slope", "tanh:gradient_ratio"},
    "taylor-quadratic-term": {"safe_step:safe_step", "safe_step:rises", "descent:safe_step", "descent:raised"},
    "vanishing-at-init": {"chain:rate", "chain:squared_gradient"},
    "weight-decay-is-exponential-rate": {"twins:apart", "twins:difference", "twins:rate"},
    "batch-leak": {"pretext:own_company", "pretext:new_company", "pretext:probe", "pretext:loss"},
    "rank-collapse": {"rank:stable_rank", "rank:participation", "rank:by_layer"},
    "shattered-gradients": {"gradients:correlation"},
    "shift-causes-vanishing": {"gradients:ratio", "gradients:by_layer", "channel_shift:relative_mean_shift"},
    "small-rate-no-gain": set(),
    "train-test-statistics-gap": {"evaluated:moving", "evaluated:anew", "evaluated:own"},
}
#: Names whose value is infinite or no number where nothing bends upward or no unit is alive: said on their pages.
LOOSE = {"safe_step", "decrease_ratio", "linear_decrease_ratio", "condition_100", "condition_95"}
TRAINED = {"loss", "accuracy", "test_accuracy", "val_loss", "diverged"}


@pytest.mark.trains
@pytest.mark.parametrize("slug", sorted(SMALL))
def test_it_runs_as_a_whole(slug, tmp_path):
    verdict, run = run_small(slug, tmp_path)
    study, evidence = run.study, run.evidence()  # read once; run.verdict(), figures() and tables() do the same
    assert study.judge(evidence) == verdict
    assert verdict.primary
    assert not any(part.primary for part in verdict.parts)
    assert verdict.reason
    assert all(part.claim and part.endpoint and part.reason for part in verdict.parts)
    frame = evidence.frame
    found = {f"{probe}:{name}" for probe, name in frame.select("probe", "name").unique().rows()}
    promised = set(NAMES[slug])
    if any(name.startswith("training:") for name in found):
        promised |= {f"training:{name}" for name in TRAINED}
    assert promised <= found
    bad = frame.filter(~frame["value"].is_finite() & ~frame["name"].is_in(list(LOOSE)))
    assert bad.is_empty(), bad
    figures = study.figures(evidence)
    assert figures
    assert len({figure.slug for figure in figures}) == len(figures)
    assert all(figure.caption and figure.alt for figure in figures)
    assert not [figure.slug for figure in figures if "nothing to draw" in figure.alt]
    shown = {one.figure for one in studies.texts().errata if one.studies[:1] == (slug,)}
    assert shown <= {figure.slug for figure in figures}
    tables = study.tables(evidence)
    assert tables
    for table in tables:
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.columns)}


@pytest.mark.parametrize("slug", sorted(SMALL))
def test_a_cell_depends_on_its_seed_alone(slug):
    study = studies.get(slug)
    arm, point = next(iter(study.grid({**study.PRESETS["quick"], **SMALL[slug]})))
    first, again, other = (cell_records(slug, arm, point, seed=seed) for seed in (0, 0, 1))
    key = lambda records: [(r.step, r.probe, r.site, r.name, r.value) for r in records]  # noqa: E731
    assert key(first) == key(again)
    assert key(first) != key(other)
    assert all(not math.isnan(r.value) for r in first)
