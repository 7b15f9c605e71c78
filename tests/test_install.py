"""What an installation is like: how fast commands start, and that the recipes in ``integration/containers`` work."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from typing import Any

from inrtomo.commands import recon
from inrtomo.losses import COUNT_KINDS, KINDS
from inrtomo.reconstruct.ctf_correction import MODES
from inrtomo.reconstruct.field import FIELDS, FieldSettings
from inrtomo.reconstruct.sart_tv import SartTvSettings
from inrtomo.reconstruct.sirt import SirtSettings
from tests.running import ROOT
from tests.test_commands import NAMES

SLOW_TO_LOAD = ("torch", "numba", "matplotlib", "scipy", "pandas", "skimage", "mdocfile", "starfile")
HELP = """
import importlib, sys
from click.testing import CliRunner
for name in {names}:
    command = importlib.import_module("inrtomo.commands." + name).main
    assert CliRunner().invoke(command, ["--help"]).exit_code == 0, name
    print(name, *(module for module in {slow} if module in sys.modules))
"""


def test_help_loads_nothing_slow() -> None:
    """All commands in one process, so the first that is named wrongly here is the one to look at."""
    code = HELP.format(names=NAMES, slow=SLOW_TO_LOAD)
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines() == NAMES


def test_alignment_pipeline_does_without_torch() -> None:
    """Only networks need it, and it takes longer to load than everything else together."""
    code = "import sys, inrtomo.align.pipeline, inrtomo.commands._recon_run; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_defaults_in_the_help_of_recon_are_those_of_its_methods() -> None:
    assert recon.CTF_MODES == MODES and recon.FIELDS == FIELDS
    assert set(recon.LOSSES) == {*KINDS, *COUNT_KINDS}
    field, sirt = FieldSettings(), SirtSettings()
    assert recon.PRIORS == asdict(field.priors)
    assert (recon.SIRT_ITERATIONS, recon.SART_TV_ITERATIONS) == (sirt.iterations, SartTvSettings().iterations)
    said: dict[str, Any] = {parameter.name or "": parameter.default for parameter in recon.main.params}
    assert (said["field_kind"], said["loss"], said["seed"]) == (field.field, field.loss, field.seed)
    assert said["subsets"] == sirt.subsets
