"""Make the blur, train the network, measure it."""
