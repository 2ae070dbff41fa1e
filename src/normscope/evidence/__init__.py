"""What rules look at: a training set-up, and everything that is measured on it, once. A rule needs no other names."""

from normscope.evidence import examples as examples
from normscope.evidence.activations import Activation as Activation
from normscope.evidence.answers import Answer as Answer, answers as answers
from normscope.evidence.arms import (
    case_arm as case_arm,
    example_of as example_of,
    plan_arm as plan_arm,
    reached_objects as reached_objects,
)
from normscope.evidence.case import Case as Case, ignore as ignore, length_of as length_of
from normscope.evidence.evidence import Evidence as Evidence, NotShownError as NotShownError
from normscope.evidence.exported import Deployed as Deployed, exported_anew as exported_anew, quiet as quiet
from normscope.evidence.gap import Gap as Gap, Share as Share
from normscope.evidence.listening import NormCall as NormCall
from normscope.evidence.measures import (
    by_update as by_update,
    distance_of_means as distance_of_means,
    innermost as innermost,
    of_this_library as of_this_library,
)
from normscope.evidence.passes import (
    example as example,
    look as look,
    replace_module as replace_module,
    take_out as take_out,
)
from normscope.evidence.repairs import (
    RefusedFixError as RefusedFixError,
    convert_places as convert_places,
    loader_anew as loader_anew,
    modules_of as modules_of,
    recalibrate_places as recalibrate_places,
)
from normscope.evidence.sandbox import TraceWarning as TraceWarning, sandbox as sandbox
from normscope.evidence.sequences import (
    as_sequences as as_sequences,
    tail_lengths as tail_lengths,
    tail_share as tail_share,
)
from normscope.evidence.untrained import as_made as as_made, shifts_differ as shifts_differ
from normscope.modules.batches import tensors as tensors
from normscope.modules.call import set_mode as set_mode
from normscope.modules.sites import is_known_norm as is_known_norm, tracking as tracking
from normscope.modules.tree import childless as childless
from normscope.records import Finding as Finding, Severity as Severity
