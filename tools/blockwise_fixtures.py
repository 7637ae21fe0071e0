#!/usr/bin/env python3
"""Records ten steps of bitsandbytes' optimizers, in f32 and with 8-bit states, on its CPU backend, as
crates/train/tests/data/optim_blockwise.json.gz.

    python tools/blockwise_fixtures.py

Needs torch and bitsandbytes 0.50.2. Parameters and gradients are made from names by both sides. Its CPU kernel looks
codes up in a coarse table and so misses the nearest value for every tenth small number; here it takes the nearest one,
as published and as its own generic code does.
"""

import gzip
import json
import math
from pathlib import Path

import bitsandbytes
import torch
from bitsandbytes.backends.cpu import ops as cpu_ops

OUT = Path(__file__).resolve().parent.parent / "crates/train/tests/data/optim_blockwise.json.gz"
STEPS = 10
SHAPES = {"wide.weight": [70, 64], "wide.bias": [64], "head.weight": [9, 11]}
# Every so many entries of a large tensor are recorded.
EVERY = 7
MASK = (1 << 64) - 1

CASES = [
    ("bnbadam", "Adam", dict(betas=[0.9, 0.999]), 0.05),
    ("bnbadam8bit", "Adam8bit", dict(), 0.0),
    ("bnbadamw", "AdamW", dict(eps=1e-4), 0.05),
    ("bnbadamw8bit", "AdamW8bit", dict(betas=[0.8, 0.95], min_8bit_size=64), 0.05),
    ("bnblion", "Lion", dict(), 0.05),
    ("bnblion8bit", "Lion8bit", dict(), 0.05),
    ("bnbsgd", "SGD", dict(), 0.05),
    ("bnbsgd8bit", "SGD8bit", dict(), 0.05),
    ("bnbademamix", "AdEMAMix", dict(alpha=3.0), 0.05),
    ("bnbademamix", "AdEMAMix", dict(t_alpha=8, t_beta3=12), 0.05),
    ("bnbademamix8bit", "AdEMAMix8bit", dict(), 0.05),
]


def hashed(name, count):
    """u in [-1, 1) by tools/README.md's rule."""
    z = 0xCBF29CE484222325
    for byte in name.encode():
        z = ((z ^ byte) * 0x100000001B3) & MASK
    out = []
    for i in range(count):
        x = (z + (i + 1) * 0x9E3779B97F4A7C15) & MASK
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
        out.append((((x ^ (x >> 31)) >> 40) - 2**23) / 2**23)
    return torch.tensor(out, dtype=torch.float32)


def gradient(name, step, shape):
    """Cubed, so that magnitudes differ; of another size for each block of rows."""
    u = hashed(f"gradient.{name}.{step}", math.prod(shape)).reshape(shape)
    rows = torch.arange(shape[0]).reshape([-1] + [1] * (len(shape) - 1))
    return u * u * u * torch.pow(torch.tensor(0.5), rows % 8)


def floats(tensor):
    flat = tensor.detach().double().reshape(-1)
    flat = flat[::EVERY] if len(flat) > 1000 else flat
    return [float(f"{v:.8g}") for v in flat.tolist()]


def state_values(state, key):
    codes = state[f"state{key}"]
    if codes.dtype != torch.uint8:
        return codes
    blocks = state[f"absmax{key}"]
    flat = state[f"qmap{key}"][codes.long()]
    if blocks.ndim == 2:
        rows = [f.reshape(-1) * b.repeat_interleave(256)[: f.numel()] for f, b in zip(flat, blocks)]
        return torch.stack(rows).reshape(codes.shape)
    return (flat.reshape(-1) * blocks.repeat_interleave(256)[: flat.numel()]).reshape(codes.shape)


def run(name, kind, kwargs, weight_decay):
    parameters = {n: torch.nn.Parameter(hashed(n, math.prod(s)).reshape(s)) for n, s in SHAPES.items()}
    groups = [dict(params=[p], weight_decay=weight_decay if p.ndim > 1 else 0.0) for p in parameters.values()]
    more = dict(momentum=0.9) if kind.startswith("SGD") else {}
    optimizer = getattr(bitsandbytes.optim, kind)(groups, lr=0.01, weight_decay=0.0, **kwargs, **more)
    for step in range(STEPS):
        for n, p in parameters.items():
            p.grad = gradient(n, step, SHAPES[n])
        optimizer.step()
    state = {}
    for n, p in parameters.items():
        own = optimizer.state[p]
        for key in ("1", "2"):
            if f"state{key}" in own:
                values = state_values(own, key)
                parts = {f"{key}.{i}": v for i, v in enumerate(values)} if values.shape != p.shape else {key: values}
                for part, value in parts.items():
                    state[f"{n}.state{part}"] = dict(
                        values=floats(value), eight_bit=own[f"state{key}"].dtype == torch.uint8)
    betas, eps = kwargs.pop("betas", None), kwargs.pop("eps", None)
    return dict(opt=name, betas=betas, eps=eps, weight_decay=weight_decay, kwargs=kwargs, lr=0.01,
                end={n: floats(p) for n, p in parameters.items()}, state=state)


def quantize(values, code, absmax, codes, blocksize):
    flat = values.reshape(-1)
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % blocksize)).reshape(-1, blocksize)
    absmax.copy_(blocks.abs().amax(1))
    unit = blocks / absmax.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    nearest = (unit.double().reshape(-1, 1) - code.double()).abs().argmin(1)
    codes.copy_(nearest[: len(flat)].reshape(codes.shape).to(torch.uint8))


def main():
    cpu_ops._quant_blockwise_fp32_direct = quantize
    found = dict(shapes=SHAPES, steps=STEPS, every=EVERY, cases=[run(*case) for case in CASES])
    OUT.write_bytes(gzip.compress(json.dumps(found).encode(), 9, mtime=0))
    print(OUT.name, OUT.stat().st_size)


main()
