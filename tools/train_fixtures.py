#!/usr/bin/env python3
"""Record training steps and learning-rate schedules of the real timm, as the fixtures of crates/train/tests/fixtures.

    pip install timm==1.0.31 torch torchvision
    python tools/train_fixtures.py        # makes what is missing

One gzip JSON a model. Weights and images are made by tools/hashfill.py; the batch is the same at every step, the model
in training mode, the reference in float64. Tensors are summaries as in the model fixtures; `f32` in a summary is how
far PyTorch's own float32 runs are from the reference, relative to the tensor's largest magnitude.

    loss, grad_norm       cross-entropy of the first forward, and the length of all its gradients together
    output                logits of the first forward
    gradients             of that loss, for each parameter
    statistics            each batch norm's running mean and (unbiased) variance after that one forward
    smoothed_loss         the same loss with label smoothing 0.1
    runs                  by name: `options`, the loss at each of the steps before its update, `f32_losses`, and every
                          floating-point state_dict entry after the last (`state`); `ema` where an average is kept

gradients/ holds one small variant of every family, without `runs`: only missing files are made. Where float32 is far
from float64 (a ReLU that takes another side), the tests compare float64 with float64. `kept` lists buffers that
keep the values they are built with.

schedules.json holds, for each set of arguments of timm's create_scheduler_v2, the learning rate at t = 0, 1, 2 ... (t
counts epochs, or updates where `step_on_epochs` is false) and the number of epochs to train that timm answers.
"""
import json
import os

os.environ.setdefault('OMP_NUM_THREADS', '1')  # one order of summation

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

import timm  # noqa: E402
from fixtures import parse, rows, save  # noqa: E402
from hashfill import fill_model, image_batch, no_init, number, summary  # noqa: E402
from timm.optim import create_optimizer_v2  # noqa: E402
from timm.scheduler import create_scheduler_v2  # noqa: E402
from timm.utils import ModelEmaV3  # noqa: E402

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'crates', 'train', 'tests', 'fixtures')
LABELS = [5, 2, 8, 6]
STEPS = 5


def runs(sgd_lr, recipe_lr):
    """Options of the runs: arguments of create_optimizer_v2 and what a recipe adds.

    The rates are chosen so that three float32 runs of PyTorch itself (its layouts and kernels) stay near the float64
    one. At other rates some activation sooner or later falls on the other side of a ReLU, and the runs part. AdamW
    needs an `eps` above the rounding noise of gradients that are zero in exact arithmetic for the same reason.
    """
    adamw = dict(opt='adamw', lr=1e-4, weight_decay=0.02, eps=1e-6)
    return {
        'sgd': dict(opt='sgd', lr=sgd_lr, momentum=0.9, weight_decay=1e-4),  # timm's `sgd` is Nesterov's
        'adamw': adamw,
        # Smoothed labels, gradients cut to a length, an average of the weights.
        'adamw_recipe': dict(adamw, lr=recipe_lr, smoothing=0.1, clip_grad=1.0, ema_decay=0.9),
    }


# Of every family a small variant, for one step: name, size, arguments; dropout and stochastic depth are off.
GRADIENTS = [
    'test_vit embed_dim=32 depth=2 img_size=64 64x64',
    'deit_tiny_distilled_patch16_224 embed_dim=32 num_heads=2 depth=2 img_size=64 64x64',
    'vit_tiny_r_s16_p8_224 embed_dim=32 num_heads=2 depth=1 img_size=64 64x64',
    'resnetv2_18 64x64',
    'test_convnext2 64x64',
    'caformer_s18 64x64',
    'gmlp_ti16_224 img_size=64 64x64',
    'regnetx_002 32x32',
    'densenet121 growth_rate=16 block_config=(2,2,2,2) 64x64',
    'vgg11_bn mlp_ratio=0.0625 32x32',
    'inception_v3 75x75',
    'test_nfnet 64x64',
    'test_byobnet 64x64',
    'botnet26t_256 img_size=64 64x64',
    'eva02_base_patch16_clip_224 embed_dim=32 num_heads=2 depth=2 img_size=64 64x64',
    'vit_small_patch16_rope_mixed_ape_224 embed_dim=32 num_heads=2 depth=2 img_size=64 64x64',
    'beit_base_patch16_224 embed_dim=32 num_heads=2 depth=2 img_size=64 64x64',
    'swin_tiny_patch4_window7_224 embed_dim=24 num_heads=(1,2,4,8) depths=(1,2,1,1) img_size=64 window_size=4 drop_path_rate=0.0 64x64',
    'swinv2_tiny_window8_256 embed_dim=24 num_heads=(1,2,4,8) depths=(1,2,1,1) img_size=64 window_size=4 drop_path_rate=0.0 64x64',
    'test_maxvit img_size=64 64x64',
    'test_efficientnet 64x64',
    'mobilenetv4_conv_small_035 32x32',
]
MODELS = [('test_resnet', 64, runs(0.01, 1e-4)), ('resnet10t', 64, runs(0.02, 3e-4))]
SINGLE = ('plain', 'channels_last', 'native')


