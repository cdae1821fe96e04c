"""plait's benchmarks: loops and pools beside their peers and beside bare C."""
