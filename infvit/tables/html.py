"""The layout that all HTML pages share: light and dark, a tooltip beside the pointer, no network."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def environment(folder: Path) -> Environment:
    """Returns a Jinja environment for the templates of `folder`, which extend page_base.html.jinja; text is escaped."""
    loader = FileSystemLoader([folder, Path(__file__).parent])
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
