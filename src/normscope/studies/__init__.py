"""Studies, one a file: a claim about batch normalization, the experiment that tests it, and its verdict."""

from normscope.studies._calibrate import Rate as Rate, calibrate as calibrate
from normscope.studies._evidence import Evidence as Evidence
from normscope.studies._find import all as all, from_file as from_file, get as get
from normscope.studies._new import new as new
from normscope.studies._run import Run as Run, load as load, refuse as refuse, run as run
from normscope.studies._study import AbstractStudy as AbstractStudy, Progress as Progress
from normscope.studies._texts import Texts as Texts, texts as texts
