"""What of MLflow's answers may be another one later."""

from __future__ import annotations

import pytest
from PIL import UnidentifiedImageError
from requests import ConnectionError, HTTPError, Response

from dreamfleet.tracking.store import may_pass


def answer(status: int) -> HTTPError:
    response = Response()
    response.status_code = status
    return HTTPError(str(status), response=response)


@pytest.mark.parametrize("error", [answer(413), answer(400), UnidentifiedImageError("empty")])
def test_a_record_that_is_never_taken_does_not_hold_the_others_up(error: Exception) -> None:
    assert not may_pass(error)


@pytest.mark.parametrize(
    "error", [answer(401), answer(429), answer(502), ConnectionError("refused"), OSError("disk")]
)
def test_what_passes_is_tried_again(error: Exception) -> None:
    assert may_pass(error)
