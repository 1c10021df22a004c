"""Does an agent learn more from the same environment steps? Tasks, arms, paired seeds and the rules (protocol.md)."""
