"""Use cases that commands, notebooks and servers share: typed functions that print nothing."""

from collections.abc import Mapping
from types import MappingProxyType

TABLETOP_DATA: Mapping[str, str] = MappingProxyType({"tabletop": "plain", "tabletop-rich": "rich"})
"""Names of rendered training data, with the Tabletop world of each."""
