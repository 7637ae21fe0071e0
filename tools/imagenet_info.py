"""Writes crates/data/data/imagenet.bin and imagenet_real.bin: ImageNet's class lists and real labels.

    python tools/imagenet_info.py TIMM_FOLDER

TIMM_FOLDER is the folder of an installed timm (it holds data/_info).

imagenet.bin: deflated lines `WordNet id, tab, lists, tab, words`, in the order of ids. `lists` is a hexadecimal
number with a bit for each list the class is in (LISTS). All lists are in the order of ids but imagenet-22k-ms, which
begins with imagenet-1k.

imagenet_real.bin: deflated; for each of the 50000 validation images a byte with the number of labels, then each label
as two bytes, low first.
"""
import csv
import json
import struct
import sys
import zlib
from pathlib import Path

LISTS = ["imagenet", "imagenet12k", "imagenet22k", "imagenet21k_goog", "imagenet21k_miil", "imagenet21k_miil_w21",
         "imagenet_a", "imagenet_r", "mini_imagenet", "imagenet22k_ms"]


def main():
    info = Path(sys.argv[1]) / "data" / "_info"
    out = Path(__file__).parent.parent / "crates" / "data" / "data"
    lemma_file = (info / "imagenet_synset_to_lemma.txt").read_text()
    lemmas = dict(csv.reader(lemma_file.splitlines(), delimiter="\t"))
    lists = {name: (info / f"{name}_synsets.txt").read_text().split() for name in LISTS}
    first = lists["imagenet"]
    for name, ids in lists.items():
        assert len(set(ids)) == len(ids), name
        if name == "imagenet22k_ms":
            assert ids[:1000] == first and ids[1000:] == sorted(ids[1000:])
        else:
            assert ids == sorted(ids), name
    members = {name: set(ids) for name, ids in lists.items()}
    every = sorted(set(lemmas).union(*lists.values()))
    lines = []
    for synset in every:
        bits = sum(1 << bit for bit, name in enumerate(LISTS) if synset in members[name])
        words = lemmas.get(synset, "")
        lines.append(f"{synset}\t{bits:x}\t{words}\n")
    deflated = zlib.compress("".join(lines).encode(), 9)
    (out / "imagenet.bin").write_bytes(deflated)
    print(len(every), "classes,", len(deflated), "bytes", {name: len(ids) for name, ids in lists.items()})

    real = json.loads((info / "imagenet_real_labels.json").read_text())
    assert len(real) == 50000
    packed = b"".join(struct.pack(f"<B{len(labels)}H", len(labels), *labels) for labels in real)
    deflated = zlib.compress(packed, 9)
    (out / "imagenet_real.bin").write_bytes(deflated)
    print(len(deflated), "bytes of real labels")


main()
