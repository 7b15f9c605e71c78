"""A headless Scipion for pytest, where none is configured: home, host and settings in a temporary folder."""

import atexit
import os
import shutil
import sys
import tempfile

if "SCIPION_HOME" not in os.environ:  # before the first import of pyworkflow, which reads them
    home = tempfile.mkdtemp(prefix="scipion-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    os.makedirs(os.path.join(home, "config"))
    with open(os.path.join(home, "config", "hosts.conf"), "w") as file:
        file.write("[localhost]\nPARALLEL_COMMAND = mpirun -np %_(JOB_NODES)d --map-by node %_(COMMAND)s\n")
    os.environ.update(
        SCIPION_HOME=home,
        SCIPION_USER_DATA=os.path.join(home, "userdata"),
        SCIPION_DOMAIN="pwem",
        SCIPION_PYTHON=sys.executable,
        SCIPION_NOTIFY="False",  # nothing is sent anywhere
        SCIPION_TEST_NOSYNC="True",
        SCIPION_STEPS_CHECK_SEC="1",
        NO_COLOR="1",
    )
