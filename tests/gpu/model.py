"""A small Llama of random weights: vLLM makes them (``--load-format dummy``), so that the model's
folder has a configuration and a tokenizer only, which are made here."""

from __future__ import annotations

import json

FOLDER = "/models/tiny-llama"
CONTEXT = 16384
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "bfloat16",
    "torch_dtype": "bfloat16",
    "vocab_size": 512,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
    "use_cache": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
SPECIAL = ("<s>", "</s>")
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def alphabet() -> list[str]:
    """The character that stands for each byte in byte-level BPE, in the order of the bytes: those
    that print stand for themselves, the others follow from U+0100 on.

    https://huggingface.co/docs/tokenizers/api/pre-tokenizers (ByteLevel)
    """
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def tokenizer() -> dict[str, object]:
    """tokenizer.json: a token for each byte."""
    words = [*SPECIAL, *alphabet()]
    words += [f"<unused{n}>" for n in range(CONFIG["vocab_size"] - len(words))]  # type: ignore[operator]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": True}  # fmt: skip
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": n, "content": word, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
            for n, word in enumerate(SPECIAL)
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": False, "vocab": {word: n for n, word in enumerate(words)},
            "merges": [],
        },
    }  # fmt: skip


def files() -> dict[str, tuple[int, bytes]]:
    """The folder's files: path to mode and content."""
    made = {
        "config.json": CONFIG,
        "generation_config.json": {"bos_token_id": 0, "eos_token_id": 1},
        "tokenizer.json": tokenizer(),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": SPECIAL[0],
            "eos_token": SPECIAL[1],
            "model_max_length": CONTEXT,
            "chat_template": TEMPLATE,
        },
    }
    return {
        f"{FOLDER}/{name}": (0o644, json.dumps(value, ensure_ascii=False).encode())
        for name, value in made.items()
    }
