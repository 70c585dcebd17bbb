"""The page: one file for each tab, and what the tabs share; no maths."""
