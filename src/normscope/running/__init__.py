"""Where the cells of a run are computed: processes of this machine, Ray, SLURM, or several calls of one command."""

from normscope.running.executor import Executor as Executor, connected as connected, executor_of as executor_of
from normscope.running.local import LocalExecutor as LocalExecutor
from normscope.running.on_ray import RayExecutor as RayExecutor
from normscope.running.on_slurm import SlurmExecutor as SlurmExecutor
from normscope.running.pickling import register_by_value as register_by_value
from normscope.running.shard import IncompleteRunError as IncompleteRunError, Shard as Shard
from normscope.running.threads import one_thread as one_thread
from normscope.running.work import Work as Work
from normscope.running.workers import worker_count as worker_count
