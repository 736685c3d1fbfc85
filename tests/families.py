"""What becomes of every causal language model that transformers knows: opened, refused by a rule, or beside the point.

`models.DENSE` and `models.REFUSED` are built and tried. The rest are listed here with the reason why they are not: the
list is complete for the release it names. Under another release new names are told with a warning, and nothing fails:
what a model is stays decided by its structure when it is opened.
"""

from __future__ import annotations

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests import models

RELEASE = "5.24.0"

_WHY = {
    "experts: weights of three dimensions, refused as mixtral is": """
        afmoe aria_text axk1 axk2 beam cohere2_moe dbrx deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 dots1
        dots3_note dots3_note_text ernie4_5_moe exaone_moe flex_olmo flint glm4_moe glm4_moe_lite glm_moe_dsa
        granitemoe granitemoe_swa granitemoeshared hunyuan_v1_moe hy_v3 hy_v4 jetmoe kolibri1 laguna llama4
        llama4_text longcat_flash mellum mimo_v2_flash minimax minimax_m2 minimax_m3_vl_text phimoe qwen3_moe
        sarvam_mla sarvam_moe solar_open
    """,
    "state spaces, recurrences or convolutions: weights of three dimensions, refused as mamba is": """
        bailing_hybrid bamba falcon_h1 falcon_mamba granitemoehybrid inkling2_loop_text inkling2_text inkling_text
        kimi_linear lara_mini lfm2_moe lfm3 nemotron_h olmo_hybrid qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text
        qwen3_next qwen4_exp qwen4_exp_text recurrent_gemma zamba zamba2 zaya
    """,
    "an encoder: reads both ways, refused as bert is, unless it was made as a decoder": """
        bert-generation big_bird camembert cpmant data2vec-text electra ernie megatron-bert rembert roberta-prelayernorm
        roc_bert roformer xlm xlm-roberta xlm-roberta-xl xmod
    """,
    "the decoder half of a model with an encoder": """
        bart bigbird_pegasus blenderbot blenderbot-small marian mbart mvp pegasus plbart prophetnet trocr whisper
    """,
    "reads or makes images or sound besides text; its text half stands in this list by itself or is like llama": """
        emu3 fuyu gemma3 gemma3n gemma4 gemma4_assistant gemma4_unified gemma4_unified_assistant git got_ocr2 mllama
        moshi moss_transcribe_diarize musicgen musicgen_melody phi4_multimodal
    """,
    "the code of a family that is tried": "apertus1p5_text exaone gpt-sw3 internlm3 iquestcoder",
    "its tokenizer does not say where tokens stand, or it reads in an order of its own": """
        ctrl openai-gpt reformer xlnet
    """,
    "a cascade of models over bytes": "blt",
    "runs its blocks several times over": "hrm_text",
    "recurrent without weights of three dimensions": "xlstm",
    "no tiny one was made: attention or embeddings of an unusual form": """
        cohere_compass_text dory gemma3n_text gemma4_text gemma4_unified_text minicpm3 youtu
    """,
}
ASIDE = {name: why for why, names in _WHY.items() for name in names.split()}


def tried() -> dict[str, str]:
    """Names in transformers' list of the models that are built here: opened or refused."""
    kinds = ((models.DENSE, "opened"), (models.REFUSED, "refused"))
    return {getattr(transformers, entry[0]).model_type: what for table, what in kinds for entry in table.values()}


def unaccounted() -> tuple[set[str], set[str]]:
    """Names of this release that nothing is said about, and names said something about that it does not have."""
    here, told = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES), {*tried(), *ASIDE}
    return here - told, told - here
