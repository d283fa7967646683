"""What many runs come to: collected from their folders, as tables, figures, Markdown and HTML."""
