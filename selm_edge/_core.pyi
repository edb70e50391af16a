"""
The SELM core, as selm.h has it. Use selm_edge.Model; this is what it is made of.
"""
from __future__ import annotations
import collections.abc
import typing
import typing_extensions
__all__: list[str] = ['Adapter', 'CoreError', 'Floats', 'Generation', 'Grammar', 'Matcher', 'Model', 'ModelInfo', 'Sampling', 'Session', 'StaticEmbedder', 'Stats', 'Tokenizer', 'VocabInfo', 'dequantize', 'isa', 'matmul', 'measure_bandwidth', 'sample', 'version']
class CoreError(RuntimeError):
    pass
class Floats:
    """
    float32, [n] or [rows, columns].
    """
    def view(self) -> memoryview:
        ...
class ModelInfo:
    @property
    def architecture(self) -> str:
        ...
    @property
    def file_bytes(self) -> int:
        ...
    @property
    def isa(self) -> str:
        ...
    @property
    def n_ctx_train(self) -> int:
        ...
    @property
    def n_embd(self) -> int:
        ...
    @property
    def n_ff(self) -> int:
        ...
    @property
    def n_head(self) -> int:
        ...
    @property
    def n_head_kv(self) -> int:
        ...
    @property
    def n_layer(self) -> int:
        ...
    @property
    def n_params(self) -> int:
        ...
    @property
    def n_vocab(self) -> int:
        ...
    @property
    def weight_bytes(self) -> int:
        ...
class VocabInfo:
    @property
    def add_bos(self) -> bool:
        ...
    @property
    def add_eos(self) -> bool:
        ...
    @property
    def add_space_prefix(self) -> bool:
        ...
    @property
    def bos(self) -> int:
        ...
    @property
    def eom(self) -> int:
        ...
    @property
    def eos(self) -> int:
        ...
    @property
    def eot(self) -> int:
        ...
    @property
    def model(self) -> str:
        ...
    @property
    def padding(self) -> int:
        ...
    @property
    def pre(self) -> str:
        ...
    @property
    def size(self) -> int:
        ...
    @property
    def unknown(self) -> int:
        ...
class Tokenizer:
    def __init__(self, path: str | bytes) -> None:
        ...
    def control_tokens(self) -> dict[str, int]:
        ...
    def decode(self, tokens: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], special: bool) -> bytes:
        ...
    def encode(self, text: bytes, add_special: bool, parse_special: bool) -> list[int]:
        ...
    def is_end(self, token: typing.SupportsInt | typing.SupportsIndex) -> bool:
        ...
    def token(self, token: typing.SupportsInt | typing.SupportsIndex) -> tuple[str, int]:
        ...
    @property
    def info(self) -> VocabInfo:
        ...
class Model:
    def __init__(self, path: str | bytes, *, check_weights: bool = False, isa: str | None = None) -> None:
        ...
    def chat_format(self, messages: collections.abc.Sequence[tuple[str, str]], *, family: str | None = None, begin_reply: bool = True) -> str:
        ...
    def close(self) -> None:
        ...
    def meta_index(self) -> dict[str, int]:
        ...
    def meta_value(self, index: typing.SupportsInt | typing.SupportsIndex) -> typing.Any:
        ...
    def tokenizer(self) -> Tokenizer:
        ...
    @property
    def closed(self) -> bool:
        ...
    @property
    def info(self) -> ModelInfo:
        ...
class Adapter:
    def __init__(self, model: Model, path: str | bytes) -> None:
        ...
    @property
    def base_sha256(self) -> str:
        ...
    @property
    def bytes(self) -> int:
        ...
    @property
    def name(self) -> str:
        ...
    @property
    def rank(self) -> int:
        ...
