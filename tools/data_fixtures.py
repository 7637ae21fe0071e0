"""Writes crates/data/tests/fixtures: images and the bytes that Pillow, torchvision and timm make of them.

    pip install timm torch torchvision && python tools/data_fixtures.py

`cases.tsv` has a line per case: kind, source file, options, height, width, offset into `expected.bin`,
where the case's height * width * 3 bytes stand.
"""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms.functional as F
from PIL import Image
from timm.data.transforms import CenterCropOrPad
from timm.data.transforms_factory import create_transform

OUT = Path(__file__).resolve().parent.parent / "crates" / "data" / "tests" / "fixtures"


def picture(width, height, seed, channels=3):
    """Slopes, an edge, saturated parts and some noise: what interpolation and colour have to cope with."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    planes = []
    for channel in range(channels):
        plane = 127 + 120 * np.sin(x / (3 + channel) + seed) * np.cos(y / (4 + channel))
        plane += rng.normal(0, 25, plane.shape)
        plane[(x - width / 2) ** 2 + (y - height / 2) ** 2 < (min(width, height) / 4) ** 2] = 255 * (channel % 2)
        planes.append(plane)
    return np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8)


def png16(path, array):
    """Pillow cannot write 16 bits on several channels."""
    height, width, channels = array.shape
    color = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def write_sources():
    def save(name, image, **options):
        image.save(OUT / name, **options)

    rgb = Image.fromarray(picture(61, 47, 1))
    save("rgb.png", rgb)
    save("wide.png", Image.fromarray(picture(100, 30, 2)))
    save("color.png", Image.fromarray(picture(32, 24, 12)))
    save("tiny.png", Image.fromarray(picture(8, 8, 3)))
    save("gray.png", Image.fromarray(picture(40, 53, 4, 1)[..., 0]))
    palette = Image.fromarray(picture(50, 37, 5)).quantize(40)
    save("palette.png", palette)
    save("palette_transparent.png", palette, transparency=3)
    save("bilevel.png", Image.fromarray(picture(29, 17, 6, 1)[..., 0]).convert("1"))
    save("rgba.png", Image.fromarray(picture(45, 33, 7, 4), "RGBA"))
    save("gray_alpha.png", Image.fromarray(picture(30, 20, 8, 2), "LA"))
    rng = np.random.default_rng(9)
    png16(OUT / "gray16.png", rng.choice([0, 7, 255, 256, 40000, 65535], (9, 11, 1)))
    png16(OUT / "gray_alpha16.png", rng.integers(0, 65536, (9, 11, 2)))
    png16(OUT / "rgb16.png", rng.integers(0, 65536, (9, 11, 3)))
    png16(OUT / "rgba16.png", rng.integers(0, 65536, (9, 11, 4)))
    save("image.bmp", rgb)
    save("palette.gif", palette)
    save("lossless.webp", rgb, lossless=True)
    save("lossy.webp", rgb, quality=80)
    save("image.tif", rgb, compression="tiff_lzw")
    large = Image.fromarray(picture(41, 33, 10)).resize((61, 47), Image.BICUBIC)
    save("420.jpg", large, quality=90)
    save("444.jpg", large, quality=90, subsampling=0)
    save("progressive.jpg", large, quality=90, progressive=True)
    save("gray.jpg", large.convert("L"), quality=90)
    save("cmyk.jpg", Image.fromarray(picture(32, 24, 11, 4), "CMYK"), quality=95)


class Cases:
    def __init__(self):
        self.lines, self.data, self.size = [], [], 0

    def add(self, kind, source, options, image):
        array = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
        assert array.dtype == np.uint8 and array.shape[2] == 3, (array.dtype, array.shape)
        text = ";".join(f"{key}={value}" for key, value in options.items())
        self.lines.append(f"{kind}\t{source}\t{text}\t{array.shape[0]}\t{array.shape[1]}\t{self.size}\n")
        self.data.append(array.tobytes())
        self.size += array.size

    def write(self):
        (OUT / "cases.tsv").write_text("".join(self.lines))
        (OUT / "expected.bin").write_bytes(b"".join(self.data))


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for old in OUT.iterdir():
        old.unlink()
    write_sources()
    cases = Cases()
    sources = sorted(path.name for path in OUT.iterdir())
    for name in sources:
        cases.add("decode", name, {}, Image.open(OUT / name))

    def load(name):
        return Image.open(OUT / name).convert("RGB")

    def evaluate(source, training=False, **options):
        size = tuple(int(edge) for edge in options["size"].split("x"))
        arguments = {key: value for key, value in options.items() if key != "size"}
        transform = create_transform(
            (3, *size), is_training=training, no_aug=training, normalize=False, **arguments
        )
        out = transform(load(source)).permute(1, 2, 0).numpy()
        assert out.shape == (*size, 3), out.shape
        cases.add("no_aug" if training else "eval", source, options, out)

    for interpolation in ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]:
        evaluate("rgb.png", size="32x32", interpolation=interpolation, crop_pct=0.875)
        evaluate("tiny.png", size="21x21", interpolation=interpolation, crop_pct=0.9)
    for crop_mode in ["center", "squash", "border"]:
        for interpolation in ["bilinear", "bicubic"]:
            for crop_pct in [0.875, 1.0]:
                evaluate("gray.png", size="24x24", interpolation=interpolation, crop_pct=crop_pct, crop_mode=crop_mode)
                evaluate("wide.png", size="17x28", interpolation=interpolation, crop_pct=crop_pct, crop_mode=crop_mode)
    evaluate("rgb.png", size="32x32", interpolation="bicubic", crop_pct=0.95, crop_border_pixels=5)
    evaluate("rgba.png", size="20x20", interpolation="bicubic", crop_pct=1.2)
    evaluate("rgba.png", size="21x20", interpolation="bicubic", crop_pct=1.3, crop_mode="squash")
    evaluate("palette.png", size="37x50", interpolation="lanczos", crop_pct=1.0, crop_mode="squash")
    for interpolation in ["bilinear", "bicubic"]:
        evaluate("rgb.png", training=True, size="32x32", interpolation=interpolation)
        evaluate("wide.png", training=True, size="20x30", interpolation=interpolation)

    image = load("color.png")
    operations = {
        "brightness": (F.adjust_brightness, [0.0, 0.35, 1.0, 1.7]),
        "contrast": (F.adjust_contrast, [0.0, 0.6, 1.4]),
        "saturation": (F.adjust_saturation, [0.0, 0.61, 1.4, 3.0]),
        "hue": (F.adjust_hue, [-0.5, -0.1, 0.05, 0.33]),
    }
    for name, (operation, factors) in operations.items():
        for factor in factors:
            cases.add(name, "color.png", {"factor": factor}, operation(image, factor))
    cases.add("gray", "color.png", {}, F.rgb_to_grayscale(image, 3))
    for sigma in [0.1, 0.8, 2.0]:
        cases.add("blur", "color.png", {"factor": sigma}, F.gaussian_blur(image, [23, 23], [sigma, sigma]))
    cases.add("reflect", "tiny.png", {}, CenterCropOrPad((31, 5), padding_mode="reflect")(load("tiny.png")))
    cases.write()
    total = sum(path.stat().st_size for path in OUT.iterdir())
    print(len(cases.lines), "cases,", total, "bytes, torch", torch.__version__, "Pillow", Image.__version__)


if __name__ == "__main__":
    main()
