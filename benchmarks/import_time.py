"""What does `import synther_buffers` cost beyond `import torch`? Whole processes, in turn.

python benchmarks/import_time.py [--toy] [--out FILE]
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from measuring import alternate, write


def run(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="one round only")
    parser.add_argument("--out", help="where to write the JSON (default: benchmarks/results/import_time.json)")
    args = parser.parse_args()
    alone, ours = alternate(
        lambda: run("import torch"), lambda: run("import torch, synther_buffers"), 1, 1 if args.toy else 9
    )
    print(f"import torch: {alone:.2f} s; with synther_buffers: {ours:.2f} s; {ours - alone:.2f} s more")
    write("import_time", {"torch_seconds": alone, "with_package_seconds": ours}, args.out)


if __name__ == "__main__":
    main()
