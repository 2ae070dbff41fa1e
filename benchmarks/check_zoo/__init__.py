"""Networks that the rules of ``ns.check`` were not made on, and defects as users make them.

``python -m benchmarks.check_zoo`` measures how often the rules are right on them.
"""
