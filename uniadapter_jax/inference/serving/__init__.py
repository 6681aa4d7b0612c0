"""An index as a page and a JSON endpoint: what clients ask for, and how little they may do."""
