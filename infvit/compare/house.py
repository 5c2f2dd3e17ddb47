"""What every page of the library shares: its layout, its light and dark, the tip beside the pointer, and no network."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def environment(folder: Path) -> Environment:
    """Templates of `folder` that extend house.html.jinja, which gives house.css and house.js; all text is escaped."""
    loader = FileSystemLoader([folder, Path(__file__).parent])
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
