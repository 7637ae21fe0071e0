#!/usr/bin/env python3
"""Record what the real timm computes, as the parity fixtures of crates/models/tests/fixtures.

    pip install timm==1.0.31 torch torchvision
    python tools/fixtures.py                             # everything in tools/fixtures.txt that is not there yet
    python tools/fixtures.py resnet18 "resnet50 96x96"   # these, anew
    python tools/fixtures.py --compare DIR NAME...       # generate and compare with the files of another folder

Weights and input come from tools/hashfill.py, the reference runs in float64. Fields: tools/README.md.
"""
import argparse
import ast
import gzip
import inspect
import json
import math
import os
import sys
import time
import warnings

os.environ.setdefault('OMP_NUM_THREADS', '1')  # one order of summation, so that a second run gives the same file
warnings.filterwarnings('ignore')
import logging  # noqa: E402

import torch  # noqa: E402
from torch import nn  # noqa: E402

import timm  # noqa: E402
from hashfill import fill_model, image_batch, no_init, number, summary  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, '..', 'crates', 'models', 'tests', 'fixtures')
MAP_POOLS = ('', 'avg', 'max', 'avgmax', 'catavgmax', 'fastavg')
TOKEN_POOLS = ('token', 'avg', 'max', 'map')


def first(value):
    """The tensor itself, or the first of several (distilled models return two)."""
    return first(value[0]) if isinstance(value, (list, tuple)) else value


def copied(value):
    """A copy: some heads work in place."""
    return type(value)(copied(v) for v in value) if isinstance(value, (list, tuple)) else value.clone()


def message(error):
    return f'{type(error).__name__}: {str(error)[:200]}'


def plain(value):
    return list(value) if isinstance(value, tuple) else value


def rows(value):
    """A classifier's output: per image the first 16 numbers, sum, length, best class."""
    if isinstance(value, (list, tuple)):
        return [rows(v) for v in value]
    flat = value.detach().double().flatten(1)
    return dict(shape=list(value.shape), first16=[[number(x) for x in row[:16]] for row in flat],
                sum=[number(x) for x in flat.sum(1)], l2=[number(x) for x in flat.norm(dim=1)],
                argmax=flat.argmax(1).tolist())


@torch.no_grad()
def calibrate(model, x, weights=False):
    """Powers of two per key that keep an untrained network healthy, found in one float32 forward.

    Each batch norm's running variance is scaled so that its output has a second moment near 1, as after training. With
    `weights`, convolutions and linear layers are scaled to a second moment near 1 before the bias.
    """
    names = {module: name for name, module in model.named_modules()}
    exponents, hooks = {}, []

    def scale_variance(module, inputs):
        key = names[module] + '.running_var'
        if key in exponents or module.running_var is None:
            return
        t = inputs[0].float()
        shape = (1, -1) + (1,) * (t.ndim - 2)
        moment = float((t - module.running_mean.view(shape)).square().mean())
        usable = moment > 0 and math.isfinite(moment)
        exponents[key] = max(-60, min(60, round(math.log2(moment / 1.25)))) if usable else 0
        module.running_var.mul_(2.0 ** exponents[key])

    def scale_weight(module, inputs, output):
        key = names[module] + '.weight'
        if key in exponents:
            return None
        bias = 0 if module.bias is None else module.bias if isinstance(module, nn.Linear) else module.bias.view(1, -1, 1, 1)
        moment = float((output.float() - bias).square().mean())
        usable = moment > 0 and math.isfinite(moment)
        exponents[key] = max(-30, min(30, round(-0.5 * math.log2(moment)))) if usable else 0
        if not exponents[key]:
            return None
        module.weight.mul_(2.0 ** exponents[key])
        return (output - bias) * 2.0 ** exponents[key] + bias

    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            hooks.append(module.register_forward_pre_hook(scale_variance))
        elif weights and (type(module) in (nn.Conv2d, nn.Linear) or isinstance(module, timm.layers.CondConv2d)):
            hooks.append(module.register_forward_hook(scale_weight))
    model(x)
    for hook in hooks:
        hook.remove()
    return {key: e for key, e in exponents.items() if e}


def health(output):
    """Whether an output can tell right from wrong: finite, neither tiny nor huge, different for different images."""
    y = first(output).double().flatten(1)
    apart = float((y[0] - y[1]).norm() / max(1e-30, math.sqrt(float(y[0].norm() * y[1].norm()))))
    record = dict(finite=bool(torch.isfinite(y).all()), logit_std=number(y.std()), rel_diff_between_inputs=number(apart))
    return record, record['finite'] and 1e-2 < float(y.std()) < 1e2, apart


