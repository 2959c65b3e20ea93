"""What of vLLM's inside is leaned on, and how another version differs: reads files, runs nothing.

python scripts/contract.py FOLDER          FOLDER holds `vllm`, such as an unpacked wheel
python scripts/contract.py FOLDER --write  take its sources for the tested ones
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
        source = Path(tested_symbols.__file__)
        text = source.read_text("utf-8")
        for file, name, tested in tested_symbols.listed_symbols():
            now = tested_symbols.source_hash(package, file, name)
            text = text.replace(f'"{name}": "{tested}"', f'"{name}": "{now}"')
        source.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
