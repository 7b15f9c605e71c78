-- inrtomo for Lmod. Save it as MODULEPATH/inrtomo/0.1.0.lua and set `root` to the folder that make-venv made.
local root = "/opt/apps/inrtomo/0.1.0"

help([[
Aligns cryo-electron tomography tilt series and reconstructs them: inr-align, inr-recon, inr-batch and the others.
inr-align --help says more. Compiled kernels go to ~/.cache/numba at the first run; NUMBA_CACHE_DIR moves them.
]])
whatis("Name: inrtomo")
whatis("Version: 0.1.0")
whatis("Description: cryo-ET tilt-series alignment and reconstruction with implicit neural representations")

conflict("inrtomo")
prepend_path("PATH", pathJoin(root, "commands"))
