"""Readable names of the recorded quantities, for axes and heads of panels."""

_TITLES = {
    "loss": "Training loss (nats)",
    "accuracy": "Training accuracy",
    "test_loss": "Test loss (nats)",
    "test_accuracy": "Test accuracy",
    "norm": "Gradient norm ‖∂L/∂W‖₂",
    "gradient_norm": "Gradient norm ‖G‖₂",
    "output_norm": "Root mean square of ∂L/∂output",
    "growth": "Growth of gradient² per layer toward the input",
    "mean": "Mean of the outputs",
    "std": "Standard deviation of the outputs",
    "p15": "15th percentile",
    "p50": "Median",
    "p85": "85th percentile",
    "l2": "Shift of the gradient ‖G − G′‖₂",
    "relative": "Relative shift ‖G − G′‖ / ‖G‖",
    "cosine": "Cosine of G and G′",
    "loss_min": "Lowest loss along the gradient",
    "loss_max": "Highest loss along the gradient",
    "loss_range": "Range of the loss along the gradient",
    "gradient_difference": "Largest ‖∇L(θ) − ∇L(θ − s∇L)‖₂",
    "gradient_difference_relative": "Largest ‖∇L(θ) − ∇L(θ − s∇L)‖ / ‖∇L(θ)‖",
    "effective_beta": "Effective smoothness β",
    "curvature": "Curvature along the gradient gᵀHg / gᵀg",
}


def readable(name: str) -> str:
    """Return the words for a recorded name; ``loss_range@same-step`` names its matching after a comma."""
    base, _, matching = name.partition("@")
    words = _TITLES.get(base, base.replace("_", " ").strip() or "value")
    return f"{words}, {matching.replace('-', ' ')}" if matching else words
