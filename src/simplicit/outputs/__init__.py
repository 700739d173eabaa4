"""How much the network's outputs feel a change of a weight."""
