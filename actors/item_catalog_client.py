"""The client of the item catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from actors.asking import ask
from actors.item_catalog import CatalogStatus
from actors.messages import CatalogChanges, PutItemsResult
from actors.naming import ITEM_CATALOG, find_actor
from recommender.events import Item


class ItemCatalogClient:
    """Every call is bounded by `timeout_s`, plus what it asks to wait."""

    def __init__(self, catalog: Any, timeout_s: float = 5.0) -> None:
        self._catalog = catalog
        self._timeout_s = timeout_s

    @classmethod
    def connect(cls, timeout_s: float = 5.0) -> ItemCatalogClient:
        """A client of the running catalogue.

        Raises:
            ValueError: If there is none.
        """
        return cls(find_actor(ITEM_CATALOG), timeout_s)

    async def put(self, items: Sequence[Item]) -> PutItemsResult:
        """Accept items; those that are the same as before cost nothing. Safe to repeat."""
        answer: PutItemsResult = await self._ask("put", list(items))
        return answer

    async def get(self, item_ids: Sequence[str]) -> list[Item | None]:
        """The items as accepted last, None where there is none."""
        answer: list[Item | None] = await self._ask("get", list(item_ids))
        return answer

    async def changes_after(self, revision: int, wait_s: float = 0.0) -> CatalogChanges:
        """Rows that became visible after a revision; without any after `wait_s`."""
        answer: CatalogChanges = await self._ask("changes_after", revision, wait_s, wait_s=wait_s)
        return answer

    async def item_ids_from(self, row: int) -> list[str]:
        """Item ids of the rows from `row` on, also of those whose text is not encoded yet."""
        answer: list[str] = await self._ask("item_ids_from", row)
        return answer

    async def status(self) -> CatalogStatus:
        """How the catalogue is."""
        answer: CatalogStatus = await self._ask("status")
        return answer

    async def recover(self) -> CatalogStatus:
        """Let a failed catalogue try to open its folder again."""
        answer: CatalogStatus = await self._ask("recover")
        return answer

    async def _ask(self, method: str, *args: Any, wait_s: float = 0.0) -> Any:
        timeout_s = self._timeout_s + wait_s
        return await ask(self._catalog, method, *args, timeout_s=timeout_s, retry=True)
