"""What comes out: pairs as arrays, their statistics, and how they are stored."""
