"""Fused kernels behind the operations: private, chosen by `normscope.ops` alone."""
