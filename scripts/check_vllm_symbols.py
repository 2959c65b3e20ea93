"""Which of vLLM's internals that PAD uses differ in another version. Reads files, runs nothing of vLLM.

python scripts/check_vllm_symbols.py FOLDER          FOLDER holds `vllm`, such as an unpacked wheel
python scripts/check_vllm_symbols.py FOLDER --write  make its sources the tested ones (tested_symbols.json)
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pad_vllm.vllm_api import tested_symbols


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", default=tested_symbols.vllm_folder().parent)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    package = args.folder / "vllm"
    changed = tested_symbols.changed_symbols(package)
    for symbol, how in changed.items():
        print(f"{how:8} {symbol}")
    count = len(tested_symbols.listed_symbols())
    print(f"{count - len(changed)} of {count} symbols as tested")
    if args.write:
        tested_symbols.write_symbols(package)


if __name__ == "__main__":
    main()
