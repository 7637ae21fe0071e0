"""Pillow's and timm's microseconds beside ours, one thread, in turns: a table on standard output.

    cargo build --release -p timm-data --example transform_speed
    cargo test --release -p timm-data --lib --no-run      # prints TEST_BINARY
    python tools/transform_speed.py target/release/examples/transform_speed [TEST_BINARY]
"""

import os
import random
import subprocess
import sys
import time

os.environ["OMP_NUM_THREADS"] = "1"
import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment as aa
from timm.data.mixup import FastCollateMixup
from timm.data.transforms_factory import create_transform

torch.set_num_threads(1)


def picture(width, height):
    rng = np.random.default_rng(1)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    planes = [127 + 110 * np.sin(x / (9 + c)) * np.cos(y / (11 + c)) + 15 * rng.random(x.shape) for c in range(3)]
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8))


def least(work, seconds=0.3):
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best * 1e6


def operations(small):
    keywords = lambda resample: {"resample": resample, "fillcolor": (124, 116, 104)}
    bilinear, bicubic = Image.BILINEAR, Image.BICUBIC
    return {
        "copy": lambda: small.copy(),
        "AutoContrast": lambda: aa.auto_contrast(small),
        "Equalize": lambda: aa.equalize(small),
        "Invert": lambda: aa.invert(small),
        "Posterize": lambda: aa.posterize(small, 4),
        "Solarize": lambda: aa.solarize(small, 128),
        "SolarizeAdd": lambda: aa.solarize_add(small, 64),
        "Color": lambda: aa.color(small, 1.6),
        "Contrast": lambda: aa.contrast(small, 1.6),
        "Brightness": lambda: aa.brightness(small, 1.6),
        "Sharpness": lambda: aa.sharpness(small, 1.6),
        "GaussianBlur": lambda: aa.gaussian_blur(small, 1.5),
        "Rotate_bilinear": lambda: aa.rotate(small, 20.0, **keywords(bilinear)),
        "Rotate_bicubic": lambda: aa.rotate(small, 20.0, **keywords(bicubic)),
        "ShearX_bilinear": lambda: aa.shear_x(small, 0.2, **keywords(bilinear)),
        "ShearX_bicubic": lambda: aa.shear_x(small, 0.2, **keywords(bicubic)),
        "TranslateX_bilinear": lambda: aa.translate_x_abs(small, 40.3, **keywords(bilinear)),
        "TranslateX_bicubic": lambda: aa.translate_x_abs(small, 40.3, **keywords(bicubic)),
    }


def pipelines(large):
    train = {"is_training": True, "interpolation": "random", "use_prefetcher": True, "hflip": 0.5, "color_jitter": 0.4}
    plain = {**train, "hflip": 0.0, "color_jitter": None}
    options = {
        "eval": {"interpolation": "bicubic", "use_prefetcher": True},
        "eval_border": {"interpolation": "bicubic", "use_prefetcher": True, "crop_mode": "border"},
        "train": train,
        "rrc": plain,
        "jitter": {**plain, "color_jitter": 0.4},
        "jitter_hue": {**plain, "color_jitter": (0.4, 0.4, 0.4, 0.1)},
        "blur": {**plain, "gaussian_blur_prob": 1.0},
    }
    for policy in ["rand-m9-mstd0.5-inc1", "v0", "original", "3a", "augmix-m5-w4-d2"]:
        options[policy] = {**train, "auto_augment": policy}
    work = {}
    for name, arguments in options.items():
        transform = create_transform(224, **arguments)

        def many(transform=transform):
            random.seed(1), np.random.seed(1), torch.manual_seed(1)
            for _ in range(40):
                try:
                    transform(large)
                except ValueError:  # Pillow 13 refuses timm's posterizing to 0 bits
                    pass

        work[name] = (many, 40)
    box = (60, 40, 380, 320)
    for name in ["nearest", "bilinear", "bicubic", "lanczos"]:
        resample = getattr(Image, name.upper())
        work[f"resize_{name}"] = (lambda resample=resample: large.crop(box).resize((224, 224), resample), 1)
    mixup = FastCollateMixup(mixup_alpha=0.8)
    batch = [(torch.from_numpy(np.asarray(picture(224, 224)).transpose(2, 0, 1).copy()), 0) for _ in range(16)]
    work["mixup"] = (lambda: mixup(batch), 16)
    return work


def lines(command):
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    pairs = [line.split() for line in out.splitlines()]
    return {pair[0]: float(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].replace(".", "").isdigit()}


def main():
    ours, theirs = {}, {}
    for _ in range(2):
        commands = [[sys.argv[1]]]
        if len(sys.argv) > 2:
            commands.append([sys.argv[2], "operation_speed", "--ignored", "--nocapture"])
        for command in commands:
            for name, value in lines(command).items():
                ours[name] = min(value, ours.get(name, float("inf")))
        for name, work in operations(picture(224, 224)).items():
            theirs[name] = min(least(work), theirs.get(name, float("inf")))
        for name, (work, count) in pipelines(picture(500, 375)).items():
            theirs[name] = min(least(work, 0.6) / count, theirs.get(name, float("inf")))
    print(f"{'':24}{'ours us':>10}{'Pillow us':>11}{'ratio':>8}")
    for name in theirs:
        if name in ours:
            print(f"{name:24}{ours[name]:10.1f}{theirs[name]:11.1f}{theirs[name] / ours[name]:8.1f}")


if __name__ == "__main__":
    main()
