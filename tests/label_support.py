"""Made-up text of four subjects for tests of labellers."""

import random

from mads.data.documents import Document

SUBJECTS = {
    "space": "rocket orbit planet shuttle launch astronaut moon telescope comet gravity".split(),
    "food": "bread butter soup kitchen recipe garlic oven pepper salad cheese".split(),
    "law": "court judge lawyer verdict statute appeal trial jury witness clause".split(),
    "sport": "goal team match player league stadium coach score referee season".split(),
}


def sentence(rng, nouns):
    pick = lambda: rng.choice(nouns)  # noqa: E731
    verb = rng.choice(("sees", "finds", "needs", "takes", "leaves", "keeps"))
    return rng.choice(
        (
            f"The {pick()} {verb} the {pick()} of a {pick()}.",
            f"It is said that the {pick()} and the {pick()} have to be with a {pick()}.",
            f"When a {pick()} {verb} the {pick()}, the {pick()} {verb} it.",
            f"There is a {pick()} in the {pick()} that {verb} a {pick()}.",
        )
    )


def natural(count, seed=0, subjects=SUBJECTS):
    rng = random.Random(seed)
    out = []
    for i in range(count):
        subject = rng.choice(sorted(subjects))
        lengths = [rng.randrange(2, 5) for _ in range(rng.randrange(4, 9))]
        text = "\n".join(" ".join(sentence(rng, subjects[subject]) for _ in range(length)) for length in lengths)
        out.append(Document(text, subject, "made", i + 1))
    return out
