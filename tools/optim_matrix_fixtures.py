#!/usr/bin/env python3
"""Records twenty steps of the optimizers of timm that see matrices, norms or second derivatives, as
crates/train/tests/data/optim_matrix.json.gz.

    python tools/optim_matrix_fixtures.py
    python tools/optim_matrix_fixtures.py --bf16    # records nothing: how coarse timm's own defaults in bf16 are

Needs torch and timm. Everything is computed in f64, also where timm itself would use less (Muon's iterations in bf16,
Kron's triangular solves in f32). Random numbers are those of our graphs: SplitMix64 by seed, step, stream and index.
"""

import gzip
import json
import math
import sys
from pathlib import Path

import torch
from timm.optim import create_optimizer_v2
from timm.optim import kron as kron_module
from timm.optim import muon as muon_module

from optim_fixtures import STEPS, Net

OUT = Path(__file__).resolve().parent.parent / "crates/train/tests/data/optim_matrix.json.gz"
SHAPES = {"conv.weight": [6, 5, 3, 2], "norm.weight": [6], "norm.bias": [6], "head.weight": [4, 7], "head.bias": [4],
          "cls_token": [1, 1, 5], "gain": []}
MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
TAU = 6.2831854820251465  # of f32

torch.set_default_dtype(torch.float64)


