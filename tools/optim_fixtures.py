#!/usr/bin/env python3
"""Records optimizers, clipping, averages and schedules of the real timm as
crates/train/tests/data/{optim,schedules}.json.

    python tools/optim_fixtures.py

Needs torch and timm. Everything is computed in f64, so the numbers are the mathematics and not one
machine's rounding.
"""

import itertools
import json
from pathlib import Path

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.models import model_parameters
from timm.utils import ModelEmaV3, dispatch_clip_grad

OUT = Path(__file__).resolve().parent.parent / "crates/train/tests/data"
STEPS = 20
# Optimizers with matrices, factored or projected state, trust ratios or second derivatives.
MATRIX = ("adafactor*", "cadafactor*", "adahessian", "*adamp", "*sgdp", "*lamb*", "*lar[sc]", "*muon", "kron*")
SHAPES = {"conv.weight": [3, 2, 2, 2], "norm.weight": [3], "norm.bias": [3], "head.weight": [4, 3], "head.bias": [4],
          "cls_token": [1, 1, 5]}

torch.set_default_dtype(torch.float64)


def floats(tensor):
    return tensor.detach().reshape(-1).tolist()


class Net(torch.nn.Module):
    """Parameters of a small network, with names; the gradients are given from outside."""

    def __init__(self, generator, shapes):
        super().__init__()
        for name, shape in shapes.items():
            path, _, leaf = name.rpartition(".")
            module = self
            if path:
                if not hasattr(self, path):
                    self.add_module(path, torch.nn.Module())
                module = getattr(self, path)
            # Values that f32 holds exactly, so that both sides start from the same numbers.
            value = torch.randn(shape, generator=generator).float().double()
            module.register_parameter(leaf, torch.nn.Parameter(value))

    def no_weight_decay(self):
        return {"cls_token"}


def gradients(generator):
    """Mixed magnitudes; one parameter's gradient is zero at first, one is huge once."""
    steps = []
    for step in range(STEPS):
        grads = {}
        for i, (name, shape) in enumerate(SHAPES.items()):
            scale = 10.0 ** (i - 3)
            grad = torch.randn(shape, generator=generator) * scale
            if name == "norm.bias" and step < 3:
                grad = grad * 0
            if name == "head.weight" and step == 7:
                grad = grad * 1e4
            grads[name] = grad.float().double()
        steps.append(grads)
    return steps


def optimizers():
    cases = [
        dict(opt="sgd", momentum=0.9, weight_decay=0.05),
        dict(opt="momentum", momentum=0.0, weight_decay=0.05),
        dict(opt="momentum", momentum=0.8, weight_decay=0.0),
        dict(opt="nesterov", momentum=0.9, weight_decay=1e-3),
        dict(opt="sgdw", momentum=0.9, weight_decay=0.05),
        dict(opt="nesterovw", momentum=0.5, weight_decay=0.05),
        dict(opt="adam", weight_decay=0.05),
        dict(opt="adam", weight_decay=0.05, betas=[0.8, 0.95], eps=1e-3),
        dict(opt="adamw", weight_decay=0.05),
        dict(opt="adamw", weight_decay=0.1, betas=[0.95, 0.98], eps=1e-6),
        dict(opt="adamw", weight_decay=0.05, clip=["norm", 1.0]),
        dict(opt="sgd", momentum=0.9, weight_decay=0.05, clip=["value", 0.05]),
        dict(opt="sgd", momentum=0.9, weight_decay=0.05, clip=["agc", 0.02]),
        dict(opt="adamw", weight_decay=0.05, clip=["agc", 0.5]),
        dict(opt="adamw", weight_decay=0.05, ema=[0.9, False]),
        dict(opt="sgd", momentum=0.9, weight_decay=0.05, ema=[0.9, True]),
        dict(opt="lookahead_adamw", weight_decay=0.05),
        dict(opt="lookahead_sgd", weight_decay=0.05),
        # Arguments that no name sets.
        dict(opt="adam", weight_decay=0.05, kwargs=dict(amsgrad=True)),
        dict(opt="adamwlegacy", weight_decay=0.05, kwargs=dict(amsgrad=True, clipping_threshold=0.9)),
        dict(opt="nadamw", weight_decay=0.05, kwargs=dict(clipping_threshold=0.9)),
        dict(opt="nadam", weight_decay=0.05, kwargs=dict(decoupled_weight_decay=True, momentum_decay=0.02)),
        dict(opt="adabelief", weight_decay=0.05, kwargs=dict(amsgrad=True, decoupled_decay=False)),
        dict(opt="adabelief", weight_decay=0.05, kwargs=dict(fixed_decay=True)),
        dict(opt="radabelief", weight_decay=0.05, kwargs=dict(degenerated_to_sgd=False)),
        dict(opt="radam", weight_decay=0.05, betas=[0.8, 0.9]),
        dict(opt="radabelief", weight_decay=0.05, betas=[0.8, 0.9]),
        dict(opt="adadelta", weight_decay=0.05, kwargs=dict(rho=0.8)),
        dict(opt="adagrad", weight_decay=0.05, kwargs=dict(lr_decay=0.1, initial_accumulator_value=0.5)),
        dict(opt="rmsprop", weight_decay=0.05, momentum=0.0, kwargs=dict(centered=True)),
        dict(opt="rmsproptf", weight_decay=0.05, kwargs=dict(centered=True, lr_in_momentum=False)),
        dict(opt="rmsproptf", weight_decay=0.05, momentum=0.0),
        dict(opt="adopt", weight_decay=0.05, kwargs=dict(clip_exp=None)),
        dict(opt="madgrad", weight_decay=0.05, momentum=0.0),
        dict(opt="mars", weight_decay=0.05, kwargs=dict(mars_type="lion")),
        dict(opt="mars", weight_decay=0.05, kwargs=dict(optimize_1d=True, gamma=0.1)),
        dict(opt="mars", weight_decay=0.05, kwargs=dict(lr_1d_factor=0.5, betas_1d=[0.8, 0.95])),
        dict(opt="novograd", weight_decay=0.05, kwargs=dict(grad_averaging=True, amsgrad=True)),
        dict(opt="sgdw", weight_decay=0.05, kwargs=dict(nesterov=False, dampening=0.3)),
    ]
    # Every name with its defaults, but those of CUDA libraries and those with a fixture of their own.
    elsewhere = ("fused*", "bnb*", *MATRIX)
    cases += [dict(opt=name, weight_decay=0.05) for name in list_optimizers(exclude_filters=list(elsewhere))]
    recorded = []
    for case in cases:
        generator = torch.Generator().manual_seed(7)
        net = Net(generator, SHAPES)
        steps = gradients(generator)
        kwargs = {k: v for k, v in case.items() if k in ("opt", "momentum", "weight_decay", "betas", "eps")}
        kwargs.update(case.get("kwargs", {}))
        lrs = [0.02 * (1 + step % 3) for step in range(STEPS)]
        optimizer = create_optimizer_v2(net, lr=lrs[0], **kwargs)
        ema = ModelEmaV3(net, decay=case["ema"][0], use_warmup=case["ema"][1]) if "ema" in case else None
        for step, (grads, lr) in enumerate(zip(steps, lrs)):
            for group in optimizer.param_groups:
                group["lr"] = lr
            for name, parameter in net.named_parameters():
                parameter.grad = grads[name].clone()
            if "clip" in case:
                limit, mode = case["clip"][1], case["clip"][0]
                dispatch_clip_grad(model_parameters(net, exclude_head=mode == "agc"), limit, mode=mode)
            optimizer.step()
            if ema is not None:
                ema.update(net, step=step + 1)
        result = dict(case, lrs=lrs, end={n: floats(p) for n, p in net.named_parameters()})
        if ema is not None:
            result["averages"] = {n: floats(p) for n, p in ema.module.named_parameters()}
        state = {}
        for name, parameter in net.named_parameters():
            for slot, value in optimizer.state[parameter].items():
                if torch.is_tensor(value) and slot not in ("step", "mu_product", "exp_avg_lr_2"):
                    state[f"{name}.{slot}"] = floats(value)
        result["state"] = state
        recorded.append(result)
    generator = torch.Generator().manual_seed(7)
    net = Net(generator, SHAPES)
    return dict(
        shapes=[[n, list(p.shape)] for n, p in net.named_parameters()],
        start={n: floats(p) for n, p in net.named_parameters()},
        gradients=[{n: floats(g) for n, g in grads.items()} for grads in gradients(generator)],
        cases=recorded,
    )


