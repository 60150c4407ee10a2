"""Whether a tokenizer is the backbone's: Transformers makes one up of a few tokens where a folder has none."""

import logging
from fnmatch import fnmatch
from typing import TYPE_CHECKING

import numpy as np

from fedgram.errors import ConfigurationError
from fedgram.models.sources import Source, folder_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

__all__ = ["check_files", "check_unknown", "check_vocabulary"]

log = logging.getLogger(__name__)

_FILES = ("tokenizer.json", "*vocab*", "*merges*", "*.model", "*.bpe*", "*.codes", "*.tiktoken", "tekken.json")
"""What files that hold a vocabulary are called: that of any of Transformers' tokenizers matches one of these."""
_LEAST_SHARE = 0.05
"""The least share of a backbone's embeddings that its own tokenizer has tokens for.

Published ones have nearly all (BERT 30,522 of 30,522, T5 32,100 of 32,128, Qwen2.5 151,665 of 152,064), those of
molecules and proteins, whose models were configured for text, some tenths; one that was made up has 5 of thousands.
"""
_MANY_UNKNOWN = 0.1
"""Texts in the language and script of a tokenizer have some hundredths at most."""
_MOST_UNKNOWN = 0.9
"""What is left says nothing of a text."""


def check_files(tokenizer: "PreTrainedTokenizerBase", source: Source, reference: str) -> None:
    """Refuse a tokenizer that was made up, since the source has no file with a vocabulary.

    Tokenizers of bytes and characters (ByT5, CANINE, Perceiver) need none.

    Raises:
        ConfigurationError: if no file of the source holds a vocabulary, or the tokenizer has special tokens alone.
    """
    if not getattr(tokenizer, "vocab_files_names", None):
        return
    folder = folder_of(source)
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if source.gguf_file is None and names and not any(_holds_vocabulary(name, tokenizer) for name in names):
        raise ConfigurationError(
            f"{reference!r} has no file of a tokenizer, such as tokenizer.json or vocab.txt; save the model's tokenizer"
            " there with save_pretrained, or set model.tokenizer to a folder, hub name or package that has it"
        )
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise ConfigurationError(
            f"the tokenizer of {reference!r} has no tokens but the special ones, {len(tokenizer.get_vocab())} of them,"
            " so that every text would be unknown; save the model's own tokenizer there, or set model.tokenizer"
        )


def _holds_vocabulary(name: str, tokenizer: "PreTrainedTokenizerBase") -> bool:
    return name in tokenizer.vocab_files_names.values() or any(fnmatch(name, pattern) for pattern in _FILES)


def check_vocabulary(
    tokenizer: "PreTrainedTokenizerBase", config: "PretrainedConfig", name: str, backbone: str, borrowed: bool
) -> None:
    """Refuse a tokenizer whose tokens the backbone has no embeddings for, or that can't be the backbone's own.

    Args:
        tokenizer: the tokenizer.
        config: the backbone's.
        name: where the tokenizer comes from.
        backbone: where the backbone comes from.
        borrowed: whether the tokenizer was chosen apart from the backbone: it may then be a small one.

    Raises:
        ConfigurationError: if its ids are too large, or its vocabulary far below the backbone's.
    """
    largest, size = max(tokenizer.get_vocab().values()), getattr(config.get_text_config(), "vocab_size", None)
    if size is None:
        return
    if largest >= size:
        raise ConfigurationError(
            f"the tokenizer of {name!r} has token ids up to {largest}, but {backbone!r} has embeddings for {size}"
            " tokens; set model.tokenizer to one that fits"
        )
    if borrowed or not getattr(tokenizer, "vocab_files_names", None) or largest + 1 >= _LEAST_SHARE * size:
        return
    raise ConfigurationError(
        f"the tokenizer of {name!r} has {largest + 1:,} tokens, but the backbone was made for {size:,}, so that it"
        " can't be its own; save the model's tokenizer there, or set model.tokenizer to the one that is to be used"
    )


def check_unknown(tokenizer: "PreTrainedTokenizerBase", ids: np.ndarray) -> None:
    """Refuse training texts of which next to nothing is known to the tokenizer, and warn where much is not.

    Args:
        tokenizer: what the texts were cut by.
        ids: the tokens of the train split, int32 ``(tokens,)``.

    Raises:
        ConfigurationError: if nine tenths of the tokens, special ones aside, are the unknown token.
    """
    unknown, others = tokenizer.unk_token_id, _special_ids(tokenizer)
    if unknown is None or unknown in others:
        return  # every text can be written in its tokens
    count = int(np.count_nonzero(ids == unknown))
    texts = len(ids) - int(np.count_nonzero(np.isin(ids, others)))
    share = count / max(1, texts)
    message = (
        f"{share:.0%} of the {texts:,} tokens of the train split are unknown to the tokenizer ({tokenizer.unk_token})"
    )
    if share > _MOST_UNKNOWN:
        raise ConfigurationError(
            f"{message}, so that there is nothing to learn from; is it the backbone's own, and made for texts of this"
            " kind? set model.tokenizer to one that is, or write the texts as it expects them (in lower case, say)"
        )
    if share > _MANY_UNKNOWN:
        log.warning("%s: is it the one that the backbone was trained with, and is it made for such texts?", message)


def _special_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the ids of the tokens that frame and pad texts."""
    roles = ("bos", "eos", "sep", "cls", "pad")
    ids = (getattr(tokenizer, f"{role}_token_id", None) for role in roles)
    return sorted({int(number) for number in ids if number is not None})
