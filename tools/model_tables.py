#!/usr/bin/env python3
"""Write the model and pretrained tables that timm-models embeds (crates/models/data).

    pip install timm==1.0.31 torch torchvision
    python tools/model_tables.py                              # builds every model on torch's meta device: minutes
    python tools/model_tables.py --facts models.json          # takes the built facts from an earlier scan: seconds
    python tools/model_tables.py --results results-imagenet.csv   # accuracies published in timm's repository
    python tools/model_tables.py --check 20 --facts models.json   # build 20 random models, compare with the facts

Names, tags, licences and preprocessing always come from the installed timm. What only a built model can tell
(parameter count, key list, feature levels) comes from building it, or from --facts: a JSON whose `models` maps a
name to an object with the fields of `build_facts` below. The formats are described in crates/models/data/README.md.
"""
import argparse
import csv
import hashlib
import json
import os
import random
import re
import sys
from dataclasses import MISSING, asdict, fields

import timm
from timm.models import _registry as registry
from timm.models._pretrained import PretrainedCfg

HERE = os.path.dirname(os.path.abspath(__file__))
DATA = os.path.join(HERE, '..', 'crates', 'models', 'data')

CFG_DEFAULTS = {f.name: (f.default if f.default is not MISSING else None) for f in fields(PretrainedCfg)}
# Kept out of the profile: they differ from tag to tag.
PER_TAG = {'url', 'hf_hub_id', 'architecture', 'tag'}


def keys_sha(state_dict):
    """First 16 hex digits of SHA-256 over the JSON list of [key, shape, dtype] in state_dict order."""
    rows = [[k, list(v.shape), str(v.dtype).replace('torch.', '')] for k, v in state_dict.items()]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def pool_type(model):
    """Name of the default pooling, wherever the family keeps it."""
    for owner in (model, getattr(model, 'head', None)):
        pool = getattr(owner, 'global_pool', None)
        for found in (getattr(pool, 'pool_type', pool), getattr(owner, 'pool_type', None)):
            if isinstance(found, str):
                return found
    return None


def build_facts(name):
    """Build a model without weights and read what the model table needs."""
    import torch

    def build(**kwargs):
        try:
            with torch.device('meta'):
                return timm.create_model(name, **kwargs)
        except Exception:  # a few constructors compute with real numbers
            return timm.create_model(name, **kwargs)

    model = build()
    state = model.state_dict()
    info = model.feature_info
    info = info.info if hasattr(info, 'info') else info
    fmt = getattr(model, 'output_fmt', None)
    facts = dict(
        module=registry._model_to_module[name],
        cls=type(model).__name__,
        params=sum(p.numel() for p in model.parameters()),
        buffers_numel=sum(b.numel() for b in model.buffers()),
        n_keys=len(state),
        keys_sha=keys_sha(state),
        num_features=model.num_features,
        head_hidden_size=getattr(model, 'head_hidden_size', model.num_features),
        num_classes=model.num_classes,
        global_pool=pool_type(model),
        num_prefix_tokens=getattr(model, 'num_prefix_tokens', None),
        output_fmt=getattr(fmt, 'value', fmt),
        feature_info=[{k: d[k] for k in ('module', 'num_chs', 'reduction')} for d in info],
    )
    features = build(features_only=True)
    fmt = getattr(features, 'output_fmt', None)
    facts['features_only'] = dict(ok=True, cls=type(features).__name__, out_indices=list(features.feature_info.out_indices),
                                  output_fmt=getattr(fmt, 'value', fmt))
    try:
        build(features_only=True, output_stride=16)
        facts['output_stride_supported'] = True
    except Exception:
        facts['output_stride_supported'] = False
    return facts


def text(value):
    """One field as text; what would break the line format is an error."""
    s = '' if value is None else str(value)
    if re.search(r'[\t\n\r]', s):
        raise ValueError(f'tab or newline in {s!r}')
    return s


def number_list(values):
    return ','.join(repr(v) if isinstance(v, float) else str(v) for v in values)


def pack_features(rows):
    """`module:channels:reduction` joined by ';'; `blocks.0`, `blocks.1` ... alike become `blocks.0-11`."""
    out = []
    for row in rows:
        module, tail = row['module'], (row['num_chs'], row['reduction'])
        m = re.fullmatch(r'(.*\.)(\d+)', module)
        if m and out and out[-1]['stem'] == m[1] and out[-1]['tail'] == tail and out[-1]['last'] + 1 == int(m[2]):
            out[-1]['last'] += 1
        else:
            out.append(dict(module=module, stem=m and m[1], first=m and int(m[2]), last=int(m[2]) if m else None,
                            tail=tail))
    def item(o):
        name = o['module'] if o['first'] == o['last'] else f"{o['stem']}{o['first']}-{o['last']}"
        return ':'.join([name, *map(str, o['tail'])])
    return ';'.join(item(o) for o in out)


