"""Language models with norms of their own."""

import torch
from torch import nn
from torch.nn import functional as F

from .kit import healthy, ns, tokens, train


class LayerNorm(nn.Module):
    """As nanoGPT's: with an optional bias."""

    def __init__(self, width, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x):
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class RMSNorm(nn.Module):
    """As LLaMA's."""

    def __init__(self, width, eps=1e-6):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        x = x.float()
        return (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)) * self.weight


class GPTBlock(nn.Module):
    def __init__(self, width, norm, gated):
        super().__init__()
        self.ln_1, self.ln_2, self.gated = norm(width), norm(width), gated
        self.attn, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.fc = nn.Linear(width, 4 * width, bias=False)
        self.out = nn.Linear(2 * width if gated else 4 * width, width, bias=False)

    def forward(self, x):
        n, t, c = x.shape
        q, k, v = self.attn(self.ln_1(x)).view(n, t, 3, 4, c // 4).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(n, t, c))
        y = self.fc(self.ln_2(x))
        if self.gated:
            gate, y = y.chunk(2, -1)
            return x + self.out(F.silu(gate) * y)
        return x + self.out(F.gelu(y))


class GPT(nn.Module):
    def __init__(self, norm=lambda width: LayerNorm(width, bias=False), gated=False, width=32, depth=2, std=0.02):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(24, width), nn.Embedding(32, width)
        self.h = nn.Sequential(*[GPTBlock(width, norm, gated) for _ in range(depth)])
        self.ln_f, self.lm_head = norm(width), nn.Linear(width, 24, bias=False)
        for name, p in self.named_parameters():
            if p.ndim > 1:
                nn.init.normal_(
                    p, 0.0, std / (2 * depth) ** 0.5 if name.endswith(("proj.weight", "out.weight")) else std
                )
        self.lm_head.weight = self.wte.weight

    def forward(self, ids):
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        return self.lm_head(self.ln_f(self.h(x)))


def next_token(model, ids):
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def language_model(net, steps=60, lr=3e-3):
    """Return the set-up of a language model, decay on matrices only."""
    groups = [
        {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in net.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    net.train()
    opt, loader, held = torch.optim.AdamW(groups, lr, betas=(0.9, 0.95)), tokens(seed=1), tokens(seed=2)
    train(net, next_token, loader, opt, steps)
    return ns.Case(net, next_token, loader, opt, held)


@healthy()
def nano_gpt():
    """nanoGPT with its own LayerNorm class, tied embeddings, scaled residual projections."""
    return language_model(GPT())


@healthy()
def llama():
    """LLaMA-like: own RMSNorm, gated feed-forward network."""
    return language_model(GPT(RMSNorm, gated=True))


class PixelConv(nn.Conv1d):
    """Causal convolution over positions."""

    def forward(self, x):
        return super().forward(F.pad(x, (self.kernel_size[0] - 1, 0)))


class WaveNet(nn.Module):
    def __init__(self, width=24):
        super().__init__()
        self.embed, self.out = nn.Embedding(24, width), nn.Conv1d(width, 24, 1)
        self.convs = nn.ModuleList(PixelConv(width, width, 3) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(3))

    def forward(self, ids):
        x = self.embed(ids).transpose(1, 2)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = x + F.relu(norm(conv(x)))
        return self.out(x).transpose(1, 2)


@healthy()
def causal_convolutions():
    """Autoregressive causal convolutions with batch norm over positions and samples."""
    return language_model(WaveNet(), steps=80, lr=5e-3)
