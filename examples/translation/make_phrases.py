"""Write phrases.csv: 1,000 pairs of phrases of numbers, dates and times."""

import csv
import random

from rlgkd.envs.tasks.translate import draw_phrase

rng = random.Random(0)
pairs: dict[str, str] = {}
while len(pairs) < 1000:
    (english, german), (more_english, more_german) = draw_phrase(rng, 4), draw_phrase(rng, 4)
    pairs[f"{english} and {more_english}"] = f"{german} und {more_german}"
with open("phrases.csv", "w", newline="") as file:
    table = csv.writer(file)
    table.writerow(("english", "german"))
    table.writerows(pairs.items())