class Session:
    def __init__(self, model: Model, *, context: typing.SupportsInt | typing.SupportsIndex = 0, threads: typing.SupportsInt | typing.SupportsIndex = 0, batch: typing.SupportsInt | typing.SupportsIndex = 0, kv_type: str = 'f16', exact: bool = False) -> None:
        ...
    def cancel(self) -> None:
        ...
    def clear_cancel(self) -> None:
        ...
    def close(self) -> None:
        ...
    def embed(self, tokens: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]) -> Floats:
        ...
    def eval(self, tokens: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], logits: str = 'all') -> Floats:
        ...
    def fork(self) -> Session:
        ...
    def restore(self, snapshot: bytes) -> None:
        ...
    def restore_file(self, path: str | bytes) -> None:
        ...
    def save(self, path: str | bytes) -> None:
        ...
    def set_adapters(self, adapters: collections.abc.Sequence[tuple[Adapter, typing.SupportsFloat | typing.SupportsIndex]]) -> None:
        """
        Pairs of an adapter and its scale.
        """
    def set_deadline(self, milliseconds: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def set_expert(self, name: str | None) -> None:
        ...
    def snapshot(self) -> bytes:
        ...
    def speaker(self, position: typing.SupportsInt | typing.SupportsIndex) -> int:
        ...
    def tokens(self) -> list[int]:
        ...
    def truncate(self, length: typing.SupportsInt | typing.SupportsIndex) -> int:
        """
        The tokens that are left.
        """
    @property
    def closed(self) -> bool:
        ...
    @property
    def context(self) -> int:
        ...
    @property
    def position(self) -> int:
        ...
    @property
    def state_bytes(self) -> int:
        ...
    @property
    def threads(self) -> int:
        ...
class Sampling:
    def __init__(self) -> None:
        ...
    @property
    def frequency_penalty(self) -> float:
        ...
    @frequency_penalty.setter
    def frequency_penalty(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
    @property
    def min_p(self) -> float:
        ...
    @min_p.setter
    def min_p(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
    @property
    def penalty_last_n(self) -> int:
        ...
    @penalty_last_n.setter
    def penalty_last_n(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def presence_penalty(self) -> float:
        ...
    @presence_penalty.setter
    def presence_penalty(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
    @property
    def repeat_penalty(self) -> float:
        ...
    @repeat_penalty.setter
    def repeat_penalty(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
    @property
    def seed(self) -> int:
        ...
    @seed.setter
    def seed(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def temperature(self) -> float:
        ...
    @temperature.setter
    def temperature(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
    @property
    def top_k(self) -> int:
        ...
    @top_k.setter
    def top_k(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def top_p(self) -> float:
        ...
    @top_p.setter
    def top_p(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
    @property
    def typical_p(self) -> float:
        ...
    @typical_p.setter
    def typical_p(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
class Stats:
    @property
    def accepted_tokens(self) -> int:
        ...
    @property
    def cached_tokens(self) -> int:
        ...
    @property
    def decode_seconds(self) -> float:
        ...
    @property
    def decode_steps(self) -> int:
        ...
    @property
    def drafted_tokens(self) -> int:
        ...
    @property
    def early_tokens(self) -> int:
        ...
    @property
    def early_wrong(self) -> int:
        ...
    @property
    def finish(self) -> int:
        ...
    @property
    def first_token_seconds(self) -> float:
        ...
    @property
    def mean_entropy(self) -> float:
        ...
    @property
    def mean_margin(self) -> float:
        ...
    @property
    def prompt_seconds(self) -> float:
        ...
    @property
    def prompt_tokens(self) -> int:
        ...
    @property
    def tokens(self) -> int:
        ...
class Grammar:
    def __init__(self, tokenizer: Tokenizer, kind: str, text: str) -> None:
        ...
class Matcher:
    def __init__(self, grammar: Grammar) -> None:
        ...
    def allowed(self) -> bytes:
        """
        [n_vocab] bytes: 1 where a token may come next; end tokens where the text may end.
        """
    def mask(self, logits: typing_extensions.Buffer) -> None:
        """
        The same on [n_vocab] floats: minus infinity where not.
        """
    def read(self, token: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        CoreError, and it stays where it was, where that may not come.
        """
    @property
    def complete(self) -> bool:
        ...
class Generation:
    def __init__(self, session: Session, prompt: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], sampling: Sampling, *, logit_bias: collections.abc.Mapping[typing.SupportsInt | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex] = {}, stop: collections.abc.Sequence[str] = [], max_tokens: typing.SupportsInt | typing.SupportsIndex = 0, ignore_end: bool = False, special: bool = False, reuse_prefix: bool = True, draft: str = 'auto', exit_threshold: typing.SupportsFloat | typing.SupportsIndex = 0.0, grammar: Grammar | None = None) -> None:
        ...
    def cancel(self) -> None:
        ...
    def close(self) -> None:
        ...
    def next(self) -> tuple[str, int, int]:
        """
        (piece of text, its token or -1, finish or 0 while there is more)
        """
    @property
    def stats(self) -> Stats:
        ...
class StaticEmbedder:
    def __init__(self, path: str | bytes) -> None:
        ...
    def embed(self, texts: list[str]) -> list[bytes | None]:
        """
        For each text float32 [dim] of length 1, little-endian; None where no token of it is known.
        """
    @property
    def dim(self) -> int:
        """
        Numbers of a vector.
        """
def dequantize(type: typing.SupportsInt | typing.SupportsIndex, data: bytes, n: typing.SupportsInt | typing.SupportsIndex) -> Floats:
    """
    n float32 from the blocks of a GGUF type.
    """
def isa() -> str:
    """
    The best instruction set here, or SELM_ISA where set and available.
    """
def matmul(type: typing.SupportsInt | typing.SupportsIndex, weights: bytes, rows: typing.SupportsInt | typing.SupportsIndex, n: typing.SupportsInt | typing.SupportsIndex, activations: bytes, columns: typing.SupportsInt | typing.SupportsIndex, isa: str | None = None) -> Floats:
    """
    [columns, rows] = activations [columns, n] (float32 bytes) times weights [rows, n] (blocks of a GGUF type).
    """
def measure_bandwidth(threads: typing.SupportsInt | typing.SupportsIndex = 0) -> float:
    """
    Read bandwidth in GB/s of that many threads (0: all); about half a second.
    """
def sample(sampling: Sampling, logits: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex], history: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [], draw: typing.SupportsInt | typing.SupportsIndex = 0) -> int:
    ...
def version() -> str:
    ...
