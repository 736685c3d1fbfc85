"""Tiny random models of many families, and a tokenizer for them. Configurations only: nothing is downloaded."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from editcore.assets import tables_dir
from editcore.handle import Handle
from editcore.opening import wrap

LAYERS, WIDTH, VOCABULARY = 4, 32, 512
END = "<|endoftext|>"

COMMON = dict(
    hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2,
    head_dim=8, max_position_embeddings=256, vocab_size=VOCABULARY,
)  # fmt: skip
FULL = {"num_key_value_heads": 4}
GPT = dict(n_embd=WIDTH, n_layer=LAYERS, n_head=4, n_positions=256, vocab_size=VOCABULARY)
ROTARY_GPT = {**GPT, "rotary_dim": 4}

# name -> (configuration class, its arguments, path of the edited matrix in block 0)
DENSE: dict[str, tuple[str, dict[str, Any], str]] = {
    "gpt2": ("GPT2Config", GPT, "transformer.h.0.mlp.c_proj"),
    "gptj": ("GPTJConfig", ROTARY_GPT, "transformer.h.0.mlp.fc_out"),
    "codegen": ("CodeGenConfig", ROTARY_GPT, "transformer.h.0.mlp.fc_out"),
    "gpt-bigcode": ("GPTBigCodeConfig", GPT, "transformer.h.0.mlp.c_proj"),
    "gpt-neo": (
        "GPTNeoConfig",
        dict(
            hidden_size=WIDTH,
            num_layers=LAYERS,
            num_heads=4,
            attention_types=[[["global", "local"], LAYERS // 2]],
            max_position_embeddings=256,
            vocab_size=VOCABULARY,
            window_size=64,
        ),
        "transformer.h.0.mlp.c_proj",
    ),
    "gpt-neox": ("GPTNeoXConfig", COMMON, "gpt_neox.layers.0.mlp.dense_4h_to_h"),
    "opt": (
        "OPTConfig",
        dict(
            hidden_size=WIDTH,
            ffn_dim=48,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            word_embed_proj_dim=WIDTH,
            max_position_embeddings=256,
            vocab_size=VOCABULARY,
        ),
        "model.decoder.layers.0.fc2",
    ),
    "bloom": (
        "BloomConfig",
        dict(hidden_size=WIDTH, n_layer=LAYERS, n_head=4, vocab_size=VOCABULARY),
        "transformer.h.0.mlp.dense_4h_to_h",
    ),
    "falcon": (
        "FalconConfig",
        dict(hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4, vocab_size=VOCABULARY, alibi=False),
        "transformer.h.0.mlp.dense_4h_to_h",
    ),
    "mpt": (
        "MptConfig",
        dict(d_model=WIDTH, n_layers=LAYERS, n_heads=4, max_seq_len=256, vocab_size=VOCABULARY),
        "transformer.blocks.0.ffn.down_proj",
    ),
    "phi": ("PhiConfig", {**COMMON, **FULL}, "model.layers.0.mlp.fc2"),
    "starcoder2": ("Starcoder2Config", COMMON, "model.layers.0.mlp.c_proj"),
    **{
        name: (f"{kind}Config", {**COMMON, **more}, "model.layers.0.mlp.down_proj")
        for name, kind, more in (
            ("llama", "Llama", {}),
            ("mistral", "Mistral", {"sliding_window": 64}),
            ("qwen2", "Qwen2", {}),
            ("qwen3", "Qwen3", {}),
            ("gemma", "Gemma", {}),
            ("gemma2", "Gemma2", {"sliding_window": 64, "query_pre_attn_scalar": 8}),
            ("gemma3", "Gemma3Text", {"sliding_window": 64, "query_pre_attn_scalar": 8}),
            ("phi3", "Phi3", {"pad_token_id": 0, "original_max_position_embeddings": 256}),
            ("stablelm", "StableLm", {}),
            ("cohere", "Cohere", {}),
            ("cohere2", "Cohere2", {"sliding_window": 64}),
            ("olmo", "Olmo", {}),
            ("olmo2", "Olmo2", {}),
            ("granite", "Granite", {}),
            ("glm", "Glm", {"pad_token_id": 0}),
            ("glm4", "Glm4", {"pad_token_id": 0}),
            ("smollm3", "SmolLM3", {"pad_token_id": 0}),
            ("helium", "Helium", {}),
            ("exaone4", "Exaone4", {"sliding_window": 64, "sliding_window_pattern": 2}),
            ("seed-oss", "SeedOss", {}),
            ("ernie4.5", "Ernie4_5", {}),
            ("apertus", "Apertus", {}),
            ("arcee", "Arcee", {}),
            ("bitnet", "BitNet", {}),
            ("cwm", "Cwm", {"layer_types": ["full_attention"] * LAYERS}),
            ("diffllama", "DiffLlama", {}),
            ("doge", "Doge", {}),
            ("granite-swa", "GraniteSWA", {"sliding_window": 64}),
            ("hunyuan", "HunYuanDenseV1", {}),
            ("hyperclovax", "HyperCLOVAX", {}),
            ("jais2", "Jais2", {}),
            ("ministral", "Ministral", {"sliding_window": 64}),
            ("ministral3", "Ministral3", {}),
            ("olmo3", "Olmo3", {"sliding_window": 64}),
            ("vaultgemma", "VaultGemma", {"sliding_window": 64, "query_pre_attn_scalar": 8}),
        )
    },
    "nemotron": ("NemotronConfig", COMMON, "model.layers.0.mlp.down_proj"),
    "nanochat": ("NanoChatConfig", COMMON, "model.layers.0.mlp.fc2"),
    "persimmon": ("PersimmonConfig", {**COMMON, **FULL}, "model.layers.0.mlp.dense_4h_to_h"),
    "gpt-neox-japanese": (
        "GPTNeoXJapaneseConfig",
        {**COMMON, "intermediate_multiple_size": 2},
        "gpt_neox_japanese.layers.0.mlp.dense_4h_to_h",
    ),
    "biogpt": ("BioGptConfig", {**COMMON, **FULL}, "biogpt.layers.0.fc2"),
    "xglm": (
        "XGLMConfig",
        dict(
            d_model=WIDTH,
            ffn_dim=48,
            num_layers=LAYERS,
            attention_heads=4,
            max_position_embeddings=256,
            vocab_size=VOCABULARY,
        ),
        "model.layers.0.fc2",
    ),
    "modernbert-decoder": ("ModernBertDecoderConfig", COMMON, "model.layers.0.mlp.Wo"),
}

# Settings inside a family that change where the edited output goes or what attention sees.
DENSE |= {
    f"{name}-{variant}": (kind, {**arguments, **more}, site)
    for name, variant, more in (
        ("granite", "scaled", {"residual_multiplier": 0.22}),
        ("opt", "post-norm", {"do_layer_norm_before": False}),
        ("gpt-neox", "serial", {"use_parallel_residual": False}),
        ("falcon", "alibi", {"alibi": True}),
        ("mistral", "window", {"sliding_window": 6}),
        ("gemma3", "window", {"sliding_window": 6}),
        ("gpt-neo", "window", {"window_size": 6}),
    )
    for kind, arguments, site in [DENSE[name]]
}

# name -> (configuration class, its arguments, words of the rule that refuses it)
BERT = dict(
    hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4, vocab_size=VOCABULARY
)
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "mixtral": ("MixtralConfig", {**COMMON, "num_local_experts": 4}, "three or more dimensions"),
    "qwen2-moe": (
        "Qwen2MoeConfig",
        {**COMMON, "num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
        "three or more dimensions",
    ),
    "olmoe": ("OlmoeConfig", {**COMMON, "num_experts": 4}, "three or more dimensions"),
    "mamba": (
        "MambaConfig",
        dict(hidden_size=WIDTH, num_hidden_layers=LAYERS, state_size=4, vocab_size=VOCABULARY),
        "three or more dimensions",
    ),
    "mamba2": (
        "Mamba2Config",
        dict(
            hidden_size=WIDTH, num_hidden_layers=LAYERS, state_size=4, vocab_size=VOCABULARY, num_heads=8, head_dim=8,
            n_groups=2,
        ),
        "three or more dimensions",
    ),
    "lfm2": (
        "Lfm2Config",
        {**COMMON, "layer_types": ["conv", "full_attention"] * (LAYERS // 2)},
        "three or more dimensions",
    ),
    "gpt-oss": ("GptOssConfig", {**COMMON, "num_local_experts": 2}, "three or more dimensions"),
    "rwkv": (
        "RwkvConfig",
        dict(hidden_size=WIDTH, num_hidden_layers=LAYERS, vocab_size=VOCABULARY, attention_hidden_size=WIDTH),
        "three or more dimensions",
    ),
    "bert": ("BertConfig", {**BERT, "is_decoder": False}, "reads both ways"),
    "roberta": ("RobertaConfig", {**BERT, "is_decoder": False}, "reads both ways"),
    "jamba": (
        "JambaConfig",
        {**COMMON, "num_experts": 2, "use_mamba_kernels": False, "mamba_d_state": 4, "pad_token_id": 0},
        "three or more dimensions",
    ),
}  # fmt: skip


@lru_cache(maxsize=128)
def model(name: str, seed: int = 0) -> Any:
    """A random model of the family, in eval mode; the same object each time: nobody may change it."""
    kind, arguments, _ = (DENSE | REFUSED)[name]
    extra = {"bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": False}
    config = getattr(transformers, kind)(**{**arguments, **extra, "pad_token_id": 0})
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    built = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():  # larger than usual, so that attention and norms matter in comparisons
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    torch.random.set_rng_state(state)
    built.generation_config.pad_token_id = 0
    return built.requires_grad_(False)


def phrases() -> list[str]:
    """Text the tokenizer learns its merges from."""
    lines = (tables_dir() / "phrasings.csv").read_text(encoding="utf-8").splitlines()
    return [line.replace("{s}", "the United Kingdom") for line in lines]


@lru_cache(maxsize=16)
def tokenizer(bos: bool = False, controls: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 512 tokens, `controls` among them; with `bos`, its first token stands before every text."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END, *controls], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    inner.train_from_iterator(phrases(), trainer)
    level = processors.ByteLevel(trim_offsets=True)
    first = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, 0)])
    inner.post_processor = processors.Sequence([level, first]) if bos else level
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=END, eos_token=END, pad_token=END)


@lru_cache(maxsize=128)
def handle(name: str, bos: bool = False) -> Handle:
    """A handle over the family's tiny model."""
    return wrap(model(name), tokenizer(bos), f"tiny-{name}")
