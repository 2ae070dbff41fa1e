"""Rules, one a file: a defect of normalization, how to find it, prove it with numbers, and repair it."""

from normscope.rules._find import all as all, chosen as chosen, get as get
from normscope.rules._rule import AbstractRule as AbstractRule
