"""What rules look at: a training set-up, and everything that is measured on it, once. A rule needs no other names."""

from normscope.evidence import example_transformers as example_transformers, examples as examples
from normscope.evidence.activations import Activation as Activation
from normscope.evidence.answers import Answer as Answer, answers as answers
from normscope.evidence.apart import (
    APART as APART,
    Apart as Apart,
    apart as apart,
    apart_in_several as apart_in_several,
)
from normscope.evidence.arms import (
    case_arm as case_arm,
    example_of as example_of,
    plan_arm as plan_arm,
    reached_objects as reached_objects,
)
from normscope.evidence.attention import Attention as Attention
from normscope.evidence.case import Case as Case, ignore as ignore, length_of as length_of
from normscope.evidence.companions import (
    Companion as Companion,
    Gain as Gain,
    gain_by_recalibration as gain_by_recalibration,
    gain_of as gain_of,
    is_copy as is_copy,
    modules_in as modules_in,
    outer_modules as outer_modules,
    recalibrate_companion as recalibrate_companion,
)
from normscope.evidence.coupling import (
    Coupling as Coupling,
    coupling_of as coupling_of,
    input_gradients as input_gradients,
)
from normscope.evidence.evidence import Evidence as Evidence, NotShownError as NotShownError
from normscope.evidence.example_companions import with_companion as with_companion
from normscope.evidence.exported import Deployed as Deployed, exported_anew as exported_anew, quiet as quiet
from normscope.evidence.gap import Gap as Gap, Share as Share
from normscope.evidence.influence import Influence as Influence, influence_in_evaluation as influence_in_evaluation
from normscope.evidence.kinds import (
    kinds_of_pass as kinds_of_pass,
    kinds_of_step as kinds_of_step,
    kinds_of_update as kinds_of_update,
)
from normscope.evidence.listening import NormCall as NormCall
from normscope.evidence.measures import innermost as innermost, of_this_library as of_this_library
from normscope.evidence.mixing import Mixing as Mixing
from normscope.evidence.modes import (
    ByMode as ByMode,
    modules_by_mode as modules_by_mode,
    settled_loss as settled_loss,
    written_in_evaluation as written_in_evaluation,
)
from normscope.evidence.moments import ALIKE as ALIKE, Moments as Moments, excess_of_means as excess_of_means
from normscope.evidence.own_statistics import Cost as Cost, cost_of_sharing as cost_of_sharing
from normscope.evidence.passes import (
    example as example,
    look as look,
    replace_module as replace_module,
    take_out as take_out,
)
from normscope.evidence.places import Place as Place, Places as Places, by_place as by_place
from normscope.evidence.repairs import (
    RefusedFixError as RefusedFixError,
    convert_places as convert_places,
    loader_anew as loader_anew,
    modules_of as modules_of,
    recalibrate_places as recalibrate_places,
)
from normscope.evidence.residuals import Head as Head, Residuals as Residuals
from normscope.evidence.sandbox import TraceWarning as TraceWarning, sandbox as sandbox
from normscope.evidence.sequences import (
    as_sequences as as_sequences,
    tail_lengths as tail_lengths,
    tail_share as tail_share,
)
from normscope.evidence.streams import Streams as Streams
from normscope.evidence.untrained import as_made as as_made, has_learnt as has_learnt, shifts_differ as shifts_differ
from normscope.modules.batches import tensors as tensors
from normscope.modules.call import set_mode as set_mode
from normscope.modules.sites import is_known_norm as is_known_norm, tracking as tracking
from normscope.modules.tree import childless as childless
from normscope.records import Finding as Finding, Severity as Severity
