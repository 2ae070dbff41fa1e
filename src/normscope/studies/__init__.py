"""Studies, one a file: a claim about batch normalization, the experiment that tests it, and its verdict."""

from normscope.studies.calibration import Rate as Rate, calibrate as calibrate
from normscope.studies.evidence import Evidence as Evidence
from normscope.studies.find import all as all, from_file as from_file, get as get
from normscope.studies.runs import Run as Run, load as load, refuse as refuse, run as run
from normscope.studies.source_texts import Texts as Texts, texts as texts
from normscope.studies.study import AbstractStudy as AbstractStudy, Progress as Progress
from normscope.studies.template import new as new
