"""Naive Bayes on the splits of the document models of texts.

    python -m benchmarks.text_baselines

writes ``benchmarks/results/text-baselines.json``: test accuracy of scikit-learn's `MultinomialNB` on words and on
words with pairs of them, trained on the members, and for SST-2 and TREC on the whole official training set too.
"""

from __future__ import annotations

import json
import platform
import time
from statistics import mean

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import MultinomialNB
from torch import Tensor

from benchmarks.record import RESULTS, hardware
from secure_ml.batch import Batch, Splits, join
from secure_ml.cells import PACKAGES
from secure_ml.randomness import generator
from secure_ml.rows import package_version
from secure_ml.tasks._texts import DRAWS

VOCABULARY = 2**20
SEEDS = (0, 1, 2)


def main() -> None:
    """Print and write the table."""
    rows = [row for data in DRAWS for row in baselines(data)]
    record = {
        "command": "python -m benchmarks.text_baselines",
        "versions": {package: package_version(package) for package in (*PACKAGES, "scikit-learn")}
        | {"python": platform.python_version()},
        "hardware": hardware(),
        "rows": rows,
    }
    for row in rows:
        print(f"{row['data']:8} {row['train']:8} {row['n']:6} {row['words']:16} {row['accuracy']:.3f}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "text-baselines.json").write_text(json.dumps(record, indent=1) + "\n")


def baselines(data: str) -> list[dict[str, object]]:
    """The rows of one data set: the mean of the seeds' splits, and each."""
    drawn = [DRAWS[data](VOCABULARY, generator(seed, "data")) for seed in SEEDS]
    rows = []
    for share, train in (("members", members), ("official", official)):
        if share == "official" and drawn[0].others is None:
            continue
        for words, longest in (("words", 1), ("words and pairs", 2)):
            start = time.perf_counter()
            each = [accuracy(train(splits), splits.test, longest) for splits in drawn]
            rows.append(
                {
                    "data": data,
                    "train": share,
                    "n": len(train(drawn[0])),
                    "words": words,
                    "accuracy": mean(each),
                    "each": each,
                    "seconds": time.perf_counter() - start,
                }
            )
    return rows


def members(splits: Splits) -> Batch:
    """What the document models are trained on."""
    return splits.train


def official(splits: Splits) -> Batch:
    """The whole official training set, of which the adversary and the non-members have their parts."""
    parts = [part for part in (splits.train, splits.aux, splits.others) if part is not None]
    return Batch(join([part.inputs for part in parts]), join([part.target for part in parts]))


def accuracy(train: Batch, test: Batch, longest: int) -> float:
    """Accuracy on the test split of naive Bayes on the presence of words, or of runs of up to ``longest`` of them."""
    counter = CountVectorizer(ngram_range=(1, longest), binary=True)
    model = MultinomialNB().fit(counter.fit_transform(spoken(train)), np.asarray(train.target))
    return float(model.score(counter.transform(spoken(test)), np.asarray(test.target)))


def spoken(batch: Batch) -> list[str]:
    """The hashed words of each text as one string."""
    tokens = batch.inputs
    assert isinstance(tokens, Tensor)
    return [" ".join(f"w{word}" for word in row if word) for row in tokens.tolist()]


if __name__ == "__main__":
    main()
