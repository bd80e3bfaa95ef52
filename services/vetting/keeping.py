"""What keeps vettings. Adapters implement this; it raises StorageUnavailable."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from services.vetting.schemas import Vetting


class VettingStore(Protocol):
    async def save(self, vetting: Vetting) -> None: ...

    async def get(self, vetting_id: str) -> Vetting | None:
        """None for one that there is not, or whose time is over."""
        ...

    async def delete_expired(self, moment: datetime) -> int:
        """Deletes every vetting whose `expires_at` is not after `moment`; how many they were."""
        ...
