"""One module for each subcommand of ``lip-fast``; each has ``main(arguments) -> exit code``."""
