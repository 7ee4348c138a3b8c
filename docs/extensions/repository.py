"""Links of the pages to files of the repository beside docs/, and a list of the links that lead out of the site."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from docutils import nodes

DOCS = Path(__file__).resolve().parents[1]
ROOT = DOCS.parent
TARGETS = (
    (r"\.\./examples/(\w+/\w+)\.py", r"/generated/gallery/\1.rst"),
    (r"\.\./examples/(\w+)\.py", r"/generated/gallery/scripts/\1.rst"),
    (r"\.\./benchmarks/results/(\w+)\.md", r"/generated/results/\1.md"),
    (r"\.\./README\.md(#\w+)?", r"/start.md"),
    (r"\.\./CHANGELOG\.md", r"/changelog.md"),
)


def _read(app: Any, document: str, source: list[str]) -> None:
    for pattern, target in TARGETS:
        source[0] = re.sub(rf"\]\({pattern}\)", rf"]({target})", source[0])
    if document.startswith("generated/results/"):
        source[0] = re.sub(r"\]\((\w+\.md)", r"](/\1", f"---\norphan: true\n---\n{source[0]}")


def copy_results() -> None:
    """The whole tables of the benchmarks, pages of their own."""
    folder = DOCS / "generated" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    for path in (ROOT / "benchmarks" / "results").glob("*.md"):
        shutil.copy2(path, folder / path.name)


def _list_links(app: Any, error: Exception | None) -> None:
    if error is not None or app.builder.format != "html":
        return
    found: dict[str, set[str]] = {}
    for document in sorted(app.env.found_docs):
        for node in app.env.get_doctree(document).findall(nodes.reference):
            uri = node.get("refuri", "")
            if uri.startswith(("http:", "https:")):
                found.setdefault(uri, set()).add(document)
    path = Path(app.outdir).parent / "external_links.txt"
    path.write_text("".join(f"{uri}\t{', '.join(sorted(pages))}\n" for uri, pages in sorted(found.items())), "utf-8")
    print(f"{len(found)} links lead out of the site: {path}")


def setup(app: Any) -> dict[str, bool]:
    copy_results()
    app.connect("source-read", _read)
    app.connect("build-finished", _list_links)
    return {"parallel_read_safe": True}
