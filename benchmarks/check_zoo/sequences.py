"""Sequences: recurrent cells with norms, convolutions over time, transformers."""

import torch
from torch import nn
from torch.nn import functional as F

from .kit import classifier, healthy, waves


class NormLSTMCell(nn.Module):
    def __init__(self, inputs, width):
        super().__init__()
        self.ih, self.hh = nn.Linear(inputs, 4 * width, bias=False), nn.Linear(width, 4 * width, bias=False)
        self.ln_i, self.ln_h, self.ln_c = nn.LayerNorm(4 * width), nn.LayerNorm(4 * width), nn.LayerNorm(width)

    def forward(self, x, state):
        h, c = state
        i, f, g, o = (self.ln_i(self.ih(x)) + self.ln_h(self.hh(h))).chunk(4, 1)
        c = torch.sigmoid(f + 1) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(self.ln_c(c)), c


class NormLSTM(nn.Module):
    def __init__(self, width=24):
        super().__init__()
        self.width, self.cell, self.head = width, NormLSTMCell(4, width), nn.Linear(width, 4)

    def forward(self, x):
        x = x.view(len(x), -1, 4)
        h, c = x.new_zeros(len(x), self.width), x.new_zeros(len(x), self.width)
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
        return self.head(h)


@healthy()
def layer_norm_lstm():
    """LSTM cell with three layer norms, called at 16 time steps."""
    net = NormLSTM()
    return classifier(net, waves, optimizer=torch.optim.Adam(net.parameters(), 5e-3))


class StepwiseRNN(nn.Module):
    """Batch norm in a recurrent cell with statistics by time step (Cooijmans)."""

    def __init__(self, width=24, length=8):
        super().__init__()
        self.width, self.ih, self.hh = width, nn.Linear(8, width, bias=False), nn.Linear(width, width, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm1d(width, affine=False) for _ in range(length))
        self.gain, self.shift, self.head = (
            nn.Parameter(torch.full((width,), 0.5)),
            nn.Parameter(torch.zeros(width)),
            nn.Linear(width, 4),
        )

    def forward(self, x):
        x = x.view(len(x), -1, 8)
        h = x.new_zeros(len(x), self.width)
        for t, norm in enumerate(self.norms):
            h = torch.tanh(norm(self.ih(x[:, t]) + self.hh(h)) * self.gain + self.shift)
        return self.head(h)


@healthy()
def batch_norm_rnn():
    """Recurrent batch norm with statistics of each time step, gain starting from .5, batches of 64."""
    net = StepwiseRNN()
    return classifier(net, waves, size=64, steps=80, optimizer=torch.optim.Adam(net.parameters(), 3e-3))


