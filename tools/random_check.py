#!/usr/bin/env python3
"""Random models at random sizes with random weights: timm and this project side by side, and the worst deviation.

    cargo build --release
    venv/bin/python tools/random_check.py --count 200 --seed 1 [--families swin_transformer regnet]

Each model is drawn from the names whose family is written, built by timm with random arguments (image size,
channels, classes, pooling), given random weights, saved as safetensors and run by `timm forward`. The deviation of the
output, the features and every feature level is the largest difference over the largest magnitude, in units of
PyTorch's own float32 deviation from its float64 (`x own`) and as it is. Models above --max-params are skipped.
"""
import argparse
import json
import logging
import os
import random
import subprocess
import sys
import tempfile
import time

os.environ.setdefault('OMP_NUM_THREADS', '2')

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

import timm  # noqa: E402
from fixtures import settle  # noqa: E402
from hashfill import no_init  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
BINARY = os.path.join(HERE, '..', 'target', 'release', 'timm')


def written(binary):
    """Names whose family is written, by family."""
    listed = subprocess.run([binary, 'list-models', '--json'], capture_output=True, text=True, check=True)
    names = {}
    for row in json.loads(listed.stdout):
        if row['available']:
            names.setdefault(row['family'], []).append(row['model'])
    return names


def draw(rng, names, chosen):
    family = rng.choice(sorted(f for f in names if not chosen or f in chosen))
    name = rng.choice(names[family])
    cfg = timm.get_pretrained_cfg(name)
    kwargs = dict(num_classes=rng.choice([0, 5, 17, 1000]), in_chans=rng.choice([1, 3, 3, 4]))
    height, width = cfg.input_size[1:]
    if cfg.fixed_input_size:
        if rng.random() < 0.5:
            step = 32 if height % 32 == 0 else 14 * 4
            side = step * rng.randint(2, max(2, height // step))
            kwargs['img_size'] = height = width = side
    else:
        low = 64 if height < 256 else 96
        height, width = rng.randint(low, 224), rng.randint(low, 224)
    return family, name, kwargs, (height, width)


@torch.no_grad()
def scramble(model, seed):
    """Random weights that keep the scale which `settle` found."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and tensor.numel():
            tensor.mul_(0.8 + 0.4 * torch.rand(tensor.shape, generator=generator))


def apart(a, b):
    a, b = a.double(), b.double()
    largest = float(b.abs().max())
    return float((a - b).abs().max()) / largest if largest else float(a.abs().max())


@torch.no_grad()
def check(binary, folder, family, name, kwargs, size, seed, max_params):
    model = timm.create_model(name, **kwargs).eval()
    params = sum(p.numel() for p in model.parameters())
    if params > max_params:
        return None
    x = torch.randn(2, kwargs['in_chans'], *size, generator=torch.Generator().manual_seed(seed))
    settle(model, x)
    scramble(model, seed)
    weights, given, found = (os.path.join(folder, f) for f in ('w.safetensors', 'x.safetensors', 'y.safetensors'))
    save_file({k: v.clone().contiguous() for k, v in model.state_dict().items()}, weights)
    save_file({'input': x}, given)
    asked = ['output', 'forward_features']
    single = dict(output=model(x), forward_features=model.forward_features(x))
    levels = lambda m, x: m.forward_intermediates(x, intermediates_only=True)  # noqa: E731
    try:
        maps = levels(model, x)
        single.update({f'features.{i}': m for i, m in enumerate(maps)})
        asked.append('features')
    except (AttributeError, NotImplementedError, TypeError):
        maps = None
    model.double()
    double = dict(output=model(x.double()), forward_features=model.forward_features(x.double()))
    if maps is not None:
        double.update({f'features.{i}': m for i, m in enumerate(levels(model, x.double()))})
    extra = [f'{k}={v}' for k, v in kwargs.items()]
    command = [binary, 'forward', '--model', name, '--checkpoint', weights, '--input', given, '--output', found,
               '--outputs', ','.join(asked), '--model-kwargs', *extra]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        return dict(error=run.stderr.strip().splitlines()[-1] if run.stderr else f'exit {run.returncode}')
    ours = load_file(found)
    worst, own = (0.0, ''), 0.0
    for key, expected in double.items():
        if not torch.is_tensor(expected):
            continue
        if tuple(ours[key].shape) != tuple(expected.shape):
            return dict(error=f'{key} is {tuple(ours[key].shape)}, timm has {tuple(expected.shape)}')
        worst = max(worst, (apart(ours[key], expected), key))
        own = max(own, apart(single[key], expected))
    return dict(worst=worst[0], at=worst[1], own=own, params=params)


def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--count', type=int, default=100)
    ap.add_argument('--seed', type=int, default=0)
    ap.add_argument('--families', nargs='*')
    ap.add_argument('--max-params', type=float, default=60e6)
    ap.add_argument('--binary', default=BINARY)
    ap.add_argument('--limit', type=float, default=1e-4, help='relative deviation that is a failure')
    args = ap.parse_args()
    logging.disable(logging.WARNING)
    no_init()
    rng = random.Random(args.seed)
    names = written(args.binary)
    table, failed, done, start = {}, [], 0, time.time()
    with tempfile.TemporaryDirectory() as folder:
        while done < args.count:
            family, name, kwargs, size = draw(rng, names, args.families)
            seed = rng.randrange(1 << 30)
            label = f'{name} {size[0]}x{size[1]} ' + ' '.join(f'{k}={v}' for k, v in kwargs.items())
            try:
                found = check(args.binary, folder, family, name, kwargs, size, seed, args.max_params)
            except Exception as error:  # timm itself refuses some combinations
                print(f'  skipped {label}: {type(error).__name__} {str(error)[:90]}', flush=True)
                continue
            if found is None:
                continue
            done += 1
            if 'error' in found:
                failed.append(label)
                print(f'✗ {label}: {found["error"]}', flush=True)
                continue
            bad = found['worst'] > args.limit and found['worst'] > 20 * found['own']
            if bad:
                failed.append(label)
            print(f'{"✗" if bad else " "} {label}: {found["worst"]:.1e} at {found["at"]}, '
                  f'PyTorch {found["own"]:.1e}', flush=True)
            row = table.setdefault(family, [0, 0.0, 0.0, 0.0])
            row[0] += 1
            ratio = found['worst'] / max(found['own'], 1e-7)
            row[1:] = max(row[1], found['worst']), max(row[2], found['own']), max(row[3], ratio)
    print(f'\n{"family":<28}{"models":>7}{"worst":>10}{"PyTorch":>10}{"x own":>8}')
    for family, (count, worst, own, ratio) in sorted(table.items()):
        print(f'{family:<28}{count:>7}{worst:>10.1e}{own:>10.1e}{ratio:>8.1f}')
    print(f'\n{done} checked in {time.time() - start:.0f} s, {len(failed)} failed')
    for label in failed:
        print('  ' + label)
    sys.exit(1 if failed else 0)


if __name__ == '__main__':
    main()
