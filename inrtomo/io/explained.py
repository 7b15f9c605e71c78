"""What is taken of other programs' files, and what is not: one table per format, made of what the readers declare.

``inr-convert --explain FORMAT`` prints a table; ``python -m inrtomo.io.explained > docs/formats.md`` writes the page of
all of them.
"""

from __future__ import annotations

from inrtomo.io import aretomo, etomo, mdoc, relion, warp
from inrtomo.io.keys import Fate, Section, taken

JSON = Section(
    "BASE_align.json, BASE_truth.json",
    (
        *taken("angles, matrices, shifts, local motion, images left out: all of it", "alignment"),
        *taken("recorded angles; exposure before each image", "nominal_tilt_deg", "exposure_e_A2"),
        *taken("where each image is", "images"),
        *taken("of the sample", "thickness_px", "thickness_nm"),
    ),
    "no matter here (how the run went)",
)
ARETOMO_FOLDER = Section(
    "NAME_Imod folder",
    (
        *taken("as of an Etomo folder, in the order of the stack or by angle", "NAME_st.xf, .tlt, .xtilt, tilt.com"),
        *taken("recorded angles", "NAME_order_list.csv"),
    ),
    "no matter here",
)
FORMATS: dict[str, tuple[Section, ...]] = {
    "etomo": (etomo.FILES, etomo.TILT, etomo.NEWST, etomo.ALIGN, etomo.EDF),
    "aretomo": (aretomo.ALN, ARETOMO_FOLDER),
    "relion5": (relion.OVERVIEW, relion.SERIES),
    "warp": (warp.XML,),
    "mdoc": (mdoc.MDOC,),
    "json": (JSON,),
}
NAMES = {"imod": "etomo", "relion": "relion5", "outimod1": "aretomo", "outimod2": "aretomo"}
"""Other names of formats."""
TITLES = {
    "etomo": "IMOD and Etomo",
    "aretomo": "AreTomo",
    "relion5": "RELION",
    "warp": "Warp and M",
    "mdoc": "SerialEM",
    "json": "inrtomo",
}
HEAD = """# What is taken of other programs' files

Made of what the readers declare, by `python -m inrtomo.io.explained > docs/formats.md`; `inr-convert --explain FORMAT`
prints the part of a format. *Taken* is applied. *Left out* is said, in one sentence with the file and the key, unless
it has a value at which it changes nothing. *No matter* is passed over.

Numbers are read strictly in every format: finite, within what the quantity can be, nothing behind them; a decimal
comma is read where a comma can mean nothing else.
"""


def rows(name: str) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Title and rows (keys, what becomes of them, meaning) of every file of a format; keys of one meaning together."""
    tables = []
    for section in FORMATS[NAMES.get(name, name)]:
        together: dict[tuple[str, str], list[str]] = {}
        for key in sorted(section.keys, key=lambda key: list(Fate).index(key.fate)):
            together.setdefault((key.fate.value, key.meaning), []).append(key.name)
        lines = [(", ".join(names), fate, meaning) for (fate, meaning), names in together.items()]
        tables.append((section.title, [*lines, ("all others", section.others, "")]))
    return tables


def text(name: str) -> str:
    """The tables of a format for a terminal."""
    out = []
    for title, lines in rows(name):
        out += [title, ""]
        for names, fate, meaning in lines:
            out.append(f"  {names}")
            out.append(f"      {fate}" + (f": {meaning}" if meaning else ""))
        out.append("")
    return "\n".join(out)


def page() -> str:
    """The page of all formats, Markdown."""
    out = [HEAD]
    for name, title in TITLES.items():
        out.append(f"## {title} (`--explain {name}`)\n")
        for file, lines in rows(name):
            out += [f"### {file}\n", "| key | what becomes of it | meaning |", "|---|---|---|"]
            out += [f"| {names} | {fate} | {meaning} |" for names, fate, meaning in lines]
            out.append("")
    return "\n".join(out)


if __name__ == "__main__":
    print(page(), end="")
