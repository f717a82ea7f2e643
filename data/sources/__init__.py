"""Where raw market data come from, one file a source."""
