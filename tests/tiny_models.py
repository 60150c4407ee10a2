"""Tiny random models of every family, with tokenizers that frame a text as the family's own do."""

from pathlib import Path
from typing import NamedTuple

from tiny_text import WORDS


class Family(NamedTuple):
    """What tells the families' tokenizers apart.

    Attributes:
        special: the special tokens by role, in the order of their ids.
        single: how one text is framed.
        pair: how two texts are framed.
        published: the class that the family's pretrained weights are published in.
        settings: of the configuration.
    """

    special: dict[str, str]
    single: str
    pair: str
    published: str
    settings: dict[str, int]


_BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
_ROBERTA_TOKENS = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
_LLAMA = _BERT | {"num_key_value_heads": 2}
FAMILIES = {
    "roberta": Family(
        _ROBERTA_TOKENS | {"cls_token": "<s>", "sep_token": "</s>"},
        "<s> $A </s>",
        "<s> $A </s> </s> $B </s>",
        "AutoModelForMaskedLM",
        _BERT | {"max_position_embeddings": 66},  # two more than positions, as RoBERTa has
    ),
    "bert": Family(
        {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"},
        "[CLS] $A [SEP]",
        "[CLS] $A [SEP] $B:1 [SEP]:1",
        "AutoModelForPreTraining",
        _BERT | {"max_position_embeddings": 64},
    ),
    "opt": Family(
        {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
        "</s> $A",
        "</s> $A </s> $B",
        "AutoModelForCausalLM",
        {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 24}
        | {"word_embed_proj_dim": 16, "max_position_embeddings": 64},
    ),
    "llama": Family(  # without a pad token
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "unk_token": "<unk>"},
        "<|begin_of_text|> $A",
        "<|begin_of_text|> $A <|begin_of_text|> $B",
        "AutoModelForCausalLM",
        _LLAMA | {"max_position_embeddings": 64},
    ),
    "qwen2": Family(  # pads with the token that ends a text
        {"pad_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<unk>"},
        "$A",
        "$A $B",
        "AutoModelForCausalLM",
        _LLAMA | {"max_position_embeddings": 64},
    ),
}


def save_tiny(family: str, folder: Path, words: list[str] = WORDS, append_eos: bool = False) -> str:
    """Save a random model of 2 layers and hidden size 16, as it would be published, and a tokenizer of some words.

    The models of Llama and Qwen2 have 4 heads and 2 heads of keys and values: their v_proj is 16 to 8.

    Args:
        family: one of `FAMILIES`.
        folder: where to; it is made if need be.
        words: what the tokenizer knows.
        append_eos: whether the tokenizer ends every text with the eos token.
    """
    import torch
    import transformers

    tokenizer = make_tokenizer(family, words, append_eos)
    tokenizer.save_pretrained(folder)
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    known = FAMILIES[family]
    config = transformers.AutoConfig.for_model(family, vocab_size=len(tokenizer), **ids, **known.settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, known.published).from_config(config)
        for parameter in model.parameters():
            # The usual start is so small that texts hardly differ, and biases are zero.
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return str(folder)


def make_tokenizer(family: str, words: list[str] = WORDS, append_eos: bool = False):
    """Return a tokenizer with the special tokens of a family: word-level, but byte-level for Qwen2.

    Transformers takes its own class for a Qwen2 tokenizer, and that one reads no other kind.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    known = FAMILIES[family]
    special = list(dict.fromkeys(known.special.values()))
    if family == "qwen2":
        backend = _byte_level(words, special)
    else:
        vocabulary = {word: i for i, word in enumerate([*special, *words])}
        backend = Tokenizer(models.WordLevel(vocabulary, unk_token=known.special["unk_token"]))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
    end = f" {known.special['eos_token']}" if append_eos else ""
    backend.post_processor = processors.TemplateProcessing(
        single=known.single + end,
        pair=known.pair + end,
        special_tokens=[(token, backend.token_to_id(token)) for token in special],
    )
    names = ["input_ids", *(["token_type_ids"] if family == "bert" else []), "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=names, **known.special)


def _byte_level(words: list[str], special: list[str]):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    backend.train_from_iterator([" ".join(words)], trainer)
    return backend
