#!/usr/bin/env python3
"""Our optimizer updates and PyTorch's in turn on this machine, over the same parameters.

    cargo build --release && python3 tools/compare_optimizers.py            # AdamW, LAMB and SGD on ResNet-50
    python3 tools/compare_optimizers.py --model vit_base_patch16_224 --rounds 9

Needs torch and timm. PyTorch runs its `foreach=True` optimizers (LAMB: timm's own), on as many threads as we do. In every
round each side in turn measures a few updates; shown are medians over the rounds and the spread of the rounds' ratios
(above 1: we are faster).
"""

import argparse
import json
import os
import statistics
import subprocess
import time

import timm
import torch
from timm.optim import create_optimizer_v2

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BINARY = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), "release", "timm")


def peers(parameters):
    groups = [{"params": [p for p in parameters if p.ndim > 1]},
              {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}]
    return {
        "adamw": torch.optim.AdamW(groups, lr=1e-3, weight_decay=1e-2, foreach=True),
        "lamb": create_optimizer_v2(groups, opt="lamb", lr=1e-3, weight_decay=1e-2),
        "sgd": torch.optim.SGD(groups, lr=1e-3, momentum=0.9, nesterov=True, weight_decay=1e-2, foreach=True),
    }


def ours(args, opt):
    command = [BINARY, "benchmark", "--model", args.model, "--bench", "update", "--opt", opt, "--json",
               "--num-bench-iter", str(args.updates)]
    env = {**os.environ, "RAYON_NUM_THREADS": str(args.threads)}
    return json.loads(subprocess.run(command, env=env, check=True, capture_output=True).stdout)[0]


def theirs(optimizer, updates):
    times = []
    for _ in range(updates + 3):
        start = time.perf_counter()
        optimizer.step()
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:]) * 1e3


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--opt", nargs="+", default=["adamw", "lamb", "sgd"], choices=["adamw", "lamb", "sgd"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    parameters = list(timm.create_model(args.model).parameters())
    for p in parameters:
        p.grad = torch.randn_like(p) * 3e-3
    print(f"{args.model}, {args.threads} threads, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
    for opt in args.opt:
        # One at a time: the state of each takes as much memory as the weights and more.
        optimizer = peers(parameters)[opt]
        rounds = [(ours(args, opt), theirs(optimizer, args.updates)) for _ in range(args.rounds)]
        ratios = [peer / own["update_step_time"] for own, peer in rounds]
        own = statistics.median(own["update_step_time"] for own, _ in rounds)
        peer = statistics.median(peer for _, peer in rounds)
        cost = min((own for own, _ in rounds), key=lambda own: own["update_step_time"])
        print(f"{opt:<8} ours {own:7.2f} ms  theirs {peer:7.2f} ms  ratio {statistics.median(ratios):.2f}"
              f" ({min(ratios):.2f}-{max(ratios):.2f})  {cost['update_bytes_per_param']:.1f} B per parameter, least"
              f" {cost['update_least_bytes_per_param']:.1f}; {cost['update_gb_per_sec']:.1f} of"
              f" {cost['memory_gb_per_sec']:.1f} GB/s", flush=True)


if __name__ == "__main__":
    main()
