"""Text that a terminal, Markdown or LaTeX shows as it is."""

import re
import unicodedata

MARKDOWN = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", **{char: f"\\{char}" for char in "\\|*`[]"}})
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    # In the fonts of plain LaTeX these are other characters, or two of them become one.
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    '"': "{''}",
    "`": "{`}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≠": r"$\neq$",
    "≥": r"$\geq$",
    "Δ": r"$\Delta$",
    "−": r"$-$",
    "–": r"\textendash{}",
    "…": r"\ldots{}",
    "²": r"$^2$",
} | {char: f"\\{char}" for char in "#$%&_{}"}


def printable(text: str) -> str:
    """One line without the control characters that would move a terminal's cursor."""
    return "".join(char if char.isprintable() else " " for char in text)


def markdown(text: str) -> str:
    """Text for one cell or list item of Markdown, in one line."""
    return printable("; ".join(text.splitlines())).translate(MARKDOWN)


def latex(text: str, breakable: bool = False) -> str:
    """Text for LaTeX without packages, in one line; a letter that it lacks loses its accent or becomes "?".

    A `breakable` text may be broken after slashes and underscores, as names of files need.
    """
    # Hyphens side by side would become a dash.
    escaped = re.sub("-(?=-)", "-{}", "".join(LATEX.get(char) or _letter(char) for char in text))
    return re.sub(r"(\\_|/)", r"\1\\allowbreak{}", escaped) if breakable else escaped


def _letter(char: str) -> str:
    if char.isascii():
        return printable(char)
    plain = unicodedata.normalize("NFKD", char).encode("ascii", "ignore").decode()
    return "".join(LATEX.get(c, c) for c in plain) or ("" if unicodedata.combining(char) else "?")
