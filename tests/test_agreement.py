"""Agreement of two labellings, worked out by hand."""

import pytest

from userlm.metrics.agreement import Labelled, agreement


def items(*counts: tuple[int, str | None, str]) -> list[Labelled]:
    """So many items with these two labels, each of a person of their own."""
    pairs = [(label, hand) for n, label, hand in counts for _ in range(n)]
    return [
        Labelled(f"c{i}", f"p{i}", label, hand, "" if label else "no label")
        for i, (label, hand) in enumerate(pairs)
    ]


def test_kappa_is_the_agreement_beyond_chance():
    # Both say yes to 20 of 50, both no to 15: observed 35/50 = 0.7. The first says yes to 25 and
    # the second to 30: expected 0.5 x 0.6 + 0.5 x 0.4 = 0.5. (0.7 - 0.5) / (1 - 0.5) = 0.4.
    raw, kappa = agreement(
        items((20, "yes", "yes"), (5, "yes", "no"), (10, "no", "yes"), (15, "no", "no"))
    )
    assert (raw.value, raw.unit, raw.n) == (pytest.approx(70), "%", 50)
    assert kappa.value == pytest.approx(0.4)
    assert kappa.low < 0.4 < kappa.high
    # Of three labels. Observed 8/10. The first gives x, y, z to 5, 2, 3 and the second to 5, 3, 2:
    # expected (25 + 6 + 6) / 100 = 0.37. (0.8 - 0.37) / (1 - 0.37) = 43/63.
    counts = [(4, "x", "x"), (1, "x", "y"), (2, "y", "y"), (2, "z", "z"), (1, "z", "x")]
    raw, kappa = agreement(items(*counts))
    assert kappa.value == pytest.approx(43 / 63)


def test_kappa_is_1_for_equal_labels_below_0_for_opposite_ones_and_0_for_one_that_is_constant():
    values = {}
    for name, counts in {
        "equal": [(10, "a", "a"), (10, "b", "b")],
        "opposite": [(10, "a", "b"), (10, "b", "a")],
        "constant": [(14, "a", "a"), (6, "a", "b")],
    }.items():
        _, kappa = agreement(items(*counts))
        values[name] = kappa.value
    assert values == {"equal": 1, "opposite": -1, "constant": 0}


def test_kappa_of_labels_that_are_all_the_same_is_unknown_and_says_why():
    raw, kappa = agreement(items((10, "a", "a")))
    assert raw.value == 100
    assert (kappa.value, kappa.why) == (None, "all labels are the same")


def test_an_item_without_a_first_label_is_missing_and_no_disagreement():
    raw, kappa = agreement(items((6, "a", "a"), (6, "b", "b"), (3, None, "a")))
    assert (raw.value, raw.n, raw.missing) == (100, 12, 3)
    assert (kappa.value, kappa.missing) == (1, 3)
    assert {row.why for row in kappa.rows if row.stats is None} == {"no label"}


def test_agreement_on_nothing_is_unknown():
    assert [one.value for one in agreement([])] == [None, None]
