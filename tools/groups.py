#!/usr/bin/env python3
"""Record how timm groups every model's parameters: layers for layer-wise learning rates, and what takes no weight decay.

    venv/bin/python tools/groups.py        # writes crates/models/tests/fixtures/groups.json

For each name: the first 12 hex digits of the SHA-256 of `name layer` lines (parameters in order, layers counted from
the input), fine and coarse, and of the names without weight decay (timm's rule with the model's own list).
"""
import hashlib
import json
import logging
import os
import sys

import timm
import torch
from timm.models import group_parameters
from timm.optim import param_groups_weight_decay

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, '..', 'crates', 'models', 'tests', 'fixtures', 'groups.json')


def digest(lines):
    return hashlib.sha256('\n'.join(lines).encode()).hexdigest()[:12]


def layers(model, coarse):
    found = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
    return digest(f'{name} {found[name]}' for name, _ in model.named_parameters())


def record(name):
    with torch.device('meta'):
        model = timm.create_model(name)
    names = {id(p): n for n, p in model.named_parameters()}
    keep = model.no_weight_decay() if hasattr(model, 'no_weight_decay') else ()
    groups = param_groups_weight_decay(model, 0.1, no_weight_decay_list=keep)
    without = [p for g in groups if g['weight_decay'] == 0 for p in g['params']]
    chosen = {names[id(p)] for p in without}
    return [layers(model, False), layers(model, True), digest(n for n in names.values() if n in chosen)]


def main():
    logging.disable(logging.WARNING)
    table = {}
    for name in timm.list_models():
        try:
            table[name] = record(name)
        except Exception as error:
            print(name, type(error).__name__, str(error)[:100], file=sys.stderr)
    with open(OUT + '.tmp', 'w') as f:
        f.write('{\n' + ',\n'.join(f'{json.dumps(k)}: {json.dumps(v)}' for k, v in table.items()) + '\n}\n')
    os.replace(OUT + '.tmp', OUT)
    print(len(table), 'models')


if __name__ == '__main__':
    main()
