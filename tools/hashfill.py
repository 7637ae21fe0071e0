"""Weights and inputs made from nothing but a name: the rule of tools/README.md, in numpy.

Both sides of a comparison (this script over PyTorch, the Rust tests over our engine) make the same float32 numbers
bit for bit, so a fixture needs to hold results only.
"""
import math

import numpy as np
import torch

MASK = (1 << 64) - 1
BLOCK = 1 << 18  # numbers hashed at a time, to keep the temporaries in cache


def name_hash(name):
    """FNV-1a, 64 bits, over the UTF-8 bytes."""
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = (h ^ byte) * 0x100000001B3 & MASK
    return h


def hash_stream(name, first, count):
    """Numbers `first` to `first + count - 1` of the SplitMix64 stream that starts from the name's hash."""
    with np.errstate(over='ignore'):
        z = np.arange(first + 1, first + count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z += np.uint64(name_hash(name))
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = (z ^ z >> np.uint64(shift)) * np.uint64(factor)
        return z ^ z >> np.uint64(31)


def integers(name, count):
    """`count` integers in [-2^23, 2^23)."""
    out = np.empty(count, np.int32)
    for first in range(0, count, BLOCK):
        part = hash_stream(name, first, min(BLOCK, count - first))
        out[first:first + len(part)] = (part >> np.uint64(40)).astype(np.int32) - (1 << 23)
    return out


def unit(v):
    """Integers as float32 in [-1, 1); exact, as |v| < 2^24."""
    return v.astype(np.float32) * np.float32(2 ** -23)


def fill_rule(key, shape):
    """(form, offset, scale) of a tensor: the first row of the table in tools/README.md that matches."""
    leaf = key[key.rfind('.') + 1:]
    dims = len(shape)
    if leaf == 'running_mean':
        return 'plain', 0.0, 0.1
    if leaf == 'running_var':
        return 'absolute', 1.0, 0.5
    if leaf == 'weight' and dims >= 2:
        fan_in = math.prod(shape) // shape[0]
        return ('centred' if shape[1] > 1 else 'plain'), 0.0, math.sqrt(3.0 / fan_in)
    if leaf == 'weight':
        return 'plain', 1.0, 0.1
    if leaf == 'beta' or dims <= 1 and (leaf == 'bias' or leaf.endswith('_bias')):
        return 'plain', 0.0, 0.1
    if leaf == 'skipinit_gain' or leaf.startswith(('gamma', 'layer_scale')):
        return 'plain', 0.5, 0.1
    if dims <= 1 or leaf in ('gain', 'temperature', 'alpha', 'scale', 'logit_scale'):
        return 'plain', 1.0, 0.1
    return 'plain', 0.0, 0.5


def values(key, shape, exponent=0):
    """The float32 array of a state_dict entry."""
    form, offset, scale = fill_rule(key, shape)
    v = integers(key, math.prod(shape))
    if form == 'centred':
        rows = v.reshape(shape[0], -1)
        # Takes away three quarters of each row's mean, in whole numbers: a ReLU network then keeps two inputs apart,
        # and a constant shift still shows.
        cut = 3 * rows.sum(axis=1, dtype=np.int64) // (4 * rows.shape[1])
        v = (rows - cut.astype(np.int32)[:, None]).reshape(-1)
    u = unit(v)
    if form == 'absolute':
        u = np.abs(u)
    x = u * np.float32(scale)
    if offset:
        x = x + np.float32(offset)
    return np.ldexp(x, exponent).astype(np.float32).reshape(shape)


def image_batch(batch, channels, height, width):
    """A float32 NCHW batch: pixel noise, blocks of 8 and of 32 pixels, and a constant per channel."""
    def blocks(name, size):
        rows, columns = -(-height // size), -(-width // size)
        grid = unit(integers(name, batch * channels * rows * columns)).reshape(batch, channels, rows, columns)
        return grid.repeat(size, axis=2).repeat(size, axis=3)[:, :, :height, :width]

    half = np.float32(0.5)
    x = blocks('input', 1) * half
    x = x + blocks('input/8', 8)
    x = x + blocks('input/32', 32)
    x = x + unit(integers('input/c', batch * channels)).reshape(batch, channels, 1, 1) * half
    return torch.from_numpy(np.ascontiguousarray(x))


@torch.no_grad()
def fill_model(model, exponents=None, plain_key=lambda key: key):
    """Overwrite every weight and batch-norm statistic of `model`.

    `plain_key` gives the plain model's name of a key (features-only wrappers rename). Returns (kept, tied, check): the
    buffers left as built, keys that share storage with an earlier one, and sum and length over all that was filled.
    """
    exponents = exponents or {}
    buffers = {key for key, _ in model.named_buffers(remove_duplicate=False)}
    kept, tied, owners = {}, {}, {}
    total = square = 0.0
    for key, tensor in model.state_dict().items():
        name = plain_key(key)
        leaf = key[key.rfind('.') + 1:]
        is_statistic = leaf in ('running_mean', 'running_var')
        if not tensor.is_floating_point() or (key in buffers and not is_statistic):
            if leaf != 'num_batches_tracked':
                flat = tensor.detach().double().reshape(-1)
                kept[name] = dict(shape=list(tensor.shape), dtype=str(tensor.dtype)[len('torch.'):],
                                  first=[number(x) for x in flat[:8]], sum=number(flat.sum()))
            continue
        storage = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if tensor.numel() and owners.setdefault(storage, name) != name:
            tied[name] = owners[storage]
            continue
        array = values(name, tuple(tensor.shape), exponents.get(name, 0))
        total += float(array.sum(dtype=np.float64))
        square += float(np.square(array, dtype=np.float64).sum())
        tensor.copy_(torch.from_numpy(array))
    return kept, tied, dict(sum=number(total), l2=number(math.sqrt(square)))


def number(value):
    """A number for JSON, ten digits; what JSON cannot hold becomes a word."""
    value = float(value)
    if math.isfinite(value):
        return float(f'{value:.10g}')
    return 'nan' if math.isnan(value) else 'inf' if value > 0 else '-inf'


def sample_indices(numel, count):
    """Where a tensor is sampled: sorted, without repeats; the same for every tensor of that many elements."""
    return sorted({int(z) % numel for z in hash_stream('sample', 0, count)})


def summary(value, count=8):
    """Shape, mean, standard deviation, length and some elements of a tensor; lists and dicts of tensors alike."""
    if isinstance(value, (list, tuple)):
        return [summary(v, count) for v in value]
    if isinstance(value, dict):
        return {k: summary(v, count) for k, v in value.items()}
    flat = value.detach().double().reshape(-1)
    return dict(shape=list(value.shape), mean=number(flat.mean()), std=number(flat.std(unbiased=False)),
                l2=number(flat.norm()),
                samples=[[i, number(flat[i])] for i in sample_indices(flat.numel(), count)])


def no_init():
    """Make PyTorch's and timm's random initialisers do nothing: each value is overwritten anyway."""
    import timm.layers.weight_init as weight_init
    names = ('uniform_', 'normal_', 'trunc_normal_', 'kaiming_uniform_', 'kaiming_normal_', 'xavier_uniform_',
             'xavier_normal_', 'orthogonal_')
    for name in names:
        setattr(torch.nn.init, name, lambda tensor, *args, **kwargs: tensor)
    weight_init._trunc_normal_ = lambda tensor, *args, **kwargs: tensor
