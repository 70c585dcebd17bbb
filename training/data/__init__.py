"""Images of good parts: finding, reading, grouping, splitting, rotating, putting synthetic defects into them."""
