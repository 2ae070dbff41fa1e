"""The live page: a run's records in the browser while the training goes on."""

from normscope.live.follower import Follower as Follower
from normscope.live.server import LiveServer as LiveServer
