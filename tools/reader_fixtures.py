"""Writes crates/data/tests/fixtures/readers.bin.gz: small data sets, and what timm's readers make of them.

    pip install timm==1.0.31 torch torchvision datasets webdataset && python tools/reader_fixtures.py

The file is a gzipped sequence of (length of name, name, length of content, content), lengths as 4 bytes, low first.
`cases.json` in it has for each case the arguments of timm's create_dataset, its class_to_idx, and for each sample the
file name, the target and the CRC-32 of what the reader gives: the file's content, or of webdataset shards (whose
reader decodes) the bytes of the RGB pixels.
"""
import gzip
import io
import json
import os
import shutil
import struct
import sys
import tarfile
import tempfile
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.data import create_dataset

OUT = Path(__file__).resolve().parent.parent / "crates" / "data" / "tests" / "fixtures" / "readers.bin.gz"


def png(seed):
    pixels = np.random.default_rng(seed).integers(0, 255, (3, 4, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def add(tar, name, content, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(content), kind, link
    tar.addfile(info, io.BytesIO(content))


def tar_bytes(members, form=tarfile.GNU_FORMAT):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for member in members:
            add(tar, *member)
    return out.getvalue()


def plain(names):
    return [(name, ("content of " + name).encode()) for name in names]


def trees(root):
    def write(name, content):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    names = ["train/n10/b.png", "train/n10/img10.JPG", "train/n10/img2.jpeg", "train/N8/x.png", "train/n10/a/1.png",
             "train/deep/er/n9b/1.png", "train/n10a/02.png", "train/n10a/1.png", "train/n10a/2_b.png",
             "train/n10a/2_a.png", "train/n10-x/1.png", "train/root.png", "train/n9/Z.png", "train/n9/.jpg",
             "train/n9/a.b.png", "train/ü/é2.png", "train/ü/é10.png", "train/n9/notes.txt",
             "valid/n9/1.png", "valid/n10/1.jpg"]
    for name in names:
        write("folder/" + name, ("content of " + name).encode())
    write("folder/map.txt", b"n10\nn9\n")

    long = "n2/" + "long/" * 30 + "x" * 90 + ".jpg"
    members = plain(["n10/2.jpg", "n10/10.jpg", "n9/a.PNG", "top.jpeg", "./n9/b.png", "n9/c.txt", long])
    members.insert(2, ("n10", b"", tarfile.DIRTYPE))
    members.insert(3, ("n10/link.jpg", b"", tarfile.SYMTYPE, "2.jpg"))
    for form, number in [("gnu", tarfile.GNU_FORMAT), ("pax", tarfile.PAX_FORMAT)]:
        write(f"tar/{form}.tar", tar_bytes(members, number))
    write("tar/ustar.tar", tar_bytes(members[:-1] + plain(["p" * 90 + "/" + "q" * 60 + ".png"]), tarfile.USTAR_FORMAT))
    write("tars/n10.tar", tar_bytes(plain(["n10_2.jpg", "n10_1.jpg", "same.png"])))
    write("tars/n9.tar", tar_bytes(plain(["n9_5.jpg", "same1.png", "sub/1.png"])))
    inner = [(f"{name}.tar", tar_bytes(plain([f"{name}_{i}.JPEG" for i in (10, 9, 1)]))) for name in ("n02", "n1")]
    write("nested.tar", tar_bytes(inner + plain(["x/outer.png"])))

    def shard(samples, missing=()):
        members = []
        for key, label, extra in samples:
            image = png(abs(hash(key)) % 1000 if isinstance(key, int) else zlib.crc32(key.encode()))
            if ("image", key) not in missing:
                members.append((f"{key}.png", image))
            if label is not None:
                members.append((f"{key}.cls", str(label).encode()))
            if extra is not None:
                members.append((f"{key}.json", json.dumps(extra).encode()))
        return tar_bytes(members)

    def extra(i):
        return {"label": i % 4 - 1, "alt": i % 3, "deep": {"er": i % 2}, "labels": [i % 5, 4], "hot": [0, i % 2, 0.5],
                "cat": i % 2, "dog": int(i % 3 == 0)}

    names = []
    for number in range(4):
        keys = [f"dir/{number:02}_{i}" for i in range(5)]
        name = f"set-train-{number:04}.tar"
        names.append(name)
        write("wds/" + name, shard([(key, (number + i) % 7, extra(number * 5 + i)) for i, key in enumerate(keys)]))
    # A sample without image, one without label, a foreign file, webdataset's own file.
    odd = tar_bytes([("__meta__.txt", b"x"), ("a.png", png(1)), ("a.cls", b"3"), ("b.cls", b"1"), ("c.png", png(2)),
                     ("d.0.png", png(3)), ("e.PNG", png(4)), ("e.CLS", b" 2\n"), ("readme", b""), ("f.x.png", png(5)),
                     ("g.png", png(6)), ("g.cls", b"-1x"), ("h.png", png(7)), ("h.cls", b"0")])
    write("wds/set-validation-0000.tar", odd)
    info = {"name": "set", "splits": {
        "train": {"name": "train", "filenames": names, "shard_lengths": [5] * 4, "num_samples": 20},
        "alt": {"name": "alt", "filenames": names[:2], "shard_lengths": [5] * 2, "num_samples": 10, "alt_label": "alt"},
        "validation": {"name": "validation", "filenames": ["set-validation-0000.tar"], "shard_lengths": [3],
                       "num_samples": 3}}}
    write("wds/_info.json", json.dumps(info).encode())


def parquets(root):
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq
    datasets.disable_progress_bars()
    count = 23
    images = [{"bytes": png(i), "path": f"im_{i}.png"} for i in range(count)]
    features = datasets.Features({
        "image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog", "emu"]),
        "labels": datasets.Sequence(datasets.ClassLabel(names=["a", "b", "c", "d"])),
        "hot": datasets.Sequence(datasets.Value("float32")), "fine": datasets.Value("int64"),
        "on": datasets.Value("bool"), "off": datasets.Value("int8"),
        "objects": {"category": datasets.Sequence(datasets.ClassLabel(names=["x", "y"]))}})
    data = datasets.Dataset.from_dict({
        "image": images, "label": [i % 3 for i in range(count)], "labels": [[i % 4] * (i % 3) for i in range(count)],
        "hot": [[0.0, i / count] for i in range(count)], "fine": [i * 7 % 5 for i in range(count)],
        "on": [i % 2 == 0 for i in range(count)], "off": [int(i > 9) for i in range(count)],
        "objects": [{"category": [i % 2]} for i in range(count)]}, features=features)
    (root / "hf" / "data").mkdir(parents=True)
    data.select(range(9)).to_parquet(root / "hf/data/train-00000-of-00002.parquet")
    data.select(range(9, count)).to_parquet(root / "hf/data/train-00001-of-00002.parquet", batch_size=4)
    data.select(range(5)).to_parquet(root / "hf/data/test-00000-of-00001.parquet")
    table = data.data.table
    forms = {"none": dict(compression="none"), "gzip": dict(compression="gzip", row_group_size=10),
             "zstd": dict(compression="zstd", data_page_version="2.0"),
             "plain": dict(use_dictionary=False, data_page_size=200, write_batch_size=3),
             "dict2": dict(data_page_version="2.0", row_group_size=7, data_page_size=100, write_batch_size=2)}
    for name, options in forms.items():
        (root / f"hf-{name}").mkdir()
        pq.write_table(table, root / f"hf-{name}" / "train.parquet", **options)


def seeds(root):
    """Small files for the fuzzer and for tests of damaged files: crates/data/tests/readers."""
    out = OUT.parent.parent / "readers"
    out.mkdir(exist_ok=True)
    for name in ("tar/gnu", "tar/pax", "tar/ustar", "nested", "wds/set-train-0000", "wds/set-validation-0000"):
        content = (root / f"{name}.tar").read_bytes().rstrip(b"\0")
        content += b"\0" * (-len(content) % 512 + 1024)
        (out / (name.split("/")[-1] + ".tar")).write_bytes(content)
    for name in ("none", "gzip", "zstd", "plain", "dict2"):
        shutil.copy(root / f"hf-{name}" / "train.parquet", out / f"{name}.parquet")
    shutil.copy(root / "hf/data/test-00000-of-00001.parquet", out / "hub.parquet")


def crc(value):
    if isinstance(value, Image.Image):
        return zlib.crc32(np.asarray(value).tobytes())
    return zlib.crc32(value.read())


def plain_target(target):
    if isinstance(target, (list, tuple)):
        return [float(value) for value in target] if any(isinstance(v, float) for v in target) else \
            [int(value) for value in target]
    return int(target)


def record(root, cases, name, where, **kwargs):
    data = create_dataset(name, root=None if name.startswith("hfds") else str(root / where), **kwargs)
    reader = data.reader
    classes = getattr(reader, "class_to_idx", None)
    classes = reader.class_name_to_idx if classes is None else classes
    samples = []
    if hasattr(reader, "__getitem__"):
        names = reader.filenames()
        for index in range(len(reader)):
            content, target = reader[index][:2]
            samples.append([names[index], plain_target(target), crc(content)])
    else:
        names = reader.filenames()
        items = list(reader)
        keep = names if len(names) == len(items) else [""] * len(items)
        samples = [[file, plain_target(target), crc(image)] for (image, target), file in zip(items, keep)]
    cases.append({"reader": name, "root": where, "classes": classes, "samples": samples, **kwargs})


def main():
    base = Path(tempfile.mkdtemp())
    root = base / "sets"
    trees(root)
    parquets(root)
    os.chdir(root)
    cases = []

    def case(name, where, **kwargs):
        record(root, cases, name, where, **kwargs)

    case("", "folder", split="train")
    case("", "folder", split="validation")
    case("", "folder", split="train", class_map="../map.txt")
    case("", "folder", split="train", input_key=".jpg;.jpeg")
    for form in ("gnu", "pax", "ustar"):
        case("", f"tar/{form}.tar", split="train")
    case("", "nested.tar", split="train")
    for split, more in [("train", {}), ("validation", {}), ("alt", {}), ("set-train-{0001..0002}.tar", {}),
                        ("set-train-0000.tar::set-train-0003.tar", {}), ("train", {"target_key": "label"}),
                        ("train", {"target_key": "deep/er"}), ("train", {"target_key": "labels"}),
                        ("train", {"target_key": "hot", "target_format": "multihot"}),
                        ("train", {"target_key": "dog, cat"})]:
        case("wds/", "wds", split=split, **more)
    for split, more in [("train", {}), ("test", {}), ("train", {"target_key": "labels"}), ("train", {"target_key": "fine"}),
                        ("train", {"target_key": "hot", "target_format": "multihot"}),
                        ("train", {"target_key": "off,on"}), ("train", {"target_key": "objects/category"}),
                        ("train[20%:75%]", {}), ("train[-3:]", {})]:
        case("hfds/hf", "", split=split, **more)
    for form in ("none", "gzip", "zstd", "plain", "dict2"):
        case(f"hfds/hf-{form}", "", split="train")
        case(f"hfds/hf-{form}", "", split="train", target_key="labels")

    # A folder of archives is no choice of the factory's: the reader itself reads it.
    from timm.data.readers.reader_image_in_tar import ReaderImageInTar
    reader = ReaderImageInTar(str(root / "tars"))
    samples = [[reader.filename(i), int(reader[i][1]), zlib.crc32(reader[i][0].read())] for i in range(len(reader))]
    cases.append({"reader": "tar/", "root": "tars", "split": "", "classes": reader.class_name_to_idx, "samples": samples})

    seeds(root)
    files = {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
    files["cases.json"] = json.dumps(cases, indent=0, ensure_ascii=False).encode()
    packed = b"".join(struct.pack("<I", len(name.encode())) + name.encode() + struct.pack("<I", len(content)) + content
                      for name, content in files.items() if ".cache" not in name)
    OUT.write_bytes(gzip.compress(packed, 9, mtime=0))
    print(len(cases), "cases,", len(files), "files,", OUT.stat().st_size, "bytes")
    shutil.rmtree(base)


main()
