"""Entry lists: where they come from (build), what is wrong with them (lint), and the one that comes along."""
