"""Us and PyTorch in turn on this machine, with the same model, batch, size and threads; prints the ratios.

    python -m venv venv && venv/bin/pip install timm torch torchvision
    cargo build --release && venv/bin/python tools/compare_speed.py resnet50 --batch-size 8

Each round starts a fresh process of each side, one after the other, so that a drift of the machine meets both. The table
shows medians over rounds of images per second, the ratio (above 1: we are faster), the spread of the rounds' ratios,
and the peak resident memory of each process.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def torch_side(args):
    """One round of PyTorch: eager, channels_last, float32. Prints a JSON line."""
    import timm
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = timm.create_model(args.model).to(memory_format=torch.channels_last)
    size = args.img_size or model.pretrained_cfg["input_size"][-1]
    x = torch.randn(args.batch_size, 3, size, size).contiguous(memory_format=torch.channels_last)
    if args.bench == "inference":
        model.eval()

        def step():
            with torch.inference_mode():
                model(x)
    else:
        model.train()
        target = torch.randint(0, model.num_classes, (args.batch_size,))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)

        def step():
            optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(model(x), target).backward()
            optimizer.step()

    for _ in range(args.warm):
        step()
    times = []
    for _ in range(args.iterations):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    rate = args.batch_size / statistics.median(times)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"rate": rate, "memory": memory}))


def run(command, env):
    """Runs a command; returns the JSON it prints and the peak memory of the process in MB."""
    child = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT)
    out = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status != 0:
        sys.exit(f"{' '.join(command)} failed")
    return json.loads(out), usage.ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["resnet50"])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--img-size", type=int)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--bench", choices=["inference", "training", "both"], default="both")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--warm", type=int, default=2)
    parser.add_argument("--side", choices=["torch"], help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        return torch_side(args)

    threads = str(args.threads)
    env = {**os.environ, "RAYON_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
    common = ["--batch-size", str(args.batch_size)]
    if args.img_size:
        common += ["--img-size", str(args.img_size)]
    print(f"load average before: {os.getloadavg()[0]:.2f}, {threads} threads, batch {args.batch_size}, float32")
    print(f"{'model':<24} {'what':<10} {'timm in Rust':>12} {'PyTorch':>10} {'ratio':>6}  {'spread':<11} {'MB':>11}")
    for model in args.models:
        for bench in ["inference", "training"] if args.bench == "both" else [args.bench]:
            ours, theirs = [], []
            for _ in range(args.rounds):
                binary = os.path.join(ROOT, "target", "release", "timm")
                counts = ["--num-warm-iter", str(args.warm), "--num-bench-iter", str(args.iterations)]
                command = [binary, "benchmark", "--model", model, "--bench", bench, "--json", *counts, *common]
                result, memory = run(command, env)
                result = result[0] if isinstance(result, list) else result
                key = "infer_samples_per_sec" if bench == "inference" else "train_samples_per_sec"
                ours.append((result[key], memory))
                me = [sys.executable, os.path.abspath(__file__), "--side", "torch", "--model", model, "--bench", bench]
                rest = ["--threads", threads, "--iterations", str(args.iterations), "--warm", str(args.warm)]
                result, memory = run([*me, *rest, *common], env)
                theirs.append((result["rate"], memory))
            median = [statistics.median(rate for rate, _ in side) for side in (ours, theirs)]
            ratios = sorted(a[0] / b[0] for a, b in zip(ours, theirs))
            memory = [max(m for _, m in side) for side in (ours, theirs)]
            print(
                f"{model:<24} {bench:<10} {median[0]:>12.2f} {median[1]:>10.2f} {median[0] / median[1]:>6.2f}"
                f"  {ratios[0]:.2f}-{ratios[-1]:.2f}   {memory[0]:>5.0f}/{memory[1]:.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
