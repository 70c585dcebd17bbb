"""The tabs of the page: widgets, events, and what they say."""
