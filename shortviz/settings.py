"""Where files live and what this installation allows: read from SHORTVIZ_* environment variables."""

from functools import lru_cache
from pathlib import Path

import platformdirs
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Settings of this installation; every field can be set as SHORTVIZ_<FIELD>."""

    model_config = SettingsConfigDict(env_prefix="SHORTVIZ_", frozen=True)

    cache_dir: Path = Path(platformdirs.user_cache_dir("shortviz"))
    """De-quantised copies of GGUF models; safe to delete."""
    runs_dir: Path = Path(platformdirs.user_data_dir("shortviz")) / "runs"
    """Run directories of the app."""


@lru_cache(maxsize=1)
def settings() -> Settings:
    """Return the settings of this process, read from the environment once."""
    return Settings()
