import pytest

from pretrain.stream.draws import Draws
from pretrain.stream.order import generator


def test_numbers_are_a_function_of_what_they_are_named_for():
    first = [Draws(7, "view.image", 3).random() for _ in range(2)]
    assert first[0] == first[1]
    others = [Draws(8, "view.image", 3), Draws(7, "view.text", 3), Draws(7, "view.image", 4)]
    assert len({first[0], *(draws.random() for draws in others)}) == 4


def test_numbers_never_change():
    draws = Draws(7, "view.image", 3)
    assert [draws.integers(1_000_000) for _ in range(3)] == GOLDEN


GOLDEN = [492336, 139286, 369120]


def test_numbers_are_uniform_past_the_first_digest():
    draws = Draws(0, "many")
    found = [draws.random() for _ in range(4000)]
    assert len(set(found)) == 4000
    assert all(0 <= number < 1 for number in found)
    assert all(340 < sum(low <= n < low + 0.1 for n in found) < 460 for low in (0, 0.3, 0.9))
    assert {draws.integers(3, 6) for _ in range(100)} == {3, 4, 5}
    assert all(2 <= draws.uniform(2, 3) < 3 for _ in range(50))


def test_an_empty_range_is_refused():
    with pytest.raises(ValueError, match="empty"):
        Draws(0, "x").integers(0)


def test_what_it_lacks_comes_from_a_real_generator():
    assert Draws(1, "p", 2).permutation(9).tolist() == generator(1, "p", 2).permutation(9).tolist()
    draws = Draws(1, "p", 2)
    assert draws.normal() != draws.normal()
    with pytest.raises(AttributeError):
        _ = draws.no_such_thing
