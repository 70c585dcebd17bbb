"""Settings, uploads, limits and refusals: what stands between the page and whoever asks it."""
