"""Writes crates/data/tests/transforms: what timm's augmentations, mixup and NaFlex transforms make of images and numbers.

    pip install timm torch torchvision && python tools/transform_fixtures.py

| file | lines |
|---|---|
| `NAME.png` | sources |
| `operations.tsv` | operation, arguments, interpolation, source, first row in `SOURCE.out.png`, where results stand below each other |
| `levels.tsv` | operation of timm, level, its arguments for either sign |
| `distributions.tsv` | name of a drawn number, its 1st, 3rd, 5th ... 99th percentile in 20000 draws of timm's |
| `mixup.tsv` | mode, shares, rectangles, images and targets that come out |
| `sequence_sizes.tsv` | image, patch, length, options, and the size that `get_image_size_for_seq` finds |
| `patches.tsv` | patch, layout, image and its patches |
"""

import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment as aa
from timm.data import mixup as mixup_module
from timm.data import naflex_transforms as naflex
from timm.data import random_erasing, transforms
from torchvision import transforms as tv

OUT = Path(__file__).resolve().parent.parent / "crates" / "data" / "tests" / "transforms"
DRAWS = 20000
FILL = (124, 116, 104)
RESAMPLE = {"nearest": Image.NEAREST, "bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}


def picture(width, height, seed, low=0, high=255):
    """Slopes, an edge, a flat part and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    planes = []
    for channel in range(3):
        plane = 0.5 + 0.45 * np.sin(x / (5 + channel) + seed) * np.cos(y / (7 + channel)) + rng.normal(0, 0.05, x.shape)
        plane[(x > width * 0.6) & (y < height * 0.4)] = 0.2 + 0.3 * channel
        plane[(x < width * 0.3) & (y > height * 0.7)] = channel % 2
        planes.append(low + (high - low) * np.clip(plane, 0, 1))
    return Image.fromarray(np.stack(planes, -1).round().astype(np.uint8))


SOURCES = {
    "scene": picture(48, 36, 1),
    "square": picture(24, 24, 2),
    "faint": picture(33, 21, 3, 60, 140),
    "strip": picture(2, 9, 4),
    "dot": picture(1, 1, 5),
}


def transformed(image, matrix, resample):
    return image.transform(image.size, Image.AFFINE, matrix, resample=resample, fillcolor=FILL)


def operations():
    lines, strips = [], {name: [] for name in SOURCES}

    def add(operation, arguments, source, result, interpolation="bilinear"):
        array = np.asarray(result)
        assert array.shape == np.asarray(SOURCES[source]).shape, (operation, source)
        row = len(strips[source]) * array.shape[0]
        strips[source].append(array)
        numbers = " ".join(repr(float(argument)) for argument in arguments)
        lines.append(f"{operation}\t{numbers}\t{interpolation}\t{source}\t{row}\n")

    simple = {
        "AutoContrast": (aa.auto_contrast, [None]),
        "Equalize": (aa.equalize, [None]),
        "Invert": (aa.invert, [None]),
        "Posterize": (aa.posterize, [1, 2, 4, 5, 7, 8, 12]),
        "Solarize": (aa.solarize, [0, 26, 128, 230, 256]),
        "SolarizeAdd": (aa.solarize_add, [0, 33, 99, 128]),
        "Color": (aa.color, [0.0, 0.1, 0.37, 1.0, 1.27, 1.9]),
        "Contrast": (aa.contrast, [0.1, 0.37, 1.0, 1.27, 1.9]),
        "Brightness": (aa.brightness, [0.1, 0.37, 1.0, 1.27, 1.9]),
        "Sharpness": (aa.sharpness, [0.0, 0.1, 0.37, 1.0, 1.27, 1.9]),
        "GaussianBlur": (aa.gaussian_blur, [0.1, 0.3, 0.5, 0.81, 1.0, 1.37, 1.5, 2.0, 3.3, 9.0]),
    }
    for source in SOURCES:
        image = SOURCES[source]
        for name, (function, values) in simple.items():
            for value in values:
                arguments = [] if value is None else [value]
                add(name, arguments, source, function(image, *arguments))
        for interpolation, resample in RESAMPLE.items():
            keywords = {"resample": resample, "fillcolor": FILL}
            for degrees in [0.0, 3.0, 27.0, -13.5, 30.0, 90.0, 180.0, -90.0, 270.0, 45.0]:
                add("Rotate", [degrees], source, aa.rotate(image, degrees, **dict(keywords)), interpolation)
            for factor in [0.09, -0.27, 0.3, 1.5]:
                add("Affine", [1, factor, 0, 0, 1, 0], source, aa.shear_x(image, factor, **dict(keywords)), interpolation)
                add("Affine", [1, 0, 0, factor, 1, 0], source, aa.shear_y(image, factor, **dict(keywords)), interpolation)
            for pixels in [3.0, -5.25, 7.9, 20.0, -100.0]:
                add("Affine", [1, 0, pixels, 0, 1, 0], source, aa.translate_x_abs(image, pixels, **dict(keywords)), interpolation)
                add("Affine", [1, 0, 0, 0, 1, pixels], source, aa.translate_y_abs(image, pixels, **dict(keywords)), interpolation)
            matrix = (0.7, 0.2, 3.1, -0.4, 1.3, 2.2)
            add("Affine", matrix, source, transformed(image, matrix, resample), interpolation)
    (OUT / "operations.tsv").write_text("".join(lines))
    for name, results in strips.items():
        SOURCES[name].save(OUT / f"{name}.png", optimize=True)
        Image.fromarray(np.concatenate(results)).save(OUT / f"{name}.out.png", optimize=True)


def levels():
    hparams = {"translate_const": 100, "translate_pct": 0.45, "img_mean": FILL}
    lines = []
    for name, function in aa.LEVEL_TO_ARG.items():
        for level in [0.0, 0.5, 1.3, 3.0, 5.0, 7.7, 9.0, 10.0, 15.0, 30.0]:
            results = []
            for sign in [0.9, 0.1]:
                random.random, keep = (lambda: sign), random.random
                arguments = function(level, hparams) if function else ()
                random.random = keep
                results.append(repr(float(arguments[0])) if arguments else "")
            lines.append(f"{name}\t{level}\t{results[0]}\t{results[1]}\n")
    (OUT / "levels.tsv").write_text("".join(lines))


class Distributions:
    def __init__(self):
        self.lines = []

    def add(self, name, values):
        values = np.asarray(values, dtype=np.float64)
        assert len(values) > 1000, (name, len(values))
        percentiles = np.percentile(values, np.arange(1, 100, 2), method="inverted_cdf")
        self.lines.append(name + "\t" + "\t".join(f"{value:.9g}" for value in percentiles) + "\n")

    def write(self):
        (OUT / "distributions.tsv").write_text("".join(self.lines))


def seeded(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def policies(out):
    """How often each operation is used, and what it is given."""
    image = Image.new("RGB", (224, 160))
    hparams = {"translate_const": 72, "img_mean": FILL}
    texts = ["rand-m9-mstd0.5-inc1", "rand-m7-n3-p0.8-mstd101", "rand-m15-mmax20-mstd2-tweights", "rand-m5-t3aw-n4", "rand-m6-t3a", "v0", "v0r-mstd0.5", "original", "originalr", "3a"]
    for text in texts:
        seeded(1)
        record = []
        make = aa.rand_augment_transform if text.startswith("rand") else aa.auto_augment_transform
        transform = make(text, dict(hparams))
        ops = transform.ops if text.startswith("rand") else [op for sub in transform.policy for op in sub]
        names = list(aa.NAME_TO_OP)

        def recorder(name):
            def record_it(image, *arguments, **keywords):
                if name == "GaussianBlurRand":
                    arguments = (random.uniform(0.1, 2.0 * arguments[0]),)
                record.append((names.index(name), arguments[0] if arguments else 0.0))
                return image

            return record_it

        for op in ops:
            op.aug_fn = recorder(op.name)
        counts = []
        for _ in range(DRAWS):
            before = len(record)
            transform(image)
            counts.append(len(record) - before)
        out.add(f"{text}/operation", [entry[0] for entry in record])
        out.add(f"{text}/count", counts)
        for name in ["Rotate", "SolarizeIncreasing", "Color", "ColorIncreasing", "TranslateXRel", "GaussianBlur", "GaussianBlurRand"]:
            values = [entry[1] for entry in record if entry[0] == names.index(name)]
            if len(values) > 1000:
                out.add(f"{text}/{name}", values)
    for alpha in [1.0, 0.3]:
        seeded(2)
        weights = np.random.dirichlet([alpha] * 3, DRAWS)
        out.add(f"augmix/{alpha}/weight", weights[:, 0])
        out.add(f"augmix/{alpha}/largest", weights.max(1))
        out.add(f"augmix/{alpha}/share", np.random.beta(alpha, alpha, DRAWS))


def geometry(out):
    size = {"wide": (375, 500), "tall": (300, 100), "thin": (20, 400)}
    for name, (height, width) in size.items():
        image = Image.new("RGB", (width, height))
        seeded(3)
        params = [transforms.RandomResizedCropAndInterpolation.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(DRAWS)]
        for index, part in enumerate(["y", "x", "height", "width"]):
            out.add(f"rrc/{name}/{part}", [param[index] for param in params])
        params = [transforms.ResizeKeepRatio.get_params(image, (224, 160), 0.0, 0.5, (0.8, 1.0), True, 0.5, (0.9, 1 / 0.9)) for _ in range(DRAWS)]
        out.add(f"rkr/{name}/height", [param[0] for param in params])
        out.add(f"rkr/{name}/width", [param[1] for param in params])
        params = [transforms.ResizeKeepRatio.get_params(image, (224, 160), 0.3, 0.7, (0.85, 1.05), False, 0.2, (0.9, 1.11)) for _ in range(DRAWS)]
        out.add(f"rkr_linear/{name}/height", [param[0] for param in params])
        out.add(f"rkr_linear/{name}/width", [param[1] for param in params])
        params = [transforms.RandomCropOrPad.get_params(image, (224, 224)) for _ in range(DRAWS)]
        out.add(f"crop_or_pad/{name}/y", [param[0] for param in params])
        out.add(f"crop_or_pad/{name}/x", [param[1] for param in params])
        few = 3000
        crop = naflex.RandomResizedCropToSequence
        for kind, extra in {"": {}, "_final": {"final_scale_range": (0.5, 1.0), "max_ratio": 1.5}}.items():
            params = [crop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3), max_seq_len=196, **extra) for _ in range(few)]
            out.add(f"sequence{kind}/{name}/x", [param[0][1] for param in params])
            out.add(f"sequence{kind}/{name}/crop_height", [param[0][2] for param in params])
            out.add(f"sequence{kind}/{name}/height", [param[1][0] for param in params])
            out.add(f"sequence{kind}/{name}/width", [param[1][1] for param in params])
        params = [naflex.ResizeKeepRatioToSequence.get_params(image, 16, 196, True, 0.4, 0.5, (0.85, 1.05), True, 0.5, (0.9, 1.11), 2.0) for _ in range(few)]
        out.add(f"ratio_to_sequence/{name}/height", [param[0] for param in params])
        out.add(f"ratio_to_sequence/{name}/width", [param[1] for param in params])


def erasing(out):
    seeded(4)
    erase = random_erasing.RandomErasing(probability=1.0, device="cpu")
    boxes = []
    for _ in range(DRAWS):
        image = torch.ones(1, 160, 224)
        erase(image)
        ys, xs = np.nonzero(image[0].numpy() == 0)
        boxes.append((ys.min(), xs.min(), ys.max() - ys.min() + 1, xs.max() - xs.min() + 1))
    for index, part in enumerate(["y", "x", "height", "width"]):
        out.add(f"erase/{part}", [box[index] for box in boxes])
    counts = []
    keep = random_erasing._get_pixels
    erase = random_erasing.RandomErasing(probability=0.6, max_count=4, device="cpu")
    for _ in range(DRAWS):
        calls = []
        random_erasing._get_pixels = lambda *arguments, **keywords: calls.append(0) or keep(*arguments, **keywords)
        erase(torch.ones(1, 20, 30))
        counts.append(len(calls))
    random_erasing._get_pixels = keep
    out.add("erase/count", counts)


def jitter(out):
    seeded(5)
    params = [tv.ColorJitter(0.4, 1.5, 0.2, 0.1) for _ in range(1)][0]
    draws = [tv.ColorJitter.get_params(params.brightness, params.contrast, params.saturation, params.hue) for _ in range(DRAWS)]
    for index, part in enumerate(["brightness", "contrast", "saturation", "hue"]):
        out.add(f"jitter/{part}", [draw[index + 1] for draw in draws])
        out.add(f"jitter/{part}/place", [int((draw[0] == index).nonzero()) for draw in draws])


def mixing(out):
    shape = (3, 48, 64)
    for name, options in {
        "mixup": {"mixup_alpha": 0.8},
        "small": {"mixup_alpha": 0.1},
        "cutmix": {"mixup_alpha": 0.0, "cutmix_alpha": 1.0},
        "both": {"mixup_alpha": 0.2, "cutmix_alpha": 1.0, "prob": 0.7, "switch_prob": 0.3},
    }.items():
        seeded(6)
        mixup = mixup_module.Mixup(**options)
        draws = [mixup._params_per_batch() for _ in range(DRAWS)]
        out.add(f"mix/{name}/share", [draw[0] for draw in draws if not draw[1]] if name != "cutmix" else [draw[0] for draw in draws])
        out.add(f"mix/{name}/kind", [0 if draw[0] == 1.0 else 2 if draw[1] else 1 for draw in draws])
    seeded(7)
    boxes = [mixup_module.cutmix_bbox_and_lam(shape, np.random.beta(1.0, 1.0)) for _ in range(DRAWS)]
    for index, part in enumerate(["top", "bottom", "left", "right"]):
        out.add(f"cutmix/{part}", [box[0][index] for box in boxes])
    out.add("cutmix/share", [box[1] for box in boxes])
    boxes = [mixup_module.cutmix_bbox_and_lam(shape, 0.5, ratio_minmax=(0.2, 0.8)) for _ in range(DRAWS)]
    for index, part in enumerate(["top", "bottom", "left", "right"]):
        out.add(f"minmax/{part}", [box[0][index] for box in boxes])
    out.add("minmax/share", [box[1] for box in boxes])


def mixup_batches():
    """Batches of four images of 5 x 6 pixels, with numbers of our choice in the place of random ones."""
    rng = np.random.default_rng(8)
    lines = []
    shares = np.float32([0.3, 1.0, 0.625, 0.123])
    cut = np.array([False, True, True, False])
    boxes = [(1, 4, 2, 5), (0, 2, 0, 6), (3, 3, 1, 4), (2, 5, 0, 3)]
    labels = [2, 0, 1, 2]
    for mode in ["batch", "batch_cut", "pair", "elem", "half"]:
        for smoothing in [0.0, 0.1]:
            images = rng.integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
            mixup = mixup_module.FastCollateMixup(mixup_alpha=1.0, mode=mode.split("_")[0], num_classes=3, label_smoothing=smoothing)
            used = iter(boxes)

            def box_and_share(shape, lam, ratio_minmax=None, correct_lam=True, count=None):
                box = next(used)
                return box, 1.0 - (box[1] - box[0]) * (box[3] - box[2]) / 30.0

            keep, mixup_module.cutmix_bbox_and_lam = mixup_module.cutmix_bbox_and_lam, box_and_share
            mixup._params_per_elem = lambda count: (shares[:count].copy(), cut[:count])
            mixup._params_per_batch = lambda: (0.3, mode == "batch_cut")
            batch = [(torch.from_numpy(image.transpose(2, 0, 1).copy()), label) for image, label in zip(images, labels)]
            result, targets = mixup(batch)
            mixup_module.cutmix_bbox_and_lam = keep
            mixed = result.numpy().transpose(0, 2, 3, 1).tobytes()
            numbers = " ".join(f"{value:.9g}" for value in targets.flatten().tolist())
            lines.append(f"{mode}\t{smoothing}\t{images.tobytes().hex()}\t{mixed.hex()}\t{numbers}\n")
    (OUT / "mixup.tsv").write_text("".join(lines))


def sequences():
    rng = np.random.default_rng(9)
    lines = []
    for _ in range(400):
        height, width = (int(2 ** rng.uniform(3, 11)) for _ in range(2))
        patch = (int(rng.integers(4, 33)), int(rng.integers(4, 33)))
        length = int(rng.choice([16, 128, 196, 256, 576, 784, 1024]))
        divisible = bool(rng.integers(0, 2))
        limit = float(rng.choice([0.5, 1.0, 2.0])) if rng.integers(0, 2) else None
        ratio, (target_height, target_width) = naflex.get_image_size_for_seq((height, width), patch, length, divisible, limit)
        lines.append(f"{height}\t{width}\t{patch[0]}\t{patch[1]}\t{length}\t{int(divisible)}\t{limit or 0}\t{ratio!r}\t{target_height}\t{target_width}\n")
    (OUT / "sequence_sizes.tsv").write_text("".join(lines))

    lines = []
    for height, width, patch in [(7, 5, (3, 2)), (8, 8, (4, 4)), (4, 9, (5, 3))]:
        image = rng.integers(0, 256, (3, height, width), dtype=np.uint8)
        for channels_last in [True, False]:
            patches, coordinates, _ = naflex.patchify_image(torch.from_numpy(image), patch, channels_last=channels_last)
            places = " ".join(f"{y},{x}" for y, x in coordinates.tolist())
            source = image.transpose(1, 2, 0).tobytes().hex()
            lines.append(f"{height}\t{width}\t{patch[0]}\t{patch[1]}\t{int(channels_last)}\t{source}\t{places}\t{patches.numpy().tobytes().hex()}\n")
    (OUT / "patches.tsv").write_text("".join(lines))


def augmix():
    """AugMix of three known chains, with known weights."""
    image = SOURCES["scene"]
    chains = [lambda im: aa.solarize(im, 100), aa.invert, lambda im: aa.posterize(im, 2)]
    weights, share = np.float32([0.2, 0.5, 0.3]), np.float32(0.6)
    results = []
    for blended in [False, True]:
        turn = iter(chains)
        keep, np.random.choice = np.random.choice, lambda ops, depth, replace: [next(turn)]
        mix = aa.AugMixAugment(chains, depth=1, blended=blended)
        results.append(np.asarray((mix._apply_blended if blended else mix._apply_basic)(image, weights, share)))
        np.random.choice = keep
    Image.fromarray(np.concatenate(results)).save(OUT / "augmix.png", optimize=True)


def resizes():
    """Pillow's resize of a part with fractional edges: what a reduced decode is followed by."""
    image = SOURCES["scene"]
    width, height = image.size
    rows = []
    for resample in [Image.NEAREST, Image.BILINEAR, Image.BICUBIC, Image.LANCZOS]:
        for box in [(0.5, 0.25, width, height), (0, 0, width - 0.5, height - 0.75)]:
            rows.append(np.asarray(image.resize((20, 17), resample, box=box)))
    Image.fromarray(np.concatenate(rows)).save(OUT / "fractional.png", optimize=True)


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    operations()
    augmix()
    resizes()
    levels()
    mixup_batches()
    sequences()
    out = Distributions()
    for part in [policies, geometry, erasing, jitter, mixing]:
        part(out)
    out.write()
    print(sum(path.stat().st_size for path in OUT.iterdir()), "bytes, Pillow", Image.__version__, "torch", torch.__version__)


if __name__ == "__main__":
    main()
