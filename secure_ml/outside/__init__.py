"""Models and data from outside this repository, made into what everything here works on."""
