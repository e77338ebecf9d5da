"""Stands for the process that measures an architecture: it ends as the name in its request says."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

name = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["name"]
if name == "crashes":
    os.abort()
if name == "sleeps":
    time.sleep(600)
if name == "raises":
    raise MemoryError("the system refused memory")
