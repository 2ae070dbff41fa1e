"""Small networks in the style of public code, with norms of torch's and of other libraries; each with an input."""

from collections import OrderedDict
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from kit.foreign_norms import BatchNormAct2d, FrozenBatchNorm2d, LayerNorm, LayerNorm2d, LlamaRMSNorm, T5LayerNorm


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inplanes, planes, stride=1, norm_layer=nn.BatchNorm2d):
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = norm_layer(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = norm_layer(planes)
        self.downsample = None
        if stride != 1 or inplanes != planes:
            self.downsample = nn.Sequential(nn.Conv2d(inplanes, planes, 1, stride, bias=False), norm_layer(planes))

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    expansion = 2

    def __init__(self, inplanes, planes, stride=1, norm_layer=nn.BatchNorm2d):
        super().__init__()
        out = planes * self.expansion
        self.conv1, self.bn1 = nn.Conv2d(inplanes, planes, 1, bias=False), norm_layer(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False), norm_layer(planes)
        self.conv3, self.bn3 = nn.Conv2d(planes, out, 1, bias=False), norm_layer(out)
        self.downsample = nn.Sequential(nn.Conv2d(inplanes, out, 1, stride, bias=False), norm_layer(out))

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.downsample(x))


class ResNet(nn.Module):
    def __init__(self, block=BasicBlock, norm_layer=nn.BatchNorm2d, width=8):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, padding=1, bias=False), norm_layer(width)
        self.layer1 = nn.Sequential(block(width, width, norm_layer=norm_layer))
        self.layer2 = nn.Sequential(block(width * block.expansion, 2 * width, 2, norm_layer=norm_layer))
        self.fc = nn.Linear(2 * width * block.expansion, 5)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x):
        x = self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x)))))
        return self.fc(x.mean((2, 3)))


class InvertedResidual(nn.Module):
    def __init__(self, inp, oup, stride, expand):
        super().__init__()
        hidden = inp * expand
        self.use_res_connect = stride == 1 and inp == oup
        self.conv = nn.Sequential(
            nn.Conv2d(inp, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True), nn.Conv2d(hidden, oup, 1, bias=False), nn.BatchNorm2d(oup),
        )  # fmt: skip

    def forward(self, x):
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


def mobilenet():
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True))
    blocks = [InvertedResidual(8, 8, 1, 2), InvertedResidual(8, 12, 2, 2)]
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(12, 5))


class DenseLayer(nn.Module):
    def __init__(self, inputs, growth):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 2 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(2 * growth), nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, inputs):
        x = torch.cat(inputs, 1)
        return self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))


class DenseBlock(nn.ModuleDict):
    def __init__(self, layers, inputs, growth):
        super().__init__({f"denselayer{i + 1}": DenseLayer(inputs + i * growth, growth) for i in range(layers)})

    def forward(self, x):
        features = [x]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)


def densenet():
    return nn.Sequential(
        OrderedDict(
            conv0=nn.Conv2d(3, 8, 3, padding=1, bias=False), norm0=nn.BatchNorm2d(8), block1=DenseBlock(2, 8, 4),
            norm5=nn.BatchNorm2d(16), relu=nn.ReLU(), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(),
            classifier=nn.Linear(16, 5),
        )
    )  # fmt: skip


def double_conv(inputs, outputs):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
    )  # fmt: skip


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.inc, self.down = double_conv(3, 6), nn.Sequential(nn.MaxPool2d(2), double_conv(6, 12))
        self.up, self.conv = nn.ConvTranspose2d(12, 6, 2, stride=2), double_conv(12, 6)
        self.outc = nn.Conv2d(6, 2, 1)

    def forward(self, x):
        x1 = self.inc(x)
        return self.outc(self.conv(torch.cat([x1, self.up(self.down(x1))], 1)))


def dcgan_generator():
    return nn.Sequential(
        nn.ConvTranspose2d(10, 16, 4, 1, 0, bias=False), nn.BatchNorm2d(16), nn.ReLU(True),
        nn.ConvTranspose2d(16, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(True),
        nn.ConvTranspose2d(8, 3, 4, 2, 1, bias=False), nn.Tanh(),
    )  # fmt: skip


def dcgan_discriminator():
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(8, 16, 4, 2, 1, bias=False), nn.BatchNorm2d(16), nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(16, 1, 4, 1, 0, bias=False), nn.Flatten(),
    )  # fmt: skip


class NormedLSTM(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_norm = nn.BatchNorm1d(6)
        self.rnns = nn.ModuleList(nn.LSTM(6 if i == 0 else 8, 8, batch_first=True) for i in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(2))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.input_norm(x.transpose(1, 2)).transpose(1, 2)
        for rnn, norm in zip(self.rnns, self.norms, strict=True):
            x = norm(rnn(x)[0])
        return self.head(x[:, -1])


class LayerNormLSTMCell(nn.Module):
    """A cell that is called at every step, its norms with it."""

    def __init__(self, inputs=6, hidden=8):
        super().__init__()
        self.hidden = hidden
        self.x2h, self.h2h = nn.Linear(inputs, 4 * hidden), nn.Linear(hidden, 4 * hidden)
        self.ln_x, self.ln_h, self.ln_c = nn.LayerNorm(4 * hidden), nn.LayerNorm(4 * hidden), nn.LayerNorm(hidden)

    def forward(self, x):
        h = c = x.new_zeros(len(x), self.hidden)
        for step in x.unbind(1):
            i, f, g, o = (self.ln_x(self.x2h(step)) + self.ln_h(self.h2h(h))).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * self.ln_c(c).tanh()
        return h


class TemporalBlock(nn.Module):
    def __init__(self, inputs, outputs, dilation):
        super().__init__()
        self.pad = 2 * dilation
        self.conv1 = weight_norm(nn.Conv1d(inputs, outputs, 3, padding=self.pad, dilation=dilation))
        self.conv2 = weight_norm(nn.Conv1d(outputs, outputs, 3, padding=self.pad, dilation=dilation))
        self.bn1, self.bn2 = nn.BatchNorm1d(outputs), nn.BatchNorm1d(outputs)
        self.downsample = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)[..., : -self.pad]))
        out = F.dropout(F.relu(self.bn2(self.conv2(out)[..., : -self.pad])), 0.1, self.training)
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


