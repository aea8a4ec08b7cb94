"""Models, one family per file: a frozen config and the modules it describes."""
