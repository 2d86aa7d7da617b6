"""The chain: stages meet here, through plain records and the files of the run folder, and nowhere else."""