class SequenceWise(nn.Module):
    """Collapse time and batch, apply, restore (DeepSpeech 2)."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x.flatten(0, 1)).view(*x.shape[:2], -1)


class DeepSpeech(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv1d(1, 16, 5, 4, 2), nn.BatchNorm1d(16), nn.Hardtanh(0, 20))
        self.gru1, self.bn = nn.GRU(16, 24, bidirectional=True), SequenceWise(nn.BatchNorm1d(48))
        self.gru2, self.head = nn.GRU(48, 24), nn.Linear(24, 4)

    def forward(self, x):
        y, _ = self.gru1(self.conv(x).permute(2, 0, 1))
        y, _ = self.gru2(self.bn(y))
        return self.head(y.mean(0))


@healthy()
def deep_speech():
    """DeepSpeech 2: sequence-wise batch norm between recurrent layers."""
    net = DeepSpeech()
    return classifier(net, waves, steps=80, optimizer=torch.optim.Adam(net.parameters(), 3e-3))


class Chomp(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x):
        return x[..., : -self.size]


class TemporalBlock(nn.Module):
    def __init__(self, width, out, dilation):
        super().__init__()
        wn, pad = nn.utils.parametrizations.weight_norm, 2 * dilation
        self.net = nn.Sequential(
            wn(nn.Conv1d(width, out, 3, padding=pad, dilation=dilation)), Chomp(pad), nn.ReLU(), nn.Dropout(0.1),
            wn(nn.Conv1d(out, out, 3, padding=pad, dilation=dilation)), Chomp(pad), nn.ReLU(), nn.Dropout(0.1),
        )  # fmt: skip
        self.down = nn.Conv1d(width, out, 1) if width != out else nn.Identity()

    def forward(self, x):
        return F.relu(self.net(x) + self.down(x))


@healthy()
def tcn():
    """TCN: dilated causal convolutions with weight norm and dropout."""
    net = nn.Sequential(
        TemporalBlock(1, 12, 1), TemporalBlock(12, 12, 2), TemporalBlock(12, 12, 4), nn.AdaptiveAvgPool1d(1),
        nn.Flatten(), nn.Linear(12, 4),
    )  # fmt: skip
    return classifier(net, waves, optimizer=torch.optim.Adam(net.parameters(), 4e-3))


@healthy()
def audio_m5():
    """M5 for audio: strided 1-D convolutions with batch norm and pooling."""
    net = nn.Sequential(
        nn.Conv1d(1, 16, 9, 2, 4), nn.BatchNorm1d(16), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(16, 24, 3, padding=1),
        nn.BatchNorm1d(24), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(24, 4),
    )  # fmt: skip
    return classifier(net, waves, steps=80, lr=0.02)


def ragged(batches=8, size=32, length=24, *, seed=0, masked=True):
    """Return padded sequences of unequal length, their mask and class."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, 8, generator=torch.Generator().manual_seed(97))
    rows = []
    for _ in range(batches):
        y = torch.randint(4, (size,), generator=draw)
        lengths = torch.randint(length // 4, length + 1, (size,), generator=draw)
        mask = torch.arange(length) < lengths[:, None]
        x = (1 + centres[y][:, None] + torch.randn(size, length, 8, generator=draw)) * mask[..., None]
        rows.append((x, mask, y))
    return rows


class MaskedBatchNorm(nn.Module):
    """Batch norm over the positions that are data."""

    def __init__(self, width):
        super().__init__()
        self.bn = nn.BatchNorm1d(width)

    def forward(self, x, mask):
        out = torch.zeros_like(x)
        out[mask] = self.bn(x[mask])
        return out


class MaskedNet(nn.Module):
    def __init__(self, width=24):
        super().__init__()
        self.first, self.n1, self.second = nn.Linear(8, width), MaskedBatchNorm(width), nn.Linear(width, width)
        self.n2, self.head = MaskedBatchNorm(width), nn.Linear(width, 4)

    def forward(self, x, mask):
        x = F.relu(self.n1(self.first(x), mask))
        x = F.relu(self.n2(self.second(x), mask)) * mask[..., None]
        return self.head(x.sum(1) / mask.sum(1, keepdim=True))


def masked_loss(model, batch):
    return F.cross_entropy(model(batch[0], batch[1]), batch[2])


@healthy()
def masked_batch_norm():
    """Padded sequences, batch norm over what is not padding."""
    return classifier(MaskedNet(), ragged, loss_fn=masked_loss, steps=80, lr=0.03)


class PaddedTransformer(nn.Module):
    def __init__(self, width=24):
        super().__init__()
        self.lift, self.pos = nn.Linear(8, width), nn.Parameter(0.02 * torch.randn(1, 24, width))
        layer = nn.TransformerEncoderLayer(width, 4, 48, dropout=0.1, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(width, 4)

    def forward(self, x, mask):
        y = self.encoder(self.lift(x) + self.pos, src_key_padding_mask=~mask)
        return self.head((y * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


@healthy()
def padded_transformer():
    """torch's post-norm TransformerEncoder with key padding mask and dropout."""
    net = PaddedTransformer()
    return classifier(net, ragged, loss_fn=masked_loss, steps=50, optimizer=torch.optim.Adam(net.parameters(), 2e-3))
