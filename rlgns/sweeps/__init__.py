"""Which runs a sweep file asks for, and who starts them."""
