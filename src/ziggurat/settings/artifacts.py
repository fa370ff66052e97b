"""The settings of stored payloads and files, and of encryption."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from ziggurat.settings.types import Bytes, Seconds, SecretValue, Section


class ArtifactSettings(Section):
    """Where files and large payloads are kept. Credentials of an object store come from the environment, as its own tools take them."""

    url: str = Field(
        ".ziggurat/artifacts",
        description="A folder, or `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`. "
        "Each system needs a place of its own.",
    )
    inline_limit: Bytes = Field(
        128 * 1024, description="Payloads above this, as JSON, are stored as artifacts, and a reference travels in their place."
    )
    grace: Seconds = Field(
        86_400.0, description="Age at which a stored object that no run refers to is taken for left behind, and deleted."
    )

    @field_validator("url")
    @classmethod
    def _known_place(cls, value: str) -> str:
        scheme, found, rest = value.partition("://")
        if found and (scheme not in ("file", "memory", "s3", "s3a", "gs", "az", "azure", "abfs", "abfss") or not rest):
            raise ValueError(f"it is {value!r} and must be a folder, or a URL that begins with s3://, gs:// or az://")
        # abfss://container@account.dfs.core.windows.net is how Azure itself writes a place.
        user, at, _ = rest.partition("/")[0].rpartition("@")
        if found and at and (":" in user or scheme not in ("abfs", "abfss")):
            raise ValueError("it holds credentials; give them in the environment, as the store's own tools take them")
        if not value:
            raise ValueError("it is empty; name a folder or a URL")
        return value


class EncryptionSettings(Section):
    """Payloads and artifacts encrypted at rest and on the queue (AES-256-GCM). Off until `use` names a key."""

    use: str = Field("", description="The name of the key that new payloads are encrypted with; empty for none.")
    keys: dict[str, SecretValue] = Field(
        {}, description="Keys by name, each 32 bytes in base 64. All of them decrypt, so an old one stays until nothing needs it."
    )

    @model_validator(mode="after")
    def _known_key(self) -> EncryptionSettings:
        for name in self.keys:
            if not name or len(name.encode()) > 64:
                raise ValueError(f"the key name {name!r} must have 1 to 64 bytes")
        if self.use and self.use not in self.keys:
            known = ", ".join(self.keys) or "none"
            raise ValueError(f"use is {self.use!r}, and [encryption.keys] has: {known}; add the key, or name one of those")
        return self
