"""One file per page; each runs from top to bottom whenever its page is shown."""
