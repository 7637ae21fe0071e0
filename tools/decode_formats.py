"""The PNG, GIF, BMP, TIFF, WebP and PNM files of `decode_fixtures.py`: every pixel layout that Pillow opens."""

import struct
import zlib

import numpy as np
from PIL import Image


def png(width, height, depth, color, rows, palette=b"", transparency=b"", interlace=0):
    """A PNG of packed rows (without filter bytes); `rows` is a list of passes if interlaced."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    data = b"".join(b"\0" + row for row in rows)
    out = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlace))
    out += chunk(b"PLTE", palette) if palette else b""
    out += chunk(b"tRNS", transparency) if transparency else b""
    return out + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def packed(values, depth):
    """Rows of numbers to rows of bytes, the most significant first."""
    rows = []
    for row in values:
        if depth == 16:
            rows.append(np.asarray(row).astype(">u2").tobytes())
            continue
        text = "".join(f"{int(value):0{depth}b}" for value in np.asarray(row).ravel())
        text += "0" * (-len(text) % 8)
        rows.append(bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8)))
    return rows


def bmp(width, height, bits, compression, data, palette=b"", masks=b"", header_size=40, colors=0):
    header = struct.pack("<IiiHHIIiiII", header_size, width, height, 1, bits, compression, len(data), 2835, 2835, colors, 0)
    header += b"\0" * (header_size - 40)
    if header_size >= 52:
        header = header[:40] + masks + header[40 + len(masks) :]
        masks = b""
    offset = 14 + len(header) + len(masks) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset) + header + masks + palette + data


def tiff(width, height, entries, strips, order="<"):
    """A TIFF with one directory: `entries` {tag: (type, values)}, `strips` the image's parts."""
    out = bytearray((b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 0))
    offsets = []
    for strip in strips:
        offsets.append(len(out))
        out += strip
    entries = {256: (4, [width]), 257: (4, [height]), **entries}
    tiled = 322 in entries
    entries[324 if tiled else 273] = (4, offsets)
    entries[325 if tiled else 279] = (4, [len(strip) for strip in strips])
    table = b""
    for tag, (kind, values) in sorted(entries.items()):
        letter = {1: "B", 3: "H", 4: "I"}[kind]
        data = struct.pack(order + letter * len(values), *values)
        if len(data) > 4:
            table += struct.pack(order + "HHII", tag, kind, len(values), len(out))
            out += data
        else:
            table += struct.pack(order + "HHI", tag, kind, len(values)) + data.ljust(4, b"\0")
    out += b"\0" * (len(out) % 2)
    struct.pack_into(order + "I", out, 4, len(out))
    return bytes(out) + struct.pack(order + "H", len(entries)) + table + b"\0\0\0\0"


def write_formats(save, write, picture):
    rng = np.random.default_rng(5)
    rgb = Image.fromarray(picture(37, 29, 21))
    gray = rgb.convert("L")
    rgba = Image.fromarray(picture(37, 29, 22, 4), "RGBA")
    la = Image.fromarray(picture(37, 29, 23, 2), "LA")
    palette = rgb.quantize(16)
    write_png(save, write, rng, rgb, gray, rgba, la, palette)
    write_gif(save, write, rgb, gray, rgba, palette)
    write_bmp(save, write, rng, rgb, gray, rgba, palette)
    write_tiff(save, write, rng, rgb, gray, rgba, la, palette)

    save("lossy.webp", rgb, quality=60)
    save("lossy-odd.webp", rgb.crop((0, 0, 17, 13)), quality=90)
    save("lossy-alpha.webp", rgba, quality=70)
    save("lossless.webp", rgb, lossless=True)
    save("lossless-alpha.webp", rgba, lossless=True, exact=True)
    save("lossless-palette.webp", palette.convert("RGB"), lossless=True)
    frames = [rgba, rgba.rotate(90), rgba.rotate(180)]
    save("animated.webp", frames[0], save_all=True, append_images=frames[1:], duration=50, lossless=True)
    save("animated-lossy.webp", rgb, save_all=True, append_images=[rgb.rotate(90)], duration=50, quality=60)

    save("rgb.ppm", rgb)
    save("gray.pgm", gray)
    save("bilevel.pbm", gray.convert("1"))
    save("wide.pgm", Image.fromarray(rng.integers(0, 65536, (9, 11)).astype(np.uint16)))
    write("plain.ppm", b"P3\n# a comment\n3 2\n255\n255 0 0  0 255 0  0 0 255\n1 2 3 # more\n 40 50 60 7 8 9\n")
    write("plain.pgm", b"P2 4 2 15\n0 1 2 3\n12 13 14 15\n")
    write("plain.pbm", b"P1\n5 2\n1 0 1 0 1\n01010\n")
    write("scaled.ppm", b"P6 3 1 100\n" + bytes([0, 50, 100, 1, 2, 3, 99, 98, 97]))
    write("scaled16.ppm", b"P6 2 1 1000\n" + struct.pack(">6H", 0, 500, 1000, 1, 2, 3))