def profile(cfg):
    """The fields of a pretrained cfg that differ from timm's defaults, except those of PER_TAG."""
    out = []
    for key, value in asdict(cfg).items():
        if key in PER_TAG or key == 'state_dict' or value == CFG_DEFAULTS[key]:
            continue
        if isinstance(value, bool):
            value = 'true' if value else 'false'
        elif isinstance(value, (tuple, list)):
            if key == 'notes' or all(isinstance(v, str) for v in value):
                if key != 'notes' and len(value) == 1:
                    raise ValueError(f'{key}: a list of one name has no form of its own: {value}')
                if any('|' in v for v in value):
                    raise ValueError(f'{key} holds the separator: {value}')
                value = '|'.join(value)
            else:
                value = number_list(value)
        elif isinstance(value, float):
            value = repr(value)
        elif value is None:
            value = '-'
        elif not isinstance(value, (str, int)):
            raise ValueError(f'{key}: no text form for {value!r}')
        elif value == '':
            raise ValueError(f'{key}: an empty string is how an empty list is written')
        out.append(f'{key}={text(value)}')
    return '\t'.join(out)


def load_results(path):
    """timm's results-imagenet.csv: name.tag -> (top1, top5, image size, crop)."""
    with open(path, newline='') as f:
        return {r['model']: (float(r['top1']), float(r['top5']), int(r['img_size']), float(r['crop_pct']))
                for r in csv.DictReader(f)}


def published(facts):
    """Accuracies carried by a facts file."""
    out = {}
    for name, row in facts.items():
        for tag in row.get('pretrained', ()):
            if 'imagenet_top1' in tag:
                key = f"{name}.{tag['tag']}" if tag.get('tag') else name
                out[key] = (tag['imagenet_top1'], tag['imagenet_top5'], tag['eval_img_size'], tag['eval_crop_pct'])
    return out


def write(name, lines):
    path = os.path.join(DATA, name)
    with open(path + '.tmp', 'w', newline='\n') as f:
        f.writelines(line + '\n' for line in lines)
    os.replace(path + '.tmp', path)
    print(f'{name}: {len(lines)} lines, {os.path.getsize(path)} bytes')
    return os.path.getsize(path)


LIST_QUERIES = [
    dict(), dict(pretrained=True), dict(filter='resnet*'), dict(filter='*resnext*', module='resnet'),
    dict(filter=['vit_*', 'deit*'], exclude_filters='*clip*'), dict(filter='resnet50', pretrained=True),
    dict(filter='*.a1_in1k', pretrained=True), dict(filter='vit_base*', exclude_filters=['*.augreg*', '*dino*'], pretrained=True),
    dict(filter='convnext_[ap]*'), dict(filter='tf_efficientnet_b?', pretrained=True), dict(filter='*[!0-9]', module='regnet'),
    dict(module=['swin_transformer', 'swin_transformer_v2'], pretrained=True), dict(filter='test_*', include_tags=True),
    dict(filter='no_such_model*'), dict(module='no_such_module'), dict(filter='gluon_*'), dict(include_tags=True),
    dict(filter='resnet*', pretrained=True, include_tags=False),
]
SPOT_CFGS = ['resnet50', 'resnet50.a1h_in1k', 'vit_base_patch16_clip_224.openai', 'deit_base_distilled_patch16_224.fb_in1k',
             'test_resnet', 'efficientnet_b0', 'cspnext_l', 'convnextv2_atto', 'swinv2_cr_base_224', 'inception_v3']


def fnv1a64(data):
    h = 0xCBF29CE484222325
    for b in data.encode():
        h = (h ^ b) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f'{h:016x}'


def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(',', ':'), ensure_ascii=False)


def record(path, names, facts):
    """What the real timm answers: listings (by digest when long), configurations, and a digest per family."""
    lists = []
    for query in LIST_QUERIES:
        found = timm.list_models(**query)
        lists.append(dict(query=query, count=len(found), digest=fnv1a64('\n'.join(found)), head=found[:3], tail=found[-3:]))
    families = {}
    for family in timm.list_modules():
        members = [n for n in names if registry._model_to_module[n] == family]
        full = [t for n in members for t in registry._model_with_tags[n]]
        levels = [[n, [[d['module'], d['num_chs'], d['reduction']] for d in facts[n]['feature_info']],
                   facts[n]['features_only']['out_indices']] for n in members]
        families[family] = dict(models=len(members), tags=len(full),
                                cfgs=fnv1a64('\n'.join(canonical(registry._model_pretrained_cfgs[t].to_dict()) for t in full)),
                                features=fnv1a64(canonical(levels)))
    with open(path, 'w') as f:
        json.dump(dict(timm=timm.__version__, lists=lists, families=families,
                       cfgs={n: timm.get_pretrained_cfg(n).to_dict() for n in SPOT_CFGS}), f, indent=1)
        f.write('\n')


