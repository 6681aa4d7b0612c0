"""What a run will need on a slice of chips that is not there, by really compiling it for one."""
