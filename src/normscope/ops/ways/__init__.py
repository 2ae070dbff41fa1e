"""The ways of computing a batch norm: torch's own operations, the fused kernel, the compiler, in place."""
