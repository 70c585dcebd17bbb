"""Images of results: heat maps for the page and for reports, sheets that compare many at a glance."""
