"""Small random Hugging Face folders, made by transformers' own classes, and tokenizers cut as
published ones are."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel

VOCABULARY = 384
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CORPUS = [
    "The quick brown fox jumps over the lazy dog, and then the dog doesn't mind: it's 2024, "
    "we've 1,234 foxes they'll see. Die Katze läuft über die Brücke; der Hund schläft. "
    "今天天气很好,我们去公园吧。 Привет, как дела? こんにちは世界 🦊🌍 "
    "def main():\n    return 3.14159\n\n\tif x == 10:\n\t\tprint('hello')\n"
] * 3
HARD = [
    *("", " ", "  ", "\t", "\n", "\n\n", " \n ", "Hello", " Hello", "Hello  world", "a\u0301 x"),
    *("I'm WE'VE they'Ll 'tis", "3 33 333 3333 33333", "x=1;y=2", "🦊🌍 fox", "\x00"),
    *(
        "\u00a0nbsp\u2003em",
        "\u017f 's '\u017f 'S",
        "한국어 ภาษาไทย हिन्दी",
        "\r\n\r\n x",
        "....!!!/",
    ),
    *("½ ² Ⅷ ٣", "</s><s>", "<0x41>", "ﷺ", "\U0010ffff", "camelCaseWORDSHere iPhone", "x" * 300),
    *(" " * 50, "//\n//\r\n x", "日本語カタカナ漢字です 1月2日", "Aa's DON'T O'Brien", CORPUS[0]),
]

# What the models' own tokenizer.json files say under "pre_tokenizer": its expressions, and what is
# under "use_regex" and "ignore_merges".
_END = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UP, _LOW = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PRE = r"[^\r\n\p{L}\p{N}]?"
PUBLISHED: dict[str, tuple[list[dict[str, Any]], bool, bool]] = {
    "qwen2": ([{"Regex": rf"{_SHORT}|{_PRE}\p{{L}}+|\p{{N}}|{_END}"}], False, False),
    "llama-bpe": ([{"Regex": rf"{_SHORT}|{_PRE}\p{{L}}+|\p{{N}}{{1,3}}|{_END}"}], False, True),
    "smaug-bpe": ([{"Regex": rf"{_SHORT}|{_PRE}\p{{L}}+|\p{{N}}{{1,3}}|{_END}"}], False, False),
    "gpt-2": ([], True, False),
    "smollm": ([{"Digits": True}], True, False),
    "tekken": (
        [{"Regex": rf"{_PRE}{_UP}*{_LOW}+|{_PRE}{_UP}+{_LOW}*|\p{{N}}|{_SLASH}"}], False, True,
    ),
    "gpt-4o": (
        [{"Regex": rf"{_PRE}{_UP}*{_LOW}+{_SHORT}?|{_PRE}{_UP}+{_LOW}*{_SHORT}?|\p{{N}}{{1,3}}|"
          + _SLASH}], False, False,
    ),
    "deepseek-coder": (
        [{"Regex": "[\r\n]"}, {"Regex": r"\s?\p{L}+"}, {"Regex": r"\s?\p{P}+"},
         {"Regex": "[一-龥ࠀ-一가-퟿]+"}, {"Digits": True}], False, False,
    ),
}  # fmt: skip


def pre_tokenizer(name: str) -> dict[str, Any]:
    """As a JSON object of ``tokenizer.json``."""
    stages, use_regex, _ = PUBLISHED[name]
    parts: list[dict[str, Any]] = []
    for stage in stages:
        if "Digits" in stage:
            parts.append({"type": "Digits", "individual_digits": True})
        else:
            behaviour = {"behavior": "Isolated", "invert": False}
            parts.append({"type": "Split", "pattern": stage, **behaviour})
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    parts.append({**level, "use_regex": use_regex})
    return parts[0] if len(parts) == 1 else {"type": "Sequence", "pretokenizers": parts}


@functools.cache
def byte_level(name: str = "qwen2") -> Tokenizer:
    """Trained on a few lines with a published cut, ChatML tokens added."""
    tokenizer = Tokenizer(models.BPE())
    spec = json.loads(tokenizer.to_str())
    spec["pre_tokenizer"] = pre_tokenizer(name)
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 8,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIALS])
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    spec = json.loads(tokenizer.to_str())
    spec["model"]["ignore_merges"] = PUBLISHED[name][2]
    return Tokenizer.from_str(json.dumps(spec))


TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "initializer_range": 0.15,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
# Name: transformers' class and what differs from SHAPE.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, tied": ("Llama", {"tie_word_embeddings": True}),
    "llama, short heads": ("Llama", {"head_dim": 8, "num_key_value_heads": 4}),
    "llama 3.1": ("Llama", {"rope_scaling": LLAMA3, "rope_theta": 500000.0}),
    "llama, linear": ("Llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 32}),
    "qwen2": ("Qwen2", {"rope_theta": 1000000.0}),
    "qwen2, tied": ("Qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen3, tied": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
}


def transformers_model(kind: str, seed: int = 3, **changes: Any) -> PreTrainedModel:
    """``kind``: Llama, Mistral, Qwen2, Qwen3. Biases and norms are random too."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**{**SHAPE, **changes})
    config._attn_implementation = "eager"
    model: PreTrainedModel = getattr(transformers, f"{kind}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.train(False)
    return model


def write_folder(
    folder: Path, model: PreTrainedModel, tokenizer: Tokenizer | None = None, *,
    shard: str = "5GB", **said: Any,
) -> Path:  # fmt: skip
    """As it lies on a hub; ``said``: changes of ``tokenizer_config.json``."""
    model.save_pretrained(folder, max_shard_size=shard)
    (tokenizer or byte_level()).save(str(folder / "tokenizer.json"))
    config = {
        "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None,
        "add_bos_token": False, "chat_template": TEMPLATE, **said,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    """``None`` is written as null; a key given as ``...`` is taken out."""
    found = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in found.items() if v is not ...}))
