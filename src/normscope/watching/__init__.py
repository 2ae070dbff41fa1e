"""Watching a training: the scope, and the line that attaches it to any loop."""

from normscope.watching._scope import Scope as Scope
from normscope.watching._watch import watch as watch