def write_png(save, write, rng, rgb, gray, rgba, la, palette):
    for depth in [1, 2, 4, 8, 16]:
        values = rng.integers(0, 1 << depth, (7, 13))
        write(f"gray-{depth}.png", png(13, 7, depth, 0, packed(values, depth)))
        write(f"gray-{depth}-trns.png", png(13, 7, depth, 0, packed(values, depth), transparency=struct.pack(">H", 1)))
        if depth < 16:
            colors = rng.integers(0, 256, 3 << depth).astype(np.uint8).tobytes()
            write(f"palette-{depth}.png", png(13, 7, depth, 3, packed(values, depth), colors))
            write(f"palette-{depth}-trns.png", png(13, 7, depth, 3, packed(values, depth), colors, b"\0\x80"))
    short = rng.integers(0, 256, 30).astype(np.uint8).tobytes()
    write("palette-short.png", png(13, 7, 8, 3, packed(rng.integers(0, 256, (7, 13)), 8), short))
    for color, channels, name in [(2, 3, "rgb"), (4, 2, "la"), (6, 4, "rgba")]:
        write(f"{name}-16.png", png(13, 7, 16, color, packed(rng.integers(0, 65536, (7, 13 * channels)), 16)))
    write("rgb-trns.png", png(13, 7, 8, 2, packed(rng.integers(0, 2, (7, 39)) * 255, 8), transparency=b"\0\xff\0\0\0\0"))
    write("rgb-16-trns.png", png(13, 7, 16, 2, packed(rng.integers(0, 65536, (7, 39)), 16), transparency=b"\0\xff\0\0\0\0"))
    save("rgb.png", rgb)
    save("rgba.png", rgba)
    save("la.png", la)
    save("animated.png", rgb, save_all=True, append_images=[rgb.rotate(90)])
    for depth, color, channels in [(8, 2, 3), (1, 0, 1), (4, 3, 1), (16, 6, 4)]:
        values = rng.integers(0, 1 << depth, (11, 10, channels))
        rows = []
        for x0, y0, dx, dy in [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]:
            part = values[y0::dy, x0::dx]
            rows += packed(part.reshape(part.shape[0], -1), depth) if part.size else []
        colors = rng.integers(0, 256, 48).astype(np.uint8).tobytes() if color == 3 else b""
        write(f"interlaced-{color}-{depth}.png", png(10, 11, depth, color, rows, colors, interlace=1))
    whole = png(13, 7, 8, 2, packed(rng.integers(0, 256, (7, 39)), 8))
    write("cut.png", whole[: len(whole) // 2])
    write("no-iend.png", whole[:-12])
    bad = bytearray(whole)
    bad[-17] ^= 0xFF
    write("bad-idat-crc.png", bytes(bad))


def write_gif(save, write, rgb, gray, rgba, palette):
    save("palette.gif", palette)
    save("gray.gif", gray)
    save("transparent.gif", palette, transparency=3)
    save("interlaced.gif", palette, interlace=1)
    save("rgba.gif", rgba)
    save("animated.gif", palette, save_all=True, append_images=[palette.rotate(90)], duration=50)
    whole = bytearray(palette_gif(palette, 37, 29))
    write("plain-87a.gif", bytes(whole))
    # The frame lies inside a larger canvas, whose background is color 5.
    write("small-frame.gif", palette_gif(palette, 60, 50, at=(11, 7), background=5))
    write("small-frame-transparent.gif", palette_gif(palette, 60, 50, at=(11, 7), background=5, transparent=2))
    write("large-frame.gif", palette_gif(palette, 20, 10))
    write("local-colors.gif", palette_gif(palette, 40, 30, at=(1, 1), local=True))
    write("no-colors.gif", palette_gif(palette, 37, 29, colors=False))
    write("cut.gif", bytes(whole[: len(whole) // 2]))
    write("no-trailer.gif", bytes(whole[:-1]))


def palette_gif(image, width, height, at=(0, 0), background=0, transparent=None, local=False, colors=True):
    """A GIF of one frame, its codes all nine bits or fewer by clearing often."""
    table = bytes(image.getpalette()[:48]).ljust(48, b"\0")
    out = b"GIF89a" if transparent is not None else b"GIF87a"
    out += struct.pack("<HHBBB", width, height, 0x83 if colors and not local else 0, background, 0)
    out += table if colors and not local else b""
    if transparent is not None:
        out += b"\x21\xf9\x04\x01" + struct.pack("<HB", 0, transparent) + b"\0"
    out += b"," + struct.pack("<HHHHB", *at, image.width, image.height, 0x83 if local else 0) + (table if local else b"")
    # Codes of 5 bits: a clear (16) before every 14 colors keeps them so.
    codes = []
    for index, value in enumerate(image.tobytes()):
        if index % 14 == 0:
            codes.append(16)
        codes.append(value)
    codes.append(17)
    bits = 0
    for index, code in enumerate(codes):
        bits |= code << (5 * index)
    data = bits.to_bytes(-(-5 * len(codes) // 8), "little")
    out += bytes([4])
    for start in range(0, len(data), 255):
        part = data[start : start + 255]
        out += bytes([len(part)]) + part
    return out + b"\0;"


def write_bmp(save, write, rng, rgb, gray, rgba, palette):
    save("rgb.bmp", rgb)
    save("gray.bmp", gray)
    save("palette.bmp", palette)
    save("bilevel.bmp", gray.convert("1"))
    save("rgba.bmp", rgba)

    def rows(values, depth, width):
        lines = packed(values, depth)
        return b"".join(line + b"\0" * (-len(line) % 4) for line in reversed(lines))

    colors = b"".join(bytes([*rng.integers(0, 256, 3), 0]) for _ in range(16))
    four = rng.integers(0, 16, (7, 13))
    write("bits-4.bmp", bmp(13, 7, 4, 0, rows(four, 4, 13), colors, colors=16))
    write("top-down.bmp", bmp(13, -7, 4, 0, rows(four, 4, 13), colors, colors=16))
    write("bits-1.bmp", bmp(13, 7, 1, 0, rows(four & 1, 1, 13), colors[:8]))
    sixteen = rng.integers(0, 65536, (7, 13)).astype("<u2")
    data = b"".join(row.tobytes() + b"\0\0" for row in sixteen)
    write("bits-16.bmp", bmp(13, 7, 16, 0, data))
    write("bits-565.bmp", bmp(13, 7, 16, 3, data, masks=struct.pack("<III", 0xF800, 0x7E0, 0x1F)))
    write("bits-32.bmp", bmp(13, 7, 32, 0, rng.integers(0, 256, 7 * 13 * 4).astype(np.uint8).tobytes()))
    quads = rng.integers(0, 256, 7 * 13 * 4).astype(np.uint8).tobytes()
    write("masks-32.bmp", bmp(13, 7, 32, 3, quads, masks=struct.pack("<III", 0xFF0000, 0xFF00, 0xFF)))
    write("masks-v4.bmp", bmp(13, 7, 32, 3, quads, masks=struct.pack("<IIII", 0xFF, 0xFF00, 0xFF0000, 0xFF000000), header_size=108))
    run = b"\x05\x03\x04\x07\x00\x04\x01\x02\x03\x04\x00\x00" + b"\x0d\x02\x00\x00" * 5 + b"\x07\x09\x06\x01\x00\x01"
    write("rle-8.bmp", bmp(13, 7, 8, 1, run, colors, colors=16))
    write("rle-4.bmp", bmp(13, 7, 4, 2, b"\x0d\x37\x00\x00" * 6 + b"\x00\x05\x12\x34\x50\x00\x08\x21\x00\x01", colors, colors=16))
    core = struct.pack("<IHHHH", 12, 13, 7, 1, 4)
    core_colors = b"".join(colors[i : i + 3] for i in range(0, 64, 4))
    offset = 14 + 12 + 48
    write("os2.bmp", b"BM" + struct.pack("<IHHI", 0, 0, 0, offset) + core + core_colors + rows(four, 4, 13))
    whole = bmp(13, 7, 4, 0, rows(four, 4, 13), colors, colors=16)
    write("cut.bmp", whole[:-20])


def write_tiff(save, write, rng, rgb, gray, rgba, la, palette):
    for compression in ["tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "raw"]:
        save(f"rgb-{compression}.tif", rgb, compression=compression)
    save("gray.tif", gray)
    save("gray-lzw.tif", gray, compression="tiff_lzw")
    save("rgba.tif", rgba)
    save("la.tif", la)
    save("palette.tif", palette)
    save("bilevel.tif", gray.convert("1"))
    save("bilevel-group3.tif", gray.convert("1"), compression="group3")
    save("bilevel-group4.tif", gray.convert("1"), compression="group4")
    save("cmyk.tif", rgb.convert("CMYK"))
    save("float.tif", Image.fromarray(rng.uniform(-50, 300, (9, 11)).astype(np.float32)))
    save("int32.tif", Image.fromarray(rng.integers(-50, 300, (9, 11)).astype(np.int32)))
    save("wide.tif", Image.fromarray(rng.integers(0, 65536, (9, 11)).astype(np.uint16)))
    save("ycbcr.tif", rgb.convert("YCbCr"))
    save("pages.tif", rgb, save_all=True, append_images=[gray])
    exif = Image.Exif()
    exif[0x0112] = 6
    save("rotated.tif", rgb, exif=exif)
    values = rng.integers(0, 256, (8, 12, 3)).astype(np.uint8)
    short, long = 3, 4
    base = {258: (short, [8, 8, 8]), 259: (short, [1]), 262: (short, [2]), 277: (short, [3]), 278: (long, [8])}
    write("big-endian.tif", tiff(12, 8, base, [values.tobytes()], ">"))
    strips = [values[y : y + 3].tobytes() for y in range(0, 8, 3)]
    write("strips.tif", tiff(12, 8, {**base, 278: (long, [3])}, strips))
    planes = [values[..., c].tobytes() for c in range(3)]
    write("planar.tif", tiff(12, 8, {**base, 284: (short, [2])}, planes))
    padded = np.zeros((16, 16, 3), np.uint8)
    padded[:8, :12] = values
    write("tiled.tif", tiff(12, 8, {**base, 322: (long, [16]), 323: (long, [16])}, [padded.tobytes()]))
    difference = np.diff(values.astype(np.int16), axis=1, prepend=0).astype(np.uint8)
    write("predictor.tif", tiff(12, 8, {**base, 259: (short, [8]), 317: (short, [2])}, [zlib.compress(difference.tobytes())]))
    wide = rng.integers(0, 65536, (8, 12, 3)).astype("<u2")
    write("rgb-16.tif", tiff(12, 8, {**base, 258: (short, [16] * 3)}, [wide.tobytes()]))
    one = {258: (short, [8]), 259: (short, [1]), 277: (short, [1]), 278: (long, [8])}
    plane = values[..., 0].tobytes()
    write("white-is-zero.tif", tiff(12, 8, {**one, 262: (short, [0])}, [plane]))
    four = b"".join(packed(values[..., 0] >> 4, 4))
    write("gray-4.tif", tiff(12, 8, {**one, 258: (short, [4]), 262: (short, [1])}, [four]))
    write("bilevel-white.tif", tiff(12, 8, {**one, 258: (short, [1]), 262: (short, [0])}, [b"".join(packed(values[..., 0] & 1, 1))]))
    write("unassociated.tif", tiff(12, 8, {**base, 258: (short, [8] * 4), 277: (short, [4]), 338: (short, [2])}, [rng.integers(0, 256, 8 * 12 * 4).astype(np.uint8).tobytes()]))
    write("associated.tif", tiff(12, 8, {**base, 258: (short, [8] * 4), 277: (short, [4]), 338: (short, [1])}, [rng.integers(0, 256, 8 * 12 * 4).astype(np.uint8).tobytes()]))
    whole = tiff(12, 8, base, [values.tobytes()])
    write("cut.tif", whole[:200])
