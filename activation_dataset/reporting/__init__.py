"""What a dataset holds, to look at: in a terminal, as a page, as a dataset card."""
