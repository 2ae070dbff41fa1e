"""Healthy set-ups of other data, other losses and other loops: nothing is wrong with them either."""

import copy

import torch
from healthy import conv_norm, fit, healthy, images
from torch import nn
from torch.nn import functional as F

from normscope import layers, surgery
from normscope.evidence import examples


@healthy
def recurrent_with_a_norm_on_its_last_state():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.norm, self.head = nn.GRU(12, 16, batch_first=True), nn.BatchNorm1d(16), nn.Linear(16, 4)

        def forward(self, x):
            return self.head(self.norm(self.cell(x.transpose(1, 2))[0][:, -1]))

    return fit(
        examples.seeded(Recurrent), examples.data((12, 9)), eval_loader=examples.data((12, 9), batches=4, seed=9)
    )


@healthy
def u_net():
    class UNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.bottom = conv_norm(3, 8), conv_norm(8, 12)
            self.rise = nn.Sequential(nn.ConvTranspose2d(12, 8, 2, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU())
            self.up, self.out = conv_norm(16, 8), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            skip = self.down(x)
            return self.out(self.up(torch.cat([skip, self.rise(self.bottom(F.max_pool2d(skip, 2)))], 1)))

    def loss_fn(model, batch):
        return F.cross_entropy(model(batch[0]), (batch[0].mean(1) > 0.3).long())

    return fit(examples.seeded(UNet), images(), loss_fn, eval_loader=images(batches=4, seed=9))


@healthy
def autoencoder():
    def make():
        parts = [nn.Linear(12, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 6, bias=False)]
        return nn.Sequential(*parts, nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12))

    def loss_fn(model, batch):
        return F.mse_loss(model(batch[0]), batch[0])

    return fit(examples.seeded(make), examples.data((12,)), loss_fn)


@healthy
def gan_generator():
    """The generator of a pair, with norms in it alone; the discriminator has spectral bounds instead."""
    generator = examples.seeded(
        lambda: nn.Sequential(
            nn.Linear(8, 24, bias=False), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 24, bias=False),
            nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 12), nn.Tanh(),
        )
    )  # fmt: skip
    judge = examples.seeded(lambda: nn.Sequential(nn.Linear(12, 24), nn.LeakyReLU(0.2), nn.Linear(24, 1)), 1)

    def loss_fn(model, batch):
        return F.softplus(-judge(model(batch[0]))).mean()

    stream = torch.Generator().manual_seed(0)
    loader = [(torch.randn(32, 8, generator=stream), None) for _ in range(12)]
    return fit(
        generator, loader, loss_fn, optimizer=torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.9))
    )


@healthy
def gan_discriminator_on_batches_of_both_kinds():
    model = examples.seeded(lambda: nn.Sequential(examples.mlp(), nn.Linear(4, 1)))

    def loss_fn(model, batch):
        real = batch[0]
        fake = torch.tanh(real.flip(0)) * 1.5
        scores = model(torch.cat([real, fake]))  # in one batch: one kind of statistics
        return F.softplus(-scores[: len(real)]).mean() + F.softplus(scores[len(real) :]).mean()

    return fit(model, examples.data((12,)), loss_fn)


@healthy
def siamese():
    """Two views of the same data through one network, in one batch each."""

    def loss_fn(model, batch):
        x, _ = batch
        stream = torch.Generator().manual_seed(int(x.abs().sum()))
        noise = [0.3 * torch.randn(x.shape, generator=stream) for _ in range(2)]
        a, b = (F.normalize(model(x + one), dim=1) for one in noise)
        return F.cross_entropy(a @ b.T / 0.2, torch.arange(len(x)))

    return fit(examples.seeded(examples.cnn), images(size=48), loss_fn)


@healthy
def frozen_backbone_by_surgery():
    model = examples.seeded(lambda: nn.Sequential(examples.cnn(), nn.Linear(4, 4)))
    fit(model, images())
    surgery.freeze(model[0], affine=True)
    model[0].requires_grad_(False)
    return fit(model, images(seed=5), optimizer=torch.optim.SGD(model[1].parameters(), lr=0.05))


@healthy
def frozen_backbone_by_hand():
    """Eval mode after ``train()``, and gradients off: as a loop that sets both at each epoch."""
    model = examples.seeded(lambda: nn.Sequential(examples.cnn(), nn.Linear(4, 4)))
    fit(model, images(), optimizer=torch.optim.SGD(model.parameters(), lr=0.02))
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.05)

    def step(model, batch):
        model.train()
        model[0].eval()
        optimizer.zero_grad()
        examples.loss_fn(model, batch).backward()
        optimizer.step()

    return fit(model, images(), optimizer=optimizer, step=step)


