"""What may be kept of a place."""

import pytest

from dclr.text import public


@pytest.mark.parametrize(
    "secret, shown",
    [
        ("https://me:pw@host/set", "https://host/set"),
        ("https://me:pw@host:8080/set?X-Amz-Signature=pw&X=1", "https://host:8080/set"),
        ("s3://KEY:pw@bucket/prefix", "s3://bucket/prefix"),
        ("https://me:p/w@host/set", "https://host/set"),  # a password that should have been quoted
        ("https://me:p?w@host/set?sig=pw", "https://host/set"),
        ("ClientError: url='http://u:pw@h:1/s?t=pw', again", "ClientError: url='http://h:1/s', again"),
        ("two: http://u:pw@h/a and (https://h/b?t=pw).", "two: http://h/a and (https://h/b)."),
    ],
)
def test_no_secret_is_shown(secret: str, shown: str) -> None:
    assert public(secret) == shown


@pytest.mark.parametrize("plain", ["s3://bucket/a@b/c", "http://[::1]:80/set", "https://host:8080", "runs/a?b@c", "a://b: no"])
def test_what_is_not_secret_stays(plain: str) -> None:
    assert public(plain) == plain
