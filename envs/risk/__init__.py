"""The overlay that stands between an action and an order, in training and live."""
