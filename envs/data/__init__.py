"""Where items come from: lists, files, data sets, functions, and rules that draw them."""
