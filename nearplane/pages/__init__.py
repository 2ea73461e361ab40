"""Pages that a browser shows: self-contained HTML files."""