@healthy
def averaged_weights_recalibrated():
    model = examples.seeded(examples.cnn)
    loader = images()
    case = fit(model, loader)
    shadow = copy.deepcopy(model)
    fit(model, loader, epochs=2)
    with torch.no_grad():
        for mine, theirs in zip(shadow.parameters(), model.parameters(), strict=True):
            mine.lerp_(theirs, 0.5)
    surgery.recalibrate(shadow, loader)
    case.averaged, case.eval_loader = shadow, images(batches=4, seed=9)
    return case


@healthy
def averaged_weights_and_buffers():
    model = examples.seeded(examples.residual)
    loader = images()
    case = fit(model, loader, epochs=3)
    averaged = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
    )
    for batch in loader * 2:
        case.optimizer.zero_grad()
        examples.loss_fn(model, batch).backward()
        case.optimizer.step()
        averaged.update_parameters(model)
    case.averaged = averaged
    return case


@healthy
def tied_weights():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.inlet, self.norm, self.decode = nn.Linear(12, 16, bias=False), nn.BatchNorm1d(16), nn.Linear(16, 12)
            self.decode.weight = nn.Parameter(self.inlet.weight.T.detach().clone())
            self.again = nn.Linear(12, 16, bias=False)
            self.again.weight = self.inlet.weight
            self.head = nn.Linear(16, 4)

        def forward(self, x):
            h = F.relu(self.norm(self.inlet(x)))
            return self.head(F.relu(self.again(self.decode(h))))

    return fit(examples.seeded(Tied), examples.data((12,)))


@healthy
def several_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.image, self.table = (
                nn.Sequential(conv_norm(3, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
                examples.mlp(),
            )
            self.head = nn.Linear(12, 4)

        def forward(self, image, table, scale=1.0):
            return self.head(torch.cat([self.image(image), scale * self.table(table)], 1))

    def loss_fn(model, batch):
        return F.cross_entropy(model(batch["image"], table=batch["table"]), batch["label"])

    loader = [
        {"image": x, "table": t, "label": y} for (x, y), (t, _) in zip(images(), examples.data((12,)), strict=True)
    ]
    return fit(examples.seeded(Two), loader, loss_fn)


@healthy
def one_block_used_three_times():
    """Weights shared over depth: a norm is called several times in one pass, which is no accumulation."""

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.inlet, self.norm = nn.Linear(12, 16), nn.BatchNorm1d(16)
            self.block = nn.Sequential(nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16))
            self.head = nn.Linear(16, 4)

        def forward(self, x):
            h = self.norm(self.inlet(x))
            for _ in range(3):
                h = h + 0.3 * self.block(h)
            return self.head(F.relu(h))

    return fit(examples.seeded(Shared), examples.data((12,), size=48))


@healthy
def dict_batches_and_outputs():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = examples.mlp(), nn.Linear(4, 4)

        def forward(self, *, x):
            hidden = self.body(x)
            return {"hidden": hidden, "logits": self.head(F.relu(hidden))}

    def loss_fn(model, batch):
        return F.cross_entropy(model(x=batch["x"])["logits"], batch["y"])

    return fit(examples.seeded(Named), [{"x": x, "y": y} for x, y in examples.data((12,))], loss_fn)


@healthy
def layer_norm_transformer():
    class Transformer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inlet = nn.Linear(12, 16)
            layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True, norm_first=True)
            self.encoder = nn.TransformerEncoder(layer, 3, nn.LayerNorm(16), enable_nested_tensor=False)
            self.head = nn.Linear(16, 4)

        def forward(self, x):
            return self.head(self.encoder(self.inlet(x.transpose(1, 2))).mean(1))

    model = examples.seeded(Transformer)
    return fit(
        model, examples.data((12, 9)), optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    )


@healthy
def group_norm():
    return fit(examples.seeded(lambda: examples.cnn(lambda width: nn.GroupNorm(4, width))), images(size=4, batches=24))


@healthy
def no_norm_at_all():
    return fit(examples.seeded(lambda: examples.cnn(lambda width: nn.Identity(), bias=True)), images())


@healthy
def tanh_with_norms():
    parts = [layer for _ in range(4) for layer in (nn.LazyLinear(24, bias=False), nn.LazyBatchNorm1d(), nn.Tanh())]
    model = examples.seeded(lambda: nn.Sequential(*parts, nn.LazyLinear(4)))
    loader = examples.data((12,))
    model(loader[0][0])
    return fit(model, loader)


