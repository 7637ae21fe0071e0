#!/usr/bin/env python3
"""Records learning-rate schedules of the real timm as crates/train/tests/data/schedule_grid.json.gz.

    python tools/schedule_fixtures.py

Each plan: the arguments of create_scheduler_v2 that differ from its defaults, the total of epochs, and `step` of each
t = 0, 1, 2 ... in epochs; null where timm fails. At t = 0 there is no noise, as a run of train.py begins without. Plans in
updates have the sum of each 25 consecutive values, and each value as a whole number of 1e-9 of the rate, of which third
differences are kept: they pack well. A plateau also has its metrics.
"""

import gzip
import itertools
import json
import random
import warnings
from pathlib import Path

import torch
from timm.scheduler import create_scheduler_v2
from timm.scheduler.plateau_lr import PlateauLRScheduler

OUT = Path(__file__).resolve().parent.parent / "crates/train/tests/data/schedule_grid.json.gz"
UPDATES = 5
BLOCK = 25
LR = 0.05
warnings.simplefilter("ignore")


def plans():
    warmups = [dict(), dict(warmup_epochs=7, warmup_lr=1e-4), dict(warmup_epochs=7, warmup_lr=1e-4, warmup_prefix=True)]
    noises = [dict(), dict(noise=[0.2, 0.7]), dict(noise=[0.5], noise_pct=0.3, noise_std=0.2, noise_seed=7)]
    cycles = [dict(), dict(cycle_limit=3, num_epochs=100), dict(cycle_mul=1.6, cycle_limit=4, num_epochs=40, cycle_decay=0.4),
              dict(cycle_mul=0.5, cycle_limit=3, num_epochs=150, cycle_decay=0.7)]
    own = dict(
        cosine=[dict(c, **k) for c in cycles for k in (dict(), dict(k_decay=0.6, min_lr=1e-3))],
        tanh=[dict(c, min_lr=m) for c in cycles for m in (0.0, 1e-3)],
        poly=[dict(c, decay_rate=p, **k) for c in cycles for p, k in ((0.9, dict()), (2.0, dict(k_decay=1.5, min_lr=1e-3)))],
        step=[dict(), dict(decay_epochs=2.4, decay_rate=0.97)],
        multistep=[dict(), dict(decay_milestones=[13, 100, 250], decay_rate=0.3)],
        constant=[dict()],
        none=[dict()],
        wsd=[dict(), dict(min_lr=1e-3, decay_epochs=40, cooldown_epochs=5)]
        + [dict(decay_fn=f) for f in ("linear", "cosine", "power", "exp")],
        rsqrt=[dict(stable_timescale=20), dict(stable_timescale=3.5, decay_epochs=0.4, min_lr=1e-3, decay_fn="1-sqrt")],
    )
    for sched, options in own.items():
        for option, warmup, noise, updates in itertools.product(options, warmups, noises, (False, True)):
            # Noise does not depend on the shape: once for each schedule is enough.
            if noise and (sched == "none" or option is not options[0]):
                continue
            yield dict(sched=sched, **dict(dict(num_epochs=300), **option), **warmup, **noise,
                       **(dict(step_on_epochs=False, updates_per_epoch=UPDATES) if updates else {}))


def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)


def record(options):
    sgd = optimizer()
    scheduler, total = create_scheduler_v2(sgd, **options)
    updates = options.get("updates_per_epoch", 1)
    begin, _ = create_scheduler_v2(optimizer(), **dict(options, noise=None))
    values = []
    for t in range(300 * updates):
        used = begin if t == 0 else scheduler
        if used is not None:
            # Shrinking cycles end at a finite time, at which timm's logarithm ends too; powers of a time that rounding
            # has put below 0 are no real numbers.
            try:
                used.step_update(t) if updates > 1 else used.step(t)
            except (ValueError, TypeError):
                values.append(None)
                continue
        rate = (used.optimizer if used is not None else sgd).param_groups[0]["lr"]
        values.append(None if isinstance(rate, complex) else rate)
    each = None
    if updates > 1:
        each = [None if v is None else round(v / LR * 1e9) for v in values]
        for _ in range(3):
            # A gap makes the differences across it start anew.
            each = [v if v is None or i == 0 or each[i - 1] is None else v - each[i - 1] for i, v in enumerate(each)]
        blocks = [values[i:i + BLOCK] for i in range(0, len(values), BLOCK)]
        values = [None if None in block else sum(block) for block in blocks]
    return dict(options=options, total_epochs=int(total), values=values, each=each)


def plateaus():
    draw = random.Random(5)
    for mode, patience, extra, warmup, noise in itertools.product(
            ("max", "min"), (0, 4), (dict(), dict(cooldown_t=3, threshold=0.05)), (0, 6, 2.5), (None, [60, 200])):
        sgd = optimizer()
        # Options that create_scheduler_v2 has no name for.
        scheduler = PlateauLRScheduler(sgd, decay_rate=0.5, patience_t=patience, lr_min=1e-4, mode=mode, warmup_t=warmup,
                                       warmup_lr_init=1e-3, noise_range_t=noise, **extra)
        rates, metrics = [sgd.param_groups[0]["lr"]], []
        for epoch in range(299):
            better = 100 * (1 - 0.98 ** epoch) + draw.gauss(0, 2)
            metric = None if epoch % 17 == 11 else better if mode == "max" else 101 - better
            metric = float("nan") if epoch == 40 else metric
            metrics.append(metric)
            scheduler.step(epoch + 1, metric)
            rates.append(sgd.param_groups[0]["lr"])
        yield dict(lower_is_better=mode == "min", patience=patience, threshold=extra.get("threshold", 1e-4),
                   cooldown=extra.get("cooldown_t", 0), warmup=warmup, noise=noise and [n / 300 for n in noise],
                   metrics=["nan" if m != m else m for m in metrics], rates=rates)


def main():
    recorded = dict(plans=[record(options) for options in plans()], plateaus=list(plateaus()))
    OUT.write_bytes(gzip.compress(json.dumps(recorded).encode(), 9, mtime=0))
    print(OUT.name, len(recorded["plans"]), len(recorded["plateaus"]), OUT.stat().st_size)


if __name__ == "__main__":
    main()
