"""The commands of the command line, one file each: `command` is what `planish.cli` looks for. They import when they run."""
