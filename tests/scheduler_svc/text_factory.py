"""A small byte-level tokenizer, trained here, that the text tests share."""

from functools import cache

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from scheduler_svc.tokenizer import Tokenizer

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_CORPUS = [
    "the quick brown fox jumps over the lazy dog, the dog sleeps and the fox goes on",
    "Пример текста на русском языке, чтобы слова разрывались между токенами",
    "你好世界，你好，日本語のテキスト", "🙂🙃🙂 emoji 👩‍👩‍👧 and é à ü ñ",
    "stop stopping stopped the stops abab ababab aaaa bbbb",
]  # fmt: skip


@cache
def raw_tokenizer() -> tokenizers.Tokenizer:
    """Built as Qwen's is: NFC, byte-level BPE, special tokens, and added tokens that are not special."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    # Neither is written in the byte alphabet alone: spaces and CJK stand for themselves.
    tokenizer.add_tokens(["<think>", "a b", "思考 é"])
    return tokenizer


@cache
def small_tokenizer() -> Tokenizer:
    """What the service makes of it."""
    return Tokenizer(raw_tokenizer())


def vocab_size() -> int:
    """With a few ids that have no token, as padded vocabularies do."""
    return raw_tokenizer().get_vocab_size() + 5