def mix(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def stream(name, count=1):
    h = 0xCBF29CE484222325
    for byte in f"{name}#{count}".encode():
        h = ((h ^ byte) * 0x100000001B3) & MASK
    return h


def uniform(seed, step, name, shape, count=1):
    key = 0
    for v in (seed, step, stream(name, count)):
        key = (mix(key ^ mix((v + GOLDEN) & MASK)) + GOLDEN) & MASK
    numbers = [(mix((key + (i + 1) * GOLDEN) & MASK) >> 40) / 2**24 for i in range(math.prod(shape))]
    return torch.tensor(numbers).reshape(shape)


def normal(seed, step, name, shape):
    radius = (-2 * (1 - uniform(seed, step, name, shape, 1)).log()).sqrt()
    return radius * (TAU * uniform(seed, step, name, shape, 2)).cos()


def floats(tensor):
    return [float(f"{v:.9g}") for v in tensor.detach().double().reshape(-1).tolist()]


def gradients(generator):
    """Mixed magnitudes; one parameter's gradient is zero at first, one is huge once."""
    steps = []
    for step in range(STEPS):
        grads = {}
        for i, (name, shape) in enumerate(SHAPES.items()):
            grad = torch.randn(shape, generator=generator) * 10.0 ** (i - 3)
            if name == "norm.bias" and step < 3:
                grad = grad * 0
            if name == "head.weight" and step == 7:
                grad = grad * 1e4
            grads[name] = grad.float().double()
        steps.append(grads)
    return steps


CASES = [
    dict(opt="lamb", weight_decay=0.05),
    dict(opt="lamb", weight_decay=0.0, kwargs=dict(always_adapt=True, max_grad_norm=None, bias_correction=False)),
    dict(opt="lamb", weight_decay=0.05, betas=[0.8, 0.95], eps=1e-4, kwargs=dict(grad_averaging=False)),
    dict(opt="lambc", weight_decay=0.05),
    dict(opt="lambcd", weight_decay=0.05),
    dict(opt="lambcw", weight_decay=0.05),
    dict(opt="lambw", weight_decay=0.05),
    dict(opt="clamb", weight_decay=0.05),
    dict(opt="clambw", weight_decay=0.05),
    dict(opt="lars", weight_decay=0.05),
    dict(opt="lars", weight_decay=0.0, momentum=0.8, kwargs=dict(always_adapt=True, dampening=0.3, trust_coeff=0.01)),
    dict(opt="larc", weight_decay=0.05),
    dict(opt="nlars", weight_decay=0.05),
    dict(opt="nlarc", weight_decay=0.05, eps=1e-4),
    dict(opt="adafactor", weight_decay=0.05),
    dict(opt="adafactor", weight_decay=0.05, kwargs=dict(min_dim_size_to_factor=3, clip_threshold=0.5)),
    dict(opt="adafactor", weight_decay=0.05, kwargs=dict(min_dim_size_to_factor=5, decay_rate=-0.5), betas=[0.8, 0.9]),
    dict(opt="adafactor", weight_decay=0.05, kwargs=dict(lr=None, min_dim_size_to_factor=3)),
    dict(opt="adafactor", weight_decay=0.05, kwargs=dict(lr=None, warmup_init=True, scale_parameter=False)),
    dict(opt="cadafactor", weight_decay=0.05, kwargs=dict(min_dim_size_to_factor=3)),
    dict(opt="adafactorbv", weight_decay=0.05, kwargs=dict(momentum_dtype="float32")),
    dict(opt="adafactorbv", weight_decay=0.05, kwargs=dict(
        min_dim_size_to_factor=4, momentum=None, clipping_threshold=1.0, unscaled_wd=True, decay_offset=3)),
    dict(opt="adafactorbvc", weight_decay=0.05, kwargs=dict(min_dim_size_to_factor=4, momentum_dtype="float32")),
    dict(opt="adafactorbvc", weight_decay=0.05, kwargs=dict(unscaled_wd=True, momentum=None, beta2_cap=0.9)),
    dict(opt="cadafactorbv", weight_decay=0.05, kwargs=dict(min_dim_size_to_factor=4, momentum_dtype="float32")),
    dict(opt="cadafactorbvc", weight_decay=0.05, kwargs=dict(momentum_dtype="float32")),
    dict(opt="adamp", weight_decay=0.05),
    dict(opt="adamp", weight_decay=0.05, kwargs=dict(nesterov=False, delta=1.0, wd_ratio=0.5)),
    dict(opt="cadamp", weight_decay=0.05),
    dict(opt="cadamp", weight_decay=0.05, kwargs=dict(delta=2.5)),
    dict(opt="sgdp", weight_decay=0.05),
    dict(opt="sgdp", weight_decay=0.05, kwargs=dict(nesterov=False, delta=1.0, wd_ratio=0.5, dampening=0.2)),
    dict(opt="csgdp", weight_decay=0.05),
    dict(opt="csgdp", weight_decay=0.05, kwargs=dict(delta=2.5)),
    dict(opt="muon", weight_decay=0.05),
    dict(opt="muon", weight_decay=0.05, kwargs=dict(
        ns_coefficients="original", adjust_lr_fn="original", ns_steps=3, fallback_lr_scale=0.5)),
    dict(opt="muon", weight_decay=0.05, kwargs=dict(
        conv_mode="batched", adjust_lr_fn="rms_to_rms", scale_eps=True, ns_coefficients="polar_express")),
    dict(opt="muon", weight_decay=0.05, kwargs=dict(
        conv_mode="batched", normalize_spatial=False, safety_factor=1.02, ns_coefficients="polar_express_safer",
        fallback_list=["head*"])),
    dict(opt="nmuon", weight_decay=0.05, kwargs=dict(adjust_lr_fn=None, ns_coefficients=[3.0, -3.2, 1.2])),
    dict(opt="adamuon", weight_decay=0.05),
    dict(opt="adamuon", weight_decay=0.05, kwargs=dict(conv_mode="batched", adjust_lr_fn="rms_to_rms")),
    dict(opt="nadamuon", weight_decay=0.05, kwargs=dict(
        adjust_lr_fn="rsqrt_in", ns_coefficients=[[3.4, -4.7, 2.0], [2.0, -1.5, 0.5]])),
    dict(opt="nadamuon", weight_decay=0.05, betas=[0.8, 0.9], eps=1e-5, kwargs=dict(conv_mode="batched")),
    dict(opt="kron", weight_decay=0.05),
    dict(opt="kron", weight_decay=0.05, kwargs=dict(
        flatten=True, preconditioner_update_probability=0.3, precond_init_scale=0.5, precond_lr=0.2)),
    dict(opt="kronw", weight_decay=0.05, kwargs=dict(memory_save_mode="one_diag", stochastic_weight_decay=True)),
    dict(opt="kronw", weight_decay=0.05, kwargs=dict(
        memory_save_mode="smart_one_diag", momentum_into_precond_update=False, max_size_triangular=6)),
    dict(opt="kronc", weight_decay=0.05, kwargs=dict(memory_save_mode="all_diag")),
    dict(opt="kron", weight_decay=0.05, kwargs=dict(stochastic_weight_decay=True, min_ndim_triangular=3)),
]


class Draws:
    """Stands in for Kron's generator: the numbers of our graphs, parameter by parameter."""

    def __init__(self, names, seed, group_of):
        self.names, self.seed, self.group_of = names, seed, group_of

    def start(self, step):
        self.step, self.index, self.asked = step, -1, 2
        self.balances = 0

    def random(self):
        # The first question for each parameter is whether to balance; some ask a second time, about decay.
        group = self.group_of[self.names[self.index]] if self.index >= 0 else None
        twice = group is not None and group["stochastic_weight_decay"] and group["weight_decay"] != 0
        if self.asked == 1 and twice:
            self.asked = 2
            return uniform(self.seed, self.step, f"optimizer.{self.names[self.index]}.decay", []).item()
        self.index, self.asked = self.index + 1, 1
        value = uniform(self.seed, self.step, f"optimizer.{self.names[self.index]}.balance", []).item()
        self.balances += value < 0.01
        return value

    def randn(self, shape, **_):
        return normal(self.seed, self.step, f"optimizer.{self.names[self.index]}.V", list(shape))


def states(named, optimizer):
    found = {}
    for name, parameter in named:
        for slot, value in optimizer.state[parameter].items():
            if isinstance(value, list):
                found.update({f"{name}.{slot}.{i}": floats(v) for i, v in enumerate(value)})
            elif torch.is_tensor(value) and slot != "step":
                found[f"{name}.{slot}"] = floats(value)
    return found


def in_f64():
    """Lets Muon and Kron compute in f64 throughout, uncompiled."""
    eps, safety, _, scale = muon_module.zeropower_via_newtonschulz.__defaults__
    muon_module.zeropower_via_newtonschulz.__defaults__ = (eps, safety, torch.float64, scale)

    def solve(x, a):
        flat = x.reshape(-1, x.size(-1))
        return torch.linalg.solve_triangular(a, flat, upper=True, left=False).reshape_as(x)

    kron_module._solve_triangular_right = solve
    kron_module.has_dynamo = False


def run(case, seed):
    generator = torch.Generator().manual_seed(7)
    net = Net(generator, SHAPES)
    steps = gradients(generator)
    lrs = [0.02 * (1 + step % 3) for step in range(STEPS)]
    options = {k: v for k, v in case.items() if k in ("opt", "momentum", "weight_decay", "betas", "eps")}
    optimizer = create_optimizer_v2(net, **{"lr": lrs[0], **options, **case.get("kwargs", {})})
    if case["opt"].startswith("kron"):
        optimizer._tiny = torch.finfo(torch.float32).tiny
        names = {parameter: name for name, parameter in net.named_parameters()}
        ordered = [(names[p], group) for group in optimizer.param_groups for p in group["params"]]
        optimizer.rng = Draws([name for name, _ in ordered], seed, dict(ordered))
    for step, (grads, lr) in enumerate(zip(steps, lrs)):
        for group in optimizer.param_groups:
            if not ("lr" in case.get("kwargs", {})):
                group["lr"] = lr
        for name, parameter in net.named_parameters():
            parameter.grad = grads[name].clone()
        if case["opt"].startswith("kron"):
            optimizer.rng.start(step)
            plain, torch.randn = torch.randn, optimizer.rng.randn
            optimizer.step()
            torch.randn = plain
        else:
            optimizer.step()
    named = list(net.named_parameters())
    return dict(case, seed=seed, lrs=lrs, end={n: floats(p) for n, p in named}, state=states(named, optimizer))


def print_bf16():
    """How far timm's defaults are from themselves in f64, after the same steps, relative to the largest weight."""
    wide = {}
    for opt in ("muon", "nmuon", "adamuon", "adafactorbv"):
        wide[opt] = run(dict(opt=opt, weight_decay=0.05), 0)["end"]
    in_f64()
    for opt, coarse in wide.items():
        kwargs = dict(momentum_dtype="float32") if opt == "adafactorbv" else {}
        fine = run(dict(opt=opt, weight_decay=0.05, kwargs=kwargs), 0)["end"]
        worst = max(max(abs(a - b) for a, b in zip(coarse[n], fine[n])) / max(map(abs, fine[n])) for n in fine)
        print(f"{opt:<12} {worst:.1e}")


def a_seed_that_balances():
    """One with which some parameter of two axes is balanced within the twenty steps."""
    wide = [name for name, shape in SHAPES.items() if len(shape) > 1]
    for seed in range(100):
        draws = [uniform(seed, step, f"optimizer.{name}.balance", []) for step in range(STEPS) for name in wide]
        if min(draws) < 0.01:
            return seed
    raise SystemExit("no seed balances")


HESSIAN = [
    dict(opt="adahessian", weight_decay=0.05),
    dict(opt="adahessian", weight_decay=0.05, betas=[0.8, 0.95], eps=1e-4, kwargs=dict(
        hessian_power=0.5, avg_conv_kernel=True, n_samples=2)),
    # A larger eps: an estimate that is almost 0 for three steps makes steps that magnify the last digits.
    dict(opt="adahessian", weight_decay=0.0, eps=1e-3, kwargs=dict(update_each=3)),
]


class Second(torch.nn.Module):
    """Convolution, batch norm, SiLU, mean, classifier."""

    def __init__(self, generator):
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = torch.nn.BatchNorm2d(4)
        self.head = torch.nn.Linear(4, 3)
        for parameter in self.parameters():
            value = torch.randn(parameter.shape, generator=generator).float().double()
            parameter.data = value * 0.5 + (1.0 if parameter is self.norm.weight else 0.0)

    def forward(self, x):
        x = torch.nn.functional.silu(self.norm(self.conv(x)))
        return self.head(x.mean((2, 3)))


def second_order(case, seed):
    generator = torch.Generator().manual_seed(3)
    net = Second(generator)
    start = {n: floats(p) for n, p in net.named_parameters()}
    for name, parameter in net.named_parameters():
        parameter.data = torch.tensor(start[name]).reshape(parameter.shape)
    images = torch.randn([STEPS, 3, 2, 4, 4], generator=generator).float().double()
    labels = torch.randint(0, 3, [STEPS, 3], generator=generator)
    options = {k: v for k, v in case.items() if k in ("opt", "weight_decay", "betas", "eps")}
    optimizer = create_optimizer_v2(net, lr=0.05, **options, **case.get("kwargs", {}))
    names = {parameter: name for name, parameter in net.named_parameters()}
    order = [names[p] for p in optimizer.get_params()]
    plain = torch.randint
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(images[step]), labels[step])
        loss.backward(create_graph=True)
        asked = []

        def randint(low, high, size, **_):
            name = order[len(asked) % len(order)]
            count = len(asked) // len(order) + 1
            asked.append(name)
            return (uniform(seed, step, f"hessian.{name}", list(size), count) >= 0.5).double()

        torch.randint = randint
        optimizer.step()
        torch.randint = plain
    named = list(net.named_parameters())
    return dict(case, seed=seed, lr=0.05, start=start, images=images.float().double().flatten(1).tolist(),
                labels=labels.double().tolist(), end={n: floats(p) for n, p in named}, state=states(named, optimizer))


def main():
    if "--bf16" in sys.argv[1:]:
        return print_bf16()
    in_f64()
    seed = a_seed_that_balances()
    generator = torch.Generator().manual_seed(7)
    net = Net(generator, SHAPES)
    grads = [{n: g.reshape(-1).tolist() for n, g in step.items()} for step in gradients(generator)]
    start = {n: p.detach().reshape(-1).tolist() for n, p in net.named_parameters()}
    found = dict(shapes=SHAPES, start=start, gradients=grads, cases=[run(case, seed) for case in CASES],
                 second_order=[second_order(case, seed) for case in HESSIAN])
    OUT.write_bytes(gzip.compress(json.dumps(found).encode(), 9, mtime=0))
    print(OUT.name, OUT.stat().st_size)


main()