def settle(model, x):
    """Fill and calibrate; returns (exponents, which calibration, fill report, float32 output, health record)."""
    fill_model(model)
    exponents = calibrate(model, x)
    kind = 'bn' if exponents else 'none'
    report = fill_model(model, exponents)
    y = model(x)
    record, sound, apart = health(y)
    if sound and apart >= 0.02:
        return exponents, kind, report, y, record
    fill_model(model)
    other = calibrate(model, x, weights=True)
    other_report = fill_model(model, other)
    other_y = model(x)
    other_record, _, other_apart = health(other_y)
    if other_record['finite'] and (not sound or other_apart > apart * 1.5):
        return other, kind + '+weights', other_report, other_y, other_record
    return exponents, kind, fill_model(model, exponents), y, record


def plain_keys(model_keys, wrapped_keys):
    """Names of a features-only wrapper's keys in the plain model, and those that have none."""
    def plain_key(key):
        tries = [key, key.removeprefix('body.'), key.removeprefix('model.')]
        head, dot, rest = key.partition('.')
        tries += [head[:i] + '.' + head[i + 1:] + dot + rest for i, c in enumerate(head) if c == '_']
        return next((t for t in tries if t in model_keys), key)
    return plain_key, [k for k in wrapped_keys if plain_key(k) not in model_keys]


