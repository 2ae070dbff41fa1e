"""Fused kernels. Private: `normscope.ops` decides which of them runs, and nothing else imports them."""
