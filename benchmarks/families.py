"""A tiny random model of every family that Transformers can classify with, and what plain Transformers answers.

`config_of` shrinks a family's default configuration by the names of its settings; `EXCEPTIONS` has what names alone do
not tell. The rows that the models are asked about are ids, so that no family needs a tokenizer of its own.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

LABELS = 3
VOCABULARY = 40
POSITIONS = 64
PAD, EOS, CLS, FIRST_WORD = 0, 2, 3, 6

_SIZES: dict[int, tuple[str, ...]] = {
    2: (
        *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "depth"),
        *("num_decoder_layers", "num_key_value_heads", "num_kv_heads", "num_experts_per_tok", "linear_num_key_heads"),
        *(
            "n_mamba_heads",
            "num_query_groups",
            "index_n_heads",
            "num_self_attends_per_block",
            "num_feedforward_networks",
        ),
        *("num_feedforward_networks", "num_self_attention_heads", "num_cross_attention_heads", "spatial_merge_size"),
        *("q_groups", "k_groups", "v_groups", "intermediate_groups", "output_groups", "rotary_dim"),
    ),
    4: (
        *("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "linear_num_value_heads"),
        *(
            "decoder_attention_heads",
            "head_dim",
            "d_kv",
            "d_head",
            "v_head_dim",
            "qk_nope_head_dim",
            "qk_rope_head_dim",
        ),
        *("qk_rope_head_dim", "num_local_experts", "n_routed_experts", "num_experts", "query_pre_attn_scalar"),
        *(
            "linear_key_head_dim",
            "linear_value_head_dim",
            "index_head_dim",
            "kv_channels",
            "attention_head_size",
            "mm_tokens_per_image",
        ),
        *("mamba_d_state", "mamba_dt_rank", "adapter_rank", "gated_norm_rank", "index_topk"),
    ),
    6: ("sliding_window", "local_attention", "window_size"),
    8: (
        *("qk_head_dim", "kv_lora_rank", "q_lora_rank", "num_latents", "segment_means_seq_len"),
        *("num_landmarks", "moe_intermediate_size"),
    ),
    16: (
        *("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size", "pooler_hidden_size", "d_latents"),
        *(
            "input_embedding_size",
            "output_embedding_size",
            "word_embed_proj_dim",
            "true_hidden_size",
            "out_hidden_size",
        ),
        *("intra_bottleneck_size", "shared_expert_intermediate_size", "cross_attention_hidden_size", "entity_emb_size"),
        *("prediction_head_size", "dim_model_base", "prompt_length", "prompt_mid_dim"),
    ),
    24: (
        *("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim", "n_inner", "d_ff", "d_inner", "dff"),
        *("hidden_dim", "ffn_hidden_size", "feed_forward_size"),
    ),
    32: ("attention_hidden_size", "block_size", "chunk_size", "entity_vocab_size", "image_size", "input_size"),
    VOCABULARY: ("vocab_size",),
    POSITIONS: ("max_position_embeddings", "n_positions", "max_seq_len"),
}
_BY_NAME = {name: size for size, names in _SIZES.items() for name in names}
_LAYERS = ("layer_types", "mlp_layer_types", "no_rope_layers", "layers_block_type")
"""Settings with an entry for each layer, of which the first ones are kept."""

_MIXED = {"layer_types": ["linear_attention", "full_attention"]}
_HYBRID: dict[str, Any] = {"layers_block_type": ["mamba", "hybrid"], "mamba_d_state": 8}
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "axk1": {"n_group": 2, "topk_group": 1, "mlp_layer_types": ["dense", "sparse"]},
    "axk2": {"mlp_layer_types": ["dense", "sparse"]},
    "big_bird": {"block_size": 2, "num_random_blocks": 1},
    "canine": {"num_hash_buckets": 40, "local_transformer_stride": 8},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deepseek_v2": {"num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "deepseek_v3": {"first_k_dense_replace": 1, "n_group": 2, "topk_group": 1},
    "esm": {"vocab_size": VOCABULARY, "pad_token_id": 1, "mask_token_id": 4},
    "esmc": {"num_key_value_heads": 4},
    "funnel": {"block_sizes": [1, 1], "block_repeats": [1, 1]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "hunyuan_v1_dense": {"head_dim": 4},
    "hunyuan_v1_moe": {"head_dim": 4},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "use_mamba_kernels": False},
    "layoutlmv3": {"coordinate_size": 3, "shape_size": 2},
    "lilt": {"hidden_size": 24, "channel_shrink_ratio": 2},
    "longformer": {"attention_window": [8, 8]},
    "ministral": {"head_dim": 4},
    "mistral4": {"rope_parameters": None},
    "nemotron": {"head_dim": 4, "num_key_value_heads": 2},
    "qwen3_5": {"text_config": _MIXED},
    "qwen3_5_text": _MIXED,
    "qwen3_next": _MIXED,
    "reformer": {"axial_pos_embds": False, "hidden_size": 16, "attn_layers": ["local", "lsh"], "num_buckets": 4}
    | {"local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8, "is_decoder": False},
    "t5": {"decoder_start_token_id": PAD},
    "xmod": {"default_language": "en_XX"},
    "zamba": _HYBRID
    | {"num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "hybrid"], "use_mamba_kernels": False},
    "zamba2": _HYBRID | {"mamba_headdim": 8, "n_mamba_heads": 4, "use_mamba_kernels": False, "attention_head_dim": 8},
}
"""Settings that the names alone do not tell, by family."""
_LATENT = ["q_b_proj", "kv_b_proj"]
TARGETS: dict[str, list[str]] = {
    **dict.fromkeys(("axk1", "deepseek_v2", "deepseek_v3", "minicpm3", "mistral4"), _LATENT),
    "axk2": ["q_a_proj", "kv_b_proj"],
    "ctrl": ["Wq", "Wv"],
    "deberta": ["in_proj"],
    "fnet": ["intermediate.dense"],
    "funnel": ["q_head", "v_head"],
    "jetmoe": ["kv_proj"],
    "phi3": ["qkv_proj"],
    "squeezebert": ["pooler.dense"],
    "xlnet": ["layer_1", "layer_2"],
}
"""Which layers are adapted, where fedgram has no default for a family."""
FROZEN_HEADS = frozenset({"modernbert", "modernbert-decoder", "modernvbert"})
"""Families whose head holds parameters that clients can't train."""
LEAST: dict[str, int] = {"canine": 4, "funnel": 3}
"""How many tokens plain Transformers needs at least, by family; 1 for all others."""


