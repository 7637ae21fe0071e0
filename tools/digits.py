"""Writes crates/data/data/digits.bin: the embedded data set.

Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, UCI Machine Learning Repository,
1998, https://doi.org/10.24432/C50P49, licence CC BY 4.0, as scikit-learn carries it (load_digits).
1797 records of 65 bytes: the label, then 8 x 8 values of 0 to 16, rows from the top.

    pip install scikit-learn && python tools/digits.py
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

digits = load_digits()
assert digits.images.shape == (1797, 8, 8) and digits.images.max() == 16
records = np.concatenate([digits.target[:, None], digits.data], axis=1).astype(np.uint8)
path = Path(__file__).resolve().parent.parent / "crates" / "data" / "data" / "digits.bin"
path.parent.mkdir(parents=True, exist_ok=True)
path.write_bytes(records.tobytes())
print(path, records.shape, path.stat().st_size, "bytes")
