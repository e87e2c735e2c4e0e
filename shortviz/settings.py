"""Where files live and what this installation allows: read from SHORTVIZ_* environment variables."""

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import platformdirs
from pydantic import AliasChoices, Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

Names = Annotated[tuple[str, ...], NoDecode]
"""In the environment: names separated by commas."""


class Settings(BaseSettings):
    """Settings of this installation; every field can be set as SHORTVIZ_<FIELD>.

    From `allowed_models` on they hold where the app is hosted, that is open to strangers; `policy` applies them.
    """

    model_config = SettingsConfigDict(env_prefix="SHORTVIZ_", frozen=True, populate_by_name=True)

    cache_dir: Path = Path(platformdirs.user_cache_dir("shortviz"))
    """De-quantised copies of GGUF models; safe to delete."""
    runs_dir: Path = Path(platformdirs.user_data_dir("shortviz")) / "runs"
    """Run directories of the app."""
    preload: bool = True
    """Import torch in the background while the first page is read; costs 0.4 GB where no model is ever loaded."""
    hosted: bool | None = None
    """Whether strangers use this app; where it is not said, it follows from SPACE_ID, which a Space sets."""
    space_id: str = Field(default="", validation_alias=AliasChoices("SPACE_ID", "SHORTVIZ_SPACE_ID"))
    oauth_client_id: str = Field(default="", validation_alias=AliasChoices("OAUTH_CLIENT_ID"))
    """With the two below, given by a Space with `hf_oauth: true`: people may sign in to push."""
    oauth_client_secret: str = Field(default="", validation_alias=AliasChoices("OAUTH_CLIENT_SECRET"), repr=False)
    openid_provider_url: str = Field(
        default="https://huggingface.co", validation_alias=AliasChoices("OPENID_PROVIDER_URL")
    )
    public_host: str = Field(default="", validation_alias=AliasChoices("SHORTVIZ_PUBLIC_HOST", "SPACE_HOST"))
    """Host name the app is reached by; Streamlit refuses requests for others."""

    allowed_models: Names = ("demo",)
    """Models that may be loaded; a revision is allowed only where it is named, as ID@COMMIT."""
    allowed_datasets: Names = ()
    """Data sets of the hub that may be read."""
    max_parameters: int = Field(default=400_000_000, gt=0)
    """Of a model that may be loaded."""
    max_export_parameters: int = Field(default=400_000_000, gt=0)
    """Of a model that may be exported."""
    max_rows: int = Field(default=256, gt=0)
    """Of a calibration text, or questions of a task."""
    max_tokens: int = Field(default=65_536, gt=0)
    """Rows times tokens a row."""
    max_row_tokens: int = Field(default=2_048, gt=1)
    """Of one row or window: what a forward pass holds grows with it, and attention's time with its square."""
    max_characters: int = Field(default=50_000, gt=0)
    """Of pasted text."""
    max_prompt: int = Field(default=2_000, gt=0)
    """Characters of a prompt."""
    max_new_tokens: int = Field(default=64, gt=0)
    """Tokens a model may write at a time."""
    max_steps: int = Field(default=200, gt=0)
    """Training steps of healing."""
    max_jobs: int = Field(default=3, gt=0)
    """Jobs of one session that wait or run at a time."""
    max_queue: int = Field(default=8, gt=0)
    """Jobs of all sessions that wait in one lane; holds everywhere."""
    max_job_seconds: int = Field(default=900, gt=0)
    """A job is stopped after this time; what it has so far is kept."""
    max_upload_mb: int = Field(default=5, gt=0)
    """Megabytes of an uploaded file."""
    max_downloads: int = Field(default=6, gt=0)
    """Exported checkpoints that wait to be fetched; the oldest go first."""
    max_treated_mb: int = Field(default=1_000, gt=0)
    """Megabytes of the own weights of repaired and healed models in memory; the oldest go first."""
    max_kept_mb: int = Field(default=2_000, gt=0)
    """Megabytes of the same, kept beside runs."""
    max_runs: int = Field(default=200, gt=0)
    """Saved runs; the oldest go first."""
    min_free_mb: int = Field(default=1_000, ge=0)
    """Megabytes of memory that must be free, or no new job is taken."""

    @field_validator("allowed_models", "allowed_datasets", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value

    @property
    def is_hosted(self) -> bool:
        """Whether strangers use this app."""
        return bool(self.space_id) if self.hosted is None else self.hosted

    @property
    def downloads_dir(self) -> Path:
        """Where checkpoints are written that are only downloaded."""
        return self.runs_dir / "downloads"

    @property
    def uploads_dir(self) -> Path:
        """Where uploaded texts are kept, by the hash of their content."""
        return self.runs_dir / "uploads"


@lru_cache(maxsize=1)
def settings() -> Settings:
    """Return the settings of this process, read from the environment once."""
    return Settings()
