"""Jobs: pictures that are drawn once, whoever asks for them, and kept with what was measured of them."""
