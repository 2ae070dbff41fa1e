"""Settings with which a study's cells take a fraction of a second, and a run of the whole study with them."""

import pytest

from normscope import studies

MLP = {"name": "mlp", "depth": 2, "width": 8}
WIDE = {"name": "mlp", "width": 8}
TRANSFORMER = {"width": 8, "blocks": 2, "heads": 2, "init": "xavier"}
FEW = {"train": 300, "test": 60}
TINY = {"network": TRANSFORMER, "context": 8, "batch": 4, "warmup": 3,
        "steps": 6, "test": 10}  # fmt: skip

#: What differs from the quick preset, by slug.
SMALL = {
    "adversarial-vulnerability": {"network": MLP, "radii": [0.1, 0.2], "steps": 10, **FEW},
    "affine-before-linear-useless": {"network": MLP, "steps": 6, **FEW},
    "batch-leak": {"width": 8, "depth": 2, "batch": 16, "steps": 20, "every": 5, **FEW},
    "batch-norm-in-transformers": {"network": TRANSFORMER, "lrs": [0.003, 0.01], "images": [16, 8], "steps": 6, **FEW},
    "beta-smoothness-is-edge-of-stability": {
        "network": {**MLP, "activation": "tanh", "gain": 1.0}, "examples": 60, "steps": 12, "every": 3, **FEW,
    },
    "beta-overfits": {"network": MLP, "sizes": [60, 100], "batch": 20, "steps": 10, "test": 60},
    "bias-before-bn-redundant": {"network": MLP, "steps": 25, **FEW},
    "bn-noise-regularises": {
        "network": MLP, "deep": 3, "ghosts": [4, 8], "dropouts": [0.3], "batch": 32, "steps": 8, "train": 100,
        "test": 60,
    },
    "bn-only-training": {"network": WIDE, "depths": [1, 2], "steps": 10, **FEW},
    "conditioning": {"network": MLP, "batch": 64, "steps": 7, "every": 3, "samples": 2000, **FEW},
    "dropout-variance-shift": {"network": MLP, "keeps": [0.5, 1.0], "steps": 10, "settle": 10, **FEW},
    "dyt-replaces-norm": {
        **TINY, "network": {"width": 8, "heads": 2, "init": "xavier"}, "depths": [1, 2], "judged": 2,
        "lrs": [0.001, 0.01],
    },
    "exploding-gradient-at-init": {"width": 32, "narrow": 16, "depth": 12, "batches": [8, 16], "judged": 16},
    "exploding-gradient-in-training": {"network": WIDE, "depths": [2, 4], "judged": 4, "batches": [16], "steps": 22,
                                       **FEW},
    "fewer-iterations": {"network": MLP, "networks": ["sigmoid", "relu"], "lrs": [0.5, 2.0], "steps": 10, **FEW},
    "flat-minima": {"network": MLP, "lrs": [0.1, 0.3], "loss": 2.2, "steps": 60, "probe": 64, **FEW},
    "gamma-cures-vanishing": {"network": {"name": "mlp", "depth": 3, "width": 8}, "steps": 8, **FEW},
    "high-order-effects": {"network": {"name": "mlp", "depth": 3, "width": 8}, "batch": 32, "steps": 5, "every": 2,
                           **FEW},
    "identity-recoverable": {"network": MLP, "batches": [8, 64], "draws": 50, "steps": 9, **FEW},
    "init-tolerance": {"network": MLP, "scales": [0.1, 1.0, 10.0], "steps": 10, "law_steps": 5, **FEW},
    "layernorm-gradients-matter": {"network": {"width": 8, "heads": 2}, "depths": [1, 2], "judged": 2,
                                   "lrs": [0.003, 0.01], "steps": 4, **FEW},
    "learning-rate-tolerance": {"network": WIDE, "depths": [1, 2], "judged": 2, "lrs": [0.1, 1.0], "steps": 8, **FEW},
    "ln-backward-terms": {"network": TRANSFORMER, "widths": [6, 20], "tokens": 100, "windows": [2, 4], "steps": 3,
                          **FEW},
    "lp-normalisation": {"network": MLP, "steps": 8, **FEW},
    "normaliser-free-competitors": {"network": {"name": "mlp", "depth": 2, "width": 8}, "steps": 8, **FEW},
    "norm-before-or-after-activation": {"network": MLP, "lrs": [0.1, 1.0], "steps": 8, "every": 4, **FEW},
    "noisy-batchnorm": {"network": MLP, "batch": 32, "steps": 12, "lrs": [0.1, 0.3], "every": 5, **FEW},
    "output-moments-hessian": {"network": MLP, "batch": 32, "steps": 5, "every": 2, **FEW},
    "pre-ln-depth-curse": {"network": {"width": 8, "blocks": 3, "heads": 2}, "steps": 4, **FEW},
    "post-ln-needs-warmup": {**TINY, "lrs": {"post": [0.001, 0.01], "pre": [0.01, 0.1]}},
    "pre-ln-post-ln-gradients": {"width": 16, "depths": [2, 4], "shallow": [1, 2], "context": 8, "windows": 2},
    "rank-collapse": {"widths": [8, 16], "judged": 16, "depth": 12},
    "qk-norm-stability": {"network": TRANSFORMER, "lrs": [0.01, 0.1], "steps": 8, **FEW},
    "relu-half-saturated": {"network": WIDE, "depths": [2], "steps": 4, **FEW},
    "rmsnorm-equals-layernorm": {**TINY, "lrs": [0.001, 0.01]},
    "scale-invariance-auto-rate": {
        "network": MLP, "decayed_network": MLP, "steps": 10, "decayed_steps": 12, "batch": 32, **FEW,
    },
    "shattered-gradients": {"width": 64, "points": 48, "depth": 12, "judged": 6},
    "shift-causes-vanishing": {
        "network": {"name": "mlp", "depth": 3, "width": 8}, "doses": [0.0, 1.0], "steps": 12, "every": 2, **FEW,
    },
    "small-rate-no-gain": {"network": MLP, "lrs": [0.001, 0.1], "steps": 8, **FEW},
    "stable-activation-distributions": {
        "network": {**MLP, "activation": "sigmoid"}, "lrs": [0.5, 2.0], "steps": 13, "every": 4, "probe": 50, **FEW,
    },
    "tanh-saturation": {"network": MLP, "scales": [1.0, 1.6667, 10.0], "steps": 8, **FEW},
    "taylor-quadratic-term": {"network": WIDE, "depths": [1, 2], "scales": [0.3, 1.0], "batch": 64, "steps": 5,
                              "every": 2, **FEW},
    "train-test-statistics-gap": {"network": MLP, "steps": 22, **FEW},
    "vanishing-at-init": {"width": 24, "depth": 12, "batch": 32, "scales": [0.5, 1.0]},
    "weight-decay-is-exponential-rate": {"network": MLP, "batch": 32, "steps": 12, **FEW},
}  # fmt: skip


