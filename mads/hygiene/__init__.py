"""Near-duplicates, exact duplicates and contamination, as pure functions of texts and arrays (docs/hygiene.md).

In workers, for any batch of texts: minhash.signatures, duplicates.text_keys, contamination.Contamination.hits. Over their results
in input order: duplicates.exact_duplicates and duplicates.near_duplicates.
"""
