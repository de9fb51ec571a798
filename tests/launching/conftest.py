from __future__ import annotations

from tests.comparison.conftest import compare_config as compare_config