def settings(slug, **changes):
    """The quick preset in small, with more changes."""
    return {**studies.get(slug).PRESETS["quick"], **SMALL[slug], **changes}


def run_small(slug, out, seeds=2, **changes):
    """Run a study as a whole, and return (verdict, run)."""
    study = studies.get(slug)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(study), "PRESETS", {"quick": settings(slug, **changes)})
        verdict = study.run(out=out, seeds=seeds, workers=1)
        return verdict, studies.load(out)[0]


def cell_records(slug, arm, point=None, seed=0, **changes):
    """Run one cell of a study on its own data and return its records."""
    from normscope.studies.cells import Source, run_group
    from normscope.studies.lab.data import load

    study = studies.get(slug)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(study), "PRESETS", {"quick": settings(slug, **changes)})
        data = load(study.DATA)
        cells = study.cells("quick", [seed], data)
    fits = [cell for cell in cells if cell.arm == arm and all(cell.point[k] == v for k, v in (point or {}).items())]
    assert fits, f"{slug} has no cell {arm} {point}: {sorted({(c.arm, str(c.point)) for c in cells})}"
    return run_group(study, Source(study.DATA, data.fingerprint()), "cpu", fits[:1])[0][1]


def values(records, name, probe=None, site=None):
    """The values of the records of a name, in order."""
    return [r.value for r in records if r.name == name and probe in (None, r.probe) and site in (None, r.site)]
