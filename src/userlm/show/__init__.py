"""The report on finished runs: its content as blocks, and renderers of blocks."""
