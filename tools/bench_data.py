"""Images per second of timm's DataLoader and of `timm data bench`, on the same JPEGs, interleaved.

    cargo build --release -p timm
    venv/bin/python tools/bench_data.py [--images 1000] [--rounds 3] [--workers 2]

Makes JPEGs of 500 x 375 pixels at quality 90 in a temporary folder (about 110 kB each, as ImageNet's), the same again
as tar shards in webdataset's form, and loads them at 224 pixels:

- train: random resized crop, flip, colour jitter 0.4 (timm's defaults);
- train + RandAugment: rand-m9-mstd0.5-inc1;
- eval: resize to 256, centre crop;
- shards: the training transforms, from tar shards and from the folder, ours only.

Both sides run one after the other in each round, so that neither has the quieter machine; the best round counts. timm
runs with `--workers` processes, its prefetching collate without a device, and persistent workers, after a warm-up
pass. Memory is the largest resident set, of timm all its processes (shared pages counted once, as PSS).
"""

import argparse
import json
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
WIDTH, HEIGHT, CLASSES, SHARDS = 500, 375, 10, 4
CASES = {
    "train": dict(is_training=True),
    "train + RandAugment": dict(is_training=True, auto_augment="rand-m9-mstd0.5-inc1"),
    "eval": dict(is_training=False),
}


def make_images(folder: Path, count: int) -> None:
    """Noise of all scales, as photographs have it, with edges in it."""
    import numpy as np
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(0)
    for i in range(count):
        pixels = np.zeros((HEIGHT, WIDTH, 3), np.float32)
        for scale in (1, 2, 4, 8, 16, 32, 64, 128):
            size = (HEIGHT // scale + 2, WIDTH // scale + 2)
            grey = rng.normal(0, 1, size).astype(np.float32)
            for c in range(3):
                noise = grey + 0.4 * rng.normal(0, 1, size).astype(np.float32)
                layer = Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.BICUBIC)
                pixels[..., c] += np.asarray(layer) * 12 * scale**0.3
        image = Image.fromarray(np.clip(128 + pixels, 0, 255).astype(np.uint8))
        draw = ImageDraw.Draw(image)
        for _ in range(12):
            x, y, r = rng.integers(0, WIDTH), rng.integers(0, HEIGHT), rng.integers(8, 70)
            draw.ellipse((x - r, y - r, x + r, y + r), outline=tuple(int(v) for v in rng.integers(0, 256, 3)), width=3)
        for split in ("train", "validation"):
            path = folder / split / f"class{i % CLASSES}" / f"{i:05}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            if split == "train":
                image.save(path, quality=90)
                first = path
            else:
                path.hardlink_to(first)


def make_shards(folder: Path, shards: Path) -> None:
    shards.mkdir()
    images = sorted((folder / "train").glob("*/*.jpg"), key=lambda path: path.name)
    for shard in range(SHARDS):
        with tarfile.open(shards / f"train-{shard:04}.tar", "w") as tar:
            for path in images[shard::SHARDS]:
                tar.add(path, f"{path.stem}.jpg")
                label = shards / "label"
                label.write_text(path.parent.name.removeprefix("class"))
                tar.add(label, f"{path.stem}.cls")
                label.unlink()


def pss_mb(pid: int) -> float:
    """Memory of a process, its share of pages that are shared."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0


class Memory(threading.Thread):
    """The largest memory of this process and its children."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.stop = 0.0, False

    def run(self) -> None:
        import multiprocessing
        import os

        while not self.stop:
            children = [child.pid for child in multiprocessing.active_children()]
            self.peak = max(self.peak, sum(map(pss_mb, [os.getpid(), *children])))
            time.sleep(0.2)


