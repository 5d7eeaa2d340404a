"""Runs the code of the gallery and saves the figure of each image: ``python docs/make_gallery.py``.

What the page shows is what it draws. It needs ``pip install 'pyterrier-mechir[lab]'``, Linux (for PISA), and about
three minutes on two cores.
"""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib
from matplotlib import pyplot as plt

PAGE = Path(__file__).parent / "gallery.md"

_PART = re.compile(r"^```python\n(?P<code>.*?)^```|^!\[[^]]*\]\((?P<image>[^)]+)\)", re.DOTALL | re.MULTILINE)


def parts(page: str) -> list[tuple[str, str]]:
    """The code blocks and images of a page, in order: ``("code", ...)`` or ``("image", its path)``."""
    return [(str(part.lastgroup), part[str(part.lastgroup)]) for part in _PART.finditer(page)]


def make(page: Path, dpi: int = 110) -> None:
    """Run the code blocks of a page, one after the other, and save each figure as the image that follows its block.

    Args:
        page: a Markdown file; paths of images are relative to it.
        dpi: of the images.

    Raises:
        ValueError: a block before an image draws nothing.
    """
    names: dict[str, object] = {}
    for kind, content in parts(page.read_text(encoding="utf-8")):
        if kind == "code":
            plt.close("all")
            exec(compile(content, str(page), "exec"), names)
            continue
        if not plt.get_fignums():
            raise ValueError(f"the code before {content} draws no figure.")
        target = page.parent / content
        target.parent.mkdir(exist_ok=True)
        plt.savefig(target, dpi=dpi, metadata={"Software": None})
        print(target.relative_to(page.parent), f"{target.stat().st_size / 1024:.0f} KB", flush=True)
    plt.close("all")


if __name__ == "__main__":
    matplotlib.use("Agg")
    make(PAGE)
