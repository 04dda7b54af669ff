import pytest

from pretrain.model.tweak.base import Tweak


def test_the_base_alone_changes_nothing_silently():
    with pytest.raises(NotImplementedError):
        Tweak().apply(None)  # type: ignore[arg-type]
