import numpy as np
import pytest

from pretrain.stream.view.base import View
from pretrain.stream.view.caption_mix import CaptionMix


def test_a_view_without_open_options_fits_any_model_as_it_is():
    view = CaptionMix()
    assert view.fit(224) is view


def test_the_base_alone_is_no_view():
    with pytest.raises(NotImplementedError):
        View()(None, np.random.default_rng(0))  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError):
        _ = View().name
