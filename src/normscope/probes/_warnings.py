"""What a recorder warns of: training goes on."""


class ProbeWarning(UserWarning):
    """A probe failed and is switched off; training goes on."""


class WiringWarning(ProbeWarning):
    """What the scope was given and what the training loop does do not fit together; training goes on."""
