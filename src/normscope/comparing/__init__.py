"""Compare a network with its norms and without them, seed by seed, and answer in sentences."""

from normscope.comparing.claims import (
    AskedClaim as AskedClaim,
    ClaimedComparison as ClaimedComparison,
    asked_claims as asked_claims,
)
from normscope.comparing.comparison import Comparison as Comparison
from normscope.comparing.condense import condense as condense
from normscope.comparing.export import check_kinds as check_kinds
from normscope.comparing.find import all_questions as all_questions, chosen_questions as chosen_questions
from normscope.comparing.page import Answer as Answer
from normscope.comparing.question import AbstractQuestion as AbstractQuestion, Pair as Pair, Reading as Reading
from normscope.comparing.reading import is_comparison as is_comparison
from normscope.comparing.run import (
    ComparisonWarning as ComparisonWarning,
    NothingToCompareError as NothingToCompareError,
    compare as compare,
)
