"""The money: kernel, execution, margin, risk overlay and the environments built on them."""
