"""Watching a training: the scope, the line that attaches it to any loop, and what callbacks of trainers are made of."""

from normscope.watching._scope import Scope as Scope
from normscope.watching._training import WatchedTraining as WatchedTraining
from normscope.watching._watch import watch as watch
