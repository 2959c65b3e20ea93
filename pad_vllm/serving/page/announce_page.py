"""`python -m pad_vllm.serving.page.announce_page URL [--open]`: says where the page is, once it is there.

In: the address of a server that its parent process starts. Out: a line on standard output, and a browser with
--open. Ends when the page answers, or when the parent does.
"""

from __future__ import annotations

import os
import ssl
import sys
import time
import urllib.error
import urllib.request
import webbrowser

_PAUSE_S = 1.0


def announce(url: str, *, open_page: bool) -> None:
    """Wait until the page answers, then print its address.

    Args:
        url: the server's address.
        open_page: also open a browser.
    """
    started, parent = time.monotonic(), os.getppid()
    page = f"{url}/pad/"
    while not _answers(page):
        time.sleep(_PAUSE_S)
        if os.getppid() != parent:
            return
    seconds = time.monotonic() - started
    print(f"\nThe page: {page}   (after {seconds:.0f} s; Ctrl C ends the server)\n", flush=True)
    if open_page:
        webbrowser.open(page)


def _answers(page: str) -> bool:
    # The server's own certificate may be self-signed, and nothing secret is sent.
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with urllib.request.urlopen(page, timeout=5, context=context):  # noqa: S310 our own address
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


if __name__ == "__main__":
    announce(sys.argv[1], open_page="--open" in sys.argv[2:])
