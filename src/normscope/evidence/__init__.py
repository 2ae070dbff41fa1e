"""What rules look at: a training set-up, and everything that is measured on it, once."""

from normscope.evidence.case import Case as Case, ignore as ignore
from normscope.evidence.evidence import Evidence as Evidence
from normscope.evidence.gap import Gap as Gap, Share as Share