def timm_worker(folder: str, case: str, workers: int, batch: int) -> None:
    """Measures timm in a process of its own; prints one line of JSON."""
    from PIL import ImageOps

    # Pillow 13 refuses the 0 bits that timm's RandAugment asks for now and then: without this it dies within an epoch.
    posterize = ImageOps.posterize
    ImageOps.posterize = lambda image, bits: posterize(image, max(bits, 1))
    import torch
    from timm.data import create_dataset, create_loader

    torch.set_num_threads(1)
    options = CASES[case]
    split = "train" if options["is_training"] else "validation"
    dataset = create_dataset("", root=folder, split=split, is_training=options["is_training"])
    # With use_prefetcher the collate stacks bytes and normalisation is the device's; the wrapper that moves batches to
    # a device is left out.
    loader = create_loader(dataset, (3, 224, 224), batch, num_workers=workers, use_prefetcher=True, device=torch.device("cpu"),
                           interpolation="random" if options["is_training"] else "bicubic", crop_pct=0.875,
                           persistent_workers=True, pin_memory=False, **options)
    loader = loader.loader
    for _ in loader:
        pass
    memory = Memory()
    memory.start()
    images, start = 0, time.perf_counter()
    for pixels, _ in loader:
        images += len(pixels)
    seconds = time.perf_counter() - start
    memory.stop = True
    memory.join()
    print(json.dumps({"images_per_sec": images / seconds, "memory": memory.peak}))


def ours(data: str, case: str, workers: int, batch: int) -> dict:
    options = CASES[case]
    command = [ROOT / "target/release/timm" if not BINARY else BINARY, "data", "bench", data, "--json"]
    command += ["--workers", str(workers), "--batch-size", str(batch), "--num-warm-iter", "1"]
    if not options["is_training"]:
        command += ["--eval"]
    if "auto_augment" in options:
        command += ["--aa", options["auto_augment"]]
    if data.startswith("wds/"):
        command += ["--split", "train-{0000..%04d}.tar" % (SHARDS - 1)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{run.stderr}")
    result = json.loads(run.stdout)
    return {**result, "memory": result["process_peak_memory_mb"]}


def theirs(folder: str, case: str, workers: int, batch: int) -> dict:
    command = [sys.executable, __file__, "--timm-worker", folder, case, str(workers), str(batch)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0:
        print(f"timm failed once, again:\n{run.stderr[-2000:]}", file=sys.stderr)
        run = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


BINARY = None


def main() -> None:
    global BINARY
    if sys.argv[1:2] == ["--timm-worker"]:
        folder, case, workers, batch = sys.argv[2:]
        timm_worker(folder, case, int(workers), int(batch))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--binary", help="the timm command [default: target/release/timm]")
    parser.add_argument("--json", help="write the figures to this file, too")
    args = parser.parse_args()
    BINARY = args.binary
    with tempfile.TemporaryDirectory() as scratch:
        folder, shards = Path(scratch) / "images", Path(scratch) / "shards"
        make_images(folder, args.images)
        make_shards(folder, shards)
        sizes = [path.stat().st_size for path in (folder / "train").glob("*/*.jpg")]
        print(f"{len(sizes)} JPEGs of {WIDTH} x {HEIGHT}, {sum(sizes) / len(sizes) / 1e3:.0f} kB each; "
              f"{args.workers} workers, batches of {args.batch_size}, best of {args.rounds} rounds\n")
        best: dict[tuple[str, str], dict] = {}

        def note(side: str, case: str, result: dict) -> None:
            old = best.get((side, case))
            if old is None or result["images_per_sec"] > old["images_per_sec"]:
                best[side, case] = result

        for _ in range(args.rounds):
            for case in CASES:
                note("timm", case, theirs(str(folder), case, args.workers, args.batch_size))
                note("ours", case, ours(str(folder), case, args.workers, args.batch_size))
            note("shards", "train", ours(f"wds/{shards}", "train", args.workers, args.batch_size))
        print(f"{'':22} {'timm img/s':>11} {'ours img/s':>11} {'ratio':>6} {'timm MB':>9} {'ours MB':>9}")
        for case in CASES:
            a, b = best["timm", case], best["ours", case]
            print(f"{case:22} {a['images_per_sec']:11.0f} {b['images_per_sec']:11.0f} "
                  f"{b['images_per_sec'] / a['images_per_sec']:6.2f} {a['memory']:9.0f} {b['memory']:9.0f}")
            shares = " · ".join(f"{name} {100 * b[f'{name}_share']:.0f} %"
                                for name in ("read", "decode", "transform", "idle"))
            print(f"{'':22} ours: {shares}")
        a, b = best["ours", "train"], best["shards", "train"]
        print(f"{'tar shards : folder':22} {a['images_per_sec']:11.0f} {b['images_per_sec']:11.0f} "
              f"{b['images_per_sec'] / a['images_per_sec']:6.2f}")
        if args.json:
            Path(args.json).write_text(json.dumps({f"{s} {c}": r for (s, c), r in best.items()}, indent=1))


if __name__ == "__main__":
    main()