def check(count, facts):
    """Build random models and compare with the facts; exit status 1 on any difference."""
    bad = 0
    for name in random.sample(sorted(facts), count):
        ours, theirs = build_facts(name), facts[name]
        theirs = {**theirs, 'feature_info': [{k: d[k] for k in ('module', 'num_chs', 'reduction')}
                                             for d in theirs['feature_info']]}
        differs = [k for k, v in ours.items() if k != 'features_only' and v != theirs.get(k)]
        differs += [f'features_only.{k}' for k, v in ours['features_only'].items() if v != theirs['features_only'].get(k)]
        print(name, 'differs in ' + ', '.join(f'{k}: {ours.get(k)} != {theirs.get(k)}' for k in differs) if differs else 'same')
        bad += bool(differs)
    sys.exit(1 if bad else 0)


def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--facts', help='JSON of built facts; without it every model is built')
    ap.add_argument('--results', help="timm's results-imagenet.csv")
    ap.add_argument('--record', metavar='JSON', help='also record what timm answers, for the Rust tests')
    ap.add_argument('--check', type=int, metavar='N', help='build N random models, compare with --facts, write nothing')
    args = ap.parse_args()
    names = sorted(timm.list_models())
    facts = json.load(open(args.facts))['models'] if args.facts else None
    if args.check:
        check(args.check, facts)
    if facts is None:
        facts = {}
        for i, name in enumerate(names):
            print(f'\r{i + 1}/{len(names)} {name:60}', end='', file=sys.stderr)
            facts[name] = build_facts(name)
    missing = [n for n in names if n not in facts]
    if missing:
        sys.exit(f'no facts for {len(missing)} models, first {missing[0]}')
    accuracy = published(facts)
    if args.results:
        accuracy.update(load_results(args.results))

    if args.record:
        record(args.record, names, facts)
    levels = {}
    models = []
    for name in names:
        f = facts[name]
        features = f['features_only']
        packed = pack_features(f['feature_info'])
        out_indices = features.get('out_indices', [])
        bench = f.get('bench') or {}
        models.append('\t'.join(text(v) for v in (
            name, registry._model_to_module[name], f['cls'], f['params'], f['buffers_numel'], f['n_keys'], f['keys_sha'],
            f['num_features'], f['head_hidden_size'], f['num_classes'], f.get('num_prefix_tokens'), f['global_pool'],
            f.get('output_fmt'), int(f['output_stride_supported']), levels.setdefault(packed, len(levels)),
            # all levels is the common case
            '' if out_indices == list(range(len(f['feature_info']))) else number_list(out_indices),
            features['cls'], features.get('output_fmt'),
            bench.get('gmacs'), bench.get('macts'), bench.get('img_size'))))

    # URL folders that occur more than once are written once.
    cfgs = {n: [(t, registry._model_pretrained_cfgs[t]) for t in registry._model_with_tags[n]] for n in names}
    folders = {}
    for tags in cfgs.values():
        for _, cfg in tags:
            if cfg.url:
                folder = cfg.url.rsplit('/', 1)[0] + '/'
                folders[folder] = folders.get(folder, 0) + 1
    folders = [f for f, n in folders.items() if n > 1]

    profiles = {}
    pretrained = []
    for name in names:
        for full, cfg in cfgs[name]:
            url = cfg.url
            if url is None:
                url = '-'
            elif url:
                if not isinstance(url, str):
                    raise ValueError(f'{full}: url {url!r}')
                folder, file = url.rsplit('/', 1)
                url = f'{folders.index(folder + "/")}|{file}' if folder + '/' in folders else url
            hub = '' if cfg.hf_hub_id is None else '~' if cfg.hf_hub_id == '' else '=' if cfg.hf_hub_id == f'timm/{full}' else cfg.hf_hub_id
            acc = number_list(accuracy[full]) if full in accuracy else ''
            pretrained.append('\t'.join(text(v) for v in (
                name, cfg.tag, url, hub, acc, profiles.setdefault(profile(cfg), len(profiles)))))
    deprecated = [f'{old}\t{new or ""}' for old, new in sorted(registry.get_deprecated_models().items())]

    total = sum([write('models.tsv', models), write('features.txt', list(levels)), write('pretrained.tsv', pretrained),
                 write('profiles.tsv', list(profiles)), write('url_folders.txt', folders),
                 write('deprecated.tsv', deprecated)])
    print(f'timm {timm.__version__}: {len(models)} models, {len(pretrained)} tags, {total} bytes')


if __name__ == '__main__':
    main()
