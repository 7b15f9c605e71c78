"""Scipion plugin: tilt series are aligned, reconstructed and judged by the ``inr-*`` programs of inrtomo.

The programs run in an environment of their own; nothing of it is imported here. ``engine`` starts them,
``series_files`` writes what they read, ``conventions`` is the only place where matrices and angles change their form,
and ``local_motion`` finds what Scipion's sets cannot hold.
"""

import os
import shlex
import subprocess

import pwem
from pyworkflow import VarTypes
from pyworkflow.constants import TOMO
from pyworkflow.utils import Environ

from .constants import ENGINE, ENGINE_VERSION, INR_ENV_ACTIVATION, INR_HOME, INR_SOURCE

__version__ = "0.1.0"
_logo = "logo.png"
_references = ["Debarnot2024IceTide"]

PYTHON_VARIABLES = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
"""What Scipion's own Python may have set and another Python must not see."""


class Plugin(pwem.Plugin):
    _homeVar = INR_HOME
    _supportedVersions = [ENGINE_VERSION]
    _processingField = [TOMO]
    _found = False

    @classmethod
    def _defineVariables(cls):
        cls._defineEmVar(
            INR_HOME,
            f"{ENGINE}-{ENGINE_VERSION}",
            description="Folder with the environment that `scipion3 installb inrtomo` made.",
            var_type=VarTypes.FOLDER,
        )
        cls._defineVar(
            INR_ENV_ACTIVATION,
            "",
            description="Shell command that brings the inr-* programs onto the PATH, such as `conda activate inrtomo` "
            "or `module load inrtomo`. Empty: the environment in INR_HOME.",
            var_type=VarTypes.STRING,
        )
        cls._defineVar(
            INR_SOURCE,
            cls._checkout(),
            description="What pip installs as the engine: a checkout, a wheel or a requirement. Default: the checkout "
            "that holds the plugin, if it is in one.",
            var_type=VarTypes.STRING,
        )

    @classmethod
    def _checkout(cls):
        """The engine's checkout, where the plugin is used from within it."""
        root = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", ".."))
        return root if os.path.isfile(os.path.join(root, ENGINE, "commands", "align.py")) else ""

    @classmethod
    def getActivation(cls):
        """Shell command after which the ``inr-*`` programs can be called."""
        activation = cls.getVar(INR_ENV_ACTIVATION).strip().rstrip("&; ")
        if not activation:
            return f"export PATH={shlex.quote(cls.getHome('env', 'bin'))}:$PATH"
        if activation.startswith("conda "):
            return f"{cls.getCondaActivationCmd()} {activation}".strip()
        return activation

    @classmethod
    def getEnviron(cls):
        """The environment of the engine's processes: Scipion's, without what belongs to its Python."""
        environ = Environ(os.environ)
        for name in PYTHON_VARIABLES:
            environ.pop(name, None)
        return environ

    @classmethod
    def validateInstallation(cls):
        """Empty when the programs can be started, else sentences for the user."""
        if cls._found:
            return []
        command = f"{cls.getActivation()} && command -v inr-align"
        tried = subprocess.run(["bash", "-c", command], env=cls.getEnviron(), capture_output=True, text=True)
        if tried.returncode == 0:
            cls._found = True
            return []
        return [
            f"inr-align cannot be started: `{cls.getActivation()}` does not bring it onto the PATH"
            + (f" ({tried.stderr.strip().splitlines()[-1]})." if tried.stderr.strip() else "."),
            f"Run `scipion3 installb {ENGINE}`, or set {INR_ENV_ACTIVATION} in scipion.conf to what activates an "
            "environment with inrtomo.",
        ]

    @classmethod
    def defineBinaries(cls, env):
        """A plain virtual environment with the engine in ``INR_HOME/env``."""
        source = cls.getVar(INR_SOURCE)
        script = os.path.join(os.path.dirname(__file__), "install_engine.sh")
        flag = f"{ENGINE}_{ENGINE_VERSION}_installed"
        command = f"sh {shlex.quote(script)} {shlex.quote(source)} env && touch {flag}"
        env.addPackage(
            ENGINE,
            version=ENGINE_VERSION,
            tar="void.tgz",
            commands=[(command, flag)],
            neededProgs=[],
            vars={"PATH": os.environ.get("PATH", "")},
            default=True,
        )
