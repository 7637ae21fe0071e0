#!/usr/bin/env python3
"""Records the parameter groups that timm makes for layer-wise learning-rate decay of whole models, as
crates/train/tests/data/layer_decay.json.gz.

    python tools/layer_decay_fixtures.py

Needs torch and timm. For each model and setting, each parameter's factor of the learning rate and whether it takes weight
decay; parameters that timm does not train are missing. Equal runs of parameters are kept once, with their names.
"""

import gzip
import json
from pathlib import Path

import timm
import torch
from timm.optim._param_groups import param_groups_layer_decay

OUT = Path(__file__).resolve().parent.parent / "crates/train/tests/data/layer_decay.json.gz"
MODELS = ["resnet50", "vit_small_patch16_224", "deit_tiny_distilled_patch16_224", "beitv2_base_patch16_224",
          "swin_tiny_patch4_window7_224", "convnext_tiny", "efficientnet_b0", "mobilenetv3_large_100", "regnety_016",
          "densenet121", "eva02_tiny_patch14_224", "maxvit_tiny_tf_224"]
SETTINGS = [dict(layer_decay=0.75), dict(layer_decay=0.65, min_scale=0.1), dict(layer_decay=0.7, no_opt_scale=0.05)]


def record(name, setting):
    with torch.device("meta"):
        model = timm.create_model(name)
    listed = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    groups = param_groups_layer_decay(model, weight_decay=0.05, no_weight_decay_list=listed, **setting)
    names = {id(p): name for name, p in model.named_parameters()}
    rows = [dict(lr_scale=g["lr_scale"], weight_decay=g["weight_decay"], names=[names[id(p)] for p in g["params"]])
            for g in groups]
    return dict(model=name, setting=setting, groups=rows)


def main():
    cases = [record(name, setting) for name in MODELS for setting in SETTINGS]
    with gzip.GzipFile(OUT, "wb", mtime=0) as file:
        file.write(json.dumps(cases).encode())
    print(OUT.name, len(cases), OUT.stat().st_size)


if __name__ == "__main__":
    main()