def tcn():
    last = nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 5))
    return nn.Sequential(TemporalBlock(6, 8, 1), TemporalBlock(8, 8, 2), last)


class Attention(nn.Module):
    def __init__(self, dim, heads=2):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class PreNormBlock(nn.Module):
    def __init__(self, dim, norm):
        super().__init__()
        self.norm1, self.attn, self.norm2 = norm(dim), Attention(dim), norm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PreNorm(nn.Module):
    def __init__(self, norm=nn.LayerNorm, dim=8):
        super().__init__()
        self.inlet, self.position = nn.Linear(6, dim), nn.Parameter(0.02 * torch.randn(1, 7, dim))
        self.blocks = nn.Sequential(PreNormBlock(dim, norm), PreNormBlock(dim, norm))
        self.norm, self.head = norm(dim), nn.Linear(dim, 5)

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.inlet(x) + self.position)).mean(1))


class TorchEncoder(nn.Module):
    def __init__(self, norm_first):
        super().__init__()
        self.inlet = nn.Linear(6, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(8), enable_nested_tensor=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.encoder(self.inlet(x)).mean(1))


class ConvNeXtBlock(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dwconv, self.norm = nn.Conv2d(dim, dim, 3, padding=1, groups=dim), LayerNorm(dim, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)
        self.gamma = nn.Parameter(1e-1 * torch.ones(dim))

    def forward(self, x):
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        return x + (self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))).permute(0, 3, 1, 2)


def convnext():
    down = nn.Sequential(nn.Conv2d(3, 8, 2, 2), LayerNorm(8, eps=1e-6, data_format="channels_first"))
    return nn.Sequential(
        down, ConvNeXtBlock(8), LayerNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(8), nn.Linear(8, 5)
    )


class SharedNorm(nn.Module):
    """One norm behind two layers, and under two names."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.bn = nn.Linear(6, 8), nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.again = self.bn
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = x.mean(1)
        return self.head(self.again(self.second(F.relu(self.bn(self.first(x))))))


class NormsInContainers(nn.Module):
    """Norms in a dictionary, and in a plain list beside the attributes that register them."""

    def __init__(self):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm1d(8), nn.BatchNorm1d(8)
        self.norms = [self.bn1, self.bn2]
        self.fc = nn.ModuleList([nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 5)])
        self.by_name = nn.ModuleDict({"layer": nn.LayerNorm(8), "group": nn.GroupNorm(2, 8)})

    def forward(self, x):
        x = x.mean(1)
        for fc, norm in zip(self.fc, self.norms, strict=False):
            x = F.relu(norm(fc(x)))
        return self.fc[2](self.by_name["group"](self.by_name["layer"](x)))


def timm_like():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), BatchNormAct2d(8, act_layer=nn.SiLU),
        nn.Conv2d(8, 8, 3, padding=1, bias=False), BatchNormAct2d(8, apply_act=False),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


class FunctionalNorms(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)
        self.gain, self.shift = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))

    def forward(self, x):
        x = F.relu(F.group_norm(self.conv(x), 2, self.gain, self.shift))
        return self.fc(normalized(x.mean((2, 3))))


def normalized(x):
    return torch.layer_norm(x, x.shape[1:])


IMAGE, SEQUENCE, LATENT = (3, 16, 16), (7, 6), (10, 1, 1)
NETWORKS = {
    "resnet": (ResNet, IMAGE),
    "bottleneck": (partial(ResNet, Bottleneck), IMAGE),
    "frozen resnet": (partial(ResNet, norm_layer=FrozenBatchNorm2d), IMAGE),
    "mobilenet": (mobilenet, IMAGE),
    "densenet": (densenet, IMAGE),
    "unet": (UNet, IMAGE),
    "generator": (dcgan_generator, LATENT),
    "discriminator": (dcgan_discriminator, IMAGE),
    "lstm": (NormedLSTM, SEQUENCE),
    "lstm cell": (LayerNormLSTMCell, SEQUENCE),
    "tcn": (tcn, (6, 7)),
    "pre-norm": (PreNorm, SEQUENCE),
    "llama": (partial(PreNorm, LlamaRMSNorm), SEQUENCE),
    "t5": (partial(PreNorm, T5LayerNorm), SEQUENCE),
    "torch post-norm": (partial(TorchEncoder, False), SEQUENCE),
    "torch pre-norm": (partial(TorchEncoder, True), SEQUENCE),
    "convnext": (convnext, IMAGE),
    "timm": (timm_like, IMAGE),
    "shared": (SharedNorm, SEQUENCE),
    "containers": (NormsInContainers, SEQUENCE),
}


def network(name, seed=0):
    """Return a network with the weights of a seed, and a batch of inputs."""
    torch.manual_seed(seed)
    make, shape = NETWORKS[name]
    model = make()
    return model, torch.randn(8, *shape, generator=torch.Generator().manual_seed(1))
