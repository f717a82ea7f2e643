"""The past: contracts, bars, sources, quality, features, tape. Knows no money."""
