"""What every page of the library shares: its layout, its light and dark, the tip beside the pointer, and no network."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def environment(folder: Path) -> Environment:
    """Returns a Jinja environment for the templates of `folder`, which extend page_base.html.jinja; text is escaped."""
    loader = FileSystemLoader([folder, Path(__file__).parent])
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
