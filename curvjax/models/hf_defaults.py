"""What absent entries of each family's config.json mean, and which entries have no part in the computation.

Source: the configuration classes of transformers 5.
"""

from typing import Any

_ROTARY = {
    "num_key_value_heads": None,
    "head_dim": None,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "rope_theta": 10000.0,
    "bos_token_id": None,
    "eos_token_id": None,
}
_LLAMA = _ROTARY | {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MISTRAL = _LLAMA | {
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}
_QWEN2 = _ROTARY | {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_GEMMA2 = _ROTARY | {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "use_bidirectional_attention": None,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
_GEMMA3 = _GEMMA2 | {
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "rope_theta": 1e6,
    "rope_local_base_freq": 10000.0,
    "sliding_window_pattern": 6,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
}
_GPT2 = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": None,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
}
GPT2_ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
_OPT = {
    "vocab_size": 50272,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "ffn_dim": 3072,
    "max_position_embeddings": 2048,
    "do_layer_norm_before": True,
    "_remove_final_layer_norm": False,
    "word_embed_proj_dim": None,
    "num_attention_heads": 12,
    "activation_function": "relu",
    "enable_bias": True,
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 2,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "mistral": _MISTRAL,
    "qwen2": _QWEN2,
    "qwen3": _QWEN2 | {"head_dim": 128},
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA3,
    "gpt2": _GPT2,
    "opt": _OPT,
}

# How a model was made and trained, how it is run, how text is drawn from it; and heads for other tasks, whose tensors
# the decoder's would not match.
_MADE_AND_RUN = """
    _name_or_path name_or_path _commit_hash architectures model_type transformers_version transformers.js_config
    saved_by_curvjax torch_dtype dtype use_cache cache_implementation torchscript use_bfloat16
    gradient_checkpointing attn_implementation _attn_implementation _attn_implementation_autoset
    _attn_implementation_internal pretraining_tp initializer_range init_std attention_dropout dropout hidden_dropout
    resid_pdrop embd_pdrop attn_pdrop layerdrop activation_dropout n_ctx reorder_and_upcast_attn
    chunk_size_feed_forward tie_last_hidden_states is_decoder is_encoder_decoder tie_encoder_decoder
    cross_attention_hidden_size pad_token_id unk_token_id sep_token_id cls_token_id mask_token_id
    decoder_start_token_id tokenizer_class prefix output_hidden_states output_attentions return_dict use_return_dict
    id2label label2id num_labels problem_type classifier_dropout finetuning_task task_specific_params summary_type
    summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout summary_last_dropout
    is_llama_config rope_interleaved unsloth_fixed unsloth_version bad_words_ids begin_suppress_tokens
    diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size encoder_repetition_penalty
    epsilon_cutoff eta_cutoff exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id
    length_penalty max_length max_new_tokens min_length no_repeat_ngram_size num_beam_groups num_beams
    num_return_sequences output_scores remove_invalid_values repetition_penalty return_dict_in_generate
    suppress_tokens temperature tf_legacy_loss top_k top_p typical_p
"""
_OF_IMAGES = """
    vision_config text_config mm_tokens_per_image boi_token_index eoi_token_index image_token_index boi_token_id
    eoi_token_id image_token_id
"""
HARMLESS = frozenset(_MADE_AND_RUN.split())
OF_IMAGES = frozenset(_OF_IMAGES.split())  # around the text decoder of a multimodal model