class Recorder:
    """Everything recorded of one model."""

    def __init__(self, name, size, tags, kwargs):
        self.name, self.tags, self.kwargs = name, tags, kwargs
        model = timm.create_model(name, **kwargs).eval()
        cfg = model.pretrained_cfg
        channels, *default = cfg['input_size']
        img_size = kwargs.get('img_size')
        img_size = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.channels, (self.height, self.width) = channels, size or img_size or default
        self.fixed = bool(cfg.get('fixed_input_size', False))
        self.shapes = {k: list(v.shape) for k, v in model.state_dict().items()}
        self.record = dict(
            spec=1, model=name, kwargs={k: plain(v) for k, v in kwargs.items()}, timm=timm.__version__,
            torch=torch.__version__, bs=2, cls=type(model).__name__, module=type(model).__module__.rsplit('.', 1)[-1],
            default_input_size=[channels, *default], input_size=[channels, self.height, self.width],
            fixed_input_size=self.fixed, default_tag=cfg.get('tag'), classifier=plain(cfg.get('classifier')),
            first_conv=plain(cfg.get('first_conv')), num_classes=model.num_classes,
            num_features=getattr(model, 'num_features', None), head_hidden_size=getattr(model, 'head_hidden_size', None),
            params=sum(p.numel() for p in model.parameters()),
            state_dict=[[k, list(v.shape), str(v.dtype)[len('torch.'):]] for k, v in model.state_dict().items()])
        self.x = image_batch(2, channels, self.height, self.width)
        self.model = model

    @torch.no_grad()
    def run(self):
        self.reference()
        self.record['variants'] = {}
        self.head_variants()
        self.size_variants()
        self.features()
        if 'reparam' in self.tags:
            self.reparameterized()
        return self.record

    def reference(self):
        """The plain model in float64: output, features, head, intermediates."""
        R, x, model = self.record, self.x, self.model
        R['input_check'] = dict(sum=number(x.double().sum()), l2=number(x.double().norm()),
                                first4=[number(v) for v in x.reshape(-1)[:4]])
        self.exponents, kind, (kept, tied, check), y32, record = settle(model, x)
        R.update(calib=kind, scale_exp=self.exponents, kept=kept, tied=tied, fill_check=check, health=record)
        features32 = model.forward_features(x)
        self.dtype = torch.float64
        try:
            model.double()
            features = model.forward_features(x.double())
        except Exception as error:  # some models force float32 inside
            R['f64_err'] = message(error)
            self.dtype = torch.float32
            self.model = model = timm.create_model(self.name, **self.kwargs).eval()
            fill_model(model, self.exponents)
            features = features32
        R['ref_dtype'] = str(self.dtype)[len('torch.'):]
        x = x.to(self.dtype)
        try:
            y = model.forward_head(copied(features))
        except NotImplementedError:  # encoders of multi-modal models have no head
            y = model(x)
        R['output'] = rows(y)
        a, b = first(y).double(), first(y32).double()
        R['f32_dev'] = dict(max_abs=number((a - b).abs().max()), rel_l2=number((a - b).norm() / a.norm()))
        if torch.is_tensor(features):
            a, b = features.double(), features32.double()
            R['f32_dev']['features_rel_max'] = number((a - b).abs().max() / a.abs().max())
        R['forward_features'] = summary(features)
        try:
            R['pre_logits'] = summary(model.forward_head(copied(features), pre_logits=True))
        except Exception as error:
            R['pre_logits'] = message(error)
        self.feature_map = features if torch.is_tensor(features) and features.ndim == 4 else None
        self.has_tokens = torch.is_tensor(features) and features.ndim == 3
        if not hasattr(model, 'forward_intermediates'):
            return
        try:
            maps = model.forward_intermediates(x, intermediates_only=True)
            n = len(maps)
            chosen = list(range(n)) if n <= 8 else [0, n // 2, n - 2, n - 1]
            R['intermediates'] = dict(n=n, indices=chosen, list=[summary(maps[i]) for i in chosen])
        except Exception as error:
            R['intermediates'] = message(error)
        arguments = inspect.signature(model.forward_intermediates).parameters
        if 'norm' in arguments:
            more = dict(return_prefix_tokens=True) if 'return_prefix_tokens' in arguments else {}
            try:
                R['intermediates_norm_last2'] = summary(model.forward_intermediates(
                    x, indices=[-2, -1], norm=True, intermediates_only=True, **more))
            except Exception as error:
                R['intermediates_norm_last2'] = message(error)

    def variant(self, label, x=None, **kwargs):
        """The model built with other arguments: how its keys change, and its output."""
        try:
            self.record['variants'][label] = self.build_variant(x, kwargs)
        except Exception as error:
            self.record['variants'][label] = dict(kwargs=str(kwargs), err=message(error))

    def build_variant(self, x, kwargs):
        model = timm.create_model(self.name, **{**self.kwargs, **kwargs}).eval()
        _, _, check = fill_model(model, self.exponents)
        model.to(self.dtype)
        # Only the head differs: the reference's feature map saves a forward.
        head_only = self.feature_map is not None and x is None and 'output_stride' not in kwargs
        if head_only:
            y = model.forward_head(self.feature_map.clone())
        else:
            y = model((self.x if x is None else x).to(self.dtype))
        shapes = {k: list(v.shape) for k, v in model.state_dict().items()}
        record = dict(head_only=head_only, kwargs={k: plain(v) for k, v in kwargs.items()}, fill_check=check,
                      keys_removed=sorted(k for k in self.shapes if k not in shapes),
                      keys_added={k: s for k, s in shapes.items() if k not in self.shapes},
                      keys_reshaped={k: s for k, s in shapes.items() if self.shapes.get(k, s) != s})
        if x is not None:
            record['input_size'] = list(x.shape[1:])
        record['output'] = rows(y) if first(y).ndim == 2 else summary(y)
        return record

    def head_variants(self):
        self.record['variants_dtype'] = self.record['ref_dtype']
        if self.model.num_classes:
            self.variant('num_classes=0', num_classes=0)
        if 'nopool' in self.tags:
            return
        for pool in TOKEN_POOLS if self.has_tokens else MAP_POOLS:
            label = f'global_pool={pool!r}'
            self.variant(label, global_pool=pool)
            if 'unexpected keyword' in self.record['variants'][label].get('err', ''):
                break
        self.variant("num_classes=0,global_pool=''", num_classes=0, global_pool='')

    def size_variants(self):
        images = lambda height, width, channels=self.channels: image_batch(2, channels, height, width)  # noqa: E731
        if self.has_tokens and hasattr(self.model, 'patch_embed') and hasattr(self.model, 'dynamic_img_size'):
            patch = getattr(self.model.patch_embed, 'patch_size', 16)
            ph, pw = patch if isinstance(patch, (tuple, list)) else (patch, patch)
            height, width = 9 * ph, 12 * pw
            self.variant('dynamic_img_size', images(height, width), dynamic_img_size=True)
            self.variant('img_size', images(height, width), img_size=(height, width))
            self.variant('dynamic_img_size+pad', images(height - 3, width - 5), dynamic_img_size=True, dynamic_img_pad=True)
        elif not self.fixed:
            # Odd and unequal: shows wrong padding and swapped axes.
            self.variant('odd_size', images(*((65, 97) if 'small' in self.tags else (129, 161))))
        if 'in_chans' in self.tags:
            self.variant('in_chans=1', images(self.height, self.width, 1), in_chans=1)
        if 'os' in self.tags:
            for stride in (16, 8):
                self.variant(f'output_stride={stride}', output_stride=stride)

    def reparameterized(self):
        """What timm's reparameterize_model makes of the weights: its keys, new and changed entries, the output."""
        model = timm.create_model(self.name, **self.kwargs).eval()
        fill_model(model, self.exponents)
        before = model.double().state_dict()
        fused = timm.models.reparameterize_model(model)
        after = fused.state_dict()
        changed = {k: v for k, v in after.items() if k not in before or not torch.equal(v, before[k])}
        self.record['reparameterized'] = dict(
            keys={k: list(v.shape) for k, v in after.items()}, entries={k: summary(v, 4) for k, v in changed.items()},
            output=rows(fused(self.x.double())))

    def features(self):
        """The features-only model; with the tag `os`, also at both output strides."""
        def build(**kwargs):
            try:
                model = timm.create_model(self.name, features_only=True, **self.kwargs, **kwargs).eval()
                plain_key, unmapped = plain_keys(self.shapes, model.state_dict())
                fill_model(model, self.exponents, plain_key)
                maps = model.to(self.dtype)(self.x.to(self.dtype))
                info = model.feature_info
                fmt = getattr(model, 'output_fmt', None)
                return dict(cls=type(model).__name__, out_indices=list(info.out_indices), channels=info.channels(),
                            reduction=info.reduction(), module=info.module_name(),
                            output_fmt=str(getattr(fmt, 'value', fmt)), unmapped_keys=unmapped,
                            list=[summary(m) for m in maps])
            except Exception as error:
                return dict(err=message(error))
        self.record['features_only'] = build()
        if 'os' in self.tags:
            self.record['features_only_output_stride'] = {str(s): build(output_stride=s) for s in (16, 8)}


def parse(line):
    """`name [HxW] [tag ...] [argument=value ...]`"""
    size, tags, kwargs = None, [], {}
    name, *words = line.split()
    for word in words:
        if '=' in word:
            key, value = word.split('=', 1)
            try:
                kwargs[key] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                kwargs[key] = value
        elif word.replace('x', '').isdigit():
            size = tuple(int(n) for n in word.split('x'))
        else:
            tags.append(word)
    return name, size, tags, kwargs


def file_name(name, kwargs):
    return name + ''.join(f'__{k}={v}' for k, v in kwargs.items()).replace(' ', '') + '.json.gz'


def save(path, record):
    with open(path + '.tmp', 'wb') as raw, gzip.GzipFile('', 'wb', 9, raw, mtime=0) as f:
        f.write(json.dumps(record, separators=(',', ':')).encode())
    os.replace(path + '.tmp', path)


def differences(ours, theirs, path='', tolerance=1e-5):
    """What differs between two records; numbers within `tolerance` of the larger one or of 1 agree."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted(ours.keys() & theirs.keys()):
            yield from differences(ours[key], theirs[key], f'{path}/{key}', tolerance)
        for key in sorted(ours.keys() ^ theirs.keys()):
            yield f'{path}/{key}: only in {"ours" if key in ours else "theirs"}'
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for i, (a, b) in enumerate(zip(ours, theirs)):
            yield from differences(a, b, f'{path}/{i}', tolerance)
    elif isinstance(ours, (int, float)) and isinstance(theirs, (int, float)):
        if abs(ours - theirs) > tolerance * max(1, abs(ours), abs(theirs)):
            yield f'{path}: {ours} against {theirs}'
    elif ours != theirs:
        yield f'{path}: {ours} against {theirs}'


def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('models', nargs='*', metavar='"NAME [HxW] [tag ...] [argument=value ...]"',
                    help='tags: in_chans, os (output strides), nopool, small (a small odd size), reparam (fused for inference)')
    ap.add_argument('--list', default=os.path.join(HERE, 'fixtures.txt'), help='file with such lines')
    ap.add_argument('--out', default=OUT)
    ap.add_argument('--compare', metavar='DIR', help='write nothing; exit 1 if a record differs from DIR')
    args = ap.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    no_init()
    if args.models:
        lines = args.models
    else:
        with open(args.list) as f:
            lines = [line for line in (line.split('#')[0].strip() for line in f) if line]
    failed = 0
    for line in lines:
        name, size, tags, kwargs = parse(line)
        path = os.path.join(args.out, file_name(name, kwargs))
        if not args.models and not args.compare and os.path.exists(path):
            continue
        start = time.time()
        record = Recorder(name, size, tags, kwargs).run()
        note = f"{time.time() - start:.1f}s {record['calib']} {record['health']} f32 {record['f32_dev']}"
        if args.compare:
            with gzip.open(os.path.join(args.compare, file_name(name, kwargs))) as f:
                found = list(differences(record, json.load(f)))
            failed += bool(found)
            print(name, note, f'{len(found)} differences', *found[:40], sep='\n  ')
        else:
            os.makedirs(args.out, exist_ok=True)
            save(path, record)
            print(name, note, f'{os.path.getsize(path)} bytes', flush=True)
    sys.exit(1 if failed else 0)


if __name__ == '__main__':
    main()
