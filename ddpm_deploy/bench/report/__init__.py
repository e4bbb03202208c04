"""The report of a run: what follows from its rows, in words, tables and plots, as HTML and as Markdown."""
