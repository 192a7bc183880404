"""Starting the ranks of a run: torchrun on one machine, requeueing in SLURM."""