class Run:
    """A model in training mode on its one batch: in float64 (`form` None), or in float32 as one of SINGLE."""

    def __init__(self, name, size, form=None, **kwargs):
        dtype = torch.float32 if form else torch.float64
        self.form = form
        self.model = timm.create_model(name, num_classes=10, **kwargs)
        self.kept, _, self.check = fill_model(self.model)
        self.model.to(dtype).train()
        self.x = image_batch(len(LABELS), 3, size, size).to(dtype)
        if form == 'channels_last':
            self.model.to(memory_format=torch.channels_last)
            self.x = self.x.contiguous(memory_format=torch.channels_last)

    def loss(self, smoothing=0.0):
        torch.backends.mkldnn.enabled = self.form != 'native'
        output = self.model(self.x)
        return output, F.cross_entropy(output, torch.tensor(LABELS), label_smoothing=smoothing)

    def first_step(self):
        output, loss = self.loss()
        loss.backward()
        gradients = {name: p.grad for name, p in self.model.named_parameters()}
        norm = torch.stack([g.norm() for g in gradients.values()]).norm()
        return output, loss, norm, gradients, {k: v for k, v in self.model.state_dict().items() if '.running_' in k}

    def train(self, smoothing=0.0, clip_grad=None, ema_decay=None, **optimizer):
        optimizer = create_optimizer_v2(self.model, **optimizer)
        average = ModelEmaV3(self.model, decay=ema_decay, foreach=False) if ema_decay else None
        losses = []
        for _ in range(STEPS):
            optimizer.zero_grad()
            _, loss = self.loss(smoothing)
            loss.backward()
            losses.append(float(loss))
            if clip_grad:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip_grad)
            optimizer.step()
            if average:
                average.update(self.model)
        return losses, self.state(self.model), average and self.state(average.module)

    @staticmethod
    def state(model):
        return {k: v.clone() for k, v in model.state_dict().items() if v.is_floating_point()}


def summaries(reference, singles, floor=0.0):
    """Summaries of a dict of tensors, each with the largest deviation of the float32 runs.

    What is smaller than `floor` all over is as good as zero: a bias before a batch norm has no gradient.
    """
    def one(a, others):
        flat = a.detach().reshape(-1)
        largest = max(float(flat.abs().max()), floor)
        apart = max(float((flat - b.detach().double().reshape(-1)).abs().max()) for b in others)
        return dict(summary(a), f32=float(f'{apart / largest if largest else apart:.2g}'))
    return {key: one(reference[key], [single[key] for single in singles]) for key in reference}


def record(name, size, options_of, **kwargs):
    start = lambda: (Run(name, size, **kwargs), [Run(name, size, form, **kwargs) for form in SINGLE])  # noqa: E731
    worst = lambda d: max((v['f32'], k) for k, v in d.items())  # noqa: E731
    reference, singles = start()
    state = [[k, list(v.shape), str(v.dtype)[len('torch.'):].replace('float64', 'float32')]
             for k, v in reference.model.state_dict().items()]
    out = dict(spec=1, model=name, kwargs=dict(num_classes=10, **kwargs), timm=timm.__version__, torch=torch.__version__,
               bs=len(LABELS), input_size=[3, size, size], labels=LABELS, steps=STEPS, state_dict=state,
               fill_check=reference.check, kept=sorted(reference.kept),
               input_check=dict(sum=number(reference.x.sum()), l2=number(reference.x.norm())))
    output, loss, norm, gradients, statistics = reference.first_step()
    first_steps = [single.first_step() for single in singles]
    out.update(output=rows(output), loss=number(loss), grad_norm=number(norm), f32_loss=number(first_steps[0][1]),
               f32_grad_norm=number(first_steps[0][2]), smoothed_loss=number(start()[0].loss(0.1)[1]),
               gradients=summaries(gradients, [s[3] for s in first_steps], 1e-6 * float(norm)),
               statistics=summaries(statistics, [s[4] for s in first_steps]), runs={})
    print(name, f'loss {float(loss):.6f}', 'float32 deviates most at', worst(out['gradients']))
    for label, options in options_of.items():
        reference, singles = start()
        losses, final, average = reference.train(**options)
        others = [single.train(**options) for single in singles]
        run = dict(options=options, losses=[number(x) for x in losses], f32_losses=[number(x) for x in others[0][0]],
                   state=summaries(final, [o[1] for o in others]))
        if average:
            run['ema'] = summaries(average, [o[2] for o in others])
        out['runs'][label] = run
        print(' ', label, [f'{x:.4f}' for x in losses], worst(run['state']))
    return out