@healthy
def batch_norm_of_this_library_with_options():
    def norm(width):
        return layers.BatchNorm2d(width, statistics="ghost", group_size=8, on_bad_update="skip")

    return fit(examples.seeded(lambda: examples.cnn(norm)), images(size=32), eval_loader=images(batches=4, seed=9))


@healthy
def accumulating_large_micro_batches():
    model = examples.seeded(examples.cnn)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def step(model, batch):
        optimizer.zero_grad()
        for part in zip(batch[0].chunk(2), batch[1].chunk(2), strict=True):
            (examples.loss_fn(model, part) / 2).backward()
        optimizer.step()

    return fit(model, images(size=64), optimizer=optimizer, step=step)


@healthy
def clipped_gradients_and_a_schedule():
    model = examples.seeded(examples.residual)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)

    def step(model, batch):
        optimizer.zero_grad()
        examples.loss_fn(model, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()

    return fit(model, images(), optimizer=optimizer, step=step)


@healthy
def validation_inside_a_step():
    """Pseudo-labels from an eval pass without gradient, and back to training."""
    model = examples.seeded(examples.cnn)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def step(model, batch):
        model.eval()
        with torch.no_grad():
            guessed = model(batch[0] * 1.1).argmax(1)
        model.train()
        optimizer.zero_grad()
        (examples.loss_fn(model, batch) + 0.1 * examples.loss_fn(model, (batch[0], guessed))).backward()
        optimizer.step()

    return fit(model, images(), optimizer=optimizer, step=step)


@healthy
def shuffling_data_loader():
    pairs = images()
    data = torch.utils.data.TensorDataset(torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs]))
    stream = torch.Generator().manual_seed(0)
    loader = torch.utils.data.DataLoader(data, 32, shuffle=True, drop_last=True, generator=stream)
    return fit(examples.seeded(examples.residual), loader)


@healthy
def exported_from_eval():
    case = fit(examples.seeded(examples.cnn), images())
    case.exported = torch.export.export(copy.deepcopy(case.model).eval(), (case.loader[0][0],))
    return case


@healthy
def folded_for_inference():
    case = fit(examples.seeded(examples.residual), images())
    model = copy.deepcopy(case.model).eval()
    surgery.fold(model, case.loader[0][0])
    case.exported = model
    return case


@healthy
def double_precision():
    model = examples.seeded(examples.mlp).double()
    return fit(model, [(x.double(), y) for x, y in examples.data((12,))])


@healthy
def masked_sequences():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.inlet, self.norm, self.head = nn.Conv1d(12, 10, 1), layers.BatchNorm1d(10), nn.Linear(10, 4)

        def forward(self, x, lengths):
            h = F.relu(self.norm(self.inlet(x), lengths=lengths))
            inside = torch.arange(x.shape[2]) < lengths[:, None]
            return self.head((h * inside[:, None]).sum(2) / lengths[:, None])

    def loss_fn(model, batch):
        return F.cross_entropy(model(batch[0], batch[1]), batch[2])

    stream = torch.Generator().manual_seed(0)
    loader = []
    for x, y in examples.data((12, 16)):
        lengths = torch.randint(4, 17, (len(x),), generator=stream)
        loader.append((torch.where(torch.arange(16) < lengths[:, None, None], x, 0.0), lengths, y))
    return fit(examples.seeded(Masked), loader, loss_fn)


@healthy
def binary_classifier_that_is_sure():
    model = examples.seeded(lambda: nn.Sequential(examples.mlp(), nn.Linear(4, 1), nn.Sigmoid()))

    def loss_fn(model, batch):
        return F.binary_cross_entropy(model(batch[0])[:, 0], (batch[1] > 1).float())

    loader = [(x + 3 * (y > 1)[:, None], y) for x, y in examples.data((12,))]
    return fit(model, loader, loss_fn)


@healthy
def input_of_large_scale():
    """Raw bytes: 0 to 255, not centred, as many train on them."""
    stream = torch.Generator().manual_seed(0)
    loader = [
        (torch.randint(0, 256, (32, 3, 8, 8), generator=stream).float() * (0.5 + 0.1 * y.view(-1, 1, 1, 1)), y)
        for _, y in images()
    ]
    return fit(examples.seeded(examples.cnn), loader)


@healthy
def synchronised_norms_in_one_process():
    return fit(nn.SyncBatchNorm.convert_sync_batchnorm(examples.seeded(examples.cnn)), images())
