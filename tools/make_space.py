"""Write the folder that becomes a Hugging Face Docker Space: the tracked files, a README with front matter on top.

    .venv/bin/python tools/make_space.py /tmp/space

The front matter is not in the repository's own README, where GitHub shows it as a table above the first heading.
"""

import argparse
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FRONT_MATTER = """---
title: shortviz
emoji: ✂️
colorFrom: indigo
colorTo: yellow
sdk: docker
app_port: 8501
pinned: false
license: apache-2.0
short_description: See and test which layers of an LLM are redundant
models: [HuggingFaceTB/SmolLM2-135M-Instruct]
hf_oauth: true
hf_oauth_scopes: [contribute-repos]
---

"""
LEFT_OUT = ("tests", "benchmarks", ".ci")


def make_space(target: Path) -> list[str]:
    """Fill a new or empty folder; return the names of the files in it."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise SystemExit(f"{target} is not an empty folder; name another one.")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    names = [name for name in listed.stdout.split("\0") if name and name.split("/")[0] not in LEFT_OUT]
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target / name)
    readme = target / "README.md"
    readme.write_text(FRONT_MATTER + readme.read_text(encoding="utf-8"), encoding="utf-8")
    return names


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    found = make_space(parser.parse_args().folder)
    print(f"{len(found)} files. Create the Space (SDK Docker) on the hub, then push this folder to it: docs/hosting.md")