SCHEDULES = [
    # (base learning rate, arguments)
    (0.1, dict(sched='cosine', num_epochs=12, warmup_epochs=0)),
    (0.1, dict(sched='cosine', num_epochs=12, warmup_epochs=3, warmup_lr=1e-4, min_lr=1e-3)),
    (0.1, dict(sched='cosine', num_epochs=12, warmup_epochs=3, warmup_lr=1e-4, min_lr=1e-3, warmup_prefix=True)),
    (0.1, dict(sched='cosine', num_epochs=12, warmup_epochs=2, warmup_lr=1e-5, cooldown_epochs=4, min_lr=1e-3)),
    (0.4, dict(sched='cosine', num_epochs=5, warmup_epochs=2, warmup_lr=1e-5, cycle_limit=3, cycle_decay=0.5, min_lr=0.01)),
    (0.4, dict(sched='cosine', num_epochs=4, cycle_limit=3, cycle_mul=2.0, cycle_decay=0.3, warmup_epochs=1, warmup_prefix=True)),
    (0.4, dict(sched='cosine', num_epochs=10, k_decay=2.0, min_lr=1e-4, warmup_epochs=0)),
    (2e-3, dict(sched='cosine', num_epochs=4, warmup_epochs=1, warmup_lr=1e-6, min_lr=1e-5, step_on_epochs=False, updates_per_epoch=7)),
    (2e-3, dict(sched='cosine', num_epochs=4, warmup_epochs=1, warmup_lr=1e-6, warmup_prefix=True, step_on_epochs=False, updates_per_epoch=7, cooldown_epochs=1)),
    (0.05, dict(sched='step', num_epochs=12, decay_epochs=4, decay_rate=0.1, warmup_epochs=0)),
    (0.05, dict(sched='step', num_epochs=14, decay_epochs=2.4, decay_rate=0.97, warmup_epochs=3, warmup_lr=1e-6)),
    (0.05, dict(sched='step', num_epochs=12, decay_epochs=3, decay_rate=0.5, warmup_epochs=2, warmup_lr=1e-4, warmup_prefix=True)),
    (0.05, dict(sched='step', num_epochs=4, decay_epochs=1.5, decay_rate=0.5, warmup_epochs=1, warmup_lr=1e-4, step_on_epochs=False, updates_per_epoch=5)),
    (0.05, dict(sched='multistep', num_epochs=12, decay_milestones=[4, 8], decay_rate=0.2, warmup_epochs=2, warmup_lr=1e-4)),
    (0.05, dict(sched='multistep', num_epochs=4, decay_milestones=[1, 3], decay_rate=0.2, warmup_epochs=1, step_on_epochs=False, updates_per_epoch=5)),
    (0.05, dict(sched='constant', num_epochs=8, warmup_epochs=3, warmup_lr=1e-4)),
    (0.1, dict(sched='tanh', num_epochs=10, warmup_epochs=2, warmup_lr=1e-4, min_lr=1e-3)),
    (0.1, dict(sched='tanh', num_epochs=5, warmup_epochs=1, warmup_prefix=True, cycle_limit=2, cycle_decay=0.5)),
    (0.1, dict(sched='poly', num_epochs=10, decay_rate=0.9, warmup_epochs=2, warmup_lr=1e-4, min_lr=1e-3)),
    (0.1, dict(sched='poly', num_epochs=5, decay_rate=2.0, k_decay=1.5, cycle_limit=2, cycle_decay=0.5, warmup_epochs=0)),
    (0.1, dict(sched='wsd', num_epochs=12, warmup_epochs=2, warmup_lr=1e-4)),
    (0.1, dict(sched='wsd', num_epochs=12, warmup_epochs=2, warmup_lr=1e-4, min_lr=1e-3, decay_epochs=4, decay_fn='cosine', warmup_prefix=True)),
    (0.1, dict(sched='rsqrt', num_epochs=12, warmup_epochs=2, warmup_lr=1e-4)),
    (0.1, dict(sched='rsqrt', num_epochs=4, warmup_epochs=1, stable_timescale=2, decay_epochs=1, step_on_epochs=False, updates_per_epoch=5)),
]


def schedules():
    out = []
    for lr, options in SCHEDULES:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
        scheduler, epochs = create_scheduler_v2(optimizer, **options)
        per_epoch = options.get('step_on_epochs', True)
        current = lambda: optimizer.param_groups[0]['lr']  # noqa: E731
        rates = [current()]
        for t in range(1, epochs * (1 if per_epoch else options['updates_per_epoch']) + 2):
            scheduler.step(t) if per_epoch else scheduler.step_update(t)
            rates.append(current())
        out.append(dict(lr=lr, options=options, total_epochs=epochs, rates=rates))
    return out


def main():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    no_init()
    os.makedirs(OUT, exist_ok=True)
    for name, size, options_of in MODELS:
        path = os.path.join(OUT, name + '.json.gz')
        if not os.path.exists(path):
            save(path, record(name, size, options_of))
            print(' ', os.path.getsize(path), 'bytes')
    os.makedirs(os.path.join(OUT, 'gradients'), exist_ok=True)
    for line in GRADIENTS:
        name, (size, _), _, kwargs = parse(line)
        path = os.path.join(OUT, 'gradients', name + '.json.gz')
        if not os.path.exists(path):
            save(path, record(name, size, {}, **kwargs))
            print(' ', os.path.getsize(path), 'bytes')
    path = os.path.join(OUT, 'schedules.json')
    with open(path, 'w') as f:
        f.write('[\n' + ',\n'.join(json.dumps(s) for s in schedules()) + '\n]\n')
    print('schedules.json', os.path.getsize(path), 'bytes')


if __name__ == '__main__':
    main()
