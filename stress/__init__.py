"""Heavy tests that are started by hand: `make stress`. The short forms of the same code run with the other tests."""
