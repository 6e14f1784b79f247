"""The subcommands of `nanoserve`: each module has add_arguments, quick to import, and run."""
