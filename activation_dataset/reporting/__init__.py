"""Views of a dataset: summary for a terminal, HTML report, dataset card."""
