"""Verify a gradient formula: right or wrong, by how much, and which known term is missing or doubled."""

from normscope.verifying.result import Checked, Verification
from normscope.verifying.verify import verify

__all__ = ["Checked", "Verification", "verify"]
