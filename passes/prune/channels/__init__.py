"""Which channels of a graph can go, which of them are worth least, and how they are taken out."""
