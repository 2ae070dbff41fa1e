"""What studies share: small models, data, and the one training loop."""
