"""Hooks of the documentation's site: links out of docs/, to files of the project, become text."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"


def on_page_markdown(markdown, *, page, config, files):
    """Takes the links to files that exist; mkdocs tells those that do not."""
    here = (DOCS / page.file.src_path).parent

    def replaced(match):
        text, target = match[1], match[2].partition("#")[0]
        path = (here / target).resolve()
        inside = path.is_relative_to(DOCS) and not target.endswith(".jsonl")
        return match[0] if not target or inside or not path.exists() else text

    return re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", replaced, markdown)
