#!/usr/bin/env python3
"""Us and our peers in turn on this machine: images per second, ratios, share of peak, memory.

    cargo build --release && python3 tools/compare_speed.py                    # the whole table
    python3 tools/compare_speed.py resnet50 --batch-size 8 --bench inference   # one row
    python3 tools/compare_speed.py vit_base_patch16_224 --peers eager openvino

The peers come from PyPI into a virtual environment that the first run makes (target/peers, some GB). Each peer is a process
that stays, we are started anew each time; in every round each side in turn measures a few batches, so that a drift of
the machine meets all. Shown are our median and, for each peer, the ratio of medians (above 1: we are faster) with the
spread of the rounds' ratios. PyTorch runs eagerly in its better layout. Memory is the peak of the process, as a share of
the least peer's. With --scaling, our speed is compared with that of one thread too. The result is appended to
docs/speed.jsonl.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LOG = os.path.join(ROOT, "docs", "speed.jsonl")
PEERS = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), "peers")
PACKAGES = ["timm==1.0.31", "torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "openvino"]
INFERENCE = [
    "resnet50", "efficientnet_b0", "mobilenetv3_large_100", "convnext_tiny", "vit_base_patch16_224",
    "swin_tiny_patch4_window7_224", "regnety_016", "densenet121",
]
TRAINING = ["resnet50", "efficientnet_b0", "convnext_tiny", "vit_small_patch16_224"]
SIDES = {"inference": ["eager", "compile", "onnxruntime", "openvino"], "training": ["eager"]}
AMP_SIDES = ["eager", "openvino"]
REST = 0.4  # seconds before each measurement: OpenMP's threads wait busily for 0.2 s after their work


# A peer: a process that answers each line "COUNT" on its input with the seconds of that many batches.


def torch_model(args):
    import timm
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = timm.create_model(args.model)
    size = args.img_size or model.pretrained_cfg["input_size"][-1]
    return model, torch.randn(args.batch_size, 3, size, size)


def eager(args, layout):
    import torch

    model, x = torch_model(args)
    layout = getattr(torch, layout)
    cast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.amp)
    model, x = model.to(memory_format=layout), x.contiguous(memory_format=layout)
    if args.bench == "inference":
        model.eval()

        def step():
            with torch.inference_mode(), cast:
                model(x)
    else:
        model.train()
        target = torch.randint(0, model.num_classes, (args.batch_size,))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)

        def step():
            optimizer.zero_grad(set_to_none=True)
            with cast:
                loss = torch.nn.functional.cross_entropy(model(x), target)
            loss.backward()
            optimizer.step()
    return step


def compiled(args):
    import torch
    import torch._inductor.config

    torch._inductor.config.freezing = True
    model, x = torch_model(args)
    model = torch.compile(model.eval().to(memory_format=torch.channels_last))
    x = x.contiguous(memory_format=torch.channels_last)

    def step():
        with torch.no_grad():
            model(x)
    return step


def onnx_file(args):
    import torch

    folder = os.path.join(PEERS, "onnx")
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, f"{args.model}-{args.batch_size}-{args.img_size}.onnx")
    model, x = torch_model(args)
    if not os.path.exists(path):
        torch.onnx.export(model.eval(), (x,), path, dynamo=False, input_names=["x"], opset_version=17)
    return path, x.numpy()


def onnxruntime(args):
    import onnxruntime

    path, x = onnx_file(args)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})


def openvino(args):
    import openvino

    path, x = onnx_file(args)
    precision = "bf16" if args.amp else "f32"
    hints = {"INFERENCE_NUM_THREADS": args.threads, "INFERENCE_PRECISION_HINT": precision,
             "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(path, "CPU", hints).create_infer_request()
    return lambda: request.infer({"x": x}, share_inputs=True, share_outputs=True)


KINDS = {
    "eager": lambda args: eager(args, "channels_last"),
    "eager-contiguous": lambda args: eager(args, "contiguous_format"),
    "compile": compiled, "onnxruntime": onnxruntime, "openvino": openvino,
}


def serve(args):
    # Libraries may print to where the answers go: they get another way out.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    step = KINDS[args.side](args)
    for _ in range(2):
        step()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        status = open("/proc/self/status").read()
        memory = int(status.split("VmHWM:")[1].split()[0]) / 1024
        print(json.dumps({"seconds": statistics.median(times), "memory": memory}), file=answers, flush=True)


class Peer:
    def __init__(self, name, command, env):
        self.name = name
        self.child = subprocess.Popen([*command, "--side", name], env=env, stdin=subprocess.PIPE, text=True,
                                      stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.works = self.child.stdout.readline().strip() == "ready"

    def measure(self, count):
        print(count, file=self.child.stdin, flush=True)
        return json.loads(self.child.stdout.readline())

    def stop(self):
        self.child.stdin.close()
        self.child.wait()


def ours(args, model, bench, count, env):
    binary = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), "release", "timm")
    command = [binary, "benchmark", "--model", model, "--bench", bench, "--json", "--num-warm-iter", "2"]
    command += ["--num-bench-iter", str(count), "--batch-size", str(args.batch_size)]
    command += ["--amp"] * args.amp
    if args.img_size:
        command += ["--img-size", str(args.img_size)]
    [result] = json.loads(subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout)
    rate = result["infer_samples_per_sec" if bench == "inference" else "train_samples_per_sec"]
    gflops = 2 * result.get("infer_gmacs", 0) * rate
    return dict(seconds=args.batch_size / rate, memory=result["process_peak_memory_mb"],
                share=gflops / result["peak_gflops"])


def compare(args, python, model, bench, env):
    """One model, one kind of work: measures all sides in turn; returns the record that is logged."""
    command = [python, os.path.abspath(__file__), model, "--batch-size", str(args.batch_size), "--bench", bench,
               "--threads", str(args.threads)] + (["--img-size", str(args.img_size)] if args.img_size else [])
    command += ["--amp"] * args.amp
    names = [side for side in SIDES[bench] if side in args.peers and (side in AMP_SIDES or not args.amp)]
    peers = [Peer(name, command, env) for name in names + ["eager-contiguous"] * ("eager" in names)]
    failed, peers = [peer.name for peer in peers if not peer.works], [peer for peer in peers if peer.works]
    sides = {"ours": lambda: ours(args, model, bench, args.iterations, env)}
    if args.scaling:
        sides["alone"] = lambda: ours(args, model, bench, args.iterations, {**env, "RAYON_NUM_THREADS": "1"})
    sides.update({peer.name: lambda peer=peer: peer.measure(args.iterations) for peer in peers})
    rounds = []
    for _ in range(args.rounds):
        rounds.append({})
        for name, measure in sides.items():
            time.sleep(REST)
            rounds[-1][name] = measure()
    for peer in peers:
        peer.stop()

    median = lambda name, key: statistics.median(row[name][key] for row in rounds)  # noqa: E731
    if "eager-contiguous" in rounds[0]:
        slower = max("eager", "eager-contiguous", key=lambda name: median(name, "seconds"))
        for row in rounds:
            row["eager"] = row["eager-contiguous"] if slower == "eager" else row["eager"]
            del row["eager-contiguous"]
    record = dict(model=model, bench=bench, batch_size=args.batch_size, threads=args.threads, dtype="bfloat16" if args.amp else "float32",
                  img_per_sec=round(args.batch_size / median("ours", "seconds"), 2),
                  share_of_peak=round(median("ours", "share"), 3), memory_mb=median("ours", "memory"), peers={})
    if args.scaling:
        record["scaling"] = round(median("alone", "seconds") / median("ours", "seconds"), 3)
    for name in rounds[0]:
        if name in ("ours", "alone"):
            continue
        spread = sorted(row[name]["seconds"] / row["ours"]["seconds"] for row in rounds)
        record["peers"][name] = dict(
            img_per_sec=round(args.batch_size / median(name, "seconds"), 2),
            ratio=round(median(name, "seconds") / median("ours", "seconds"), 3),
            spread=[round(spread[0], 2), round(spread[-1], 2)], memory_mb=round(median(name, "memory")))
    record["failed"] = failed
    return record


def peers_python():
    """The interpreter of the peers' environment, made when it is not there."""
    python = os.path.join(PEERS, "bin", "python")
    if not os.path.exists(python):
        print(f"making {PEERS} with {', '.join(PACKAGES)}: this takes minutes", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", PEERS], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return python


def widest():
    """The widest instructions of this processor that matter here, which ratios depend on; None where nobody says."""
    try:
        flags = open("/proc/cpuinfo").read().split()
    except OSError:
        return None
    names = {"amx_tile": "amx", "avx512f": "avx512", "avx2": "avx2", "asimd": "neon"}
    return next((name for flag, name in names.items() if flag in flags), None)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="default: the models of our targets")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--img-size", type=int)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--bench", choices=["inference", "training", "both"], default="both")
    parser.add_argument("--peers", nargs="+", choices=SIDES["inference"], default=SIDES["inference"])
    parser.add_argument("--amp", action="store_true", help="bf16: ours with --amp, PyTorch under autocast, OpenVINO's hint")
    parser.add_argument("--scaling", action="store_true", help="also our speed over that of one thread")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--iterations", type=int, help="batches a side and round [default: 40 images, at least 5]")
    parser.add_argument("--python", help="an interpreter that has the peers' packages, instead of target/peers")
    parser.add_argument("--no-log", action="store_true", help="do not append to docs/speed.jsonl")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.iterations = args.iterations or max(5, 40 // args.batch_size)
    if args.side:
        args.model = args.models[0]
        return serve(args)

    python = args.python or peers_python()
    threads = str(args.threads)
    env = {**os.environ, "RAYON_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
    print(f"load average before: {os.getloadavg()[0]:.2f}; {threads} threads, batch {args.batch_size}, "
          f"{'bf16' if args.amp else 'float32'}")
    print(f"{'':<30} {'':<9} {'timm in Rust':^22}   ratio to (spread)")
    head = "".join(f"{side:<20}" for side in args.peers)
    print(f"{'model':<30} {'what':<9} {'img/s':>7} {'of peak':>7} {'MB':>6}   {head}memory"
          + "  threads" * args.scaling)
    for bench in ["inference", "training"] if args.bench == "both" else [args.bench]:
        for model in args.models or (INFERENCE if bench == "inference" else TRAINING):
            record = compare(args, python, model, bench, env)
            cells = []
            for side in args.peers:
                peer = record["peers"].get(side)
                text = f"{peer['ratio']:.2f} ({peer['spread'][0]:.2f}-{peer['spread'][1]:.2f})" if peer else "-"
                cells.append(f"{text:<20}")
            share = f"{record['share_of_peak']:.0%}" if bench == "inference" else "-"
            least = min((peer["memory_mb"] for peer in record["peers"].values()), default=None)
            memory = f"{record['memory_mb'] / least:.2f}x" if least else "-"
            print(f"{model:<30} {bench:<9} {record['img_per_sec']:>7.2f} {share:>7} {record['memory_mb']:>6.0f}   "
                  f"{''.join(cells)}{memory:<6}" + (f"  {record['scaling']:.2f}x" if args.scaling else ""), flush=True)
            record.update(date=datetime.date.today().isoformat(), load=round(os.getloadavg()[0], 2),
                          instructions=widest())
            if not args.no_log:
                with open(LOG, "a") as log:
                    log.write(json.dumps(record) + "\n")
    print(f"load average after: {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
