"""Studies, one a file: a claim about batch normalization, the experiment that tests it, and its verdict."""

from normscope.studies.calibration import Rate as Rate, calibrate as calibrate
from normscope.studies.case_question import CaseQuestion as CaseQuestion
from normscope.studies.cells import own_code as own_code
from normscope.studies.contrast import Contrast as Contrast, Reading as Reading
from normscope.studies.evidence import Arrivals as Arrivals, Evidence as Evidence, typical as typical
from normscope.studies.experiment import Progress as Progress, presets as presets
from normscope.studies.find import all as all, from_file as from_file, get as get, load as load, run as run
from normscope.studies.looks import Looks as Looks
from normscope.studies.quantity import (
    Best as Best,
    Quantity as Quantity,
    accuracy as accuracy,
    final as final,
    last as last,
    mean as mean,
    mean_log as mean_log,
    steps_to as steps_to,
)
from normscope.studies.runs import Run as Run, refuse as refuse
from normscope.studies.source_texts import Texts as Texts, texts as texts
from normscope.studies.study import AbstractStudy as AbstractStudy
from normscope.studies.template import new as new
from normscope.studies.training import AbstractTraining as AbstractTraining, Arm as Arm
