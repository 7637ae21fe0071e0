#!/usr/bin/env python3
"""Record the rates of stochastic depth of every block: crates/models/tests/fixtures/drop_path.json.

    venv/bin/python tools/drop_path.py

For the smallest model of each family, built with a rate of 0.3: the rates above 0 of its DropPath layers, in order.
Layers that a forward does not reach, in blocks without shortcut, do not count.
"""
import json
import logging
import os

import timm
import torch
from timm.layers import DropPath

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, '..', 'crates', 'models', 'tests', 'fixtures', 'drop_path.json')


def rates(name):
    with torch.device('meta'):
        model = timm.create_model(name, drop_path_rate=0.3)
    layers = [m for m in model.modules() if isinstance(m, DropPath)]
    reached = set()
    for layer in layers:
        layer.register_forward_pre_hook(lambda module, _: reached.add(module))
    try:
        model.train()(torch.zeros(2, *model.pretrained_cfg['input_size'], device='meta'))
    except (RuntimeError, TypeError, NotImplementedError):  # cannot run without numbers
        reached = set(layers)
    return [m.drop_prob for m in layers if m in reached and m.drop_prob > 0]


def main():
    logging.disable(logging.WARNING)
    families = {}
    for name in timm.list_models():
        families.setdefault(timm.models._registry._model_to_module[name], []).append(name)
    table = {}
    for family, names in families.items():
        # The shortest names are plain, small variants; tests' own come first.
        for name in sorted(names, key=lambda n: (not n.startswith('test_'), len(n), n)):
            try:
                found = rates(name)
            except (TypeError, AssertionError, NotImplementedError, AttributeError):
                continue
            if found:
                table[name] = found
                break
    with open(OUT, 'w') as f:
        f.write('{\n' + ',\n'.join(f'{json.dumps(k)}: {json.dumps(v)}' for k, v in sorted(table.items())) + '\n}\n')
    print(len(table), 'families')


if __name__ == '__main__':
    main()
