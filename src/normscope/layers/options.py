"""The options of batch norms beyond torch's arguments, declared once: types, defaults, checks."""

from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict, Unpack, get_args

from normscope._errors import UsageError, shown
from normscope._unit import meant
from normscope.ops.sets import Renorm
from normscope.ops.shapes import RangeError

Activation = Literal["relu", "leaky_relu"]
Statistics = Literal["batch", "ghost", "sync", "renorm"]
OnBadUpdate = Literal["track", "skip", "warn", "raise"]

_CHOICES: dict[str, tuple[Any, ...]] = {
    "activation": (None, *get_args(Activation)),
    "statistics": get_args(Statistics),
    "on_bad_update": get_args(OnBadUpdate),
    "use_running": (None, True, False),
}
# The statistics that an option is for. All other options are for any statistics.
_ONLY_FOR: dict[str, tuple[Statistics, ...]] = {
    "group_size": ("ghost",),
    "process_group": ("sync", "renorm"),
    "renorm": ("renorm",),
    "inplace": ("batch",),
}


class UnknownOptionError(UsageError, TypeError):
    """A layer was given a keyword that names no option; a ``TypeError``, as Python raises for it."""


class BatchNormKeywords(TypedDict, total=False):
    """The options as keywords of a layer, for type checkers: they refuse a misspelt option before the program runs.

    `BatchNormOptions` says what each is, and has the defaults.
    """

    activation: Activation | None
    negative_slope: float
    inplace: bool
    statistics: Statistics
    group_size: int | None
    process_group: Any
    renorm: Renorm | None
    accumulate: int
    on_bad_update: OnBadUpdate
    unbiased_variance: bool
    float32_statistics: bool
    use_running: bool | None
    update_statistics: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchNormOptions:
    """What a batch norm of this package does beside torch's: each option is an attribute of the layer too.

    The defaults do what torch does.

    Attributes:
        activation: Applied to the output, over its memory: ``"relu"``, ``"leaky_relu"`` or None.
        negative_slope: Of leaky ReLU.
        inplace: Whether the output may overwrite the input, in training; the backward takes what it needs from the
            output, so that one tensor less is kept. For no activation and leaky ReLU, over the batch. In float32 its
            gradients are right to about 3e-7 of their largest. Where a gain is below 1e-6, or a shift beyond 8 gains,
            the layer does it the usual way; more in `normscope.ops.ways.in_place`.
        statistics: Whose statistics normalize in training: those of the whole ``"batch"``; of a ``"ghost"`` batch,
            ``group_size`` consecutive samples; of the batches of all processes, ``"sync"``; or of the batch, corrected
            toward the running ones, ``"renorm"``.
        group_size: Samples of a ghost batch. The last has the remaining samples, unless they are one value a channel.
        process_group: With ``"sync"``, the processes; None for all. With ``"renorm"``, given, the batch is theirs.
        renorm: How far renormalization corrects, and from which update on.
        accumulate: Batches that are pooled for one update of the running statistics: micro-batches of one step.
        on_bad_update: What to do about an update that is not finite or comes of one value a channel: ``"track"`` it,
            as torch does (and refuse one value a channel); or leave the running statistics as they are and ``"skip"``
            it, ``"warn"`` or ``"raise"``, naming the layer. One value a channel is then normalized by the running
            statistics. Where no value can be looked at (compiled, torch.func) warn and raise are skip.
        unbiased_variance: Whether the variance that is tracked has n - 1 in the denominator, as in torch.
        float32_statistics: Whether the running statistics stay float32 when the layer is made ``half`` or
            ``bfloat16``. In bfloat16 they stop moving short of their goal when the momentum is small.
        use_running: Whether the running statistics normalize: None for in eval only, as in torch; True for always;
            False for never.
        update_statistics: Whether training moves the running statistics. With ``use_running=True`` and without
            updates the layer is *frozen*, whatever mode it is put in; so it is after ``layer.frozen = True``.
    """

    activation: Activation | None = None
    negative_slope: float = 0.01
    inplace: bool = False
    statistics: Statistics = "batch"
    group_size: int | None = None
    process_group: Any = None
    renorm: Renorm | None = None
    accumulate: int = 1
    on_bad_update: OnBadUpdate = "track"
    unbiased_variance: bool = True
    float32_statistics: bool = False
    use_running: bool | None = None
    update_statistics: bool = True

    def __post_init__(self) -> None:
        """Renormalization corrects as far as published, if nothing else is said."""
        if self.renorm is None and self.statistics == "renorm":
            object.__setattr__(self, "renorm", Renorm())

    @classmethod
    def asked(cls, kind: type, **options: Unpack[BatchNormKeywords]) -> "BatchNormOptions":
        """Return the options that a layer was asked for.

        Args:
            kind: The class of the layer, which messages name.
            **options: Its keywords beyond torch's arguments.

        Raises:
            UnknownOptionError: A keyword names no option.
        """
        for name in options:
            if name not in NAMES:
                advice = meant(name, NAMES, f"its options are {', '.join(NAMES)}")
                raise UnknownOptionError(f"{kind.__name__} has no option {name!r}: {advice}")
        return cls(**options)

    @classmethod
    def of(cls, layer: Any, **others: Any) -> "BatchNormOptions":
        """Return the options that a batch norm of this package has now.

        Args:
            layer: The layer.
            **others: Values to take instead of the layer's.
        """
        return cls(**{name: others[name] if name in others else getattr(layer, name) for name in NAMES})

    def check(self, *, track_running_stats: bool, eps: float) -> None:
        """Refuse options that do not exist or do not go together.

        Args:
            track_running_stats: Whether the layer keeps running statistics.
            eps: Added to its variance, in squared units of the input.

        Raises:
            UsageError: The options cannot be; the message says which.
            RangeError: ``eps`` is negative.
        """
        if eps < 0:
            raise RangeError(f"eps is added to a variance: give at least 0, not {eps}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UsageError(f"{name} is one of {choices}: got {shown(getattr(self, name))}")
        leaky = self.activation == "leaky_relu"
        refusals = {
            "statistics='ghost' needs group_size, at least 1": self.statistics == "ghost"
            and not _is_count(self.group_size),
            **{
                f"{name} is for statistics={' or '.join(map(repr, kinds))}": self.statistics not in kinds
                and getattr(self, name) != getattr(USUAL, name)
                for name, kinds in _ONLY_FOR.items()
            },
            "statistics='renorm' needs track_running_stats=True": self.statistics == "renorm"
            and not track_running_stats,
            "use_running=True needs track_running_stats=True": self.use_running is True and not track_running_stats,
            "accumulate is a number of batches, at least 1": not _is_count(self.accumulate),
            "inplace=True cannot be with relu, which cannot be inverted: use leaky_relu": self.inplace
            and self.activation == "relu",
            "inplace=True with leaky_relu needs a positive negative_slope": self.inplace
            and leaky
            and self.negative_slope <= 0,
        }
        for reason, refused in refusals.items():
            if refused:
                raise UsageError(reason)

    def changed(self) -> dict[str, Any]:
        """Return the options whose values are not the defaults, by name; the slope only with leaky ReLU."""
        names = [name for name in NAMES if getattr(self, name) != getattr(USUAL, name) and name != "negative_slope"]
        if self.activation == "leaky_relu":
            names.insert(1, "negative_slope")
        return {name: getattr(self, name) for name in names}

    def misplaced(self, *, track_running_stats: bool) -> list[str]:
        """Return the names of options that are not the defaults, and do not apply to the statistics or the activation.

        Args:
            track_running_stats: Whether the layer keeps running statistics.
        """
        excluded = {name for name, kinds in _ONLY_FOR.items() if self.statistics not in kinds}
        if self.activation == "relu":
            excluded.add("inplace")
        if self.use_running is True and not track_running_stats:
            excluded.add("use_running")
        return [name for name in self.changed() if name in excluded]


NAMES: tuple[str, ...] = tuple(field.name for field in fields(BatchNormOptions))
USUAL = BatchNormOptions()


def _is_count(number: Any) -> bool:
    return isinstance(number, int) and number >= 1
