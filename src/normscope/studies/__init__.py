"""Studies, one a file: a claim about batch normalization, the experiment that tests it, and its verdict."""

from normscope.studies._evidence import Evidence as Evidence
from normscope.studies._find import all_studies as all
from normscope.studies._find import get as get
from normscope.studies._run import Run as Run
from normscope.studies._run import load as load
from normscope.studies._run import run as run
from normscope.studies._study import AbstractStudy as AbstractStudy
from normscope.studies._study import Progress as Progress
