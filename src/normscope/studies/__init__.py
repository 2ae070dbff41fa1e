"""Studies, one a file: a claim, the experiment that tests it, and the rule that judges it."""
