#!/usr/bin/env python3
"""Writes a tiny Llama with random weights and its tokenizer into a Hugging Face cache, so that vLLM finds it by name
and without a network.

Usage: make_model.py CACHE NAME HEAD_DIM WORDS.rs

The model is 2 layers of width 64; it says nothing, but costs what a model costs to serve. A word of `doe`'s load
generator (the quoted words of WORDS.rs) is one token, any other text is one token a character: no two prompts look
the same to a cache because both are unknown. A head dimension of 16 makes a model that vLLM 0.32 on a CPU loads,
reports healthy, and dies of at the first request."""

import hashlib
import json
import pathlib
import re
import string
import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WIDTH, LAYERS, POSITIONS = 64, 2, 8192
SPECIAL = ["<unk>", "<s>", "</s>"]


def tokenizer(words):
    """One token a known word, one a character of any other. The decoder puts a space before each word."""
    chars = string.ascii_letters + string.digits + string.punctuation
    pieces = SPECIAL + list(chars) + ["##" + c for c in chars] + words
    fast = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=fast, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    wrapped.chat_template = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}assistant"
    return wrapped, len(pieces)


def model(vocabulary, words, head_dim):
    heads = WIDTH // head_dim
    torch.manual_seed(0)
    llama = LlamaForCausalLM(LlamaConfig(
        vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=POSITIONS,
        bos_token_id=1, eos_token_id=2,
    ))
    with torch.no_grad():
        # What is said is always a word: never the end, and never a token without text.
        llama.lm_head.weight.normal_(0, 1)
        llama.lm_head.weight[: vocabulary - words] = 0
    llama.generation_config.eos_token_id = None
    llama.generation_config.do_sample = False
    return llama


def main():
    cache, name, head_dim, words_file = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    words = re.findall(r'"([a-z]+)"', pathlib.Path(words_file).read_text())
    words = [word for word in dict.fromkeys(words) if len(word) > 1]
    if len(words) != 256:
        sys.exit(f"make_model.py: {words_file} has {len(words)} words, expected 256")
    fast, vocabulary = tokenizer(words)
    llama = model(vocabulary, len(words), head_dim)

    commit = hashlib.sha1(json.dumps([words, head_dim, WIDTH, LAYERS, POSITIONS]).encode()).hexdigest()
    place = pathlib.Path(cache) / "hub" / ("models--" + name.replace("/", "--"))
    (place / "refs").mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(place / "snapshots" / commit)
    llama.save_pretrained(place / "snapshots" / commit)
    (place / "refs" / "main").write_text(commit)
    print(f"{name}: {sum(p.numel() for p in llama.parameters())} parameters, {vocabulary} tokens, head dimension {head_dim}")


if __name__ == "__main__":
    main()
