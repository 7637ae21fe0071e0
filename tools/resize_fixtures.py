#!/usr/bin/env python3
"""Record what timm's `set_input_size` makes of a model: crates/models/tests/fixtures/set_input_size.json.

    venv/bin/python tools/resize_fixtures.py

Weights are made by hashfill.py before the size changes. Of each entry of another shape or content a summary is
recorded, and the output for a batch of the new size, all in float64 but for what timm itself does in float32.
"""
import json
import os

import timm
import torch
from fixtures import parse, rows
from hashfill import fill_model, image_batch, no_init, summary

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, '..', 'crates', 'models', 'tests', 'fixtures', 'set_input_size.json')

# A model with arguments, and what is given to set_input_size.
CASES = [
    ('test_vit', dict(img_size=(128, 192))),
    ('test_vit2', dict(img_size=(112, 126), patch_size=(14, 14))),
    ('test_vit4', dict(patch_size=(20, 16), img_size=(160, 128))),
    ('deit_tiny_distilled_patch16_224 embed_dim=64 num_heads=2 depth=2 img_size=64', dict(img_size=(80, 48))),
    ('beit_base_patch16_224 embed_dim=64 num_heads=2 depth=2 img_size=64', dict(img_size=(80, 48))),
    ('beit_base_patch16_224 embed_dim=64 num_heads=2 depth=2 img_size=(64,96) use_abs_pos_emb=True',
     dict(img_size=(126, 112), patch_size=(14, 14))),
    ('eva02_tiny_patch14_224 embed_dim=48 num_heads=2 depth=2 img_size=56', dict(img_size=(84, 70))),
    ('vit_small_patch16_rope_mixed_ape_224 embed_dim=64 num_heads=2 depth=2 img_size=64', dict(img_size=(80, 48))),
    ('vit_small_patch16_dinov3 embed_dim=64 num_heads=2 depth=2', dict(img_size=(80, 60), patch_size=(20, 20))),
    ('swin_tiny_patch4_window7_224 embed_dim=24 num_heads=(1,2,4,8) depths=(1,2,1,1) img_size=64 window_size=4',
     dict(img_size=(96, 64))),
    ('swin_tiny_patch4_window7_224 embed_dim=24 num_heads=(1,2,4,8) depths=(1,2,1,1) img_size=(64,96) window_size=(4,6)',
     dict(img_size=(64, 96), window_size=(6, 4))),
    ('swinv2_tiny_window8_256 embed_dim=24 num_heads=(1,2,4,8) depths=(1,2,1,1) img_size=64 window_size=4',
     dict(img_size=(64, 48), patch_size=(2, 2))),
    ('test_coatnet img_size=64', dict(img_size=(96, 64))),
    ('test_maxvit img_size=64', dict(img_size=(96, 128))),
    ('test_maxvit img_size=64', dict(img_size=(96, 96), window_size=(1, 3))),
    ('maxvit_tiny_tf_224 embed_dim=(32,32,64,64) depths=(1,1,1,1) stem_width=16 head_hidden_size=64 img_size=64',
     dict(img_size=(160, 96))),
]


@torch.no_grad()
def record(line, change):
    name, _, _, kwargs = parse(line)
    model = timm.create_model(name, **kwargs).eval()
    fill_model(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.set_input_size(**change)
    after = model.state_dict()
    entries = {k: summary(v) for k, v in after.items()
               if k not in before or v.shape != before[k].shape or not torch.equal(v, before[k])}
    height, width = change.get('img_size') or kwargs.get('img_size') or model.pretrained_cfg['input_size'][1:]
    x = image_batch(2, 3, height, width)
    output = model.double()(x.double())
    print(name, change, list(entries))
    return dict(model=name, kwargs=kwargs, change=change, input_size=[3, height, width], entries=entries,
                output=rows(output))


def main():
    no_init()
    records = [record(*case) for case in CASES]
    with open(OUT + '.tmp', 'w') as f:
        f.write('[\n' + ',\n'.join(json.dumps(r) for r in records) + '\n]\n')
    os.replace(OUT + '.tmp', OUT)


if __name__ == '__main__':
    main()
