"""Training scripts to begin with, to be copied: ``normscope example > train.py``."""
