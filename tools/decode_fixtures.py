"""Writes crates/data/tests/decode: small image files of every kind and what Pillow makes of them.

    pip install pillow numpy && python tools/decode_fixtures.py
    python tools/decode_fixtures.py --speed FOLDER     # generates JPEGs of 500 x 375 and times Pillow on them

`cases.tsv` has a line per case: file, reduction (of JPEG's draft mode), width, height and the FNV-1a hash
(64 bits) of the RGB bytes of `Image.open(file).convert("RGB")`; or `error` where Pillow refuses the file.
"""

import io
import struct
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

OUT = Path(__file__).resolve().parent.parent / "crates" / "data" / "tests" / "decode"
ZIGZAG = sorted(range(64), key=lambda i: (i // 8 + i % 8, (i // 8 if (i // 8 + i % 8) % 2 else i % 8)))


def fnv(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


def picture(width, height, seed, channels=3):
    """Slopes, edges, saturated parts and a little noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    planes = []
    for channel in range(channels):
        plane = 127 + 110 * np.sin(x / (5 + 3 * channel) + seed) * np.cos(y / (7 + 2 * channel))
        plane += rng.normal(0, 6, plane.shape)
        plane[(x - width / 2) ** 2 + (y - height / 2) ** 2 < (min(width, height) / 4) ** 2] = 255 * (channel % 2)
        planes.append(plane)
    return np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8)


# --- A JPEG writer for what Pillow does not write: any sampling factors, colour models and scan orders. ---


def standard_codes():
    """Pillow's default Huffman tables, as (DHT segments, {(class, id): {symbol: (code, length)}})."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    data, position, segments, codes = buffer.getvalue(), 2, b"", {}
    while data[position + 1] != 0xDA:
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if data[position + 1] == 0xC4:
            segments += data[position : position + 2 + length]
            at = position + 4
            while at < position + 2 + length:
                counts = data[at + 1 : at + 17]
                symbols = iter(data[at + 17 : at + 17 + sum(counts)])
                code, table = 0, {}
                for bits, count in enumerate(counts, 1):
                    for _ in range(count):
                        table[next(symbols)] = (code, bits)
                        code += 1
                    code <<= 1
                codes[data[at] >> 4, data[at] & 15] = table
                at += 17 + sum(counts)
        position += 2 + length
    return segments, codes


def random_jpeg(width, height, factors, seed, ids=None, app=b"", restart=0, interleaved=True, tables=True, wide=False):
    """Random sparse coefficients under the standard codes."""
    rng = np.random.default_rng(seed)
    dht, codes = standard_codes()
    ids = ids or list(range(1, len(factors) + 1))
    max_h, max_v = max(h for h, _ in factors), max(v for _, v in factors)
    steps = [int(v) for v in np.clip(rng.integers(1, 12, 64) + np.arange(64) // 4, 1, 255)]
    quant = bytes([16]) + b"".join(struct.pack(">H", s) for s in steps) if wide else bytes([0] + steps)
    out = b"\xff\xd8" + app + b"\xff\xdb" + struct.pack(">H", 2 + len(quant)) + quant
    frame = struct.pack(">BHHB", 8, height, width, len(factors))
    frame += b"".join(bytes([i, h << 4 | v, 0]) for i, (h, v) in zip(ids, factors))
    out += b"\xff\xc0" + struct.pack(">H", 2 + len(frame)) + frame + (dht if tables else b"")
    if restart:
        out += b"\xff\xdd\x00\x04" + struct.pack(">H", restart)

    def scan(parts):
        header = bytes([len(parts)]) + b"".join(bytes([ids[p], 0 if p == 0 else 0x11]) for p in parts) + bytes([0, 63, 0])
        data = b"\xff\xda" + struct.pack(">H", 2 + len(header)) + header
        if len(parts) == 1:
            h, v = factors[parts[0]] if len(factors) > 1 else (max_h, max_v)
            columns = -(-(-(-width * h // max_h)) // 8)
            rows = -(-(-(-height * v // max_v)) // 8)
            blocks = [(parts[0], 1)]
        else:
            columns, rows = -(-width // (8 * max_h)), -(-height // (8 * max_v))
            blocks = [(p, factors[p][0] * factors[p][1]) for p in parts]
        bits, predictors, marker = [], {}, 0

        def put(code, length):
            bits.append(f"{code:0{length}b}" if length else "")

        def flush():
            nonlocal bits
            text = "".join(bits)
            text += "1" * (-len(text) % 8)
            bits = []
            return bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8)).replace(b"\xff", b"\xff\0")

        def value(number):
            size = abs(int(number)).bit_length()
            return size, int(number) if number > 0 else int(number) + (1 << size) - 1

        for group in range(columns * rows):
            if restart and group and group % restart == 0:
                data += flush() + bytes([0xFF, 0xD0 + marker % 8])
                marker, predictors = marker + 1, {}
            for part, count in blocks:
                table = 0 if part == 0 else 1
                for _ in range(count):
                    dc = int(rng.integers(-60, 60))
                    size, number = value(dc - predictors.get(part, 0))
                    predictors[part] = dc
                    put(*codes[0, table][size])
                    put(number, size)
                    zeros = 0
                    last = int(rng.choice([0, 3, 12, 63]))
                    for place in range(1, last + 1):
                        number = int(rng.integers(-20, 21) / (1 + place / 8)) if rng.random() < 0.5 else 0
                        if number == 0:
                            zeros += 1
                            continue
                        while zeros > 15:
                            put(*codes[1, table][0xF0])
                            zeros -= 16
                        size, number = value(number)
                        put(*codes[1, table][zeros << 4 | size])
                        put(number, size)
                        zeros = 0
                    if last < 63 or zeros:
                        put(*codes[1, table][0])
        return data + flush()

    everything = list(range(len(factors)))
    for parts in [everything] if interleaved else [[p] for p in everything]:
        out += scan(parts)
    return out + b"\xff\xd9"


def adobe(transform):
    content = b"Adobe" + struct.pack(">HHHB", 100, 0, 0, transform)
    return b"\xff\xee" + struct.pack(">H", 2 + len(content)) + content


JFIF = b"\xff\xe0\x00\x10JFIF\0\1\1\0\0\1\0\1\0\0"


def write_jpegs(save, write):
    rgb = Image.fromarray(picture(77, 53, 1))
    for name, subsampling in [("444", 0), ("422", 1), ("420", 2)]:
        save(f"{name}.jpg", rgb, quality=85, subsampling=subsampling)
        save(f"{name}-progressive.jpg", rgb, quality=85, subsampling=subsampling, progressive=True)
    save("q30.jpg", rgb, quality=30)
    save("q100-optimized.jpg", rgb, quality=100, optimize=True)
    save("gray.jpg", rgb.convert("L"), quality=80)
    save("gray-progressive.jpg", rgb.convert("L"), quality=80, progressive=True)
    save("cmyk-adobe.jpg", Image.fromarray(picture(41, 30, 2, 4), "CMYK"), quality=80)
    save("restart-blocks.jpg", rgb, quality=85, restart_marker_blocks=3)
    save("restart-rows.jpg", rgb, quality=85, restart_marker_rows=1)
    save("restart-progressive.jpg", rgb, quality=85, progressive=True, restart_marker_blocks=4)
    for width, height in [(1, 1), (2, 3), (3, 2), (4, 5), (5, 4), (8, 8), (9, 17), (17, 9), (33, 1), (1, 33)]:
        save(f"size-{width}x{height}.jpg", Image.fromarray(picture(width, height, 3)), quality=90)
    exif = Image.Exif()
    exif[0x0112] = 6
    save("rotated-exif.jpg", rgb, quality=75, exif=exif.tobytes())
    whole = (OUT / "420.jpg").read_bytes()
    write("cut.jpg", whole[: len(whole) // 2])
    write("cut-with-end.jpg", whole[: len(whole) // 2] + b"\xff\xd9")
    write("no-end.jpg", whole[:-2])
    write("junk-behind.jpg", whole + b"junk\xff\xd8 behind")
    progressive = (OUT / "420-progressive.jpg").read_bytes()
    write("cut-progressive.jpg", progressive[: len(progressive) // 2])
    restarts = (OUT / "restart-blocks.jpg").read_bytes()
    # Without the fourth interval and its marker, and with the third twice.
    third, fourth, fifth = (restarts.index(bytes([0xFF, 0xD0 + n])) for n in (2, 3, 4))
    write("restart-missing.jpg", restarts[:fourth] + restarts[fifth:])
    write("restart-twice.jpg", restarts[:fourth] + restarts[third:])

    for name, factors in {
        "440": [(1, 2), (1, 1), (1, 1)],
        "411": [(4, 1), (1, 1), (1, 1)],
        "410": [(4, 2), (1, 1), (1, 1)],
        "441": [(1, 4), (1, 1), (1, 1)],
        "mixed": [(2, 2), (1, 2), (2, 1)],
        "chroma-finer": [(1, 1), (2, 2), (2, 1)],
        "fraction": [(3, 1), (2, 1), (1, 1)],
        "third": [(3, 2), (1, 1), (1, 2)],
    }.items():
        write(f"sampling-{name}.jpg", random_jpeg(75, 50, factors, 7))
    plain = [(1, 1)] * 3
    write("rgb-ids.jpg", random_jpeg(40, 30, plain, 8, ids=list(b"RGB")))
    write("rgb-adobe.jpg", random_jpeg(40, 30, plain, 9, app=adobe(0)))
    write("rgb-ids-jfif.jpg", random_jpeg(40, 30, plain, 10, ids=list(b"RGB"), app=JFIF))
    write("odd-ids.jpg", random_jpeg(40, 30, plain, 11, ids=[0, 1, 2]))
    write("cmyk-plain.jpg", random_jpeg(40, 30, [(1, 1)] * 4, 12))
    write("cmyk-adobe-0.jpg", random_jpeg(40, 30, [(1, 1)] * 4, 13, app=adobe(0)))
    write("ycck-420.jpg", random_jpeg(41, 31, [(2, 2), (1, 1), (1, 1), (2, 2)], 14, app=adobe(2)))
    write("two-components.jpg", random_jpeg(40, 30, [(1, 1)] * 2, 15))
    write("gray-factors.jpg", random_jpeg(40, 30, [(1, 1)], 16).replace(b"\x01\x01\x11\x00", b"\x01\x01\x22\x00"))
    write("separate-scans.jpg", random_jpeg(75, 50, [(2, 2), (1, 1), (1, 1)], 17, interleaved=False))
    write("separate-restarts.jpg", random_jpeg(75, 50, [(2, 1), (1, 1), (1, 1)], 18, interleaved=False, restart=5))
    write("no-tables.jpg", random_jpeg(40, 30, plain, 19, tables=False))
    write("wide-steps.jpg", random_jpeg(40, 30, plain, 20, wide=True))


def reductions(path):
    """The image as Pillow opens it, at full size and in JPEG's draft mode."""
    yield 1, Image.open(path)
    for reduction in (2, 4, 8):
        image = Image.open(path)
        if image.format != "JPEG":
            return
        width, height = image.size
        if width >= reduction and height >= reduction:
            image.draft(None, (width // reduction, height // reduction))
            assert image.size == (-(-width // reduction), -(-height // reduction)), (path, reduction)
            yield reduction, image


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for old in OUT.iterdir():
        if old.is_file():
            old.unlink()

    def save(name, image, **options):
        image.save(OUT / name, **options)

    def write(name, data):
        (OUT / name).write_bytes(data)

    write_jpegs(save, write)
    from decode_formats import write_formats

    write_formats(save, write, picture)
    lines = []
    for path in sorted(OUT.iterdir()):
        try:
            for reduction, image in reductions(path):
                rgb = image.convert("RGB")
                lines.append(f"{path.name}\t{reduction}\t{rgb.width}\t{rgb.height}\t{fnv(rgb.tobytes())}\n")
        except Exception as error:
            print(f"{path.name}: {type(error).__name__}: {error}")
            lines = [line for line in lines if not line.startswith(path.name + "\t")]
            lines.append(f"{path.name}\t1\t0\t0\terror\n")
    (OUT / "cases.tsv").write_text("".join(lines))
    total = sum(path.stat().st_size for path in OUT.iterdir())
    print(len(lines), "cases,", total, "bytes, Pillow", Image.__version__)


def speed(folder):
    """JPEGs like photographs: noise at several scales and shapes, about 60 to 100 kB each."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for index in range(32):
        path = folder / f"{index:02}.jpg"
        if path.exists():
            continue
        image = np.zeros((375, 500, 3))
        for cells, strength in [(4, 60), (12, 35), (40, 22), (120, 14), (300, 7)]:
            noise = rng.normal(0, strength, (cells * 3 // 4, cells, 3)) * [1, 0.6, 0.8] + rng.normal(0, strength, (cells * 3 // 4, cells, 1))
            planes = [Image.fromarray(noise[..., c].astype(np.float32)).resize((500, 375), Image.BICUBIC) for c in range(3)]
            image += np.stack([np.asarray(plane) for plane in planes], -1)
        y, x = np.mgrid[0:375, 0:500]
        for _ in range(12):
            cx, cy, radius = rng.integers(0, 500), rng.integers(0, 375), rng.integers(10, 80)
            inside = (x - cx) ** 2 + (y - cy) ** 2 < radius**2 if rng.random() < 0.5 else (abs(x - cx) < radius) & (abs(y - cy) < radius)
            image[inside] = image[inside] * 0.4 + rng.normal(0, 70, 3)
        image += rng.normal(0, 3, image.shape)
        Image.fromarray(np.clip(image + 128, 0, 255).astype(np.uint8)).save(path, quality=90)
    files = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
    print(f"{len(files)} files, {sum(map(len, files)) / len(files) / 1000:.1f} kB each")
    rounds = []
    for _ in range(8):
        start = time.perf_counter()
        for data in files:
            Image.open(io.BytesIO(data)).convert("RGB")
        rounds.append(time.perf_counter() - start)
    print(f"Pillow {Image.__version__}: {len(files) / min(rounds):.0f} images/s, {min(rounds) / len(files) * 1e3:.3f} ms")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--speed"]:
        speed(Path(sys.argv[2]))
    else:
        main()
