"""What machine and processes need: files, locks, signals, ranks, random numbers, checkpoints. No mathematics."""
