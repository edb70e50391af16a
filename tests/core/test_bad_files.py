"""A bad file gets a ModelError with file, place and cause; never a crash, a hang or much memory."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from core.bad_files import BPE, HEADER, METADATA, MODEL_CASES, TENSORS, VOCABULARY, Case
from selm_edge import Model, Tokenizer, _core
from selm_edge.errors import ModelError, UnsupportedModelError
from support.gguf_files import CONFIGS, write_model
from support.raw_gguf import BOOL, STRING, U32, RawFile
