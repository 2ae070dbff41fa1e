"""Probes, one a file: instruments that attach to a training loop and leave no trace."""

from typing import TYPE_CHECKING

from normscope.probes._arguments import optimizers_of as optimizers_of
from normscope.probes._attachment import Attachment as Attachment
from normscope.probes._find import (
    Wanted as Wanted,
    all as all,
    chosen_probes as chosen_probes,
    default_probes as default_probes,
    get as get,
    presets as presets,
)
from normscope.probes._pass_conditions import PassConditions as PassConditions
from normscope.probes._probe import AbstractProbe as AbstractProbe
from normscope.probes._recorder import Recorder as Recorder
from normscope.probes._replay import LossFn as LossFn, Replay as Replay
from normscope.probes._sinks import RecordSink as RecordSink, Sink as Sink, SinkWarning as SinkWarning
from normscope.probes._step import Step as Step
from normscope.probes._step_in_progress import StepObserver as StepObserver
from normscope.probes._vectors import Evaluation as Evaluation
from normscope.probes._warnings import ProbeWarning as ProbeWarning, WiringWarning as WiringWarning
from normscope.probes.remarks import Readings as Readings, Remark as Remark, Urgency as Urgency

if TYPE_CHECKING:  # for editors and type checkers alone: when it runs, a probe is found by its file
    from normscope.probes.activation_distribution import ActivationDistribution as ActivationDistribution
    from normscope.probes.affine_drift import AffineDrift as AffineDrift
    from normscope.probes.batch_norm_gradient_terms import BatchNormGradientTerms as BatchNormGradientTerms
    from normscope.probes.conditioning import Conditioning as Conditioning
    from normscope.probes.covariate_shift import CovariateShift as CovariateShift
    from normscope.probes.curvature import Curvature as Curvature
    from normscope.probes.descent import Descent as Descent
    from normscope.probes.distribution_shift import DistributionShift as DistributionShift
    from normscope.probes.gradient_flow import GradientFlow as GradientFlow
    from normscope.probes.gradient_noise import GradientNoise as GradientNoise
    from normscope.probes.interaction import Interaction as Interaction
    from normscope.probes.landscape import LandscapeAlongGradient as LandscapeAlongGradient
    from normscope.probes.loss import Loss as Loss
    from normscope.probes.output_moments import OutputMoments as OutputMoments
    from normscope.probes.residual_stream import ResidualStream as ResidualStream
    from normscope.probes.saturation import Saturation as Saturation
    from normscope.probes.scale_invariance import ScaleInvariance as ScaleInvariance
    from normscope.probes.statistics_gap import StatisticsGap as StatisticsGap
    from normscope.probes.statistics_noise import StatisticsNoise as StatisticsNoise
    from normscope.probes.update_ratio import UpdateRatio as UpdateRatio
else:

    def __getattr__(name: str) -> type[AbstractProbe]:
        """Find a probe by its class name: it is found without a line here."""
        for probe in all():
            if probe.__name__ == name:
                return probe
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
