"""What the commands do, as functions for other programs: `segkit.train(...)`, `segkit.evaluate(...)` and the rest."""
