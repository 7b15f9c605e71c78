"""One command over many series: what is to be done, who does it, how far it is. State is files in one folder.

`manifest` and `watch` find the series, `steps` knows the commands, `state` keeps who has what, `runner` runs series
here, `slurm` hands them to a cluster, `summary` and `page` tell what came out.
"""