def families() -> list[str]:
    """Return the families that Transformers has a sequence classification model for."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    return sorted(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)


def config_of(family: str) -> Any:
    """Return a family's default configuration with all sizes small."""
    from transformers import AutoConfig

    own = AutoConfig.for_model(family)
    settings = _merged(_shrunk(own.to_dict()), EXCEPTIONS.get(family, {}))
    return type(own)(**settings, num_labels=LABELS, problem_type="single_label_classification")


def _shrunk(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that are to be others than by default, of a configuration and those in it."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and "model_type" in value:
            found[name] = _shrunk(value)
        elif name in _LAYERS and isinstance(value, list):
            found[name] = value[:2]
        elif name.endswith("token_id") and isinstance(value, int) and (name == "eos_token_id" or value >= VOCABULARY):
            found[name] = EOS
        elif name in _BY_NAME and isinstance(value, int) and not isinstance(value, bool):
            found[name] = _BY_NAME[name]
    if "kv_lora_rank" in found:  # latent attention has as many of each
        found["num_key_value_heads"] = found["num_attention_heads"]
    return found


def _merged(settings: dict[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with others in their place, those of configurations within merged likewise."""
    nested = {
        name: _merged(settings[name], value)
        for name, value in others.items()
        if isinstance(value, dict) and isinstance(settings.get(name), dict)
    }
    return settings | others | nested


def save(family: str, folder: Path, noise: float = 0.2) -> str:
    """Save a random model of a family, as it would be published; return the folder."""
    import transformers

    config = config_of(family)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForSequenceClassification.from_config(config)
        for parameter in model.parameters():
            parameter.data += noise * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return str(folder)


def rows_of(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    """Return rows of so many ids, each of which ends with the token that ends a text."""
    draw = np.random.default_rng(seed)
    words = [draw.integers(FIRST_WORD, VOCABULARY, length).tolist() for length in lengths]
    return [[*row[:-1], EOS] for row in words]


def plain_logits(folder: str, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return what Transformers answers to each row by itself, without padding."""
    import transformers

    network = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        inputs = [torch.tensor([row]) for row in rows]
        said = [network(input_ids=ids, attention_mask=torch.ones_like(ids)).logits for ids in inputs]
    return torch.cat(said)
