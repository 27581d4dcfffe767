"""The report: finished runs in; one self-contained page, its Markdown and its numbers as JSON out."""
