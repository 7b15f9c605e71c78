#%Module1.0
# inrtomo for Environment Modules (Tcl), and for Lmod, which reads it too. Save it as MODULEPATH/inrtomo/0.1.0 and set
# root to the folder that make-venv made.
set root /opt/apps/inrtomo/0.1.0

proc ModulesHelp {} {
    puts stderr "Aligns cryo-electron tomography tilt series and reconstructs them: inr-align, inr-recon, inr-batch and"
    puts stderr "the others. inr-align --help says more. Compiled kernels go to ~/.cache/numba at the first run;"
    puts stderr "NUMBA_CACHE_DIR moves them."
}
module-whatis "cryo-ET tilt-series alignment and reconstruction with implicit neural representations"

conflict inrtomo
prepend-path PATH $root/commands
