"""The commands, one file each: `command` is what `planish.cli` looks for. They import what they need when they run."""
