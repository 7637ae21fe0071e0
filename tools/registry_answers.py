#!/usr/bin/env python3
"""Record what timm's registry functions answer, for the tests of crates/models/src/registry.rs.

    pip install timm==1.0.31 torch torchvision
    python tools/registry_answers.py        # writes crates/models/tests/fixtures/registry_answers.json
"""
import json
import os

import timm
from timm.models import _registry as registry

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, '..', 'crates', 'models', 'tests', 'fixtures', 'registry_answers.json')

ODD = ['', '.', 'resnet50.', 'resnet50.no_such_tag', 'resnet_50', 'Resnet50', 'resnet50 ', '.a1_in1k', 'tv_resnet34.x',
       'vit_base_patch16_224.augreg2_in21k_ft_in1k.more']
ARCHS = ['resnet50', 'vit_base_patch16_224', 'vit_huge_patch14_gap_224', 'test_vit', 'legacy_xception', 'no_such_model']
LISTS = [(['resnet5*'], []), (['resnet50'], ['*.a*']), (['vit_*', 'test_*'], ['*_in21k']), ([], ['*a*', '*e*', '*i*'])]


def main():
    deprecated = registry.get_deprecated_models()
    archs, tagged = timm.list_models(), timm.list_models(include_tags=True)
    names = sorted(set(ODD + archs[::17] + tagged[::13] + sorted(deprecated)[::3]))
    answers = []
    for name in names:
        module = registry._model_to_module.get(registry.get_arch_name(name))
        answers.append(dict(name=name, arch=registry.get_arch_name(name), is_model=registry.is_model(name),
                            is_model_pretrained=registry.is_model_pretrained(name), module=module))
        assert registry.is_model_in_modules(name, module or 'no_such_module') == (module is not None)
    by_module = {m: registry.get_deprecated_models(m) for m in registry.list_modules()}
    record = dict(timm=timm.__version__, names=answers, list_modules=registry.list_modules(),
                  deprecated={m: names for m, names in by_module.items() if names},
                  tags={a: list(registry.get_arch_pretrained_cfgs(a)) for a in ARCHS},
                  list_pretrained=[(f, x, timm.list_pretrained(f, exclude_filters=x)) for f, x in LISTS])
    with open(OUT, 'w') as f:
        json.dump(record, f, separators=(',', ':'))
        f.write('\n')


if __name__ == '__main__':
    main()
