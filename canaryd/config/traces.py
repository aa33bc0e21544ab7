"""What the operator set for traces: the section `traces` of canaryd.yaml, strict, with its defaults.

Reads no file and opens no connection; secrets are named by their files.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from canaryd.policy import Document, Duration, Url, format_duration

FilePath = Annotated[str, Field(min_length=1, max_length=4096)]


def _between(value: timedelta, least: timedelta, most: timedelta) -> timedelta:
    if not least <= value <= most:
        plain = f"use {format_duration(least)} to {format_duration(most)}"
        raise ValueError(f"{format_duration(value)} is out of range; {plain}")
    return value


class Jaeger(Document):
    """A Jaeger query service, of any version since 1.35."""

    url: Url | None = Field(
        default=None, description="of the query service, with its base path if it has one; none: no traces are read"
    )
    external_url: Url | None = Field(
        default=None, alias="externalURL", description="where people find it; none: no links are shown"
    )
    timeout: Duration = Field(default=timedelta(seconds=3), description="longest wait for all answers of one search")
    lag: Duration = Field(
        default=timedelta(seconds=15),
        description="an instant is judged when it is this long ago: its spans are in then",
    )
    limit: int = Field(default=500, ge=20, le=10_000, description="traces that one request asks for")
    bearer_token_file: FilePath | None = Field(default=None, description="read again for each search")
    basic_file: FilePath | None = Field(
        default=None, description="holds user:password for basic authentication; read again for each search"
    )
    ca_file: FilePath | None = Field(default=None, description="certificates to trust instead of the system's")

    @field_validator("timeout")
    @classmethod
    def _timeout_range(cls, value: timedelta) -> timedelta:
        return _between(value, timedelta(milliseconds=100), timedelta(minutes=1))

    @field_validator("lag")
    @classmethod
    def _lag_range(cls, value: timedelta) -> timedelta:
        return _between(value, timedelta(0), timedelta(hours=1))

    @model_validator(mode="after")
    def _one_credential(self) -> Self:
        if self.bearer_token_file and self.basic_file:
            raise ValueError("bearerTokenFile and basicFile are given; a request carries one of them")
        return self


class Traces(Document):
    """Where traces come from: evidence for people, and the counts of metrics of kind traces."""

    jaeger: Jaeger = Jaeger()

    def seen_from(self, root: Path) -> Traces:
        """With its files where they are, seen from the file that names them."""
        names = ("bearer_token_file", "basic_file", "ca_file")
        files = {name: str(root / given) for name in names if (given := getattr(self.jaeger, name)) is not None}
        return self.model_copy(update={"jaeger": self.jaeger.model_copy(update=files)})