def schedules():
    base = dict(sched="cosine", num_epochs=30, warmup_epochs=0, warmup_lr=1e-5, min_lr=0.0, warmup_prefix=False,
                cooldown_epochs=0, decay_rate=0.1, decay_epochs=None, decay_milestones=[9, 18, 27], cycle_mul=1.0,
                cycle_decay=0.5, cycle_limit=1, k_decay=1.0)
    variants = []
    for sched in ["cosine", "tanh", "poly", "step", "multistep", "constant", "wsd", "rsqrt", "none"]:
        for warmup, prefix in [(0, False), (5, False), (5, True)]:
            if sched == "rsqrt" and warmup == 0:
                continue
            case = dict(base, sched=sched, warmup_epochs=warmup, warmup_prefix=prefix)
            if sched == "step":
                case["decay_epochs"] = 2.4
                case["decay_rate"] = 0.97
            if sched == "poly":
                case["decay_rate"] = 0.9
            variants += [case, dict(case, min_lr=1e-4, cooldown_epochs=4)]
            if sched in ("cosine", "tanh", "poly"):
                variants += [dict(case, cycle_limit=3), dict(case, cycle_limit=3, cycle_mul=2.0, cycle_decay=0.3),
                             dict(case, k_decay=1.7, num_epochs=300, warmup_prefix=prefix)]
            if sched == "step":
                variants += [dict(case, decay_epochs=None, num_epochs=300), dict(case, decay_epochs=3)]
            if sched in ("wsd", "rsqrt"):
                variants += [dict(case, decay_epochs=7), dict(case, decay_epochs=0.35)]
    recorded = []
    for case, per_epoch in itertools.product(variants, [0, 7]):
        parameter = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([parameter], lr=0.05)
        kwargs = dict(case)
        scheduler, total = create_scheduler_v2(
            optimizer, step_on_epochs=per_epoch == 0, updates_per_epoch=per_epoch, **kwargs)
        length = total + 3
        values = []
        if per_epoch:
            length = min(length, 40) * per_epoch
        for t in range(length):
            if scheduler is not None:
                scheduler.step_update(t) if per_epoch else scheduler.step(t)
            values.append(optimizer.param_groups[0]["lr"])
        # Long plans: the first, and then every seventh value.
        every = 1 if length <= 60 else 7
        recorded.append(dict(case, updates_per_epoch=per_epoch, total=total, every=every, values=values[::every]))
    return recorded


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "optim.json").write_text(json.dumps(dict(optimizers=optimizers())))
    (OUT / "schedules.json").write_text(json.dumps(schedules()))
    for path in OUT.iterdir():
        print(path.name, path.stat().st_size)


if __name__ == "__main__":
    main()
